//! The controller: takes commands, logs them, has the nodes carry them out, and watches. It never
//! touches a block, and guests do not notice when it dies.
//!
//! ```text
//!  CLI ──Start──► log (store) ──► executor ──call──► node        one step: call, then record
//!                    │                │                          and count of steps in one
//!                    ◄──── record ────┘                          transaction
//!  nodes ──Register, Heartbeat──► presence ──► reconcile: replicas that an owner has lost
//! ```
//!
//! Killed at any point it finishes on restart: an operation is in the log before its first effect,
//! the step that was under way is repeated, and every call to a node may be repeated. A call that a
//! killed one left on its way is refused: nodes know whose turn it is ([`Turn`]).

mod ask;
mod config;
mod convert;
mod executor;
mod fleet_service;
mod heat;
mod nodes;
mod places;
mod planning;
mod presence;
mod provisioning;
mod reconcile;
mod records;
mod registry;
mod rehearsal;
mod server;
mod traffic;

pub use config::{
    Config, Measured, PlanningConfig, ProvisionConfig, SeriesConfig, SiteConfig, SourceConfig,
};
pub use nodes::{Call, GrpcNodes, Nodes, Request, consistency};
pub use rehearsal::{Rehearsal, Took};
pub use server::serve;

use crate::store::Store;
use executor::Live;
use node::service::Turn;
use presence::Presence;
use records::Records;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, broadcast};

/// Events that a slow follower may be behind before it misses some. It is told, and the log has them.
const FOLLOWER_BACKLOG: usize = 1024;

/// The controller's state: what it must not forget is in the store, what it saw last in memory.
pub struct Controller<S, N> {
    inner: Arc<Inner<S, N>>,
}

struct Inner<S, N> {
    records: Records<S>,
    /// Which life of the controller this is, and the number of its last call.
    life: u64,
    calls: AtomicU64,
    nodes: N,
    presence: Presence,
    /// Sites with an address at which nodes measure how far they are.
    probes: Vec<(String, String)>,
    /// Operations under way, for those who watch.
    live: Mutex<HashMap<crate::fleet::OperationId, Live>>,
    /// Rung when a node registers: whoever waits for one tries again.
    arrival: Notify,
    events: broadcast::Sender<records::Event>,
    /// Absent where the configuration has none.
    planning: Option<planning::Planning>,
    /// Absent where the configuration has none.
    provisioning: OnceLock<Arc<provisioning::Provisioning<S, N>>>,
}

impl<S, N> Clone for Controller<S, N> {
    fn clone(&self) -> Self {
        Controller {
            inner: self.inner.clone(),
        }
    }
}

impl<S: Store, N: Nodes> Controller<S, N> {
    /// A controller on a store, which may hold operations of one that was killed; they are resumed.
    pub async fn start(store: S, nodes: N, config: &Config) -> node::Result<Controller<S, N>> {
        let records = Records::open(store).await?;
        let controller = Controller {
            inner: Arc::new(Inner {
                life: records.begin_life(unix_ms()).await?,
                calls: AtomicU64::new(0),
                records,
                nodes,
                presence: Presence::default(),
                probes: (config.site.iter())
                    .filter_map(|s| Some((s.name.clone(), s.probe.clone()?)))
                    .collect(),
                live: Mutex::default(),
                arrival: Notify::new(),
                events: broadcast::Sender::new(FOLLOWER_BACKLOG),
                planning: planning::Planning::open(config)?,
                provisioning: OnceLock::new(),
            }),
        };
        controller.resume().await?;
        Ok(controller)
    }

    /// The turn of a call that is to be made. It is drawn before the record is read that the call acts on:
    /// whoever changes the record after that draws a later one, and nodes refuse what was overtaken.
    fn draw(&self) -> Turn {
        Turn {
            life: self.inner.life,
            number: self.inner.calls.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }
}

/// Now, for records that people read.
fn unix_ms() -> crate::fleet::UnixMs {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
