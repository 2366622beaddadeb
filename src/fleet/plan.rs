//! From a command to its steps, and from a finished step to the record.
//!
//! The order of steps is where safety lives: a standby exists before anybody sends to it, and a
//! source forgets a replica before the replica's copy goes.

use super::deletion;
use super::failover::{self, Copy, Word};
use super::{
    Command, Consistency, Left, NodeView, Operation, OperationId, Progress, Replica, Status,
    Volume, text,
};
use node::{Error, ErrorKind, NodeName, Result, VolumeName};
use serde::{Deserialize, Serialize};

/// One call to one node. Every one may be repeated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "call")]
pub enum Effect {
    /// Make or adopt the image as the volume's owner.
    CreateOwner,
    /// Make an empty standby.
    CreateStandby {
        /// Where.
        #[serde(with = "text")]
        node: NodeName,
    },
    /// Delete the volume on a node.
    Delete {
        /// Where.
        #[serde(with = "text")]
        node: NodeName,
    },
    /// Have nothing done on a node now: note that the copy there is to be deleted when its node comes back.
    Leave {
        /// Where.
        #[serde(with = "text")]
        node: NodeName,
    },
    /// Resize the copy on a node.
    Resize {
        /// Where.
        #[serde(with = "text")]
        node: NodeName,
        /// To what.
        size_bytes: u64,
    },
    /// Have a node replicate to a standby.
    StartReplica {
        /// The sender.
        #[serde(with = "text")]
        from: NodeName,
        /// The replica.
        replica: Replica,
    },
    /// Have the owner forget a replica.
    StopReplica {
        /// Which.
        #[serde(with = "text")]
        node: NodeName,
    },
    /// Have the owner hand the volume over.
    Cutover {
        /// To whom.
        #[serde(with = "text")]
        to: NodeName,
    },
    /// Have a former owner that was away serve the volume no longer.
    Depose {
        /// Who.
        #[serde(with = "text")]
        node: NodeName,
    },
    /// Have a replica's node own the volume, in the generation after the recorded one.
    TakeOver {
        /// Who.
        #[serde(with = "text")]
        by: NodeName,
    },
    /// Have the owner give a cutover up and own the volume in the generation after the one that it offered,
    /// whether it had given it away or not.
    TakeBack,
}

impl Effect {
    /// Whom it is asked of.
    #[must_use]
    pub fn at<'a>(&'a self, v: &'a Volume) -> &'a NodeName {
        match self {
            Effect::CreateOwner
            | Effect::StopReplica { .. }
            | Effect::Cutover { .. }
            | Effect::TakeBack => &v.owner,
            Effect::CreateStandby { node }
            | Effect::Delete { node }
            | Effect::Leave { node }
            | Effect::Resize { node, .. }
            | Effect::Depose { node }
            | Effect::StartReplica { from: node, .. }
            | Effect::TakeOver { by: node } => node,
        }
    }
}

/// What a finished step does to the record. The change and the count of steps done are committed in
/// one transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "change")]
pub enum Change {
    /// Nothing.
    None,
    /// The volume is served: the owner's answer says how large and in which generation.
    Ready,
    /// The volume is gone.
    Forget,
    /// A replica is wanted from now on.
    AddReplica {
        /// The replica.
        replica: Replica,
    },
    /// A replica is gone.
    RemoveReplica {
        /// Where it was.
        #[serde(with = "text")]
        node: NodeName,
    },
    /// The volume has a new size.
    Resized {
        /// Which.
        size_bytes: u64,
    },
    /// The volume has a new owner, in the generation that the answer says.
    Owned {
        /// Who.
        #[serde(with = "text")]
        by: NodeName,
    },
    /// The same, without the consent of the owner before.
    Taken {
        /// Who.
        #[serde(with = "text")]
        by: NodeName,
    },
    /// The owner has the volume again, or still.
    TakenBack {
        /// From whom, who may have owned it meanwhile.
        #[serde(with = "text")]
        from: NodeName,
    },
}

