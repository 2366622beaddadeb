//! A disk that fails below a node, in each phase of a volume's move: what cannot be done now is
//! done later, and no more of it than was missing.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

mod faulty_disk;
mod fleet_processes;
mod serving;

use faulty_disk::{BadDisk, can_run};
use fleet_processes::{Fleet, PATIENCE, VOLUME, Who};
use node::client::Client;
use proto::v1::{ReplicaState, VolumeRole};
use std::path::Path;

const MIB: u64 = 1 << 20;

/// A volume on node a, and what was written to it.
struct Scene {
    fleet: Fleet,
    content: Vec<u8>,
    written: u8,
}

impl Scene {
    fn start(fleet: Fleet, image: Option<&Path>, size: u64) -> Scene {
        match image {
            Some(image) => {
                let path = image.to_str().unwrap();
                fleet.run(&["volume", "import", VOLUME, "--path", path, "--node", "a"]);
            }
            None => {
                let size = size.to_string();
                fleet.run(&["volume", "create", VOLUME, "--size", &size, "--node", "a"]);
            }
        }
        fleet.run(&["volume", "create", "other", "--size", "1M", "--node", "a"]);
        let mut scene = Scene {
            fleet,
            content: vec![0; size as usize],
            written: 0,
        };
        scene.write(0, size / 2);
        scene
    }

    fn client(&self, node: &str, volume: &str) -> Client {
        Client::connect(&self.fleet.uri(node, volume), &[], PATIENCE).unwrap()
    }

    /// Bytes that nothing shrinks, other than before. The other volume takes a write meanwhile.
    fn write(&mut self, at: u64, len: u64) {
        self.written += 1;
        let mut x = u64::from(self.written);
        let data = (0..len).map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        });
        let data: Vec<u8> = data.collect();
        self.client("a", VOLUME).write(at, &data, false).unwrap();
        self.content[at as usize..(at + len) as usize].copy_from_slice(&data);
        self.client("a", "other")
            .write(0, &data[..4096], true)
            .unwrap();
    }

    fn add_replica(&self) {
        let how = ["--consistency", "bounded=500ms", "--no-wait"];
        let args = [&["replica", "add", VOLUME, "--to", "b"][..], &how].concat();
        self.fleet.run(&args);
    }

    /// Waits until the replica says what is in its way, and not that it is seeded.
    fn troubled(&self, words: &str) {
        let trouble = || {
            self.fleet
                .replica()
                .map(|r| r.trouble)
                .filter(|t| t.contains(words))
        };
        let trouble = self
            .fleet
            .until("the replica says what is in its way", trouble);
        eprintln!("{trouble}");
    }

    /// Waits until the replica has everything.
    fn consistent(&self) {
        let epoch = || {
            let replica = self.fleet.replica()?;
            let fine = replica.state() == ReplicaState::Consistent && replica.trouble.is_empty();
            fine.then_some(replica.epoch)
        };
        let now = self.fleet.until("the replica is consistent", epoch);
        let later = || epoch().filter(|e| *e > now + 1);
        self.fleet.until("the replica has all", later);
    }

    /// A cutover that cannot succeed leaves the volume where it is. Answers whether it was given up.
    fn aborted_cutover(&self) -> bool {
        let mut cutover = self.fleet.begin(&["cutover", VOLUME, "--to", "b"]);
        std::thread::sleep(std::time::Duration::from_millis(1500));
        assert_eq!(self.fleet.role(Who::Source), Some(VolumeRole::Owner));
        cutover.ended().is_some()
    }

    /// Moves it to b, where all that was written is.
    fn finish(self) {
        // One that waited for the disk may have moved it.
        if self.fleet.role(Who::Source) == Some(VolumeRole::Owner) {
            let moved = self.fleet.try_run(&["cutover", VOLUME, "--to", "b"]);
            eprintln!("{moved:?}");
        }
        let taken = || (self.fleet.role(Who::Target)? == VolumeRole::Owner).then_some(());
        self.fleet.until("b owns it", taken);
        let mut found = vec![0; self.content.len()];
        self.client("b", VOLUME).read(0, &mut found).unwrap();
        assert!(found == self.content, "the new owner has other bytes");
    }
}

/// The source cannot read what it should send.
#[test]
fn a_source_that_cannot_read_sends_later_in_every_phase() {
    if !can_run() {
        return;
    }
    let disk = BadDisk::new();
    let mut scene = Scene::start(Fleet::start(), Some(&disk.image()), 4 * MIB);
    disk.failing("read", || {
        scene.add_replica();
        scene.troubled("read the image");
    });
    scene.consistent();
    eprintln!("seeded");
    disk.failing("read", || {
        scene.write(MIB, 8192);
        scene.troubled("read the image");
    });
    scene.consistent();
    eprintln!("an increment later");
    disk.failing("read", || {
        scene.write(MIB, 65536);
        scene.troubled("read the image");
        eprintln!("given up: {}", scene.aborted_cutover());
    });
    scene.finish();
}
