//! File systems that are full: under one volume beside another in the same process, under a node's
//! metadata, under a replica. What needs room fails and says so, the rest goes on, and with room again
//! everything does. As root only: it mounts a small file system.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

mod fleet_processes;
mod serving;

use fleet_processes::{Fleet, VOLUME, Who};
use nix::sys::signal::Signal;
use node::client::Client;
use node::{Error, ErrorKind};
use proto::v1::{ReplicaState, VolumeRole};
use serving::mount::LoopMount;
use serving::{Image, Random, have, have_root, succeeds};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// A file system of its own, with a file in it that can be removed to make room.
struct Small {
    mounted: LoopMount,
    _host: Image,
}

impl Small {
    /// None, with the reason printed, where that does not work.
    fn new(mib: u64, at: Option<&Path>) -> Option<Small> {
        if !have(&["mkfs.ext4", "mount"]) || !have_root() {
            return None;
        }
        let host = Image::sparse(mib);
        succeeds("mkfs.ext4", &["-q", "-F", "-m0", host.path.to_str()?]);
        let mounted = LoopMount::new(&host.path, at)?;
        Some(Small {
            mounted,
            _host: host,
        })
    }

    fn path(&self) -> &Path {
        self.mounted.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Fills what is left but for so much.
    fn fill_but(&self, mib: u64) {
        let free = nix::sys::statvfs::statvfs(self.path()).unwrap();
        let free = free.blocks_available() * free.fragment_size();
        let mut left = free.saturating_sub(mib * MIB) / 4096;
        let file = File::create(self.ballast()).unwrap();
        // The file system takes some for itself on the way.
        let (mut at, mut step) = (0, left);
        while step > 0 && left > 0 {
            let (from, len) = (at * 4096, step * 4096);
            match nix::fcntl::posix_fallocate(&file, from as i64, len as i64) {
                Ok(()) => {
                    at += step;
                    left -= step;
                }
                Err(nix::errno::Errno::ENOSPC) => step /= 2,
                Err(e) => panic!("{e}"),
            }
            step = step.min(left);
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

fn client(fleet: &Fleet, node: &str, volume: &str) -> Client {
    Client::connect(&fleet.uri(node, volume), &[], PATIENCE).unwrap()
}

fn fill(to: &mut Client, from: u64, upto: u64, byte: u8) -> Result<(), (u64, Error)> {
    for mib in from..upto {
        to.write(mib * MIB, &vec![byte; MIB as usize], false)
            .map_err(|e| (mib, e))?;
    }
    Ok(())
}

/// Writes and reads back until told to stop; the number of writes.
fn beside(fleet: &Fleet, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let mut client = client(fleet, "a", "good");
    std::thread::spawn(move || {
        let mut random = Random(1);
        let mut writes = 0;
        while !stop.load(Ordering::Acquire) {
            let at = random.next() % 4096 * 4096;
            let byte = random.next() as u8;
            client.write(at, &[byte; 4096], writes % 8 == 0).unwrap();
            let mut back = [0; 4096];
            client.read(at, &mut back).unwrap();
            assert!(back.iter().all(|b| *b == byte));
            writes += 1;
        }
        writes
    })
}

#[test]
fn a_full_volume_goes_on_when_there_is_room_and_its_neighbour_notices_nothing() {
    let Some(small) = Small::new(48, None) else {
        return;
    };
    let fleet = Fleet::start();
    let image = small.path().join("image");
    File::create(&image).unwrap().set_len(64 * MIB).unwrap();
    let path = image.to_str().unwrap();
    fleet.run(&["volume", "import", "full", "--path", path, "--node", "a"]);
    fleet.run(&["volume", "create", "good", "--size", "16M", "--node", "a"]);
    small.fill_but(12);
    let stop = Arc::new(AtomicBool::new(false));
    let neighbour = beside(&fleet, Arc::clone(&stop));
    let mut to = client(&fleet, "a", "full");

    let (at, e) = fill(&mut to, 0, 64, 7).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
    assert!(at > 4, "full at {at} MiB");
    let mut back = [0; 4096];
    to.read(MIB, &mut back).unwrap();
    assert_eq!(back, [7; 4096]);
    to.write(MIB, &[8; 4096], true)
        .expect("an overwrite needs no room");
    to.write(0, &[9; 512], true).expect("nor a flush");

    small.make_room();
    fill(&mut to, at, at + 8, 7).expect("there is room again");
    to.write(2 * MIB, &[8; 4096], true).expect("and a flush");
    stop.store(true, Ordering::Release);
    assert!(neighbour.join().unwrap() > 2);
    for volume in ["full", "good"] {
        let report = fleet.report(Who::Source, volume).unwrap();
        assert_eq!(report.role(), VolumeRole::Owner);
        assert_eq!(report.trouble, "");
    }
}

/// Writes what no compression shrinks.
fn fill_noise(to: &mut Client, from: u64, upto: u64, seed: u64) {
    let mut random = Random(seed);
    for mib in from..upto {
        let words = (0..MIB / 8).flat_map(|_| random.next().to_le_bytes());
        to.write(mib * MIB, &words.collect::<Vec<u8>>(), false)
            .unwrap();
    }
}

/// The replica on b is as node a's volume is.
fn same_bytes(fleet: &Fleet) {
    fleet.until("the replica has the same bytes", || {
        let replica = fleet.replica()?;
        (replica.state() == ReplicaState::Consistent).then_some(())?;
        let [a, b] =
            ["a", "b"].map(|n| std::fs::read(fleet.volume(n, VOLUME).join("image")).unwrap());
        (a == b).then_some(())
    });
}

fn says_no_space(fleet: &Fleet) {
    fleet.until("the source says what its replica lacks", || {
        let replica = fleet.replica()?;
        replica.trouble.contains("No space left").then_some(())
    });
}

/// A node's directory is full: what is there goes on (its metadata was reserved), what would need room is
/// refused and leaves nothing behind.
#[test]
fn a_full_node_makes_nothing_new_and_serves_what_it_has() {
    let mut fleet = Fleet::start();
    let Some(small) = fleet.move_home(Who::Source, |home| Small::new(64, Some(home))) else {
        return;
    };
    fleet.run(&["volume", "create", VOLUME, "--size", "16M", "--node", "a"]);
    let mut to = client(&fleet, "a", VOLUME);
    fill(&mut to, 0, 16, 1).unwrap();
    small.fill_but(0);

    let said = fleet.refused(&["volume", "create", "w", "--size", "16M", "--node", "a"]);
    assert!(said.contains("No space left"), "{said}");
    assert!(!fleet.volume("a", "w").exists());
    fill(&mut to, 0, 16, 2).expect("what is there is overwritten");
    to.write(0, &[3; 4096], true).expect("and flushed");

    small.make_room();
    fleet.run(&["volume", "create", "w2", "--size", "16M", "--node", "a"]);
    fleet.run(&["replica", "add", VOLUME, "--to", "b"]);
    fill(&mut to, 0, 16, 4).expect("with intents on a disk that was full");
    to.write(0, &[5; 4096], true).unwrap();
}

/// The replica's node is full while it is seeded: the copy waits, the source says why and serves on, and
/// with room it is finished. The receiver used to give up, keep the socket and read no more; the source had
/// filled the socket, could not say its farewell, and hung in that without a word.
#[test]
fn a_full_replica_waits_for_room_and_the_source_serves_on() {
    let mut fleet = Fleet::start();
    let Some(small) = fleet.move_home(Who::Target, |home| Small::new(96, Some(home))) else {
        return;
    };
    fleet.run(&["volume", "create", VOLUME, "--size", "32M", "--node", "a"]);
    let mut to = client(&fleet, "a", VOLUME);
    fill_noise(&mut to, 0, 32, 2);
    small.fill_but(16);
    fleet.run(&["replica", "add", VOLUME, "--to", "b", "--no-wait"]);
    says_no_space(&fleet);
    to.write(0, &[1; 4096], true).expect("the source serves on");

    small.make_room();
    same_bytes(&fleet);
}

/// The source is full to the last block. Intents are pages that were reserved with the volume, so a write
/// into an area that had none is taken, and its replica gets it.
#[test]
fn intents_need_no_room() {
    let mut fleet = Fleet::start();
    let Some(small) = fleet.move_home(Who::Source, |home| Small::new(64, Some(home))) else {
        return;
    };
    fleet.run(&["volume", "create", VOLUME, "--size", "16M", "--node", "a"]);
    let mut to = client(&fleet, "a", VOLUME);
    fill_noise(&mut to, 0, 16, 3);
    let bound = ["--consistency", "bounded=500ms"];
    fleet.run(&[&["replica", "add", VOLUME, "--to", "b"], &bound[..]].concat());
    same_bytes(&fleet);
    small.fill_but(0);
    for mib in (0..16).step_by(3) {
        to.write(mib * MIB, &[4; 8192], true)
            .expect("an overwrite in an area without an intent");
    }
    same_bytes(&fleet);
}

/// A replica's node has no room to stage an increment: its copy stays the point in time that it is, the
/// source says why and serves on, and with room the replica catches up. A cutover there is refused
/// meanwhile, with the reason, and the source owns the volume.
#[test]
fn an_increment_and_a_cutover_wait_for_room_to_stage() {
    let mut fleet = Fleet::start();
    let Some(small) = fleet.move_home(Who::Target, |home| Small::new(96, Some(home))) else {
        return;
    };
    fleet.run(&["volume", "create", VOLUME, "--size", "24M", "--node", "a"]);
    let mut to = client(&fleet, "a", VOLUME);
    fill_noise(&mut to, 0, 24, 4);
    let bound = ["--consistency", "bounded=500ms"];
    fleet.run(&[&["replica", "add", VOLUME, "--to", "b"], &bound[..]].concat());
    same_bytes(&fleet);
    small.fill_but(4);
    let point = std::fs::read(fleet.volume("b", VOLUME).join("image")).unwrap();
    // An increment takes what has come by then: whole, this one does not fit.
    fleet.signal(Who::Target, Signal::SIGSTOP);
    fill_noise(&mut to, 0, 20, 5);
    to.write(0, &[1; 4096], true).unwrap();
    fleet.signal(Who::Target, Signal::SIGCONT);
    says_no_space(&fleet);
    to.write(MIB, &[2; 4096], true)
        .expect("the source serves on");

    let said = fleet.refused(&["cutover", VOLUME, "--to", "b"]);
    assert!(said.contains("No space left"), "{said}");
    assert_eq!(fleet.role(Who::Source), Some(VolumeRole::Owner));
    assert_eq!(fleet.role(Who::Target), Some(VolumeRole::Standby));
    to.write(2 * MIB, &[3; 4096], true).expect("and on");
    let now = std::fs::read(fleet.volume("b", VOLUME).join("image")).unwrap();
    assert!(now == point, "the copy is no point in time any more");

    small.make_room();
    same_bytes(&fleet);
    fleet.run(&["cutover", VOLUME, "--to", "b"]);
    assert_eq!(fleet.role(Who::Target), Some(VolumeRole::Owner));
    to.write(3 * MIB, &[4; 4096], true)
        .expect("through the former owner");
}
