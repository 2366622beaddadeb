//! What the store remembers of provisioning: nodes that shall exist, and operations on their way.

use super::workspace::NodeSpec;
use serde::{Deserialize, Serialize};

/// Where a provisioned node stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// It shall exist and has not registered.
    Wanted,
    /// It registered, with this identity.
    Serving {
        /// What the node said it is: its address or certificate.
        identity: String,
    },
    /// It shall be destroyed.
    Retiring,
}

/// A provisioned node. The record exists before the node does and goes after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub name: String,
    /// Its site.
    pub site: String,
    /// What it is made of.
    pub spec: NodeSpec,
    /// The operation that made it; its token depends on it.
    pub made_by: String,
    /// Where it stands.
    pub state: NodeState,
}

/// What an operation does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Make a node and seed it.
    Grow,
    /// Empty a node and destroy it.
    Retire,
    /// Replace a node by one of another shape: a shape is never changed in place.
    Resize {
        /// The node that goes.
        old: String,
    },
}

/// One step. Each may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Terraform makes the node.
    Apply,
    /// The node registers with its token.
    Register,
    /// The volumes' copies there become consistent.
    Seed,
    /// The volumes change their owner.
    CutOver,
    /// The node that goes has neither volumes nor replicas left.
    Drain,
    /// Terraform destroys it.
    Destroy,
}

/// Where an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Its steps are being done.
    Running,
    /// It failed for good; the node that it made is being destroyed.
    Undoing,
    /// All done.
    Done,
    /// Failed, and nothing of it is left.
    Failed,
}

/// An operation. What is in it suffices to go on after a crash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Chosen by whoever asks, so that asking twice is asking once.
    pub id: String,
    /// What it does.
    pub kind: Kind,
    /// Where.
    pub site: String,
    /// The node that it makes, or retires.
    pub node: String,
    /// The volumes that it is about.
    pub volumes: Vec<String>,
    /// When it was logged.
    #[serde(default)]
    pub started: u64,
    /// When it ended.
    #[serde(default)]
    pub ended: Option<u64>,
    /// When its new node had registered.
    #[serde(default)]
    pub registered: Option<u64>,
    /// Where it stands.
    pub stage: Stage,
    /// How many steps are done.
    pub done: usize,
    /// When the current step began.
    pub since: u64,
    /// Failures in a row.
    pub failures: u32,
    /// Not tried again before this.
    pub not_before: u64,
    /// Why it failed, or the latest failure.
    pub error: Option<String>,
    /// Whether its node was kept although it failed, because it is in use.
    #[serde(default)]
    pub kept: bool,
    /// Whether volumes that are kept apart may meet where it moves them.
    #[serde(default)]
    pub ignore_apart: bool,
}

impl Operation {
    /// A new operation.
    #[must_use]
    pub fn new(
        id: &str,
        kind: Kind,
        site: &str,
        node: &str,
        volumes: Vec<String>,
        now: u64,
    ) -> Operation {
        Operation {
            id: id.to_owned(),
            kind,
            site: site.to_owned(),
            node: node.to_owned(),
            volumes,
            started: now,
            ended: None,
            registered: None,
            stage: Stage::Running,
            done: 0,
            since: now,
            failures: 0,
            not_before: 0,
            error: None,
            kept: false,
            ignore_apart: false,
        }
    }

    /// All of its steps, in order.
    #[must_use]
    pub fn steps(&self) -> &'static [Step] {
        use Step::{Apply, CutOver, Destroy, Drain, Register, Seed};
        match self.kind {
            Kind::Grow => &[Apply, Register, Seed],
            Kind::Retire => &[Drain, Destroy],
            Kind::Resize { .. } => &[Apply, Register, Seed, CutOver, Drain, Destroy],
        }
    }

    /// What is to be done next; none when it has ended.
    #[must_use]
    pub fn next(&self) -> Option<Step> {
        match self.stage {
            Stage::Running => self.steps().get(self.done).copied(),
            Stage::Undoing => Some(Step::Destroy),
            Stage::Done | Stage::Failed => None,
        }
    }

    /// The node that its drain and destroy steps are about.
    #[must_use]
    pub fn leaving(&self) -> &str {
        match (&self.kind, self.stage) {
            (Kind::Resize { old }, Stage::Running) => old,
            _ => &self.node,
        }
    }

    /// Whether it is about this node.
    #[must_use]
    pub fn touches(&self, node: &str) -> bool {
        self.node == node || matches!(&self.kind, Kind::Resize { old } if old == node)
    }

    /// Whether failing now may be answered by destroying the new node: not once volumes have begun
    /// to move there.
    #[must_use]
    pub fn may_undo(&self) -> bool {
        matches!(self.next(), Some(Step::Apply | Step::Register | Step::Seed))
    }
}
