//! Deletion: every copy of a volume goes, also one on a node that may never come back.
//!
//! ```text
//!  delete                        every node deletes its copy ─► the record goes         waits for who is away
//!  delete --forget-unreachable   who is there deletes its copy; of who is silent a note is made
//!                                ─► the record goes ─► the node comes back ─► is told ─► the note goes
//! ```
//!
//! A note names the volume by its identity, which no later volume has, so what it deletes is never wanted. A
//! silent owner may serve its guests until it is told; whoever deletes a volume has decided that.

use super::plan::{Change, Effect, Step, View, delete_on, stop_on};
use super::{Command, OperationId, Volume, text};
use node::{NodeName, Result, VolumeId, VolumeName};
use serde::{Deserialize, Serialize};

/// A copy of a deleted volume on a node that was silent: to be deleted when the node is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Where.
    #[serde(with = "text")]
    pub node: NodeName,
    /// What the volume was called.
    #[serde(with = "text")]
    pub volume: VolumeName,
    /// Which it was.
    #[serde(with = "text")]
    pub id: VolumeId,
}

/// A volume to be deleted, and the operation whose place that takes: a deletion or a removal that may be
/// waiting for a node that never comes back.
pub(super) fn doomed(
    asked: &str,
    name: &VolumeName,
    forget_unreachable: bool,
    view: &View<'_>,
) -> Result<(Volume, Option<OperationId>)> {
    match (view.volume, view.running) {
        (Some(v), Some(Command::Delete { .. } | Command::RemoveReplica { .. }))
            if forget_unreachable =>
        {
            let mut v = v.clone();
            let instead_of = v.operation.take();
            Ok((v, instead_of))
        }
        _ => Ok((view.existing(asked, name)?, None)),
    }
}

/// How every copy goes; of those on nodes that are `gone` notes are made.
pub(super) fn steps(v: &Volume, gone: impl Fn(&NodeName) -> bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let rid = |node: &NodeName, change| match gone(node) {
        true => leave_on(node, change),
        false => delete_on(node, change),
    };
    for node in v.replicas.iter().map(|r| &r.node) {
        if !gone(&v.owner) {
            steps.push(stop_on(node));
        }
        steps.push(rid(node, Change::RemoveReplica { node: node.clone() }));
    }
    let former = v.forwarding_from.iter().chain(&v.left_on);
    steps.extend(former.map(|node| rid(node, Change::RemoveReplica { node: node.clone() })));
    steps.push(rid(&v.owner, Change::Forget));
    steps
}

fn leave_on(node: &NodeName, change: Change) -> Step {
    Step {
        name: format!("note that {node}, which is silent, is to delete it"),
        effect: Effect::Leave { node: node.clone() },
        change,
    }
}
