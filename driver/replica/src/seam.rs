//! What replication needs of the volumes on both sides.

use block::{Area, BLOCK_BYTES, Block, Epoch, Extent, Generation, NodeName, Result, Span};
use std::sync::Arc;
use std::time::Duration;

/// What one replica lacks as of one epoch; `volume::Snapshot` is one.
pub trait Pending: Clone {
    /// The point in time.
    fn epoch(&self) -> Epoch;
    /// Every write of the epoch is at the receiver already: there is nothing to read.
    fn is_mirrored(&self) -> bool;
    /// The guest rewrote more than could be saved: give the snapshot up and rotate again.
    fn is_overrun(&self) -> bool;
    /// Bytes not shipped yet.
    fn pending_bytes(&self) -> u64;
    /// The next extent at or after `from` that is not shipped, at most `max` blocks.
    fn next_pending(&self, from: Block, max: u64) -> Option<Extent>;
    /// Whether to compare before sending.
    fn is_suspect(&self, area: Area) -> bool;
    /// The content at the epoch if the guest rewrote the block; look after reading the image.
    fn saved(&self, block: Block) -> Option<Arc<[u8; BLOCK_BYTES as usize]>>;
    /// The extent's content has left the image.
    fn shipped(&self, extent: Extent);
}

impl Pending for Arc<volume::Snapshot> {
    fn epoch(&self) -> Epoch {
        volume::Snapshot::epoch(self)
    }
    fn is_mirrored(&self) -> bool {
        volume::Snapshot::is_mirrored(self)
    }
    fn is_overrun(&self) -> bool {
        volume::Snapshot::is_overrun(self)
    }
    fn pending_bytes(&self) -> u64 {
        volume::Snapshot::pending_bytes(self)
    }
    fn next_pending(&self, from: Block, max: u64) -> Option<Extent> {
        volume::Snapshot::next_pending(self, from, max)
    }
    fn is_suspect(&self, area: Area) -> bool {
        volume::Snapshot::is_suspect(self, area)
    }
    fn saved(&self, block: Block) -> Option<Arc<[u8; BLOCK_BYTES as usize]>> {
        volume::Snapshot::saved(self, block)
    }
    fn shipped(&self, extent: Extent) {
        volume::Snapshot::shipped(self, extent);
    }
}

/// How the guest fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestLoad {
    /// Counts the looks at it, from one: the same number is the same look.
    pub look: u64,
    /// 99th percentile of its requests' latency since the look before; zero if it was idle.
    pub p99: Duration,
    /// The same before the mover began; zero if it was idle then.
    pub before: Duration,
}

/// A guest's request on its way to the mirror.
#[derive(Debug)]
pub struct MirrorItem {
    /// Names it in the answer.
    pub id: u32,
    /// The epoch it belongs to.
    pub epoch: Epoch,
    /// What it does.
    pub op: MirrorOp,
}

/// What a mirrored request does.
#[derive(Debug)]
pub enum MirrorOp {
    /// Write `content` at the span.
    Write(Span, Vec<u8>),
    /// Trim or zero.
    Zero(Span),
    /// Everything mirrored before must be durable.
    Flush,
}

/// The source volume, as the sender of one replica sees it.
#[allow(async_fn_in_trait)] // one thread drives these futures
pub trait Source {
    /// What [`Source::rotate`] makes.
    type Snapshot: Pending;

    /// The generation in which this node owns the volume.
    fn generation(&self) -> Generation;
    /// The newest epoch of the volume.
    fn epoch(&self) -> Epoch;
    /// The epoch that this replica has as far as the volume knows; `None` if the volume does not
    /// track for it.
    fn cursor(&self) -> Option<Epoch>;
    /// How the guest fares now.
    fn guest_load(&self) -> GuestLoad;

    /// The receiver's node has seen this generation, which is higher: this node is a former owner, and
    /// must not acknowledge another write.
    async fn replaced(&self, by: Generation) -> Result<()>;
    /// Begin to track for a replica that will be copied from now on. The answer names the seeding:
    /// the epoch that [`Source::cursor`] then gives until the first commit.
    async fn begin_seed(&self) -> Result<Epoch>;
    /// The replica has exactly this epoch of the volume's history: track for it from there, unless it is
    /// tracked already. False if what was written since is not known.
    async fn resume_at(&self, epoch: Epoch) -> Result<bool>;
    /// The seeding is durable at the replica: what it lacks is what was written since it began.
    async fn seeded(&self) -> Result<()>;
    /// End an epoch; answers once it is settled.
    async fn rotate(&self) -> Result<Self::Snapshot>;
    /// The replica has `epoch` durably.
    async fn committed(&self, epoch: Epoch) -> Result<()>;
    /// The snapshot of `epoch` was not committed and will not be: merge it back.
    async fn abandon(&self, epoch: Epoch) -> Result<()>;

    /// Hold new requests; answers once none is in flight.
    async fn freeze(&self) -> Result<()>;
    /// Serve again.
    async fn thaw(&self) -> Result<()>;
    /// Limit the guest's writes to so many bytes a second, or lift the limit.
    async fn pace(&self, bytes_per_second: Option<u64>) -> Result<()>;
    /// Durably give the volume up to `to`, which will own it in generation `next` from `epoch` on.
    async fn relinquish(&self, to: &NodeName, next: Generation, epoch: Epoch) -> Result<()>;
    /// Send held and new requests to the new owner.
    async fn redirect(&self, to: &NodeName, generation: Generation) -> Result<()>;

    /// Rotate, and from that point on hand every write, zero and flush to [`Source::mirror_next`].
    async fn mirror_on(&self) -> Result<Self::Snapshot>;
    /// Stop mirroring; unanswered requests are released, their blocks count as dirty.
    async fn mirror_off(&self) -> Result<()>;
    /// The next request to mirror, in the gate's order; `None` once the mirror is off. At most the
    /// volume's window of requests is unanswered at any time, so the queue behind this is bounded.
    async fn mirror_next(&self) -> Option<MirrorItem>;
    /// The receiver has it (staged; after a flush, durable), or failed with an errno.
    fn mirrored(&self, id: u32, result: std::result::Result<(), i32>);
}

/// The standby volume on the receiving node.
#[allow(async_fn_in_trait)] // one thread drives these futures
pub trait Target {
    /// A source of `generation` speaks: refuse it as fenced if a higher one was seen, else remember it
    /// durably before answering. Nobody else on the receiving side tells a former owner.
    async fn observe(&self, generation: Generation) -> Result<()>;
    /// The highest generation that is known to have been owned; a former owner is told.
    async fn last_owned(&self) -> Result<Generation>;
    /// Take the volume in `generation` as of `epoch`, durably; the same call again is no error.
    async fn activate(&self, generation: Generation, epoch: Epoch) -> Result<()>;
    /// The highest generation that the volume's own record has seen.
    async fn seen(&self) -> Result<Generation>;
    /// The generation in which this node owns the volume, if it does, and will after a power cut.
    async fn owned(&self) -> Result<Option<Generation>>;
    /// The generation for which this node gave the volume away, if that was its last part, and the epoch
    /// that its image is since.
    async fn gave_up(&self) -> Result<Option<(Generation, Epoch)>>;
}
