//! A whole fleet that is not there: what a cycle takes at a size that no machine at hand has.
//!
//! Nothing of the controller is left out or replaced: heartbeats are taken as from the network,
//! records and history are files, and the cycle is the one that the timer runs.

use super::config::{Config, PlanningConfig, SiteConfig};
use super::records::{put_node, put_volume};
use super::{Controller, GrpcNodes};
use crate::fleet::{Node, Status, Volume};
use crate::history::{Kept, Key, Metric};
use crate::planner::Mode;
use crate::store::{Embedded, Transaction};
use node::{Error, NodeName, Result, VolumeId};
use proto::v1::{HeartbeatRequest, IoCounters, NodeMetrics, VolumeReport};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// Seconds between samples: so short that some cycles pass in a minute.
const PERIOD: u64 = 2;
/// Samples in a day.
const DAY: u64 = 288;
/// Records written at a time.
const BATCH: usize = 1000;
/// Of each node.
const CORES: f64 = 64.0;
const MEMORY: f64 = 256e9;

const PRICES: &str = r#"
version = "rehearsal"
currency = "EUR"
[sites.home]
storage_gib_month = 0.1
egress_gib = 0.01
shapes = [{ name = "all", cpus = 64, memory_gib = 512, storage_gib = 20000, hour = 2.0 }]
[sites.west]
storage_gib_month = 0.1
egress_gib = 0.01
shapes = [{ name = "all", cpus = 64, memory_gib = 512, storage_gib = 20000, hour = 1.5 }]
"#;

/// How long the parts of a cycle took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Took {
    /// Samples that were written.
    pub samples: usize,
    /// From heartbeats to the history.
    pub ingest_seconds: f64,
    /// Reading the history and forecasting.
    pub forecast_seconds: f64,
    /// All else: the plan, and writing it down.
    pub plan_seconds: f64,
    /// The whole cycle.
    pub seconds: f64,
}

/// A fleet that is ready for its cycles.
pub struct Rehearsal {
    controller: Controller<Embedded, GrpcNodes>,
    nodes: Vec<NodeName>,
    volumes: usize,
}

/// What a series has at a point: the rehearsal's world.
type World<'a> = &'a (dyn Fn(usize, usize) -> f64 + Sync);

fn node_name(i: usize) -> Result<NodeName> {
    format!("n{i}").parse()
}

impl Rehearsal {
    /// A controller in `dir` with so many nodes, volumes, and points of history up to now.
    ///
    /// # Errors
    /// A file cannot be written.
    pub async fn prepare(
        dir: &Path,
        nodes: usize,
        volumes: usize,
        points: usize,
        world: World<'_>,
    ) -> Result<Rehearsal> {
        let write = |e| {
            Error::io(
                format!("make the rehearsal's directory {}", dir.display()),
                e,
            )
        };
        std::fs::create_dir_all(dir).map_err(write)?;
        let prices = dir.join("prices.toml");
        std::fs::write(&prices, PRICES).map_err(write)?;
        let planning = PlanningConfig {
            mode: Some(Mode::Advise),
            period_seconds: PERIOD,
            day_seconds: PERIOD * DAY,
            ..PlanningConfig::default()
        };
        let config = Config {
            data: dir.to_owned(),
            prices: Some(prices),
            site: vec![SiteConfig::at("west")],
            planning: Some(planning),
            ..Config::default()
        };
        let store = Embedded::open(&dir.join("controller.redb"))?;
        let controller = Controller::start(store, GrpcNodes::default(), &config).await?;
        let rehearsal = Rehearsal {
            nodes: (0..nodes).map(node_name).collect::<Result<_>>()?,
            controller,
            volumes,
        };
        rehearsal.register().await?;
        rehearsal.remember(points, world).await?;
        Ok(rehearsal)
    }

    fn kept(&self) -> Result<&Kept> {
        Ok(self.controller.planning()?.kept())
    }

    async fn register(&self) -> Result<()> {
        let mut t = Transaction::default();
        for name in &self.nodes {
            let node = Node {
                name: name.clone(),
                site: "home".into(),
                address: "127.0.0.1:1".into(),
                replication_address: "127.0.0.1:2".into(),
                nbd_address: "127.0.0.1:3".into(),
                shape: None,
                draining: false,
            };
            put_node(&mut t, &node)?;
        }
        for i in 0..self.volumes {
            let owner = self.nodes[i % self.nodes.len()].clone();
            let id = VolumeId((i as u128).to_be_bytes());
            let volume = Volume {
                status: Status::Ready,
                generation: 1,
                ..Volume::new(format!("v{i}").parse()?, id, 20 << 30, owner)
            };
            put_volume(&mut t, &volume.name, Some(&volume))?;
            if t.write.len() >= BATCH {
                let batch = std::mem::take(&mut t);
                self.controller.commit(batch, Vec::new()).await?;
            }
        }
        self.controller.commit(t, Vec::new()).await?;
        Ok(())
    }

