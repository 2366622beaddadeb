//! Commands that the controller gives itself: to bring about what is not there yet, as often as it
//! takes, without ever doing it twice at a time.

use super::{Controller, Nodes, unix_ms};
use crate::fleet::{Command, Consistency, OperationId, State, Volume};
use crate::planner::Bytes;
use crate::store::Store;
use node::{Error, ErrorKind, NodeName, Result};
use proto::v1::{ReplicaState, VolumeRole};
use std::time::Duration;

/// How far a copy that waits for its move may be behind.
const BEHIND: Duration = Duration::from_secs(1);
/// How often a command is begun for one purpose: each time the one before had ended.
const TRIES: usize = 64;
/// A failure younger than this is what is reported; an older one has been reported.
const FRESH: Duration = Duration::from_secs(2);

/// A short name for a list of words, the same for the same list.
pub(super) fn hash(words: &[&str]) -> String {
    let mut h = blake3::Hasher::new();
    for word in words {
        h.update(&(word.len() as u64).to_le_bytes());
        h.update(word.as_bytes());
    }
    h.finalize().to_hex()[..32].to_owned()
}

impl<S: Store, N: Nodes> Controller<S, N> {
    /// Have the fleet carry out a command whose effect is not there yet. Each try is an operation
    /// with an id of its own, the same for every controller that gets here.
    pub(super) async fn ask(&self, why: &[&str], command: Command) -> Result<()> {
        for attempt in 0..TRIES {
            let name = hash(&[&why.join("/"), &attempt.to_string()]);
            let id: OperationId = name.parse()?;
            let Some(known) = self.inner.records.operation(&id).await? else {
                return match self.begin(id, command).await {
                    Ok(_) => Ok(()),
                    // another operation is at the volume: when that has ended it is this one's turn
                    Err(e) if e.kind() == ErrorKind::Busy => Ok(()),
                    Err(e) => Err(e),
                };
            };
            let known = known.record;
            if known.is_running() {
                return Ok(());
            }
            let age = unix_ms().saturating_sub(known.ended.unwrap_or(0));
            if known.state == State::Failed && Duration::from_millis(age) < FRESH {
                return Err(Error::new(
                    ErrorKind::Io,
                    format!(
                        "{} {}: {}",
                        command.verb(),
                        command.volume(),
                        known.error.unwrap_or_default()
                    ),
                ));
            }
        }
        Err(Error::new(
            ErrorKind::Io,
            format!(
                "{} {}: given up after {TRIES} tries",
                command.verb(),
                command.volume()
            ),
        ))
    }

    /// Have a copy of the volume on the node, at no more than `rate` bytes a second (zero is no cap).
    /// True when it is a point in time of the source.
    pub(super) async fn have_copy(&self, v: &Volume, to: &NodeName, rate: u64) -> Result<bool> {
        if v.owner == *to {
            return Ok(true);
        }
        if v.replica_on(to).is_some() {
            return Ok(self.is_consistent(v, to));
        }
        if v.operation.is_none() {
            self.check_room(v, to).await?;
            let add = Command::AddReplica {
                volume: v.name.clone(),
                node: to.clone(),
                consistency: Consistency::Bounded(BEHIND),
                rate_bytes_per_second: rate,
            };
            let generation = v.generation.to_string();
            self.ask(&["copy", &v.id.to_string(), to.as_str(), &generation], add)
                .await?;
        }
        Ok(false) // what its source says next tells how it stands
    }

    /// Whether the node's copy is a point in time of the volume, as its owner says.
    pub(super) fn is_consistent(&self, v: &Volume, on: &NodeName) -> bool {
        let said = self.inner.presence.report(&v.owner, v.name.as_str());
        said.is_some_and(|(said, _)| {
            said.replicas.iter().any(|r| {
                let there = matches!(
                    r.state(),
                    ReplicaState::Consistent | ReplicaState::Mirroring
                );
                r.node == on.as_str() && there
            })
        })
    }

    /// A copy that would fill its node up is refused before it begins.
    async fn check_room(&self, v: &Volume, on: &NodeName) -> Result<()> {
        let free = self.room_on(on, &self.inner.records.volumes().await?);
        if free >= v.size_bytes {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NoSpace,
            format!(
                "copy volume {} to {on}: it takes {:.1} GiB and {:.1} are free there",
                v.name,
                Bytes(v.size_bytes).gib(),
                Bytes(free).gib()
            ),
        ))
    }

    /// Move a volume to a node that has a copy.
    pub(super) async fn move_to(&self, v: &Volume, to: &NodeName) -> Result<()> {
        let cutover = Command::Cutover {
            volume: v.name.clone(),
            to: to.clone(),
        };
        let generation = v.generation.to_string();
        self.ask(
            &["move", &v.id.to_string(), to.as_str(), &generation],
            cutover,
        )
        .await
    }

    /// Remove a volume's copy from a node, a former owner's included once no guest comes by it any
    /// more. True when nothing is left there.
    pub(super) async fn drop_copy(&self, v: &Volume, on: &NodeName) -> Result<bool> {
        if v.is_left_on(on) {
            if self.passes_on(v, on) {
                return Ok(false);
            }
        } else if v.replica_on(on).is_none() {
            return Ok(true);
        }
        let remove = Command::RemoveReplica {
            volume: v.name.clone(),
            node: on.clone(),
            forget_unreachable: false,
        };
        let generation = v.generation.to_string();
        self.ask(
            &["drop", &v.id.to_string(), on.as_str(), &generation],
            remove,
        )
        .await?;
        Ok(false)
    }

    /// Whether guests still come by a former owner. They are served through it as long as they like.
    pub(super) fn passes_on(&self, v: &Volume, on: &NodeName) -> bool {
        let said = self.inner.presence.report(on, v.name.as_str());
        said.is_some_and(|(r, _)| {
            r.role() == VolumeRole::Forwarding && r.io.is_some_and(|io| io.connections > 0)
        })
    }
}
