//! What the receiver has answered, for those at the source who wait for it.

use block::{Epoch, Error, ErrorKind, Generation, Result, Span};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use tokio::sync::{Notify, oneshot};
use wire::Message;

/// Answers that have arrived on a connection.
#[derive(Default)]
pub(crate) struct Inbox {
    pub(crate) watermark: Cell<u64>,
    pub(crate) acked: Cell<Option<Epoch>>,
    pub(crate) activated: Cell<Option<Generation>>,
    pub(crate) pongs: Cell<u64>,
    /// Comparisons under way, by offset; as many as the sender has chunks in flight.
    comparing: RefCell<BTreeMap<u64, oneshot::Sender<Vec<u8>>>>,
    /// Those who wait for something else.
    waiting: Cell<u32>,
    /// Mirrored requests that were sent and are not answered.
    mirrored: Cell<u64>,
    /// Frames taken in.
    heard: Cell<u64>,
    changed: Notify,
}

impl Inbox {
    /// Wait until `seen` gives something.
    pub(crate) async fn wait<R>(&self, seen: impl Fn(&Inbox) -> Option<R>) -> R {
        loop {
            let changed = self.changed.notified();
            if let Some(r) = seen(self) {
                return r;
            }
            self.waiting.set(self.waiting.get() + 1);
            changed.await;
            self.waiting.set(self.waiting.get() - 1);
        }
    }

    /// A mirrored request is on its way.
    pub(crate) fn mirroring(&self) {
        self.mirrored.set(self.mirrored.get() + 1);
    }

    /// Whether the receiver owes an answer, and how many frames it has sent.
    pub(crate) fn owed(&self) -> (bool, u64) {
        let owed = self.waiting.get() > 0
            || self.mirrored.get() > 0
            || !self.comparing.borrow().is_empty();
        (owed, self.heard.get())
    }

    /// Register a comparison of `span` before its digests are sent.
    pub(crate) fn compare(&self, span: Span) -> oneshot::Receiver<Vec<u8>> {
        let (tx, rx) = oneshot::channel();
        self.comparing.borrow_mut().insert(span.offset, tx);
        rx
    }

    /// Take in a frame; mirrored requests are answered through `mirrored`.
    pub(crate) fn take(
        &self,
        epoch: Epoch,
        message: &Message<'_>,
        mirrored: impl FnOnce(u32, i32),
    ) -> Result<()> {
        self.heard.set(self.heard.get() + 1);
        match *message {
            Message::DigestDiff { span, differs } => {
                let waiting = self.comparing.borrow_mut().remove(&span.offset);
                let waiting = waiting.ok_or_else(|| unexpected("an answer to no comparison"))?;
                let _ = waiting.send(differs.to_vec());
            }
            Message::SeedWatermark { offset } => self.watermark.set(offset),
            Message::EpochAck => self.acked.set(Some(epoch)),
            Message::MirrorAck { id, errno } => {
                self.mirrored.set(self.mirrored.get().saturating_sub(1));
                mirrored(id, errno);
            }
            Message::Activated { generation } => self.activated.set(Some(generation)),
            Message::Pong => self.pongs.set(self.pongs.get() + 1),
            Message::Error { kind, sentence } => {
                return Err(Error::new(
                    kind.error_kind(),
                    format!("the receiver gave up: {sentence}"),
                ));
            }
            _ => return Err(unexpected("a source's frame")),
        }
        self.changed.notify_waiters();
        Ok(())
    }
}

fn unexpected(what: &str) -> Error {
    Error::new(
        ErrorKind::Protocol,
        format!("replication: {what} was not expected now"),
    )
}
