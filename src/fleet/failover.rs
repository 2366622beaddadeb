//! Failover: a replica takes the place of an owner that is gone for good.
//!
//! ```text
//!  the owner is silent ─ somebody says that it is off ─► take over on the furthest replica, generation g+1
//!                                                      ─► the other replicas follow the new owner
//!  the owner comes back ─► told that generation g+1 is owned elsewhere: it serves nobody any more
//! ```
//!
//! A silent owner may serve guests all the same, behind a network that has parted. Two nodes that serve
//! one disk lose what either was told is written, so nothing here concludes from silence that a host is
//! off: whoever asks must have made sure, and must say so.
//!
//! An owner that vanished in a cutover may have given the volume away before it went. Then it is the
//! cutover's target, and nobody else, that may go on: it has all that was acknowledged, and the owner, should
//! it come back, hands it the same generation.
//!
//! ```text
//!  a cutover's target is silent ─ somebody says that it is off
//!    the owner is there      ─► it gives the cutover up, and owns the volume in g+2
//!    the owner is off, too   ─► the target counts as the owner of g+1; a replica takes over in g+2
//! ```
//!
//! A target that vanished may have owned the volume, and what it acknowledged would be on its disk only. The owner
//! that gave it away has all until then. One that was replaced long since has that, too, and takes the volume
//! over when it is named.

use super::plan::{Answer, Change, Effect, Step, View, apply, follow_steps, no_replica};
use super::{Command, OperationId, Volume};
use node::{Error, ErrorKind, NodeName, Result, VolumeName};

/// What a replica's node says of its copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Who says it.
    pub node: NodeName,
    /// In which generation its source owned the volume. A later owner may have begun with less.
    pub generation: u64,
    /// The epoch of a consistent copy; `None` if the copy is no point in time.
    pub epoch: Option<u64>,
    /// Bytes of later writes that the owner still had for it when it was heard last, if that is known.
    pub lag_bytes: Option<u64>,
}

/// A volume whose owner is to be replaced.
pub(super) struct Failing {
    pub volume: Volume,
    /// What cannot end any more without the owner.
    pub instead_of: Option<OperationId>,
}

/// Of whom somebody has made sure that they serve nobody.
#[derive(Clone, Copy)]
pub(super) struct Word {
    pub owner_is_off: bool,
    pub target_is_off: bool,
}

/// The volume, if nothing is being done to it but what its owner would have to do.
pub(super) fn failing(asked: &str, name: &VolumeName, view: &View<'_>) -> Result<Failing> {
    let (Some(v), Some(running)) = (view.volume, view.running) else {
        let volume = view.existing(asked, name)?;
        return Ok(Failing {
            volume,
            instead_of: None,
        });
    };
    let mut volume = v.clone();
    match &running.command {
        // Once it owns the volume, what is left of the cutover is to have the others follow.
        Command::Cutover { to, .. } => {
            volume.offered_to = Some(to.clone()).filter(|to| *to != v.owner)
        }
        Command::Resize { .. } => {}
        Command::Failover { .. } => match (view.waits_for(), running.next().map(|s| &s.change)) {
            // It may have taken the volume: whoever comes after it is a later owner.
            (Some(by), Some(Change::Taken { .. })) => volume = taken_by(by, v)?,
            (Some(_), Some(back @ Change::TakenBack { .. })) => volume = after(back, 2, v)?,
            (Some(_), _) => {}
            (None, _) => drop(view.existing(asked, name)?),
        },
        // The copy is on record: it follows the new owner, and is removed when that is asked for again.
        Command::AddReplica { node, .. } | Command::RemoveReplica { node, .. }
            if view.waits_for() == Some(&v.owner) && v.replica_on(node).is_some() => {}
        _ => drop(view.existing(asked, name)?),
    }
    Ok(Failing {
        instead_of: volume.operation.take(),
        volume,
    })
}

impl Failing {
    /// How it goes on, on this word.
    pub(super) fn steps(
        &mut self,
        asked: &str,
        to: Option<&NodeName>,
        word: Word,
        view: &View<'_>,
    ) -> Result<Vec<Step>> {
        let v = &self.volume;
        if word.target_is_off {
            let refuse = |kind, why: String| Err(Error::new(kind, format!("{asked}: {why}")));
            let Some(target) = v.offered_to.clone() else {
                let why = "no cutover of it is unfinished; --target-is-off is about the node to which one was \
                           handing it over";
                return refuse(ErrorKind::Invalid, why.to_owned());
            };
            if !view.is_silent(&target) {
                let why = format!("{target} sends heartbeats, and the cutover to it goes on");
                return refuse(ErrorKind::Denied, why);
            }
            if !view.is_silent(&v.owner) {
                if let Some(to) = to.filter(|to| **to != v.owner) {
                    let why = format!(
                        "its owner {} is there and lacks nothing that {to} has; leave --to out",
                        v.owner
                    );
                    return refuse(ErrorKind::Denied, why);
                }
                return Ok(take_back(v, &target, view));
            }
            if word.owner_is_off {
                // It may have taken the volume: whoever comes after it is a later owner.
                self.volume = taken_by(&target, v)?;
            }
        }
        let v = &self.volume;
        let heir = heir(asked, v, to, word.owner_is_off, view)?;
        Ok(steps(v, heir))
    }
}

/// The record as if this node had taken the volume over.
fn taken_by(node: &NodeName, v: &Volume) -> Result<Volume> {
    after(&Change::Taken { by: node.clone() }, 1, v)
}

