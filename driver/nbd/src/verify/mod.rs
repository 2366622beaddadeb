//! A client that knows what it wrote. It keeps many stamped reads and writes in flight, judges
//! every sector that comes back by what was acknowledged, and can at any time compare the whole
//! disk with its own record. The demo and the fault tests watch volumes through it.
//!
//! ```text
//! Ledger (pure)   what each slot of the disk may hold: last acknowledged, last submitted
//! Verifier        two threads on one connection: one sends at a pace, one receives and judges
//! fill, compare   the whole disk: written once; read and held against the ledger, byte for byte
//! ```
//!
//! A ledger outlives connections: after a connection is lost its requests in flight are written
//! down as *may have happened*, and the next connection goes on with the same ledger.

mod ledger;
mod runner;
mod whole;

pub use ledger::{Ledger, Planned, Task};
pub use runner::{Latency, Report, Verifier, Workload};
pub use whole::{Comparison, compare, fill};

#[cfg(test)]
mod tests;