/// A step of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// For people, for example "make standby on n2".
    pub name: String,
    /// The call.
    pub effect: Effect,
    /// What its success means for the record.
    pub change: Change,
}

/// What a command will do: the record to write when it is logged, and the steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The volume's record, marked with the operation.
    pub volume: Volume,
    /// In order.
    pub steps: Vec<Step>,
    /// The operation whose place it takes.
    pub instead_of: Option<OperationId>,
}

/// The fleet as planning sees it.
pub struct View<'a> {
    /// The volume the command is about, if it exists.
    pub volume: Option<&'a Volume>,
    /// Every node that ever registered.
    pub nodes: &'a [NodeView],
    /// What is being done to the volume, if anything is.
    pub running: Option<&'a Operation>,
    /// Copies of it that silent nodes are to delete when they come back.
    pub left: &'a [Left],
    /// What the nodes of its replicas say of their copies.
    pub copies: &'a [Copy],
}

impl View<'_> {
    pub(super) fn existing(&self, asked: &str, name: &VolumeName) -> Result<Volume> {
        let v = self.volume.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!(
                    "{asked}: there is no volume {name}; `forerun volume list` shows what there is"
                ),
            )
        })?;
        match &v.operation {
            Some(operation) => Err(self.busy(asked, v, operation)),
            None => Ok(v.clone()),
        }
    }

    fn busy(&self, asked: &str, v: &Volume, operation: &OperationId) -> Error {
        let verb = self.running.map_or("a command", |o| o.command.verb());
        let begun = format!("{asked}: {verb} (operation {operation})");
        let text = match self.waits_for().or_else(|| self.is_waited_for(v)) {
            None => format!(
                "{begun} is still changing the volume; wait until it has ended: forerun operation watch \
                 {operation}"
            ),
            Some(node) => {
                let fails_over = *node == v.owner || matches!(verb, "failover" | "cutover");
                let way_out = if v.status != Status::Ready {
                    format!("volume delete {} --forget-unreachable", v.name)
                } else if self.is_waited_for(v) == Some(node) {
                    format!("failover {} --target-is-off", v.name)
                } else if fails_over {
                    format!("failover {} --owner-is-off", v.name)
                } else {
                    format!("replica remove {} --to {node} --forget-unreachable", v.name)
                };
                format!(
                    "{begun} waits for node {node}, which sends no heartbeats; start it. If it is gone for \
                     good: forerun {way_out}"
                )
            }
        };
        Error::new(ErrorKind::Busy, text)
    }

    /// The silent node that what is being done to the volume waits for.
    pub(super) fn waits_for(&self) -> Option<&NodeName> {
        let node = self.running?.next()?.effect.at(self.volume?);
        self.is_silent(node).then_some(node)
    }

    /// The silent node that is to take the volume over from its owner.
    fn is_waited_for<'a>(&'a self, v: &Volume) -> Option<&'a NodeName> {
        match &self.running?.command {
            Command::Cutover { to, .. } if *to != v.owner && self.is_silent(to) => Some(to),
            _ => None,
        }
    }

    pub(super) fn is_silent(&self, name: &NodeName) -> bool {
        !self.nodes.iter().any(|n| n.node.name == *name && n.alive)
    }

    fn absent(&self, asked: &str, name: &VolumeName) -> Result<()> {
        match self.volume {
            None => Ok(()),
            Some(v) => Err(Error::new(
                ErrorKind::Exists,
                format!(
                    "{asked}: volume {name} exists already on node {}; choose another name or delete it",
                    v.owner
                ),
            )),
        }
    }

    pub(super) fn alive(&self, asked: &str, name: &NodeName) -> Result<&NodeView> {
        let found = self.nodes.iter().find(|n| n.node.name == *name);
        let node = found.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!(
                    "{asked}: no node {name} has registered; `forerun node-list` shows who has"
                ),
            )
        })?;
        if node.alive {
            Ok(node)
        } else {
            Err(Error::new(
                ErrorKind::Disconnected,
                format!("{asked}: node {name} sends no heartbeats; start it or choose another"),
            ))
        }
    }

    /// A node that may be given something new.
    pub(super) fn taking(&self, asked: &str, name: &NodeName) -> Result<&NodeView> {
        let node = self.alive(asked, name)?;
        if node.node.draining {
            return Err(Error::new(
                ErrorKind::Denied,
                format!("{asked}: node {name} is being emptied and retired; choose another"),
            ));
        }
        Ok(node)
    }

    fn roomiest(&self, asked: &str) -> Result<&NodeView> {
        let alive = self.nodes.iter().filter(|n| n.alive && !n.node.draining);
        alive.max_by_key(|n| n.free_bytes).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("{asked}: no node is alive to hold it; start one with `forerun node --config FILE`"),
            )
        })
    }
}

