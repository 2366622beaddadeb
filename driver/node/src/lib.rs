//! The daemon: wiring, configuration, metrics. What the control plane needs of the driver's words it
//! finds here.

pub mod client;
mod complaints;
pub mod config;
pub mod daemon;
pub mod datadir;
pub mod engine;
pub mod replication;
pub mod serve;
pub mod service;

pub use block::{Epoch, Error, ErrorKind, Generation, NodeName, Result, VolumeId, VolumeName};
