//! What the controller does of its own accord: finish what a killed one began, notice nodes that
//! fell silent, have owners keep the replicas that the records want, and no others, and have nodes that come
//! back delete the copies that were given up without them.

use super::nodes::{self, Call, Request};
use super::records::{Happening, forget_left};
use super::{Controller, Nodes};
use crate::fleet::{Effect, Node, Replica, Status, Volume};
use crate::store::{Store, Transaction};
use node::{NodeName, Result};
use proto::v1;
use std::time::Duration;

/// How often the fleet is looked over.
const EVERY: Duration = Duration::from_secs(2);

/// Replicas that a volume's record wants and its owner does not report: a node that was restored from
/// an older data directory, or was told while the controller died.
pub(super) fn forgotten<'a>(v: &'a Volume, said: &v1::VolumeReport) -> Vec<&'a Replica> {
    if !is_settled(v, said) {
        return Vec::new();
    }
    let reported = |r: &&Replica| said.replicas.iter().any(|p| p.node == r.node.as_str());
    v.replicas.iter().filter(|r| !reported(r)).collect()
}

/// Nodes to which a volume's owner replicates though its record wants no replica there: the owner's
/// directory is older than the record. The node would be sent increments, and refused as the new owner.
pub(super) fn unasked(v: &Volume, said: &v1::VolumeReport) -> Vec<NodeName> {
    if !is_settled(v, said) {
        return Vec::new();
    }
    let names = said.replicas.iter().filter_map(|r| r.node.parse().ok());
    names.filter(|n| v.replica_on(n).is_none()).collect()
}

/// What was said is of the owner of the record, and nothing is about to change the record.
fn is_settled(v: &Volume, said: &v1::VolumeReport) -> bool {
    v.status == Status::Ready
        && v.operation.is_none()
        && said.role() == v1::VolumeRole::Owner
        && said.generation == v.generation
}

/// Whether what a node says of a volume is the part of a former owner that was away when the volume was
/// taken over, or of one whose records were put back.
fn is_bygone(v: &Volume, node: &NodeName, said: &v1::VolumeReport) -> bool {
    let before = match said.role() {
        v1::VolumeRole::Owner => v.generation,
        v1::VolumeRole::Forwarding => v.taken,
        _ => return false,
    };
    *node != v.owner && said.id == v.id.to_string() && said.generation < before
}

impl<S: Store, N: Nodes> Controller<S, N> {
    /// Take up every operation that has not ended.
    pub(super) async fn resume(&self) -> Result<()> {
        for operation in self.inner.records.operations().await? {
            if operation.is_running() {
                tracing::info!(id = %operation.id, "resuming {}", operation.command.verb());
                self.drive(operation);
            }
        }
        Ok(())
    }

    /// Look the fleet over for as long as the controller lives.
    pub(super) async fn watch_over(self) {
        let mut tick = tokio::time::interval(EVERY);
        loop {
            tick.tick().await;
            if let Err(e) = self.look_over().await {
                tracing::warn!("looking the fleet over: {e}");
            }
        }
    }

    pub(super) async fn look_over(&self) -> Result<()> {
        for name in self.inner.presence.newly_lost() {
            let text = format!("node {name} sends no heartbeats");
            self.announce("node-lost", name.as_str(), text).await?;
        }
        let nodes = self.inner.records.nodes().await?;
        self.clear_away(&nodes).await?;
        for v in self.inner.records.volumes().await? {
            for node in nodes.iter().map(|n| &n.name) {
                let said = self.inner.presence.report(node, v.name.as_str());
                if said.is_some_and(|(said, age)| age < EVERY && is_bygone(&v, node, &said)) {
                    let effect = Effect::Depose { node: node.clone() };
                    let text = format!(
                        "{node} came back as the owner of an earlier generation and serves it no longer: \
                         {} owns it in generation {}. `forerun replica add {} --to {node}` makes its copy \
                         a replica, which overwrites what {node} alone has",
                        v.owner, v.generation, v.name
                    );
                    self.set_right(&v, effect, ("owner-deposed", node.clone(), text))
                        .await?;
                }
            }
            if let Some((said, age)) = self.inner.presence.report(&v.owner, v.name.as_str())
                && age < EVERY
            {
                for replica in forgotten(&v, &said) {
                    let node = replica.node.clone();
                    let effect = Effect::StartReplica {
                        from: v.owner.clone(),
                        replica: replica.clone(),
                    };
                    let text = format!(
                        "{} had lost its replica on {node}; it was asked to keep it",
                        v.owner
                    );
                    self.set_right(&v, effect, ("replica-restored", node, text))
                        .await?;
                }
                for node in unasked(&v, &said) {
                    let effect = Effect::StopReplica { node: node.clone() };
                    let text = format!(
                        "{} kept a replica on {node} that nobody wants; it was asked to stop",
                        v.owner
                    );
                    self.set_right(&v, effect, ("replica-dropped", node, text))
                        .await?;
                }
            }
        }
        Ok(())
    }

    /// Have nodes that are there delete the copies that were given up without them.
    async fn clear_away(&self, nodes: &[Node]) -> Result<()> {
        for left in self.inner.records.left().await? {
            let alive = self
                .inner
                .presence
                .word(&left.node)
                .is_some_and(|w| w.alive);
            let node = nodes.iter().find(|n| n.name == left.node);
            let Some(to) = node.filter(|_| alive).cloned() else {
                continue;
            };
            let request = Request::Delete(v1::DeleteVolumeRequest {
                operation_id: "reconcile-left".to_owned(),
                name: left.volume.to_string(),
                id: left.id.to_string(),
            });
            // Whoever gives the node that volume again drops the note and draws a later turn.
            let turn = self.draw();
            if !self.inner.records.is_left(&left).await? {
                continue;
            }
            let call = Call { to, turn, request };
            if let Err(e) = self.inner.nodes.call(call, |_| {}).await {
                tracing::warn!(volume = %left.volume, node = %left.node, "{e}");
                continue; // the next round tries again
            }
            let text = format!(
                "{} is back; what it had of {} was given up meanwhile and is deleted",
                left.node, left.volume
            );
            let happening = Happening {
                kind: "copy-dropped",
                volume: left.volume.to_string(),
                node: left.node.to_string(),
                text,
            };
            let mut t = Transaction::default();
            forget_left(&mut t, &left);
            self.commit(t, vec![happening]).await?;
        }
        Ok(())
    }

    /// Have a node bring an effect about that the record wants, and tell of it.
    async fn set_right(
        &self,
        v: &Volume,
        effect: Effect,
        (kind, node, text): (&'static str, NodeName, String),
    ) -> Result<()> {
        // A command may have come since: it is right by definition. One that comes from here on draws a later
        // turn, and its calls are not undone by this one.
        let turn = self.draw();
        let now = self.inner.records.volume(&v.name).await?;
        if now.is_none_or(|now| now.record != *v) {
            return Ok(());
        }
        let all = self.inner.records.nodes().await?;
        let find = |name: &NodeName| all.iter().find(|n| n.name == *name).cloned();
        let id = format!("reconcile-{}", v.generation);
        let call = nodes::call_for(turn, &id, "reconcile", &effect, v, &find)?;
        if let Err(e) = self.inner.nodes.call(call, |_| {}).await {
            tracing::warn!(volume = %v.name, %node, "{e}");
            return Ok(()); // the next round tries again
        }
        let happening = Happening {
            kind,
            volume: v.name.to_string(),
            node: node.to_string(),
            text,
        };
        self.commit(Transaction::default(), vec![happening]).await?;
        Ok(())
    }
}
