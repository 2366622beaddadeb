//! Where histories come from and what is remembered of them: effects at the edge, so that `predict`
//! stays pure.
//!
//! ```text
//! CSV files ──┐
//! Prometheus ─┼─► Source ─► (machine, metric) with samples ─► predict::Series ─► predict::cycle
//! kept ───────┘                                                                    │      ▲
//!   ▲                                                                              ▼      │
//!   └── one frame of all series every five minutes                                 learned
//! ```
//!
//! [`Kept`] is Forerun's own history: months of a fleet in one file of this host. The other two are
//! for fleets that are measured already. [`Learned`] is what forecasts learned of each series.

mod code;
mod files;
mod kept;
mod learned;
mod prometheus;

pub use files::CsvFiles;
pub use kept::{Kept, Part};
pub use learned::Learned;
pub use prometheus::{Exporter, Prometheus};

use crate::predict::Sample;
use node::Result;
use std::collections::BTreeMap;

/// What is measured of machines and of volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// Cores busy.
    Cpu,
    /// Bytes of memory in use.
    Memory,
    /// Bytes read from disks in a second; from a volume, those that guests read.
    DiskRead,
    /// Bytes written to disks in a second; to a volume, those that guests wrote.
    DiskWrite,
    /// Bytes received in a second.
    NetworkIn,
    /// Bytes sent in a second.
    NetworkOut,
    /// Reads of guests in a second.
    Reads,
    /// Writes of guests in a second.
    Writes,
    /// Bytes of a volume's extents that became dirty in a second.
    Dirtied,
    /// Bytes sent in a second to a volume's replicas.
    Replicated,
}

impl Metric {
    /// What is measured of a machine.
    pub const MACHINE: [Metric; 6] = [
        Metric::Cpu,
        Metric::Memory,
        Metric::DiskRead,
        Metric::DiskWrite,
        Metric::NetworkIn,
        Metric::NetworkOut,
    ];
    /// What is measured of a volume.
    pub const VOLUME: [Metric; 6] = [
        Metric::Reads,
        Metric::Writes,
        Metric::DiskRead,
        Metric::DiskWrite,
        Metric::Dirtied,
        Metric::Replicated,
    ];

    /// Its name in keys and columns.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Metric::Cpu => "cpu",
            Metric::Memory => "memory",
            Metric::DiskRead => "disk-read",
            Metric::DiskWrite => "disk-write",
            Metric::NetworkIn => "network-in",
            Metric::NetworkOut => "network-out",
            Metric::Reads => "reads",
            Metric::Writes => "writes",
            Metric::Dirtied => "dirtied",
            Metric::Replicated => "replicated",
        }
    }

    /// What its values are.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Metric::Cpu => "cores",
            Metric::Memory => "bytes",
            Metric::Reads | Metric::Writes => "1/s",
            _ => "bytes/s",
        }
    }

    /// The metric of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Metric> {
        let mut all = Metric::MACHINE.into_iter().chain(Metric::VOLUME);
        all.find(|metric| metric.name() == name)
    }
}

/// Which series.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The machine: a VM's domain, a node, or a volume.
    pub machine: String,
    /// What of it.
    pub metric: Metric,
}

/// A stretch of time in seconds since 1970, and the distance of samples wanted in it.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// From here.
    pub from: i64,
    /// To here, included.
    pub to: i64,
    /// Seconds between samples.
    pub step: u32,
}

/// The samples of every series, in order of time; rates are rates already.
pub type Histories = BTreeMap<Key, Vec<Sample>>;

/// Knows what happened.
pub trait Source: Send + Sync {
    /// Every series with samples in the span.
    fn histories(&self, span: Span) -> impl Future<Output = Result<Histories>> + Send;
}
