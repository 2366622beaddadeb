//! Nodes are killed at points that only their files show: after an intent and before its data, after an
//! epoch's commit record and before it is applied. The others are held at a frame: see `phases.rs`.
//!
//! ```text
//!   source   intent durable ──✗── data in the image
//!   target   staged, synced ─ commit record ──✗── applied
//! ```
//!
//! The file is read over and over, and the process killed as soon as it changes. What the files hold
//! afterwards says whether it was in time; it is done until it was.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

mod fleet_processes;

use fleet_processes::scene::Scene;
use fleet_processes::{Fleet, PATIENCE, VOLUME, Who};
use nix::sys::signal::Signal;
use node::client::Client;
use proto::v1::ReplicaState;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const PAGE: usize = 4096;
/// Kills until one must have been in time.
const TRIES: u32 = 25;
/// In time, and enough.
const HITS: u32 = 3;

/// Whether the newest of a record's two pages says that an epoch is committed and not yet applied.
fn is_committed(record: &File) -> bool {
    let mut pages = [[0; PAGE]; 2];
    for (page, at) in pages.iter_mut().zip([0, PAGE as u64]) {
        record.read_exact_at(page, at).unwrap();
    }
    let sequence = |p: &[u8; PAGE]| u64::from_le_bytes(p[40..48].try_into().unwrap());
    let newest = pages.iter().max_by_key(|p| sequence(p)).unwrap();
    newest[9] == 3
}

#[test]
fn a_target_killed_between_a_commit_record_and_its_apply_applies_it() {
    let mut scene = Scene::replicated();
    let link = |scene: &Scene| scene.fleet.link().largest_seeding();
    assert!(link(&scene) > 0);
    let record = File::open(scene.fleet.volume("b", VOLUME).join("replica")).unwrap();
    let mut hits = 0;
    for _ in 0..TRIES {
        let until = Instant::now() + PATIENCE;
        while !is_committed(&record) {
            assert!(Instant::now() < until, "no epoch is committed");
        }
        scene.fleet.signal(Who::Target, Signal::SIGKILL);
        scene.fleet.kill(Who::Target);
        hits += u32::from(is_committed(&record));
        scene.fleet.restart(Who::Target);
        scene.committed();
        if hits == HITS {
            break;
        }
    }
    eprintln!("{hits} kills");
    assert_eq!(hits, HITS);
    assert_eq!(link(&scene), 0, "copied anew");
    scene.cutover().succeeds();
    scene.finish();
}

const AREA: u64 = 4 << 20;
const AREAS: u64 = 200;

fn block(image: &Path, area: u64) -> [u8; PAGE] {
    let mut found = [0; PAGE];
    let file = File::open(image).unwrap();
    file.read_exact_at(&mut found, area * AREA).unwrap();
    found
}

/// Every write is the first in its area, so each waits for its intent.
#[test]
fn a_source_killed_between_an_intent_and_its_data_knows_that_they_may_differ() {
    let mut fleet = Fleet::start();
    let size = format!("{}M", (AREAS * AREA) >> 20);
    fleet.run(&["volume", "create", VOLUME, "--size", &size, "--node", "a"]);
    let how = ["--consistency", "bounded=500ms"];
    fleet.run(&[&["replica", "add", VOLUME, "--to", "b"][..], &how].concat());
    let image = fleet.volume("a", VOLUME).join("image");
    let path = fleet.volume("a", VOLUME).join("meta");
    let begun = AtomicU64::new(0);
    let mut acknowledged = Vec::new();
    let mut hits = 0;
    for _ in 0..TRIES {
        let first = begun.load(Ordering::Acquire);
        let uri = fleet.uri("a", VOLUME);
        let written = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut written = Vec::new();
                let mut client = Client::connect(&uri, &[], PATIENCE).unwrap();
                for area in first..AREAS {
                    begun.store(area + 1, Ordering::Release);
                    if client
                        .write(area * AREA, &[area as u8 | 1; PAGE], false)
                        .is_err()
                    {
                        break;
                    }
                    written.push(area);
                }
                written
            });
            while begun.load(Ordering::Acquire) < first + 2 {}
            // The intents' pages, behind the superblock's.
            let now = || std::fs::read(&path).unwrap().split_off(2 * PAGE);
            let (before, until) = (now(), Instant::now() + PATIENCE);
            while now() == before {
                assert!(Instant::now() < until, "no intent is written");
            }
            fleet.signal(Who::Source, Signal::SIGKILL);
            writer.join().unwrap()
        });
        fleet.kill(Who::Source);
        acknowledged.extend(written);
        let last = begun.load(Ordering::Acquire) - 1;
        hits += u32::from(block(&image, last) == [0; PAGE]);
        for area in &acknowledged {
            assert_eq!(block(&image, *area), [*area as u8 | 1; PAGE], "area {area}");
        }
        fleet.restart(Who::Source);
        if hits == HITS || last + 4 > AREAS {
            break;
        }
    }
    eprintln!(
        "{hits} kills between the two, {} writes",
        acknowledged.len()
    );
    assert!(hits > 0, "never in time");
    let epoch = || {
        let replica = fleet.replica()?;
        (replica.state() == ReplicaState::Consistent).then_some(replica.epoch)
    };
    let now = fleet.until("the replica is consistent", epoch);
    fleet.until("the replica has all", || epoch().filter(|e| *e > now + 1));
    fleet.stop_nodes();
    let [a, b] = ["a", "b"].map(|node| fleet.volume(node, VOLUME).join("image"));
    for area in 0..AREAS {
        assert_eq!(block(&a, area), block(&b, area), "area {area}");
    }
}
