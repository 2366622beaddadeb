//! The fleet's nodes as the planner sees places for copies.

use super::{Controller, Nodes};
use crate::fleet::Volume;
use crate::planner::{Bytes, NodeView};
use crate::store::Store;
use node::{NodeName, Result};
use proto::v1::VolumeReport;

/// What a copy still lacks, as its source says; the whole volume while that says nothing.
pub(super) fn lacking(said: Option<&VolumeReport>, node: &str, size: u64) -> u64 {
    let report = said.and_then(|s| s.replicas.iter().find(|r| r.node == node));
    match report {
        None => size,
        Some(r) => match r.seed.filter(|s| s.bytes_done < s.bytes_total) {
            Some(seed) => seed.bytes_total - seed.bytes_done,
            None => r.lag_bytes,
        },
    }
}

impl<S: Store, N: Nodes> Controller<S, N> {
    /// What is free on a node, less what copies that are being made there will still take.
    pub(super) fn room_on(&self, node: &NodeName, volumes: &[Volume]) -> u64 {
        let word = self.inner.presence.word(node);
        let coming = volumes.iter().filter(|v| v.replica_on(node).is_some());
        let coming: u64 = coming
            .map(|v| {
                let said = self.inner.presence.report(&v.owner, v.name.as_str());
                lacking(said.as_ref().map(|s| &s.0), node.as_str(), v.size_bytes)
            })
            .sum();
        word.map_or(0, |w| w.metrics.data_free_bytes.saturating_sub(coming))
    }
}

/// Every node: what it said last, and how far it is, by name where that is known.
pub(super) async fn of<S: Store, N: Nodes>(
    controller: &Controller<S, N>,
    latency_ms: &[(String, f64)],
) -> Result<Vec<NodeView>> {
    let views = controller.node_views().await?;
    let volumes = controller.inner.records.volumes().await?;
    let far = |name: &str| (latency_ms.iter()).find(|(n, _)| n == name);
    Ok(views
        .into_iter()
        .map(|v| {
            let word = controller.inner.presence.word(&v.node.name);
            let metrics = word.map(|w| w.metrics).unwrap_or_default();
            let name = v.node.name.to_string();
            NodeView {
                latency_ms: far(&name).map_or(0.0, |(_, ms)| *ms),
                // a host fails alone unless somebody says otherwise
                domain: name.clone(),
                name,
                site: v.node.site,
                available: v.alive && !v.node.draining,
                utilisation: f64::from(metrics.cpu_permille) / 1000.0,
                total: Bytes(metrics.data_total_bytes),
                free: Bytes(controller.room_on(&v.node.name, &volumes)),
                ..NodeView::default()
            }
        })
        .collect())
}