/// Sizes are whole sectors: the unit that every front end can address.
const SECTOR: u64 = 512;

fn check_size(asked: &str, size_bytes: u64) -> Result<()> {
    if size_bytes > 0 && size_bytes.is_multiple_of(SECTOR) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Invalid,
        format!(
            "{asked}: {size_bytes} bytes is no size for a volume; use a multiple of {SECTOR}, for example 10G"
        ),
    ))
}

/// What `command` will do, or why it cannot be done.
pub fn plan(id: &OperationId, command: &Command, view: &View<'_>) -> Result<Plan> {
    let name = command.volume();
    let asked = format!("{} {name}", command.verb());
    let asked = asked.as_str();
    let mut instead_of = None;
    let (mut volume, steps) = match command {
        Command::Create {
            id,
            size_bytes,
            node,
            ..
        } => {
            view.absent(asked, name)?;
            check_size(asked, *size_bytes)?;
            let owner = match node {
                Some(n) => view.taking(asked, n)?,
                None => view.roomiest(asked)?,
            };
            let owner = owner.node.name.clone();
            let step = create_owner(format!("make image on {owner}"));
            (
                Volume::new(name.clone(), *id, *size_bytes, owner),
                vec![step],
            )
        }
        Command::Import { id, node, path, .. } => {
            view.absent(asked, name)?;
            let owner = view.taking(asked, node)?.node.name.clone();
            let step = create_owner(format!("adopt {path} on {owner}"));
            let mut v = Volume::new(name.clone(), *id, 0, owner);
            v.image_path = Some(path.clone());
            (v, vec![step])
        }
        Command::Delete {
            forget_unreachable, ..
        } => {
            let mut v;
            (v, instead_of) = deletion::doomed(asked, name, *forget_unreachable, view)?;
            v.status = Status::Deleting;
            let gone = |node: &NodeName| *forget_unreachable && view.is_silent(node);
            let steps = deletion::steps(&v, gone);
            (v, steps)
        }
        Command::Resize { size_bytes, .. } => {
            let v = view.existing(asked, name)?;
            check_size(asked, *size_bytes)?;
            if *size_bytes < v.size_bytes {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!(
                        "{asked}: it has {} bytes, and a volume can only grow",
                        v.size_bytes
                    ),
                ));
            }
            let steps = resize_steps(&v, *size_bytes);
            (v, steps)
        }
        Command::AddReplica {
            node,
            consistency,
            rate_bytes_per_second,
            ..
        } => {
            let v = view.existing(asked, name)?;
            if *consistency == Consistency::Strong {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "{asked}: nodes of this version cannot hold a guest's write until the replica has it; \
                             use --consistency bounded=1s"
                    ),
                ));
            }
            if *node == v.owner {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("{asked}: {node} owns the volume; choose another node"),
                ));
            }
            if let Some(r) = v.replica_on(node) {
                return Err(Error::new(
                    ErrorKind::Exists,
                    format!(
                        "{asked}: {node} has a replica already ({}); remove it first to change it",
                        r.consistency
                    ),
                ));
            }
            view.taking(asked, node)?;
            view.alive(asked, &v.owner)?;
            let replica = Replica {
                node: node.clone(),
                consistency: *consistency,
                rate_bytes_per_second: *rate_bytes_per_second,
            };
            let mut steps = add_steps(&v, replica);
            if view.left.iter().any(|l| l.node == *node) {
                // Nobody knows what the volume was when that copy was left.
                steps.insert(0, delete_on(node, Change::None));
            }
            (v, steps)
        }
        Command::RemoveReplica {
            node,
            forget_unreachable,
            ..
        } => {
            let v;
            (v, instead_of) = deletion::parted(asked, name, node, *forget_unreachable, view)?;
            if !v.is_left_on(node) && v.replica_on(node).is_none() {
                return Err(no_replica(asked, node, &v));
            }
            let gone = |node: &NodeName| *forget_unreachable && view.is_silent(node);
            let steps = deletion::steps_on(&v, node, gone);
            (v, steps)
        }
        Command::Cutover { to, .. } => {
            let v = view.existing(asked, name)?;
            if *to == v.owner {
                return Err(Error::new(
                    ErrorKind::Exists,
                    format!("{asked}: {to} owns the volume already"),
                ));
            }
            if v.replica_on(to).is_none() {
                return Err(no_replica(asked, to, &v));
            }
            view.taking(asked, to)?;
            view.alive(asked, &v.owner)?;
            let steps = cutover_steps(&v, to);
            (v, steps)
        }
        Command::Failover {
            to,
            owner_is_off,
            target_is_off,
            ..
        } => {
            let mut failing = failover::failing(asked, name, view)?;
            let word = Word {
                owner_is_off: *owner_is_off,
                target_is_off: *target_is_off,
            };
            let steps = failing.steps(asked, to.as_ref(), word, view)?;
            instead_of = failing.instead_of;
            (failing.volume, steps)
        }
    };
    volume.operation = Some(id.clone());
    Ok(Plan {
        volume,
        steps,
        instead_of,
    })
}

