//! What can be asked of the fleet.

use super::{Consistency, text};
use node::{NodeName, VolumeId, VolumeName};
use serde::{Deserialize, Serialize};

/// A command, checked at the edge: every name in it is a valid name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verb")]
pub enum Command {
    /// Make an empty volume.
    Create {
        /// Its name.
        #[serde(with = "text")]
        volume: VolumeName,
        /// Its identity, drawn when the command arrived.
        #[serde(with = "text")]
        id: VolumeId,
        /// Its size.
        size_bytes: u64,
        /// Where; `None` lets the controller choose.
        #[serde(with = "text::option")]
        node: Option<NodeName>,
    },
    /// Adopt an existing raw image.
    Import {
        /// Its name from now on.
        #[serde(with = "text")]
        volume: VolumeName,
        /// Its identity, drawn when the command arrived.
        #[serde(with = "text")]
        id: VolumeId,
        /// The node that has the image.
        #[serde(with = "text")]
        node: NodeName,
        /// Where it is there.
        path: String,
    },
    /// Delete a volume with all its copies. An imported image stays where it was.
    Delete {
        /// Which.
        #[serde(with = "text")]
        volume: VolumeName,
        /// Do not wait for nodes that are silent: they are told when they come back.
        #[serde(default)]
        forget_unreachable: bool,
    },
    /// Grow a volume.
    Resize {
        /// Which.
        #[serde(with = "text")]
        volume: VolumeName,
        /// Its new size.
        size_bytes: u64,
    },
    /// Keep a copy on another node.
    AddReplica {
        /// Of which volume.
        #[serde(with = "text")]
        volume: VolumeName,
        /// Where.
        #[serde(with = "text")]
        node: NodeName,
        /// How far it may be behind.
        #[serde(with = "text")]
        consistency: Consistency,
        /// Cap on its bandwidth; zero is none.
        rate_bytes_per_second: u64,
    },
    /// Give a copy up.
    RemoveReplica {
        /// Of which volume.
        #[serde(with = "text")]
        volume: VolumeName,
        /// Where.
        #[serde(with = "text")]
        node: NodeName,
        /// Do not wait for nodes that are silent: they are told when they come back.
        #[serde(default)]
        forget_unreachable: bool,
    },
    /// Move ownership to the node of a replica while the guest runs.
    Cutover {
        /// Of which volume.
        #[serde(with = "text")]
        volume: VolumeName,
        /// The new owner.
        #[serde(with = "text")]
        to: NodeName,
    },
    /// Have a replica take the place of an owner that is gone for good.
    Failover {
        /// Of which volume.
        #[serde(with = "text")]
        volume: VolumeName,
        /// The new owner; `None` is whoever's copy is the furthest.
        #[serde(with = "text::option")]
        to: Option<NodeName>,
        /// Whoever asks has made sure that the owner serves nobody.
        owner_is_off: bool,
        /// The same of the node to which a cutover was handing it over.
        #[serde(default)]
        target_is_off: bool,
    },
}

impl Command {
    /// The volume it is about.
    #[must_use]
    pub fn volume(&self) -> &VolumeName {
        match self {
            Command::Create { volume, .. }
            | Command::Import { volume, .. }
            | Command::Delete { volume, .. }
            | Command::Resize { volume, .. }
            | Command::AddReplica { volume, .. }
            | Command::RemoveReplica { volume, .. }
            | Command::Cutover { volume, .. }
            | Command::Failover { volume, .. } => volume,
        }
    }

    /// The node it names, if it does.
    #[must_use]
    pub fn node(&self) -> Option<&NodeName> {
        match self {
            Command::Create { node, .. } | Command::Failover { to: node, .. } => node.as_ref(),
            Command::Import { node, .. }
            | Command::AddReplica { node, .. }
            | Command::RemoveReplica { node, .. }
            | Command::Cutover { to: node, .. } => Some(node),
            Command::Delete { .. } | Command::Resize { .. } => None,
        }
    }

    /// As typed on the command line.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Command::Create { .. } => "volume create",
            Command::Import { .. } => "volume import",
            Command::Delete { .. } => "volume delete",
            Command::Resize { .. } => "volume resize",
            Command::AddReplica { .. } => "replica add",
            Command::RemoveReplica { .. } => "replica remove",
            Command::Cutover { .. } => "cutover",
            Command::Failover { .. } => "failover",
        }
    }

    /// Whether a repeated request asks for the same: all but the identity drawn on arrival.
    #[must_use]
    pub fn same_request(&self, other: &Command) -> bool {
        let mut other = other.clone();
        if let (
            Command::Create { id, .. } | Command::Import { id, .. },
            Command::Create { id: drawn, .. } | Command::Import { id: drawn, .. },
        ) = (self, &mut other)
        {
            *drawn = *id;
        }
        *self == other
    }
}
