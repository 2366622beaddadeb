//! The volume as a pure state machine: gate, dirty map, intents, epochs, flush group, ownership.
//!
//! It does no I/O and never asks the time. An engine (the shard in production, the simulator in
//! tests) tells it what happened and carries out what it asks for:
//!
//! ```text
//!   engine                                   Volume
//!   submit(request)      ──────────────────► Issue | Held | Reply | Forward
//!   complete(id, result) ──────────────────► Reply | Held
//!   image_synced, meta_synced, saved, ... ─►
//!   poll() until None    ──────────────────► Issue, Reply, SyncImage, WriteMeta, SyncMeta, ...
//! ```
//!
//! One thread owns a volume, so nothing in it is locked. Only a [`Snapshot`] is shared, with the
//! mover that ships it. Nothing is allocated between `submit` and `complete` of a write to a page
//! that is dirty already, and no queue grows past the request slab.

mod area;
mod budget;
mod cursor;
mod epoch;
pub mod errno;
#[cfg(test)]
mod explore;
mod fifo;
mod flush;
mod gate;
mod group;
mod intent;
mod map;
mod meta;
mod order;
mod own;
mod ownership;
mod pace;
#[cfg(test)]
mod races;
mod request;
mod save;
mod snapshot;
mod sync;
mod track;
mod volume;

pub use area::AreaSet;
pub use budget::Budget;
pub use cursor::{CURSORS_MAX, CheckpointName, Cursor, CursorName, Start};
pub use group::rotate_together;
pub use map::{DirtyMap, blocks_of};
pub use meta::{Identity, meta_bytes};
pub use ownership::Role;
pub use request::{
    Action, Admission, Completion, Control, META_PAGE_BYTES, Op, Outcome, Request, RequestId,
    SaveTicket,
};
pub use snapshot::{OldBlock, SAVED_BLOCKS_MAX, Snapshot};
pub use volume::{Config, REQUESTS_MAX, Volume};
