//! Replication on a node: two threads with a tokio-uring runtime each, one that sends this node's
//! volumes and one that takes other nodes'.
//!
//! ```text
//!  control (tokio) ──orders──► Sending   ─ a task a replica: ShardSource ─calls─► home shard
//!                  ──orders──► Receiving ─ a task a connection: ShardTarget ─calls─► home shard
//! ```

mod receiving;
mod sending;
mod source;
mod target;
mod tcp;

pub use receiving::{Receiving, StandbySpec};
pub use sending::{News, ReplicaHandle, ReplicaSpec, Sending, Watch};
pub use source::Redirect;
pub use target::Succession;
pub use tcp::{MoverClock, Tcp};

#[cfg(test)]
mod tests;
