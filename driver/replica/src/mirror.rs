//! The mirror: an open epoch whose content leaves as the guest writes it.
//!
//! ```text
//!   mirror_on: rotate ─► snapshot E (what is dirty so far)     every later write: epoch E+1
//!   deliver(E)  ══ Data ══►  lane of E    ─ commit, apply E
//!   forward     ══ MirrorWrite ══► lane of E+1 ─ answered when staged
//!   freeze, rotate ─► snapshot E+1 is mirrored: only EpochEnd travels ─ commit, apply E+1
//! ```
//!
//! Old content cannot land over new: they are different epochs, staged apart and applied in order.

use crate::content;
use crate::seam::{MirrorItem, MirrorOp, Source};
use crate::sender::Session;
use block::{Clock, Disk, Epoch, Result, Transport};
use wire::Message;

/// What was mirrored of the open epoch.
#[derive(Default)]
pub(crate) struct Mirrored {
    epoch: Epoch,
    frames: u64,
    bytes: u64,
    digest: blake3::Hasher,
}

impl Mirrored {
    fn count(&mut self, epoch: Epoch, bytes: u64, crc: u32) {
        if self.epoch != epoch {
            *self = Mirrored {
                epoch,
                ..Mirrored::default()
            };
        }
        self.frames += 1;
        self.bytes += bytes;
        self.digest.update(&crc.to_le_bytes());
    }

    /// The frame that ends the epoch.
    pub(crate) fn end(&mut self, epoch: Epoch) -> Message<'static> {
        if self.epoch != epoch {
            *self = Mirrored::default();
        }
        Message::EpochEnd {
            frames: self.frames,
            bytes: self.bytes,
            digest: content::cut(&self.digest.finalize()),
        }
    }
}

impl<S: Source, D: Disk, C: Clock, T: Transport> Session<'_, S, D, C, T> {
    /// Send what the guest does, in the gate's order, until the mirror is off.
    pub(crate) async fn forward(&self) -> Result<()> {
        while let Some(MirrorItem { id, epoch, op }) = self.sender.source.mirror_next().await {
            let (message, bytes) = match &op {
                MirrorOp::Write(span, payload) => (
                    Message::MirrorWrite {
                        id,
                        span: *span,
                        payload,
                    },
                    span.len,
                ),
                MirrorOp::Zero(span) => (Message::MirrorZero { id, span: *span }, span.len),
                MirrorOp::Flush => (Message::MirrorFlush { id }, 0),
            };
            let mut room = self.link.room().await?;
            self.inbox.mirroring();
            let crc = room.send(epoch, &message)?;
            if !matches!(op, MirrorOp::Flush) {
                self.mirrored.borrow_mut().count(epoch, bytes, crc);
            }
        }
        Ok(())
    }
}
