//! The words that the gate and its engine exchange: requests in, answers and actions out.

use crate::snapshot::Snapshot;
use block::{Extent, Span};
use std::sync::Arc;

/// A request in the engine's slab. The engine chooses it, below [`crate::Config::max_requests`],
/// and may use it again once the volume has replied to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u32);

impl RequestId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Read the span.
    Read,
    /// Write the span.
    Write,
    /// Make the span read as zeroes.
    Zero {
        /// Keep the space allocated.
        no_hole: bool,
        /// Fail at once where it would be no faster than writing.
        fast: bool,
    },
    /// Give up the span's content: done, and replicated, as zeroes.
    Trim,
    /// Make everything that completed before durable.
    Flush,
    /// Read the span ahead.
    Cache,
}

impl Op {
    /// Whether the operation changes the image, and so is ordered, tracked and refused when the
    /// volume is read-only.
    #[must_use]
    pub const fn is_write(self) -> bool {
        matches!(self, Op::Write | Op::Zero { .. } | Op::Trim)
    }
}

/// One request of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The engine's slot.
    pub id: RequestId,
    /// What to do.
    pub op: Op,
    /// Reply only when the write is durable. Ignored where nothing is written.
    pub fua: bool,
    /// Where. Ignored by [`Op::Flush`].
    pub span: Span,
}

/// How an operation ended: done, or a positive errno.
pub type Outcome = Result<(), i32>;

/// What the gate says to a new request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// Do the image I/O now, then call [`crate::Volume::complete`].
    Issue,
    /// Wait: an [`Action`] with this id will come.
    Held,
    /// Answer the guest now; the id is free again.
    Reply(Outcome),
    /// Another node owns the volume: send the request there, then call
    /// [`crate::Volume::complete`] with its answer.
    Forward,
}

/// What the gate says when an image I/O has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Completion {
    /// Answer the guest now; the id is free again.
    Reply(Outcome),
    /// Not yet (FUA, mirror, step-down): an [`Action`] with this id will come.
    Held,
}

/// A copy-before-write read that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SaveTicket(pub u32);

/// A control call whose effect must become durable before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Control(pub u64);

/// Bytes of a metadata page.
pub const META_PAGE_BYTES: usize = 4096;

/// What the engine is to do. Drain [`crate::Volume::poll`] after each batch of calls.
#[derive(Clone, Debug)]
pub enum Action {
    /// Do this held request's image I/O now, then call [`crate::Volume::complete`].
    Issue(RequestId),
    /// Answer the guest; the id is free again.
    Reply(RequestId, Outcome),
    /// Send this held request to the owner, then call [`crate::Volume::complete`].
    Forward(RequestId),
    /// Send this write (which is being issued too) to the mirror, then call
    /// [`crate::Volume::mirrored`]. Mirror writes go out in the order of these actions.
    Mirror(RequestId),
    /// Have the mirror make everything sent to it durable, then call
    /// [`crate::Volume::mirror_flushed`]. At most one is outstanding.
    MirrorFlush,
    /// fdatasync the image, then call [`crate::Volume::image_synced`]. At most one is outstanding.
    SyncImage,
    /// Store a page at `slot * 4096` of the metadata file. Not durable before [`Action::SyncMeta`].
    WriteMeta {
        /// Index of the 4 KiB slot in the file.
        slot: u32,
        /// The page.
        bytes: Box<[u8; META_PAGE_BYTES]>,
    },
    /// fdatasync the metadata file, then call [`crate::Volume::meta_synced`]. At most one is
    /// outstanding, and no [`Action::WriteMeta`] comes before it is answered.
    SyncMeta,
    /// Read these blocks of the image (fewer bytes where the volume ends inside the last block)
    /// and call [`crate::Volume::saved`].
    SaveOld {
        /// Names the read.
        ticket: SaveTicket,
        /// What to read.
        extent: Extent,
    },
    /// The volume's record is durable and believed: an owner's gate is open.
    Opened,
    /// The snapshot's blocks may be read now.
    Settled(Arc<Snapshot>),
    /// Frozen, and nothing is in flight.
    Drained,
    /// A control call is durable, or failed with the volume.
    ControlDone(Control, Outcome),
    /// The mirror broke or was turned off: send nothing more to it, forget its outstanding
    /// answers. What it had not confirmed stays dirty.
    MirrorOff,
    /// The volume stopped for good: an fdatasync failed.
    Poisoned,
}
