//! How other threads speak to a shard: a bounded queue, and an eventfd that wakes its ring.
//!
//! The eventfd is written only when no wake is pending, so a burst of messages costs one system
//! call. Order of events that makes this safe: a sender queues first and then looks at `pending`;
//! the shard clears `pending` first and then empties the queue.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

/// Messages that may wait for one shard. They are control calls and new connections, a handful at
/// a time; a sender that finds the queue full waits.
pub const MAILBOX_DEPTH: usize = 256;

pub(crate) struct Wake {
    pub(crate) event: EventFd,
    pending: AtomicBool,
}

impl Wake {
    fn ring(&self) {
        if !self.pending.swap(true, Ordering::SeqCst) {
            // The counter cannot overflow: there is at most one pending wake.
            let _ = self.event.write(1);
        }
    }

    pub(crate) fn clear(&self) {
        self.pending.store(false, Ordering::SeqCst);
    }
}

/// The sending side of a shard's mailbox.
pub struct Mailbox<M> {
    queue: SyncSender<M>,
    wake: Arc<Wake>,
}

impl<M> Clone for Mailbox<M> {
    fn clone(&self) -> Mailbox<M> {
        Mailbox {
            queue: self.queue.clone(),
            wake: Arc::clone(&self.wake),
        }
    }
}

impl<M> Mailbox<M> {
    /// Queue a message and wake the shard; waits while the mailbox is full. The message comes back
    /// if the shard is gone.
    pub fn send(&self, message: M) -> Result<(), M> {
        match self.queue.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Disconnected(m)) => return Err(m),
            Err(TrySendError::Full(m)) => {
                self.wake.ring();
                self.queue.send(m).map_err(|e| e.0)?;
            }
        }
        self.wake.ring();
        Ok(())
    }
}

pub(crate) struct Inbox<M> {
    queue: Receiver<M>,
    pub(crate) wake: Arc<Wake>,
}

impl<M> Inbox<M> {
    pub(crate) fn next(&self) -> Option<M> {
        self.queue.try_recv().ok()
    }
}

pub(crate) fn mailbox<M>() -> nix::Result<(Mailbox<M>, Inbox<M>)> {
    let wake = Arc::new(Wake {
        event: EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?,
        pending: AtomicBool::new(false),
    });
    let (tx, rx) = sync_channel(MAILBOX_DEPTH);
    Ok((
        Mailbox {
            queue: tx,
            wake: Arc::clone(&wake),
        },
        Inbox { queue: rx, wake },
    ))
}
