//! What a volume's directory remembers about other nodes: the replicas to keep and the hand-over that
//! was begun. A file of its own, `peers.toml`, because it says where to connect and decides nothing:
//! who owns the volume and what a replica has is in the volume's metadata.
//!
//! What it says of replicas is an ownership's, and ends with it: whoever owns the volume next is told by
//! the controller which replicas to keep, also if that was an owner before.

use super::directory::{sync_dir, write_whole};
use block::{Error, ErrorKind, NodeName, Result};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

const FILE: &str = "peers.toml";

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peers {
    /// Replicas to keep while this node owns the volume.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replica: Vec<ReplicaRecord>,
    /// The last hand-over that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<HandoverRecord>,
}

/// A replica to keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// The node that has it.
    pub node: String,
    /// Where that node takes replication.
    pub address: SocketAddr,
    /// Milliseconds from one increment to the next.
    pub interval_ms: u64,
    /// Cap on its bandwidth in bytes a second; 0 is none.
    #[serde(default)]
    pub rate_bytes_per_second: u64,
}

/// A hand-over: where to go on after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverRecord {
    /// The new owner.
    pub to: String,
    /// Where it takes replication.
    pub replication: SocketAddr,
    /// Where it serves guests.
    pub nbd: SocketAddr,
}

impl ReplicaRecord {
    /// The node's name, checked.
    pub fn name(&self) -> Result<NodeName> {
        self.node.parse()
    }
}

impl Peers {
    /// Read a volume's file; none is an empty one.
    pub fn load(dir: &Path) -> Result<Peers> {
        let path = dir.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Peers::default()),
            Err(e) => return Err(Error::io(format!("read {}", path.display()), e)),
        };
        toml::from_str(&text).map_err(|e| {
            Error::new(
                ErrorKind::Corrupt,
                format!(
                    "read {}: {e}. Remove it and add the replicas again: the copies keep what \
                     they have",
                    path.display()
                ),
            )
        })
    }

    /// Write it whole and durably.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let text = toml::to_string(self)
            .map_err(|e| Error::new(ErrorKind::Broken, format!("write {FILE}: {e}")))?;
        write_whole(dir, FILE, &text)
    }

    /// Remember a replica, or change what is remembered of it.
    pub fn set(&mut self, record: ReplicaRecord) {
        self.replica.retain(|r| r.node != record.node);
        self.replica.push(record);
    }

    /// What is remembered of the replica on a node.
    #[must_use]
    pub fn replica_on(&self, node: &NodeName) -> Option<&ReplicaRecord> {
        self.replica.iter().find(|r| r.node == node.as_str())
    }

    /// Forget a replica; false if there was none.
    pub fn remove(&mut self, node: &NodeName) -> bool {
        let before = self.replica.len();
        self.replica.retain(|r| r.node != node.as_str());
        before != self.replica.len()
    }
}

/// A volume's file, changed by one caller at a time.
#[derive(Debug)]
pub struct PeersFile {
    dir: PathBuf,
    one: Mutex<()>,
}

impl PeersFile {
    /// The file of a volume's directory.
    #[must_use]
    pub fn of(dir: PathBuf) -> PeersFile {
        PeersFile {
            dir,
            one: Mutex::new(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        // It guards a file that is replaced whole: a panic cannot have left that half changed.
        self.one.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it says.
    pub fn read(&self) -> Result<Peers> {
        let _one = self.lock();
        Peers::load(&self.dir)
    }

    /// Change what it says, durably; it is not written when nothing changes.
    pub fn change<R>(&self, change: impl FnOnce(&mut Peers) -> R) -> Result<R> {
        let _one = self.lock();
        let mut peers = Peers::load(&self.dir)?;
        let before = peers.clone();
        let done = change(&mut peers);
        if peers != before {
            peers.save(&self.dir)?;
        }
        Ok(done)
    }

    /// Forget all that an earlier ownership left: this node is about to own the volume again. Nobody
    /// serves the volume meanwhile, so this needs no room, succeeds with a file that cannot be read, and
    /// waits for the disk only for replicas: a hand-over that a power cut brings back is asked about once
    /// more.
    pub fn forget(&self) -> Result<()> {
        let _one = self.lock();
        let keeps = !Peers::load(&self.dir).is_ok_and(|p| p.replica.is_empty());
        let path = self.dir.join(FILE);
        match std::fs::remove_file(&path) {
            Ok(()) if keeps => sync_dir(&self.dir),
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io(format!("remove {}", path.display()), e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_read_back_and_a_broken_file_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Peers::load(dir.path()).unwrap(), Peers::default());
        let mut peers = Peers::default();
        peers.set(ReplicaRecord {
            node: "n2".to_owned(),
            address: "127.0.0.1:7402".parse().unwrap(),
            interval_ms: 1000,
            rate_bytes_per_second: 0,
        });
        peers.handover = Some(HandoverRecord {
            to: "n2".to_owned(),
            replication: "127.0.0.1:7402".parse().unwrap(),
            nbd: "127.0.0.1:7403".parse().unwrap(),
        });
        peers.save(dir.path()).unwrap();
        assert_eq!(Peers::load(dir.path()).unwrap(), peers);
        assert!(peers.remove(&"n2".parse().unwrap()));
        assert!(!peers.remove(&"n2".parse().unwrap()));
        std::fs::write(dir.path().join(FILE), "replica = 3").unwrap();
        let e = Peers::load(dir.path()).unwrap_err();
        assert!(e.to_string().contains("Remove it"), "{e}");
        let file = PeersFile::of(dir.path().to_owned());
        file.forget().expect("what cannot be read is forgotten too");
        file.forget().expect("and nothing");
        assert_eq!(file.read().unwrap(), Peers::default());
    }
}
