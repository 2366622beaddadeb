//! A shard: one pinned thread, one io_uring, no futures, no lock and no allocation per request.
//!
//! ```text
//!            ┌────────────────────────────── one turn ──────────────────────────────┐
//!  enter ──► completions ──► Handler::completed  ──► mailbox ──► Handler::message ──► Handler::turn
//!    ▲         (a batch)      (starts operations)     (if woken)                        │
//!    └──────────────────────── submits everything the turn started ◄─────────────────┘
//! ```
//!
//! The kernel is entered once a turn: it takes what the turn queued and waits for the first
//! completion or for the handler's deadline.
//!
//! This crate is where buffers meet the kernel, and the reason why nothing above it needs `unsafe`:
//! an operation is started by giving its buffer away ([`Data`]), and the buffer comes back with the
//! operation's own completion ([`Done`]), also when the operation was cancelled. Until then nobody
//! can touch, free or move it.

mod data;
#[cfg(test)]
#[path = "../../volume/src/explore.rs"]
mod explore;
mod mailbox;
mod memory;
mod pool;
mod ring;
mod shard;
mod sync;

pub use data::{Data, GATHER_HEAD_BYTES, GATHER_PARTS, Gather};
pub use mailbox::{MAILBOX_DEPTH, Mailbox};
pub use memory::give_back_what_is_freed;
pub use pool::Pool;
pub use ring::{Done, FileId, OPERATIONS_MAX, Ring, Token};
pub use shard::{Config, Handler, Next, Shard};