fn after(change: &Change, generations: u64, v: &Volume) -> Result<Volume> {
    let answer = Answer {
        generation: v.generation + generations,
        ..Answer::default()
    };
    Ok(apply(change, answer, v.clone())?.unwrap_or_else(|| v.clone()))
}

fn take_back(v: &Volume, target: &NodeName, view: &View<'_>) -> Vec<Step> {
    let said = view.copies.iter().find(|c| c.node == *target);
    let missing = match said.is_some_and(|c| c.generation > v.generation) {
        true => format!("{target} owned it, and what it acknowledged is on its disk only"),
        false => format!(
            "what {target} acknowledged is on its disk only, but it was never heard to own it"
        ),
    };
    let mut steps = vec![Step {
        name: format!("take back on {}: {missing}", v.owner),
        effect: Effect::TakeBack,
        change: Change::TakenBack {
            from: target.clone(),
        },
    }];
    steps.extend(follow_steps(v, &v.owner).filter(
        |s| !matches!(&s.effect, Effect::StartReplica { replica, .. } if replica.node == *target),
    ));
    steps
}

/// Who takes the owner's place.
fn heir<'a>(
    asked: &str,
    v: &Volume,
    to: Option<&NodeName>,
    owner_is_off: bool,
    view: &View<'a>,
) -> Result<&'a Copy> {
    let refuse = |kind, why: String| Err(Error::new(kind, format!("{asked}: {why}")));
    let owner = &v.owner;
    let silent_target = v.offered_to.as_ref().filter(|t| view.is_silent(t));
    if !view.is_silent(owner) {
        let way = match silent_target {
            None => format!(
                "`forerun cutover {} --to NODE` moves it without loss",
                v.name
            ),
            Some(target) => format!(
                "its cutover waits for {target}, which is silent: if that is off for good, say so with \
                 --target-is-off"
            ),
        };
        let why =
            format!("its owner {owner} sends heartbeats; {way}. A node counts as silent after 5 s");
        return refuse(ErrorKind::Denied, why);
    }
    if !owner_is_off {
        let why = format!(
            "its owner {owner} is silent, which does not prove that it serves nobody, and two owners would \
             each lose the other's writes. Make sure that {owner} is off or cut off from its guests, then \
             say so with --owner-is-off"
        );
        return refuse(ErrorKind::Denied, why);
    }
    if let Some(to) = to
        && v.replica_on(to).is_none()
        && !v.is_left_on(to)
    {
        return Err(no_replica(asked, to, v));
    }
    if let (Some(offered), Some(to)) = (&v.offered_to, to)
        && offered != to
    {
        let why = format!(
            "{owner} was handing it over to {offered} and may have given it away: only {offered} has all \
             that was acknowledged and can take it"
        );
        return refuse(ErrorKind::Denied, why);
    }
    let only = to.or(v.offered_to.as_ref());
    let wanted = |c: &&Copy| {
        (v.replica_on(&c.node).is_some() || to == Some(&c.node))
            && only.is_none_or(|n| *n == c.node)
            && view.alive(asked, &c.node).is_ok()
    };
    // Epochs are those of a line of owners: an earlier one's may be higher, and lack all of a later one's.
    let far = |c: &&Copy| (c.epoch.is_some(), c.generation, c.epoch);
    let furthest = view.copies.iter().filter(wanted).max_by_key(far);
    match (furthest, only) {
        (Some(copy), _) if copy.epoch.is_some() => Ok(copy),
        (None, Some(only)) => refuse(
            ErrorKind::Disconnected,
            match silent_target {
                None => format!(
                    "node {only} has not said what its copy is; is it running? `forerun node-list` tells"
                ),
                Some(target) => format!(
                    "{owner} was handing it over to {target}, which is silent, too, and may have it; start \
                     it. If it is off for good, say so with --target-is-off"
                ),
            },
        ),
        (Some(copy), Some(_)) => refuse(
            ErrorKind::Invalid,
            format!(
                "the copy on {} was never complete: it is no point in time of the volume",
                copy.node
            ),
        ),
        (_, None) => {
            let gave_away =
                |c: &&Copy| v.is_left_on(&c.node) && c.epoch.is_some() && !view.is_silent(&c.node);
            let last = view.copies.iter().filter(gave_away).max_by_key(far);
            let or_else = last.map_or_else(String::new, |c| {
                format!(
                    ". {} has what it gave away, and nothing that was written since: --to {} takes that",
                    c.node, c.node
                )
            });
            let why = format!(
                "no node that is alive has a consistent replica of it; start one that has \
                 (`forerun replica list` tells), or the owner{or_else}"
            );
            refuse(ErrorKind::NotFound, why)
        }
    }
}

pub(super) fn steps(v: &Volume, heir: &Copy) -> Vec<Step> {
    let by = &heir.node;
    let epoch = heir.epoch.unwrap_or_default();
    let lacks = match heir.lag_bytes {
        _ if v.is_left_on(by) => ", which it gave away: what was written since is lost".to_owned(),
        Some(0) => ", which had all when the owner was heard last".to_owned(),
        Some(lag) => format!(", which lacked {lag} bytes when the owner was heard last"),
        None => String::new(),
    };
    let mut steps = vec![Step {
        name: format!("take over on {by} as of epoch {epoch}{lacks}"),
        effect: Effect::TakeOver { by: by.clone() },
        change: Change::Taken { by: by.clone() },
    }];
    steps.extend(follow_steps(v, by));
    steps
}
