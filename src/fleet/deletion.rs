//! Copies that go, also one on a node that may never come back.
//!
//! ```text
//!  volume delete, replica remove   every node deletes its copy ─► the record follows   waits for who is away
//!    ... --forget-unreachable      who is there deletes its copy; of who is silent a note is made
//!                                  ─► the record follows ─► the node comes back ─► is told ─► the note goes
//! ```
//!
//! A note names the volume by its identity, which no later volume has. While the volume lives on, whoever gives
//! that node a copy again drops the note and has the old copy deleted first, so what a note deletes is never
//! wanted. A silent owner may serve its guests until it is told; whoever deletes a volume has decided that.

use super::plan::{Change, Effect, Step, View, delete_on, stop_on};
use super::{Command, Operation, OperationId, Volume, text};
use node::{NodeName, Result, VolumeId, VolumeName};
use serde::{Deserialize, Serialize};

/// A copy that nobody wants on a node that was silent: to be deleted when the node is there.
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

/// A volume to be deleted, and the operation whose place that takes because it may be waiting for a node that
/// never comes back. Not a cutover or a failover: they say who owns the volume, and have to be finished.
pub(super) fn doomed(
    asked: &str,
    name: &VolumeName,
    forget_unreachable: bool,
    view: &View<'_>,
) -> Result<(Volume, Option<OperationId>)> {
    match (view.volume, view.running) {
        (Some(v), Some(running))
            if forget_unreachable
                && !matches!(
                    running.command,
                    Command::Cutover { .. } | Command::Failover { .. }
                ) =>
        {
            Ok(instead_of(v, running))
        }
        _ => Ok((view.existing(asked, name)?, None)),
    }
}

/// The volume of which a node's copy is to go, and the operation whose place that takes: one about this very
/// copy that waits for a silent node.
pub(super) fn parted(
    asked: &str,
    name: &VolumeName,
    node: &NodeName,
    forget_unreachable: bool,
    view: &View<'_>,
) -> Result<(Volume, Option<OperationId>)> {
    if let (Some(v), Some(running), Some(waits_for)) = (view.volume, view.running, view.waits_for())
        && forget_unreachable
    {
        let is_its_own = match &running.command {
            Command::AddReplica { node: its, .. } | Command::RemoveReplica { node: its, .. } => {
                its == node
            }
            // Copies grow before the owner: nothing but copies has another size yet.
            Command::Resize { .. } => waits_for == node && *node != v.owner,
            _ => false,
        };
        if is_its_own {
            return Ok(instead_of(v, running));
        }
    }
    Ok((view.existing(asked, name)?, None))
}

fn instead_of(v: &Volume, running: &Operation) -> (Volume, Option<OperationId>) {
    let mut v = v.clone();
    if let Command::AddReplica { node, .. } = &running.command
        && v.replica_on(node).is_none()
        && !v.is_left_on(node)
    {
        // Its standby may be there, and nobody sends to it.
        v.former.push(node.clone());
    }
    let replaced = v.operation.take();
    (v, replaced)
}

/// How every copy goes; of those on nodes that are `gone` notes are made.
pub(super) fn steps(v: &Volume, gone: impl Fn(&NodeName) -> bool) -> Vec<Step> {
    let copies = v.replicas.iter().map(|r| &r.node).chain(&v.former);
    let steps = copies.flat_map(|node| steps_on(v, node, &gone));
    let is_in_vain = |s: &Step| matches!(s.effect, Effect::StopReplica { .. }) && gone(&v.owner);
    let mut steps: Vec<Step> = steps.filter(|s| !is_in_vain(s)).collect();
    steps.push(delete_or_note(&v.owner, Change::Forget, &gone));
    steps
}

/// How one node's copy goes, with the volume's owner told first. To a former owner's nobody sends.
pub(super) fn steps_on(v: &Volume, node: &NodeName, gone: impl Fn(&NodeName) -> bool) -> Vec<Step> {
    let mut steps = Vec::new();
    if !v.is_left_on(node) {
        steps.push(stop_on(node));
    }
    let change = Change::RemoveReplica { node: node.clone() };
    steps.push(delete_or_note(node, change, gone));
    steps
}

fn delete_or_note(node: &NodeName, change: Change, gone: impl Fn(&NodeName) -> bool) -> Step {
    if !gone(node) {
        return delete_on(node, change);
    }
    Step {
        name: format!("note that {node}, which is silent, is to delete it"),
        effect: Effect::Leave { node: node.clone() },
        change,
    }
}
