//! What the controller does of its own accord: finish what a killed one began, notice nodes that
//! fell silent, and have owners keep the replicas that the records want.

use super::records::Happening;
use super::{Controller, Nodes, nodes};
use crate::fleet::{Effect, Replica, Status, Volume};
use crate::store::Store;
use node::Result;
use proto::v1;
use std::time::Duration;

/// How often the fleet is looked over.
const EVERY: Duration = Duration::from_secs(2);

/// Replicas that a volume's record wants and its owner does not report: a node that was restored from
/// an older data directory, or was told while the controller died.
pub(super) fn forgotten<'a>(v: &'a Volume, said: &v1::VolumeReport) -> Vec<&'a Replica> {
    let settled = v.status == Status::Ready && v.operation.is_none();
    if !settled || said.role() != v1::VolumeRole::Owner {
        return Vec::new();
    }
    let reported = |r: &&Replica| said.replicas.iter().any(|p| p.node == r.node.as_str());
    v.replicas.iter().filter(|r| !reported(r)).collect()
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

    async fn look_over(&self) -> Result<()> {
        for name in self.inner.presence.newly_lost() {
            self.tell(
                "node-lost",
                &name,
                format!("node {name} sends no heartbeats"),
            )
            .await?;
        }
        for v in self.inner.records.volumes().await? {
            if let Some((said, age)) = self.inner.presence.report(&v.owner, v.name.as_str())
                && age < EVERY
            {
                for replica in forgotten(&v, &said) {
                    self.remind(&v, replica).await?;
                }
            }
        }
        Ok(())
    }

    async fn remind(&self, v: &Volume, replica: &Replica) -> Result<()> {
        let all = self.inner.records.nodes().await?;
        let find = |name: &node::NodeName| all.iter().find(|n| n.name == *name).cloned();
        let id = format!("reconcile-{}", v.generation);
        let effect = Effect::StartReplica {
            from: v.owner.clone(),
            replica: replica.clone(),
        };
        let call = nodes::call_for(&id, "replicate again", &effect, v, &find)?;
        if let Err(e) = self.inner.nodes.call(call, |_| {}).await {
            tracing::warn!(volume = %v.name, replica = %replica.node, "{e}");
            return Ok(()); // the next round tries again
        }
        let happening = Happening {
            kind: "replica-restored",
            volume: v.name.to_string(),
            node: replica.node.to_string(),
            text: format!(
                "{} had lost its replica on {}; it was asked to keep it",
                v.owner, replica.node
            ),
        };
        self.commit(crate::store::Transaction::default(), vec![happening])
            .await?;
        Ok(())
    }
}
