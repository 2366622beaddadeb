//! The source volume, as a mover's thread sees it: calls to its home shard.

use crate::engine::{LatencySnapshot, Mirror, MirrorReceipts, VolumeHandle};
use block::{Epoch, Error, ErrorKind, Generation, NodeName, Result};
use replica::{GuestLoad, MirrorItem, Source};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use volume::{CursorName, Role, Snapshot, Start, Volume};

/// How long the guest is observed for one p99: enough requests of a slow guest.
const LOOK: Duration = Duration::from_millis(100);
/// Fewer requests than this in [`LOOK`] make no p99.
const REQUESTS_MIN: u64 = 50;

/// What the sender asks for without waiting, as of the last call.
#[derive(Clone, Copy)]
struct Facts {
    generation: Generation,
    open: Epoch,
    cursor: Option<Epoch>,
}

/// How the guest fares, measured from the shard's histogram.
struct Guest {
    before: Duration,
    p99: Duration,
    since: (Instant, LatencySnapshot),
}

/// Makes the volume forward to its new owner after a cutover.
pub type Redirect =
    Arc<dyn Fn(NodeName, Generation) -> oneshot::Receiver<Result<()>> + Send + Sync>;

/// One replica's view of its source volume.
pub struct ShardSource {
    handle: VolumeHandle,
    name: CursorName,
    facts: Cell<Facts>,
    guest: RefCell<Guest>,
    /// The mirror, while it is on.
    mirror: RefCell<Option<(Mirror, MirrorReceipts)>>,
    redirect: Redirect,
}

fn facts(volume: &Volume, name: &CursorName) -> Facts {
    let cursor = volume.cursors().iter().find(|c| c.name == *name);
    let generation = match volume.role() {
        Role::Owner { generation, .. } => generation,
        // It speaks as the owner that it was: one that has "seen" the target's generation would fence
        // the target against taking it.
        Role::Relinquished { generation, .. } => Generation(generation.0.saturating_sub(1)),
        Role::Standby => volume.seen(),
    };
    Facts {
        generation,
        open: volume.open_epoch(),
        cursor: cursor.map(|c| c.epoch),
    }
}

impl ShardSource {
    /// The view of the replica on `replica`.
    pub async fn new(
        handle: VolumeHandle,
        replica: NodeName,
        redirect: Redirect,
    ) -> Result<ShardSource> {
        let name = CursorName::Replica(replica);
        let asked = name.clone();
        let known = handle.call(move |v, _| facts(v, &asked)).await?;
        let guest = Guest {
            before: Duration::ZERO,
            p99: Duration::ZERO,
            since: (Instant::now(), handle.latency().snapshot()),
        };
        Ok(ShardSource {
            handle,
            name,
            facts: Cell::new(known),
            guest: RefCell::new(guest),
            mirror: RefCell::new(None),
            redirect,
        })
    }

    /// Observe the guest before the mover begins.
    pub async fn observe_guest(&self) {
        tokio::time::sleep(LOOK).await;
        let mut guest = self.guest.borrow_mut();
        guest.look(&self.handle);
        guest.before = guest.p99;
    }

    /// Give up what was rotated and not committed; nobody sends it any more.
    pub async fn release(&self) -> Result<()> {
        let name = self.name.clone();
        self.handle.call(move |v, _| v.abandon_any(&name)).await
    }

    async fn refresh(&self) -> Result<()> {
        let name = self.name.clone();
        self.facts
            .set(self.handle.call(move |v, _| facts(v, &name)).await?);
        Ok(())
    }
}

impl Guest {
    fn look(&mut self, handle: &VolumeHandle) {
        let now = handle.latency().snapshot();
        let recent = now.since(&self.since.1);
        self.p99 = if recent.count() >= REQUESTS_MIN {
            recent.quantile(0.99)
        } else {
            Duration::ZERO
        };
        self.since = (Instant::now(), now);
    }
}

impl Source for ShardSource {
    type Snapshot = Arc<Snapshot>;

    fn generation(&self) -> Generation {
        self.facts.get().generation
    }

    fn epoch(&self) -> Epoch {
        self.facts.get().open
    }

    fn cursor(&self) -> Option<Epoch> {
        self.facts.get().cursor
    }

    fn guest_load(&self) -> GuestLoad {
        let mut guest = self.guest.borrow_mut();
        if guest.since.0.elapsed() >= LOOK {
            guest.look(&self.handle);
        }
        GuestLoad {
            p99: guest.p99,
            before: guest.before,
        }
    }

    async fn begin_seed(&self) -> Result<Epoch> {
        let name = self.name.clone();
        self.handle
            .control(move |v, now| {
                if v.cursors().iter().any(|c| c.name == name) {
                    v.remove_cursor(now, &name)?;
                }
                v.add_cursor(name, Start::Now)
            })
            .await?;
        self.refresh().await?;
        self.cursor()
            .ok_or_else(|| Error::new(ErrorKind::Broken, "a cursor was added and is not there"))
    }

    async fn seeded(&self) -> Result<()> {
        let name = self.name.clone();
        self.handle.control(move |v, _| v.seeded(&name)).await
    }

    async fn rotate(&self) -> Result<Arc<Snapshot>> {
        let name = self.name.clone();
        let rotate = move |v: &mut Volume, _| v.rotate(&name);
        let snapshot = self.handle.snapshot(rotate).await?;
        self.refresh().await?;
        Ok(snapshot)
    }

    async fn committed(&self, epoch: Epoch) -> Result<()> {
        let name = self.name.clone();
        self.handle
            .control(move |v, _| v.committed(&name, epoch))
            .await?;
        self.refresh().await
    }

    async fn abandon(&self, epoch: Epoch) -> Result<()> {
        let name = self.name.clone();
        self.handle.call(move |v, _| v.abandon(&name, epoch)).await
    }

    async fn freeze(&self) -> Result<()> {
        self.handle.freeze().await
    }

    async fn thaw(&self) -> Result<()> {
        self.handle.thaw().await
    }

    async fn pace(&self, rate: Option<u64>) -> Result<()> {
        self.handle.call(move |v, now| v.pace(now, rate)).await
    }

    async fn relinquish(&self, to: &NodeName, next: Generation, epoch: Epoch) -> Result<()> {
        let to = to.clone();
        self.handle
            .control(move |v, _| v.relinquish(&to, next, epoch))
            .await
    }

    async fn redirect(&self, to: &NodeName, generation: Generation) -> Result<()> {
        let done = (self.redirect)(to.clone(), generation).await;
        done.map_err(|_| Error::new(ErrorKind::Cancelled, "the node ends before it redirected"))?
    }

    async fn mirror_on(&self) -> Result<Arc<Snapshot>> {
        self.release().await?;
        let (snapshot, mirror) = self.handle.mirror_on(self.name.clone()).await?;
        let receipts = mirror.receipts();
        *self.mirror.borrow_mut() = Some((mirror, receipts));
        self.refresh().await?;
        Ok(snapshot)
    }

    async fn mirror_off(&self) -> Result<()> {
        *self.mirror.borrow_mut() = None;
        self.handle.call(Volume::mirror_off).await
    }

    async fn mirror_next(&self) -> Option<MirrorItem> {
        poll_fn(|cx| match &mut *self.mirror.borrow_mut() {
            Some((mirror, _)) => mirror.poll_next(cx),
            None => Poll::Ready(None),
        })
        .await
    }

    fn mirrored(&self, id: u32, result: std::result::Result<(), i32>) {
        if let Some((_, receipts)) = &*self.mirror.borrow() {
            receipts.mirrored(id, result);
        }
    }
}