pub(super) fn no_replica(asked: &str, node: &NodeName, v: &Volume) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!(
            "{asked}: {node} has no replica of it; `forerun replica add {} --to {node}` makes one",
            v.name
        ),
    )
}

fn create_owner(name: String) -> Step {
    Step {
        name,
        effect: Effect::CreateOwner,
        change: Change::Ready,
    }
}

pub(super) fn delete_on(node: &NodeName, change: Change) -> Step {
    Step {
        name: format!("delete on {node}"),
        effect: Effect::Delete { node: node.clone() },
        change,
    }
}

fn resize_steps(v: &Volume, size_bytes: u64) -> Vec<Step> {
    // Copies first: an owner that is larger than its standby could send what does not fit.
    let nodes = v.replicas.iter().map(|r| &r.node).chain([&v.owner]);
    nodes
        .map(|node| {
            let change = if *node == v.owner {
                Change::Resized { size_bytes }
            } else {
                Change::None
            };
            resize_on(node, size_bytes, change)
        })
        .collect()
}

fn resize_on(node: &NodeName, size_bytes: u64, change: Change) -> Step {
    Step {
        name: format!("resize on {node}"),
        effect: Effect::Resize {
            node: node.clone(),
            size_bytes,
        },
        change,
    }
}

fn add_steps(v: &Volume, replica: Replica) -> Vec<Step> {
    let node = replica.node.clone();
    let mut steps = vec![Step {
        name: format!("make standby on {node}"),
        effect: Effect::CreateStandby { node: node.clone() },
        change: Change::AddReplica {
            replica: replica.clone(),
        },
    }];
    if v.is_left_on(&node) {
        // The volume may have grown since.
        steps.push(resize_on(&node, v.size_bytes, Change::None));
    }
    steps.push(Step {
        name: format!("replicate from {} to {node}", v.owner),
        effect: Effect::StartReplica {
            from: v.owner.clone(),
            replica,
        },
        change: Change::None,
    });
    steps
}

