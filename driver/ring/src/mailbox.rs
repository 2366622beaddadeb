//! How other threads speak to a shard: a bounded queue, and a bell that wakes its ring.
//!
//! The bell is an eventfd. It is rung only when no wake is pending, so a burst of messages costs one
//! system call. Order of events that makes this safe: a sender queues first and then looks at
//! `pending`; the shard clears `pending` first and then empties the queue.

use crate::sync::{Arc, AtomicBool, Ordering, Receiver, SyncSender, TrySendError, sync_channel};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Messages that may wait for one shard. They are control calls and new connections, a handful at
/// a time; a sender that finds the queue full waits.
pub const MAILBOX_DEPTH: usize = 256;

/// What wakes a shard.
pub(crate) trait Bell {
    fn ring(&self);
}

impl Bell for EventFd {
    fn ring(&self) {
        // The counter cannot overflow: there is at most one pending wake.
        let _ = self.write(1);
    }
}

struct Wake<B> {
    bell: B,
    pending: AtomicBool,
}

impl<B: Bell> Wake<B> {
    fn up(&self) {
        if !self.pending.swap(true, Ordering::SeqCst) {
            self.bell.ring();
        }
    }
}

/// The sending side of a shard's mailbox.
pub struct Mailbox<M>(Slot<M, EventFd>);

impl<M> Clone for Mailbox<M> {
    fn clone(&self) -> Mailbox<M> {
        Mailbox(self.0.clone())
    }
}

impl<M> Mailbox<M> {
    /// Queue a message and wake the shard; waits while the mailbox is full. The message comes back
    /// if the shard is gone.
    pub fn send(&self, message: M) -> Result<(), M> {
        self.0.send(message)
    }
}

/// Where messages are put in, whatever the bell.
struct Slot<M, B> {
    queue: SyncSender<M>,
    wake: Arc<Wake<B>>,
}

impl<M, B> Clone for Slot<M, B> {
    fn clone(&self) -> Slot<M, B> {
        Slot {
            queue: self.queue.clone(),
            wake: Arc::clone(&self.wake),
        }
    }
}

impl<M, B: Bell> Slot<M, B> {
    fn send(&self, message: M) -> Result<(), M> {
        match self.queue.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Disconnected(m)) => return Err(m),
            Err(TrySendError::Full(m)) => {
                self.wake.up();
                self.queue.send(m).map_err(|e| e.0)?;
            }
        }
        self.wake.up();
        Ok(())
    }
}

/// Where the shard takes them out.
pub(crate) struct Inbox<M, B = EventFd> {
    queue: Receiver<M>,
    wake: Arc<Wake<B>>,
}

impl<M, B> Inbox<M, B> {
    pub(crate) fn bell(&self) -> &B {
        &self.wake.bell
    }

    /// The bell has rung: take everything that waits.
    pub(crate) fn empty(&self, mut each: impl FnMut(M)) {
        self.wake.pending.store(false, Ordering::SeqCst);
        while let Ok(message) = self.queue.try_recv() {
            each(message);
        }
    }
}

pub(crate) fn mailbox<M>() -> nix::Result<(Mailbox<M>, Inbox<M>)> {
    let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
    let (slot, inbox) = pair(bell, MAILBOX_DEPTH);
    Ok((Mailbox(slot), inbox))
}

fn pair<M, B>(bell: B, depth: usize) -> (Slot<M, B>, Inbox<M, B>) {
    let wake = Arc::new(Wake {
        bell,
        pending: AtomicBool::new(false),
    });
    let (tx, rx) = sync_channel(depth);
    let slot = Slot {
        queue: tx,
        wake: Arc::clone(&wake),
    };
    (slot, Inbox { queue: rx, wake })
}

#[cfg(test)]
mod races;
