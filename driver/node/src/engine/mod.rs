//! The engine: shards that carry guests' requests from their sockets through the volume's gate to
//! the image and back.
//!
//! ```text
//!  accept (tokio) ──Connect──► shard ─────────────────────────────────────────────┐
//!                              │ recv ─► Session ─► Volume::submit ─► Image::start │
//!                              │ send ◄─ replies ◄─ Volume::complete ◄─ completed  │
//!  node, movers ──Call───────► │ Volume::poll ─► syncs, metadata, saves            │
//!                              └────────────────────────────────────────────────────┘
//!                                 └─ block status ─► extents thread ─► back by mailbox
//! ```
//!
//! Everything of one volume lives on its home shard: its connections, its requests, its image.

mod actions;
mod activity;
mod closing;
mod connection;
mod dialler;
mod extents;
mod fence;
mod forward;
mod handle;
mod intake;
mod latency;
mod message;
mod mirror;
mod outlet;
mod request;
mod shard;
mod status;
mod volume_cell;

pub use activity::Activity;
pub use dialler::Ahead;
pub use handle::{Engine, Mirror, MirrorReceipts, VolumeHandle, VolumeSpec};
pub use latency::{Latency, LatencySnapshot};

/// Bytes of request buffers on one shard: enough for four connections with their windows full of
/// the largest requests, for two with requests of 1 MiB, each of which takes a huge page, or for thirty
/// thousand small ones. More requests wait in their sockets.
pub const BUFFER_BYTES_MAX: usize = 256 << 20;
/// Bytes that every connection may have though others hold all of [`BUFFER_BYTES_MAX`], so that
/// clients that do not read their replies cannot stop those that do. In memory it is up to a huge page.
pub const BUFFER_BYTES_RESERVED: usize = 1 << 20;
/// Requests of one volume between arrival and reply: sixteen full windows.
pub const VOLUME_REQUESTS_MAX: u32 = 2048;
/// Connections of one shard.
pub const CONNECTIONS_MAX: usize = 256;