pub(super) fn stop_on(node: &NodeName) -> Step {
    Step {
        name: format!("stop replicating to {node}"),
        effect: Effect::StopReplica { node: node.clone() },
        change: Change::None,
    }
}

fn cutover_steps(v: &Volume, to: &NodeName) -> Vec<Step> {
    let mut steps = vec![Step {
        name: format!("hand over from {} to {to}", v.owner),
        effect: Effect::Cutover { to: to.clone() },
        change: Change::Owned { by: to.clone() },
    }];
    steps.extend(follow_steps(v, to));
    steps
}

/// The other replicas follow the new owner from here on.
pub(super) fn follow_steps(v: &Volume, owner: &NodeName) -> impl Iterator<Item = Step> {
    let others = v.replicas.iter().filter(move |r| r.node != *owner);
    others.map(move |r| Step {
        name: format!("replicate from {owner} to {}", r.node),
        effect: Effect::StartReplica {
            from: owner.clone(),
            replica: r.clone(),
        },
        change: Change::None,
    })
}

/// The steps that take back what a command did before one of its steps failed for good.
#[must_use]
pub fn undo(command: &Command, v: &Volume) -> Vec<Step> {
    match command {
        Command::Create { .. } | Command::Import { .. } => {
            vec![delete_on(&v.owner, Change::Forget)]
        }
        Command::AddReplica { node, .. } => deletion::steps_on(v, node, |_| false),
        // A resize that failed leaves copies that are larger than the owner, which is harmless; a
        // cutover that failed left the source serving; a delete that failed can be asked for again.
        Command::Delete { .. }
        | Command::Resize { .. }
        | Command::RemoveReplica { .. }
        | Command::Cutover { .. }
        | Command::Failover { .. } => Vec::new(),
    }
}

/// What a node's answer says about the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// With an owner's creation.
    pub size_bytes: u64,
    /// With an owner's creation and a cutover.
    pub generation: u64,
    /// With a cutover: how it went.
    pub cutover: Option<Progress>,
}

/// The record after a step; `None` when the volume is gone.
pub fn apply(change: &Change, answer: Answer, mut v: Volume) -> Result<Option<Volume>> {
    match change {
        Change::None => {}
        Change::Ready => {
            v.status = Status::Ready;
            v.size_bytes = answer.size_bytes;
            v.generation = answer.generation;
        }
        Change::Forget => return Ok(None),
        Change::AddReplica { replica } => {
            v.replicas.retain(|r| r.node != replica.node);
            v.replicas.push(replica.clone());
            v.reclaimed(&replica.node);
        }
        Change::RemoveReplica { node } => {
            v.replicas.retain(|r| r.node != *node);
            v.reclaimed(node);
        }
        Change::Resized { size_bytes } => v.size_bytes = *size_bytes,
        Change::Owned { by } | Change::Taken { by } => {
            does_follow(&v, by, answer)?;
            v.replicas.retain(|r| r.node != *by);
            v.reclaimed(by);
            let former = std::mem::replace(&mut v.owner, by.clone());
            v.former.push(former);
            v.generation = answer.generation;
            v.offered_to = None;
            if matches!(change, Change::Taken { .. }) {
                v.taken = answer.generation;
            }
        }
        Change::TakenBack { from } => {
            does_follow(&v, &v.owner, answer)?;
            // What it may have been told is on its disk only: nobody is to send over it unasked.
            v.replicas.retain(|r| r.node != *from);
            v.former.push(from.clone());
            v.generation = answer.generation;
            v.taken = answer.generation;
            v.offered_to = None;
        }
    }
    Ok(Some(v))
}

/// A generation that does not grow is never recorded.
fn does_follow(v: &Volume, by: &NodeName, answer: Answer) -> Result<()> {
    if answer.generation > v.generation {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Protocol,
        format!(
            "new owner of {}: {by} reports generation {}, which does not follow {}; nothing was recorded",
            v.name, answer.generation, v.generation
        ),
    ))
}
