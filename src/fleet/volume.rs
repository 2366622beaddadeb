//! A volume's record: who owns it, who replicates it, what is being done to it.

use super::{OperationId, text};
use node::{Error, ErrorKind, NodeName, Result, VolumeId, VolumeName};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A volume as the controller records it. Lag, epochs and counters are the owner's to report and are
/// not here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name, unique in the fleet.
    #[serde(with = "text")]
    pub name: VolumeName,
    /// Its identity, which no later volume of the same name shares.
    #[serde(with = "text")]
    pub id: VolumeId,
    /// Its size; zero until an import has found out.
    pub size_bytes: u64,
    /// An adopted image's path on the first owner.
    pub image_path: Option<String>,
    /// Whether it is there, coming or going.
    pub status: Status,
    /// The one node that may acknowledge writes to it.
    #[serde(with = "text")]
    pub owner: NodeName,
    /// The owner's fencing token.
    pub generation: u64,
    /// Its copies on other nodes.
    pub replicas: Vec<Replica>,
    /// Owners before it whose copies are still there, the latest last: nobody sends to them, but old connections
    /// may go through them, and their images take room.
    #[serde(default, with = "text::list")]
    pub former: Vec<NodeName>,
    /// The generation in which a replica took the volume over without its owner's consent, zero if none
    /// did. Whoever had a part in it before serves nobody any more.
    #[serde(default)]
    pub taken: u64,
    /// To whom an owner that is gone was handing the volume over. It may have given it away, and then only
    /// that node can go on.
    #[serde(default, with = "text::option")]
    pub offered_to: Option<NodeName>,
    /// The operation that is changing it. One at a time: two that interleave could not be reasoned
    /// about after a crash.
    pub operation: Option<OperationId>,
}

/// Whether a volume is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Being created or imported.
    Creating,
    /// Served by its owner.
    Ready,
    /// Being deleted.
    Deleting,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Status::Creating => "creating",
            Status::Ready => "ready",
            Status::Deleting => "deleting",
        })
    }
}

/// A copy of a volume that is wanted on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Where.
    #[serde(with = "text")]
    pub node: NodeName,
    /// How far it may be behind.
    #[serde(with = "text")]
    pub consistency: Consistency,
    /// Cap on the bandwidth it may take; zero is none.
    pub rate_bytes_per_second: u64,
}

/// How far a replica may be behind when the owner answers a guest's write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Not at all.
    Strong,
    /// At most this long.
    Bounded(Duration),
    /// As the network allows.
    Eventual,
}

/// A shorter bound would mean an fsync on both sides more than a few times a second.
const BOUND_MIN: Duration = Duration::from_millis(500);

impl FromStr for Consistency {
    type Err = Error;
    fn from_str(s: &str) -> Result<Consistency> {
        let bad = |why: &str| {
            Error::new(
                ErrorKind::Invalid,
                format!(
                    "consistency {s:?}: {why}; use strong, bounded=5s (or 500ms, 1m) or eventual"
                ),
            )
        };
        match s {
            "strong" => return Ok(Consistency::Strong),
            "eventual" => return Ok(Consistency::Eventual),
            _ => {}
        }
        let bound = s.strip_prefix("bounded=").ok_or_else(|| bad("not known"))?;
        let digits = bound.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let number: u64 = digits
            .parse()
            .map_err(|_| bad("the bound is not a whole number"))?;
        let unit = match &bound[digits.len()..] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            _ => return Err(bad("the bound's unit is not ms, s or m")),
        };
        let bound = u32::try_from(number)
            .ok()
            .and_then(|n| unit.checked_mul(n))
            .ok_or_else(|| bad("the bound is too long"))?;
        if bound < BOUND_MIN {
            return Err(bad("a bound under 500ms cannot be kept"));
        }
        Ok(Consistency::Bounded(bound))
    }
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Consistency::Strong => f.write_str("strong"),
            Consistency::Eventual => f.write_str("eventual"),
            Consistency::Bounded(d) if d.subsec_millis() == 0 => {
                write!(f, "bounded={}s", d.as_secs())
            }
            Consistency::Bounded(d) => write!(f, "bounded={}ms", d.as_millis()),
        }
    }
}

impl Volume {
    /// One that is to be made; an import finds its size out.
    #[must_use]
    pub fn new(name: VolumeName, id: VolumeId, size_bytes: u64, owner: NodeName) -> Volume {
        Volume {
            name,
            id,
            size_bytes,
            image_path: None,
            status: Status::Creating,
            owner,
            generation: 0,
            replicas: Vec::new(),
            former: Vec::new(),
            taken: 0,
            offered_to: None,
            operation: None,
        }
    }

    /// The replica on `node`.
    #[must_use]
    pub fn replica_on(&self, node: &NodeName) -> Option<&Replica> {
        self.replicas.iter().find(|r| r.node == *node)
    }

    /// Whether `node` owned the volume and still has what it had then.
    #[must_use]
    pub fn is_left_on(&self, node: &NodeName) -> bool {
        self.former.contains(node)
    }

    /// What a former owner had is gone, or is a replica by now.
    pub(super) fn reclaimed(&mut self, node: &NodeName) {
        self.former.retain(|n| n != node);
    }
}
