//! The source volume, as a mover's thread sees it: calls to its home shard.

use crate::engine::{LatencySnapshot, Mirror, MirrorReceipts, VolumeHandle};
use block::{Epoch, Error, ErrorKind, Generation, Nanos, NodeName, Result};
use replica::{GuestLoad, MirrorItem, Source};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use volume::{CursorName, Role, Snapshot, Start, Volume};

/// How long a guest is observed for one p99, and how long at least if it is a fast one.
const LOOK: Duration = Duration::from_millis(100);
const LOOK_LEAST: Duration = Duration::from_millis(20);
/// How long it is observed before the mover begins: what all later looks are compared with.
const OBSERVATION: Duration = Duration::from_millis(200);
/// So many requests make a p99 before [`LOOK`] is over.
const REQUESTS_ENOUGH: u64 = 1000;
/// Fewer than this make none, so that the guest is observed longer.
const REQUESTS_MIN: u64 = 50;
/// A guest so slow is judged by what there is.
const LOOK_MOST: Duration = Duration::from_secs(1);

/// What the sender asks for without waiting, as of the last call.
#[derive(Clone, Copy)]
struct Facts {
    generation: Generation,
    open: Epoch,
    cursor: Option<Epoch>,
}

/// How the guest fares, measured from the shard's histogram.
struct Guest {
    load: GuestLoad,
    since: (Instant, LatencySnapshot),
    /// It did something shortly before the mover began.
    is_awake: bool,
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
        let look = move |v: &mut Volume, now| (facts(v, &asked), now);
        let (known, now) = handle.call(look).await?;
        let last = handle.latency().last();
        let guest = Guest {
            load: GuestLoad {
                look: 1,
                ..GuestLoad::default()
            },
            since: (Instant::now(), handle.latency().snapshot()),
            is_awake: last != Nanos::ZERO && now.since(last) < LOOK,
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

    /// Observe the guest, if there is one, before the mover begins.
    pub async fn observe_guest(&self) {
        if self.guest.borrow().is_awake {
            tokio::time::sleep(OBSERVATION).await;
            let mut guest = self.guest.borrow_mut();
            guest.end(&self.handle);
            guest.load.before = guest.load.p99;
        }
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
    /// Look at what came since the last look, if that is enough.
    fn look(&mut self, handle: &VolumeHandle) {
        let passed = self.since.0.elapsed();
        if passed < LOOK_LEAST {
            return;
        }
        let recent = handle.latency().snapshot().since(&self.since.1);
        let enough = match recent.count() {
            REQUESTS_ENOUGH.. => true,
            0 | REQUESTS_MIN.. => passed >= LOOK,
            _ => passed >= LOOK_MOST,
        };
        if enough {
            self.end(handle);
        }
    }

    /// End this look, whatever has come.
    fn end(&mut self, handle: &VolumeHandle) {
        let now = handle.latency().snapshot();
        self.load.look += 1;
        self.load.p99 = now.since(&self.since.1).quantile(0.99);
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
        guest.look(&self.handle);
        guest.load
    }

    async fn replaced(&self, by: Generation) -> Result<()> {
        // A source that gave the volume away itself, and makes sure that it arrived, knows it.
        if self.handle.call(|v, _| v.role().is_owner()).await? {
            tracing::error!(
                "{}: its node has seen generation {by}, so this node is a former owner: it acknowledges \
                 nothing any more",
                self.name
            );
        }
        self.handle
            .control(move |v, now| v.observe(now, by))
            .await?;
        self.refresh().await
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

    async fn resume_at(&self, epoch: Epoch) -> Result<bool> {
        let name = self.name.clone();
        let begun = self
            .handle
            .control(move |v, _| v.add_cursor(name, Start::At(epoch)));
        match begun.await {
            Ok(()) => self.refresh().await.map(|()| true),
            // A call whose connection broke is given up here, and has its effect at the volume all the same.
            Err(e) if e.kind() == ErrorKind::Exists => self.refresh().await.map(|()| true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
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
