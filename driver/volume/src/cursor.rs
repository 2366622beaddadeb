//! Cursors: who has the volume as of which epoch.

use block::{Epoch, Error, ErrorKind, NodeName, Result};
use std::fmt;
use std::str::FromStr;

/// Most cursors of a volume: eight replicas and as many checkpoints. Each costs a snapshot's marks
/// and an entry of the superblock, which must fit a page.
pub const CURSORS_MAX: usize = 16;
/// Longest name of a checkpoint, in bytes.
const CHECKPOINT_NAME_MAX: usize = 64;

/// The name of a checkpoint, as backup tools give it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckpointName(String);

impl CheckpointName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CheckpointName {
    type Err = Error;
    fn from_str(s: &str) -> Result<CheckpointName> {
        let plain = |c: char| c.is_ascii_graphic() && c != ':' && c != '/';
        if s.is_empty() || s.len() > CHECKPOINT_NAME_MAX || !s.chars().all(plain) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "checkpoint name {s:?}: use 1 to {CHECKPOINT_NAME_MAX} printable ASCII \
                     characters without ':', '/' or blanks"
                ),
            ));
        }
        Ok(CheckpointName(s.to_owned()))
    }
}

/// Who a cursor belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CursorName {
    /// The copy on another node.
    Replica(NodeName),
    /// A point in time that a backup tool asked to remember.
    Checkpoint(CheckpointName),
    /// The copy that the former owner kept when it gave the volume away. Which node that is need not be
    /// known: whoever proves to have that epoch takes its place.
    FormerOwner,
}

impl fmt::Display for CursorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CursorName::Replica(node) => write!(f, "replica on {node}"),
            CursorName::Checkpoint(name) => write!(f, "checkpoint {}", name.as_str()),
            CursorName::FormerOwner => f.write_str("the former owner's copy"),
        }
    }
}

/// Who durably has everything up to which epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Whose it is.
    pub name: CursorName,
    /// What was written after this epoch is tracked for it.
    pub epoch: Epoch,
    /// It has everything up to the epoch. A replica that is still being seeded does not.
    pub seeded: bool,
}

/// Where a new cursor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Track from now on. A checkpoint is that; a replica must be seeded, and until
    /// [`crate::Volume::seeded`] is told so every snapshot for it is the whole volume, to be compared.
    Now,
    /// The replica proved that it has exactly this epoch of this volume's history: the former owner
    /// after a cutover.
    At(Epoch),
}
