//! What nodes said last. Kept in memory only: after a restart the next heartbeats bring it back, and
//! nothing that must be right rests on it.

use super::heat::Heat;
use super::registry::SITE;
use super::traffic::Traffic;
use super::{Controller, Nodes};
use crate::fleet::{Copy, NodeView, Volume};
use crate::store::Store;
use node::{NodeName, Result};
use proto::v1::{
    self, HeartbeatRequest, IoCounters, NodeMetrics, PeerLatency, ReplicaState, VolumeReport,
    VolumeRole,
};
use std::collections::HashMap;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// How often a node says that it is there.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(1);
/// A node that has been silent for this long is not planned with.
const SILENT: Duration = Duration::from_secs(5);

/// The last word of every node.
#[derive(Default)]
pub(super) struct Presence {
    said: RwLock<HashMap<NodeName, Said>>,
    /// What guests write where.
    pub heat: Heat,
    /// What owners send to replicas.
    pub traffic: Traffic,
}

struct Said {
    at: Instant,
    volumes: Vec<VolumeReport>,
    metrics: NodeMetrics,
    latencies: Vec<PeerLatency>,
    lost: bool,
}

/// What a node said about itself, and when.
pub(super) struct Word {
    pub age: Duration,
    pub alive: bool,
    pub metrics: NodeMetrics,
}

impl Presence {
    fn read(&self) -> RwLockReadGuard<'_, HashMap<NodeName, Said>> {
        self.said.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<NodeName, Said>> {
        self.said.write().unwrap_or_else(|e| e.into_inner())
    }

    /// Take a heartbeat. True if the node was not known to be there.
    pub fn heard(&self, name: NodeName, beat: HeartbeatRequest) -> bool {
        self.heat.add(&beat.trails, Instant::now());
        self.traffic.add(&beat.volumes);
        let said = Said {
            at: Instant::now(),
            volumes: beat.volumes,
            metrics: beat.metrics.unwrap_or_default(),
            latencies: beat.latencies,
            lost: false,
        };
        self.write()
            .insert(name, said)
            .is_none_or(|before| before.lost)
    }

    /// What a node said last about itself.
    pub fn word(&self, name: &NodeName) -> Option<Word> {
        let said = self.read();
        let s = said.get(name)?;
        let age = s.at.elapsed();
        Some(Word {
            age,
            alive: age < SILENT,
            metrics: s.metrics,
        })
    }

    /// How far apart two nodes are, as either measured it.
    pub fn distance(&self, a: &NodeName, b: &NodeName) -> Option<Duration> {
        let said = self.read();
        let measured = |from: &NodeName, to: &NodeName| {
            let all = &said.get(from)?.latencies;
            all.iter().find(|l| l.node == to.as_str()).map(|l| l.micros)
        };
        let micros = measured(a, b).or_else(|| measured(b, a))?;
        Some(Duration::from_micros(micros.into()))
    }

    /// How far sites are from a node, as it measured them.
    pub fn sites_from(&self, name: &NodeName) -> Vec<(String, Duration)> {
        let said = self.read();
        let latencies = said.get(name).into_iter().flat_map(|s| &s.latencies);
        let sites = latencies.filter_map(|l| {
            let site = l.node.strip_prefix(SITE)?;
            Some((site.to_owned(), Duration::from_micros(l.micros.into())))
        });
        sites.collect()
    }

    /// What a node said last about a volume, and how long ago.
    pub fn report(&self, node: &NodeName, volume: &str) -> Option<(VolumeReport, Duration)> {
        let said = self.read();
        let s = said.get(node)?;
        let report = s.volumes.iter().find(|v| v.name == volume)?;
        Some((report.clone(), s.at.elapsed()))
    }

    /// What a node that answers counted of a volume's requests.
    pub fn io(&self, node: &NodeName, volume: &str) -> Option<IoCounters> {
        let said = self.read();
        let s = said.get(node).filter(|s| s.at.elapsed() < SILENT)?;
        s.volumes.iter().find(|v| v.name == volume)?.io
    }

    /// A node that is gone for good is not missed.
    pub fn forget(&self, name: &NodeName) {
        self.write().remove(name);
    }

    /// Nodes that fell silent since the last time this was asked.
    pub fn newly_lost(&self) -> Vec<NodeName> {
        let mut lost = Vec::new();
        for (name, s) in self.write().iter_mut() {
            if !s.lost && s.at.elapsed() >= SILENT {
                s.lost = true;
                lost.push(name.clone());
            }
        }
        lost
    }
}

impl<S: Store, N: Nodes> Controller<S, N> {
    /// Every registered node as it stands.
    pub(super) async fn node_views(&self) -> Result<Vec<NodeView>> {
        let nodes = self.inner.records.nodes().await?;
        Ok(nodes
            .into_iter()
            .map(|node| {
                let word = self.inner.presence.word(&node.name);
                NodeView {
                    alive: word.as_ref().is_some_and(|w| w.alive),
                    free_bytes: word.map_or(0, |w| w.metrics.data_free_bytes),
                    node,
                }
            })
            .collect())
    }

    /// What the nodes of a volume's replicas say of their copies, and former owners of what they gave away.
    pub(super) fn said_of_copies(&self, v: &Volume) -> Vec<Copy> {
        let presence = &self.inner.presence;
        let owner = presence.report(&v.owner, v.name.as_str());
        let owner = owner.map(|(said, _)| said.replicas).unwrap_or_default();
        let said = |node: &NodeName| {
            let (said, _) = presence.report(node, v.name.as_str())?;
            // One to which a dead owner gave the volume may own it by now. What an owner has that was
            // replaced is no copy.
            let owns = said.role() == VolumeRole::Owner && said.generation > v.generation;
            let is_whole = said.copy() == ReplicaState::Consistent || owns;
            let seen = owner.iter().find(|r| r.node == node.as_str());
            Some(Copy {
                node: node.clone(),
                generation: said.generation,
                epoch: is_whole.then_some(said.epoch),
                lag_bytes: seen.map(|r| r.lag_bytes),
            })
        };
        let all = v.replicas.iter().map(|r| &r.node).chain(&v.former);
        all.filter_map(said).collect()
    }

    /// A volume's record joined with what its owner said last.
    pub(super) fn joined(&self, v: &Volume) -> v1::Volume {
        let said = self.inner.presence.report(&v.owner, v.name.as_str());
        let alive = self.inner.presence.word(&v.owner).is_some_and(|w| w.alive);
        super::convert::volume(v, said, alive)
    }
}
