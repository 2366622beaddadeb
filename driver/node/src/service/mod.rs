//! The node's gRPC service: what the controller may ask of it, and how it registers.
//!
//! ```text
//!  controller ──gRPC──► Service ──► NodeOps ──► the daemon: volumes, replicas, cutovers
//!  registry ◄──heartbeats── keep_registered ◄── NodeOps::report
//! ```

mod grpc;
mod neighbours;
mod ops;
mod registration;
mod status;
mod turns;

pub use grpc::{PROGRESS_BACKLOG, Service};
pub use ops::{Consistency, Handover, NewReplica, NewVolume, NodeOps, SeedOrder, TakeOver};
pub use registration::keep_registered;
pub use status::{to_error, to_status};
pub use turns::{TURN, Turn, Turns};

#[cfg(test)]
mod tests;
