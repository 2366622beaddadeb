//! What owners sent to replicas, by volume: nodes tell of their latest increments and of seedings under
//! way, and here they become a total that only grows.

use node::VolumeName;
use proto::v1::{ReplicaReport, VolumeReport};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Bytes sent, of every volume.
#[derive(Default)]
pub(super) struct Traffic(Mutex<HashMap<VolumeName, Volume>>);

#[derive(Default)]
struct Volume {
    sent: u64,
    replicas: HashMap<String, Replica>,
}

/// What has been counted of a replica.
#[derive(Default)]
struct Replica {
    epoch: u64,
    seeded: u64,
}

impl Replica {
    /// What it was sent since it was looked at last.
    fn since(&mut self, said: &ReplicaReport) -> u64 {
        let mut sent = 0;
        for increment in said.increments.iter().filter(|i| i.epoch > self.epoch) {
            sent += increment.sent_bytes;
        }
        let newest = said.increments.iter().map(|i| i.epoch).max();
        self.epoch = self.epoch.max(newest.unwrap_or(0));
        if let Some(seed) = &said.seed {
            // a seeding that began anew counts from nothing
            let before = Some(self.seeded).filter(|before| *before <= seed.bytes_sent);
            sent += seed.bytes_sent - before.unwrap_or(0);
            self.seeded = seed.bytes_sent;
        }
        sent
    }
}

impl Traffic {
    /// Take what a heartbeat said.
    pub fn add(&self, volumes: &[VolumeReport]) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for said in volumes.iter().filter(|said| !said.replicas.is_empty()) {
            let Ok(name) = said.name.parse() else {
                continue; // no volume of the fleet has such a name
            };
            let volume = all.entry(name).or_default();
            volume
                .replicas
                .retain(|node, _| said.replicas.iter().any(|r| r.node == *node));
            for replica in &said.replicas {
                let known = volume.replicas.entry(replica.node.clone()).or_default();
                volume.sent = volume.sent.saturating_add(known.since(replica));
            }
        }
    }

    /// All that a volume's replicas were sent.
    pub fn sent(&self, volume: &VolumeName) -> u64 {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(volume).map_or(0, |v| v.sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{Increment, SeedProgress};

    #[test]
    fn each_increment_counts_once_and_a_seeding_as_it_goes() {
        let traffic = Traffic::default();
        let name: VolumeName = "v".parse().unwrap();
        let told = |epochs: &[u64], seeded: u64| {
            let replica = ReplicaReport {
                node: "b".into(),
                increments: epochs
                    .iter()
                    .map(|epoch| Increment {
                        epoch: *epoch,
                        sent_bytes: 10,
                        ..Increment::default()
                    })
                    .collect(),
                seed: (seeded > 0).then(|| SeedProgress {
                    bytes_sent: seeded,
                    ..SeedProgress::default()
                }),
                ..ReplicaReport::default()
            };
            traffic.add(&[VolumeReport {
                name: "v".into(),
                replicas: vec![replica],
                ..VolumeReport::default()
            }]);
            traffic.sent(&name)
        };
        assert_eq!(told(&[], 100), 100);
        assert_eq!(told(&[], 150), 150);
        assert_eq!(told(&[], 30), 180, "it was cut off and began anew");
        assert_eq!(told(&[1, 2], 0), 200);
        assert_eq!(told(&[1, 2, 3], 0), 210);
        assert_eq!(told(&[3, 4], 0), 220);
    }
}