    /// What is measured of node `n`: processors and memory, then bytes.
    fn of_node(&self, world: World<'_>, n: usize, metric: usize, point: usize) -> f64 {
        let value = world(self.volumes * Metric::VOLUME.len() + n * 6 + metric, point);
        match metric {
            0 => value % CORES,
            1 => (value * 1e6) % MEMORY,
            _ => value,
        }
    }

    async fn remember(&self, points: usize, world: World<'_>) -> Result<()> {
        let now = super::unix_ms() / 1000 / PERIOD;
        let first = now.saturating_sub(points as u64);
        let keys = (0..self.volumes).flat_map(|v| {
            Metric::VOLUME.map(|metric| Key {
                machine: format!("volume/v{v}"),
                metric,
            })
        });
        let keys = keys.chain((0..self.nodes.len()).flat_map(|n| {
            Metric::MACHINE.map(|metric| Key {
                machine: format!("node/n{n}"),
                metric,
            })
        }));
        let keys: Vec<Key> = keys.collect();
        let of_volumes = self.volumes * Metric::VOLUME.len();
        for point in 0..points {
            let value = |i: usize| match i.checked_sub(of_volumes) {
                None => world(i, point),
                Some(i) => self.of_node(world, i / 6, i % 6, point),
            };
            let samples = keys.iter().enumerate().map(|(i, k)| (k.clone(), value(i)));
            let at = ((first + point as u64) * PERIOD) as i64;
            self.kept()?.append(at, at, samples.collect()).await?;
        }
        Ok(())
    }

    /// Heartbeats of all nodes, then one cycle.
    ///
    /// # Errors
    /// As the cycle's.
    pub async fn cycle(&self, point: usize, world: World<'_>) -> Result<Took> {
        // counters have to differ from one cycle to the next
        let total = |series: usize| (point as f64 * 1e6 + world(series, point) * 1e3) as u64;
        let began = Instant::now();
        for (n, name) in self.nodes.iter().enumerate() {
            let mine = (n..self.volumes).step_by(self.nodes.len());
            let volumes = mine.map(|v| VolumeReport {
                name: format!("v{v}"),
                io: Some(IoCounters {
                    reads: total(6 * v),
                    writes: total(6 * v + 1),
                    read_bytes: total(6 * v + 2),
                    written_bytes: total(6 * v + 3),
                    ..IoCounters::default()
                }),
                ..VolumeReport::default()
            });
            let memory = MEMORY - self.of_node(world, n, 1, point);
            let beat = HeartbeatRequest {
                name: name.to_string(),
                volumes: volumes.collect(),
                metrics: Some(NodeMetrics {
                    cpus: CORES as u32,
                    cpu_permille: (self.of_node(world, n, 0, point) / CORES * 1e3) as u32,
                    memory_total_bytes: MEMORY as u64,
                    memory_available_bytes: memory as u64,
                    data_total_bytes: 1 << 44,
                    data_free_bytes: 1 << 43,
                    disk_read_bytes: total(n),
                    disk_written_bytes: total(n + 1),
                    network_received_bytes: total(n + 2),
                    network_sent_bytes: total(n + 3),
                }),
                ..HeartbeatRequest::default()
            };
            self.controller.inner.presence.heard(name.clone(), beat);
        }
        let planning = self.controller.planning()?;
        let heard = began.elapsed().as_secs_f64();
        self.controller.cycle(None).await?;
        let seconds = began.elapsed().as_secs_f64();
        let lap = planning.lap();
        let ingest_seconds = heard + lap.ingest.as_secs_f64();
        let forecast_seconds = lap.forecast.as_secs_f64();
        Ok(Took {
            samples: lap.samples,
            ingest_seconds,
            forecast_seconds,
            plan_seconds: seconds - ingest_seconds - forecast_seconds,
            seconds,
        })
    }

    /// What the history takes on disk.
    ///
    /// # Errors
    /// The file is gone.
    pub fn history_bytes(&self) -> Result<u64> {
        self.kept()?.bytes()
    }
}
