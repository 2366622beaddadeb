//! Block status off the shard: finding data and holes may read metadata from disk.

use super::message::{ConnectionIndex, Message};
use block::{Error, Result, Span};
use nbd::session::Request;
use nbd::status::DESCRIPTORS_MAX;
use ring::Mailbox;
use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

/// Questions that wait for the thread. A shard that finds it full keeps the request in its
/// connection and reads no more from it.
const QUEUE_MAX: usize = 128;

pub(super) struct Question {
    pub(super) file: Arc<File>,
    pub(super) connection: ConnectionIndex,
    pub(super) request: Request,
    pub(super) answer_to: Mailbox<Message>,
}

/// The way to the thread. It ends when the last of these is gone.
#[derive(Clone)]
pub(super) struct Extents {
    queue: SyncSender<Question>,
}

impl Extents {
    pub(super) fn start() -> Result<Extents> {
        let (queue, questions) = sync_channel::<Question>(QUEUE_MAX);
        std::thread::Builder::new()
            .name("extents".into())
            .spawn(move || {
                for q in questions {
                    let span = Span::new(q.request.offset, u64::from(q.request.len));
                    let answer = Message::Extents {
                        connection: q.connection,
                        request: q.request,
                        runs: storage::sparse::runs(&q.file, span, DESCRIPTORS_MAX),
                    };
                    // A shard that is gone wants no answer.
                    let _ = q.answer_to.send(answer);
                }
            })
            .map_err(|e| Error::io("start the thread that looks for extents", e))?;
        Ok(Extents { queue })
    }

    /// Ask; `false` if the queue is full.
    pub(super) fn ask(&self, question: Question) -> bool {
        match self.queue.try_send(question) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}
