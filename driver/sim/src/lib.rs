//! Simulated disks, network and clock, and the oracles. Tests only.
//!
//! The crates that ship run inside: `volume`, `replica` and `wire` are the real ones, driven through
//! the seams that production uses. Everything else, the disks, the network, the guests and the engine
//! that carries out what a volume asks for, is here, in one thread and in virtual time.

mod cut;
pub mod dice;
pub mod disk;
mod failover;
pub mod group;
pub mod guest;
pub mod hits;
pub mod host;
pub mod hunt;
pub mod ledger;
pub mod net;
pub mod node;
mod owner;
pub mod seam;
pub mod swarm;
pub mod world;
