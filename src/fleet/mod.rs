//! The fleet: nodes, volumes, replicas, ownership, and what a command does to them. Plain types and
//! their rules, no I/O and no clock, so that every rule can be tested in a line.
//!
//! A command becomes a [`Plan`]: the volume's record with the operation noted on it, and the steps.
//! Each [`Step`] is at most one call to one node (idempotent, so it may be repeated after a crash)
//! and the [`Change`] to the record once the call has succeeded.

mod command;
mod deletion;
mod failover;
mod nodes;
mod operation;
mod plan;
mod text;
mod volume;

pub use command::Command;
pub use deletion::Left;
pub use failover::Copy;
pub use nodes::{Node, NodeView};
pub use operation::{Operation, OperationId, Progress, State};
pub use plan::{Answer, Change, Effect, Plan, Step, View, apply, plan, undo};
pub use volume::{Consistency, Replica, Status, Volume};

/// Milliseconds since 1970, for people and records; no rule depends on it.
pub type UnixMs = u64;

#[cfg(test)]
mod tests;
