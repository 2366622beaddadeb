//! A volume on its home shard, with what it needs from the world.

use super::activity::Activity;
use super::forward::Forwarder;
use super::latency::Latency;
use super::mirror::MirrorQueue;
use super::request::Requests;
use block::{Extent, Generation, Nanos};
use nbd::client::Uri;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use storage::meta::MetaFile;
use storage::{Image, ImageFile, Io};
use tokio::sync::{Notify, oneshot};
use volume::{Control, Outcome, SaveTicket, Snapshot, Volume};

/// Where metadata pages go.
pub(super) enum Meta {
    /// Nowhere: one image served from one place has nobody to promise anything to.
    None,
    /// Into a mapped file.
    File {
        pages: MetaFile,
        file: ring::FileId,
        /// A store that failed; the next sync reports it.
        failed: Option<i32>,
    },
}

/// All that makes a volume, before a shard has it.
pub(super) struct VolumeFiles {
    pub(super) volume: Volume,
    pub(super) image: ImageFile,
    pub(super) meta: Option<(MetaFile, OwnedFd)>,
    pub(super) latency: Arc<Latency>,
    pub(super) activity: Arc<Activity>,
    pub(super) extents_file: Arc<File>,
    pub(super) standing: Arc<Standing>,
}

/// Who owns a volume, as far as threads other than its shard need to know.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// The generation in which it is owned here, plus one; zero if it is not.
    owned: AtomicU64,
    /// The highest generation that is known.
    seen: AtomicU64,
    /// Told when it is owned here that was not.
    taken: Notify,
    /// Where its requests are sent, if they are.
    forwards_to: Mutex<Option<Uri>>,
}

impl Standing {
    pub(super) fn set(&self, volume: &Volume) {
        self.seen.store(volume.seen().0, Ordering::Release);
        let owned = volume.owned().map_or(0, |g| g.0 + 1);
        if self.owned.load(Ordering::Acquire) != owned {
            self.owned.store(owned, Ordering::Release);
            self.taken.notify_waiters();
        }
    }

    /// Whether it may soon be owned here in this generation: by a standby that knows of none so late.
    pub(super) fn is_to_come(&self, generation: Generation) -> bool {
        self.owned().is_none() && generation.0 > self.seen.load(Ordering::Acquire)
    }

    /// Ends when the volume is owned here in this generation or a later one.
    pub(super) async fn owned_from(&self, generation: Generation) {
        loop {
            let mut told = pin!(self.taken.notified());
            told.as_mut().enable(); // before the look, so that nothing falls between the two
            if self.owned().is_some_and(|g| g >= generation) {
                return;
            }
            told.await;
        }
    }

    pub(super) fn forwards_to(&self) -> MutexGuard<'_, Option<Uri>> {
        self.forwards_to.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn owned(&self) -> Option<Generation> {
        let owned = self.owned.load(Ordering::Acquire);
        owned.checked_sub(1).map(Generation)
    }
}

/// A read for copy-before-write.
pub(super) struct Save {
    pub(super) ticket: SaveTicket,
    pub(super) io: Io,
}

/// Who waits for an answer of the volume's.
#[derive(Default)]
pub(super) struct Waiters {
    settled: Vec<(Arc<Snapshot>, oneshot::Sender<()>)>,
    pub(super) drained: Vec<oneshot::Sender<()>>,
    pub(super) controls: BTreeMap<Control, oneshot::Sender<Outcome>>,
    is_open: bool,
    open: Vec<oneshot::Sender<()>>,
}

impl Waiters {
    /// Tell `waiter` when the snapshot may be read.
    pub(super) fn when_settled(&mut self, snapshot: Arc<Snapshot>, waiter: oneshot::Sender<()>) {
        self.settled.push((snapshot, waiter));
    }

    /// Tell `waiter` when the volume's record is durable.
    pub(super) fn when_open(&mut self, waiter: oneshot::Sender<()>) {
        if self.is_open {
            let _ = waiter.send(());
        } else {
            self.open.push(waiter);
        }
    }

    // A waiter that has gone away wants no answer.

    pub(super) fn settle(&mut self, snapshot: &Arc<Snapshot>) {
        let its = self
            .settled
            .extract_if(.., |(s, _)| Arc::ptr_eq(s, snapshot));
        for (_, waiter) in its {
            let _ = waiter.send(());
        }
    }

    pub(super) fn opened(&mut self) {
        self.is_open = true;
        for waiter in self.open.drain(..) {
            let _ = waiter.send(());
        }
    }
}

/// How far the removal of a volume is.
pub(super) enum Leaving {
    No,
    /// Its connections finish.
    Closing(Vec<oneshot::Sender<block::Result<()>>>),
    /// The last sync is under way.
    Syncing(Vec<oneshot::Sender<block::Result<()>>>),
    /// All is in the image, and the volume records that; `None` if it cannot.
    Recording(
        Vec<oneshot::Sender<block::Result<()>>>,
        Option<oneshot::Receiver<Outcome>>,
    ),
}

pub(super) struct VolumeCell {
    pub(super) volume: Volume,
    pub(super) image: Image,
    pub(super) meta: Meta,
    pub(super) requests: Requests,
    pub(super) saves: slab::Slab<Save>,
    pub(super) waiters: Waiters,
    pub(super) latency: Arc<Latency>,
    pub(super) activity: Arc<Activity>,
    pub(super) extents_file: Arc<File>,
    /// Links of former owners, those that end included.
    pub(super) links: u32,
    /// What other threads see of the ownership.
    pub(super) standing: Arc<Standing>,
    /// Set once the volume forwards to another owner.
    pub(super) forwarder: Option<Forwarder>,
    /// Set while a replica mirrors.
    pub(super) mirror: Option<MirrorQueue>,
    pub(super) leaving: Leaving,
    pub(super) is_touched: bool,
    /// Its reads that most likely end together.
    pub(super) ending: usize,
    pub(super) syncing: bool,
    /// A sync of the metadata is under way.
    pub(super) meta_syncing: bool,
}

impl VolumeCell {
    /// Bytes that a copy-before-write read of `extent` covers.
    pub(super) fn save_span(&self, extent: Extent) -> block::Span {
        extent.span(self.image.size())
    }

    /// When the volume wants to be told the time.
    pub(super) fn deadline(&self) -> Option<Nanos> {
        self.volume.deadline()
    }
}
