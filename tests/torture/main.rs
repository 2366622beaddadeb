//! Endurance: two real nodes and a controller, a verifying client at full rate on each of two volumes,
//! and every few seconds something terrible, drawn from a printed seed.
//!
//! ```text
//!   guest v ──► a ◄══ links ══► b ◄── guest w        kill, stop, cut, stall, half-open, spoil, slow
//!                └── controller ──┘                  cutovers there and back all the while
//! ```
//!
//! At the end everything is healed and comes to rest: every sector is read back, and each replica is
//! compared with its source, byte for byte. `scripts/torture --minutes N` runs it for longer.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

#[path = "../fleet_processes/mod.rs"]
mod fleet_processes;

mod fate;
mod guest;
mod memory;

use fate::{Dice, Fate};
use fleet_processes::owners::Owners;
use fleet_processes::{Fleet, Who};
use guest::{Doors, Guest, IO_BYTES, SIZE};
use memory::Memory;
use proto::v1::{ReplicaState, VolumeRole};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

/// Minutes in `scripts/test`.
const MINUTES: f64 = 0.5;
/// The most that a process may hold: caps of buffers, and what the allocator keeps.
const RESIDENT_MIB: f64 = 256.0;
/// The most that memory may grow by, in KiB a minute, over more than [`STEADY_MINUTES`].
const GROWTH: f64 = 1024.0;
/// Minutes of lives below which a slope says nothing.
const STEADY_MINUTES: f64 = 10.0;
const VOLUMES: [&str; 2] = ["v", "w"];

/// Prints the seed of a run that fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!(
                "torture: FAILED, seed {seed} (scripts/torture --seed {seed} draws the same)"
            );
        }
    }
}

fn setting(name: &str) -> Option<f64> {
    Some(std::env::var(name).ok()?.parse().unwrap())
}

#[test]
fn torture() {
    let seed = setting("FORERUN_SEED").map_or_else(|| u64::from(std::process::id()), |s| s as u64);
    let minutes = setting("FORERUN_TORTURE_MINUTES").unwrap_or(MINUTES);
    eprintln!("torture: {minutes} minutes, seed {seed}");
    let seed = Seed(seed);
    let fleet = Fleet::start();
    let kills = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let guests = VOLUMES.map(|name| {
        let home = usize::from(name == VOLUMES[1]);
        let node = ["a", "b"][home];
        let size = format!("{}M", SIZE >> 20);
        fleet.run(&["volume", "create", name, "--size", &size, "--node", node]);
        let who = [Who::Source, Who::Target][home];
        let id = fleet.report(who, name).unwrap().id.parse().unwrap();
        let doors = Doors {
            uris: ["a", "b"].map(|node| fleet.uri(node, name)),
            kills: Arc::clone(&kills),
        };
        let guest = Guest::start(doors, id, seed.0 + home as u64, home);
        let to = ["b", "a"][home];
        fleet.run(&[
            "replica",
            "add",
            name,
            "--to",
            to,
            "--consistency",
            "bounded=500ms",
        ]);
        guest
    });
    let owners = VOLUMES.map(|v| Owners::watch(fleet.node_addresses(), v));
    let first = largest_seeding(&fleet);
    assert!(first > SIZE / 2, "the first copies");
    let sent = sent(&fleet);

    let mut memory = Memory::new();
    let mut fate = Fate::new(fleet, kills, Dice::new(seed.0), VOLUMES);
    let until = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    while Instant::now() < until && guests.iter().all(Guest::is_running) {
        fate.go_on(&mut memory);
    }
    let (mut fleet, told) = fate.relent();
    let doors = VOLUMES.map(|v| usize::from(owner(&fleet, v) == Who::Target));
    let mut ios = 0;
    let mut longest = Duration::ZERO;
    let mut wrong = Vec::new();
    for ((guest, door), name) in guests.into_iter().zip(doors).zip(VOLUMES) {
        let deeds = guest.stop(door);
        wrong.extend(deeds.wrong.into_iter().map(|w| format!("{name}: {w}")));
        ios += deeds.ios;
        longest = longest.max(deeds.longest);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let compared = VOLUMES.map(|v| at_rest(&fleet, v));
    for owners in owners {
        owners.check();
    }
    let copied = largest_seeding(&fleet);
    let sent = sent_since(&fleet, sent);
    fleet.stop_nodes();
    for (name, epoch) in VOLUMES.iter().zip(compared) {
        let [a, b] = ["a", "b"].map(|node| fleet.volume(node, name).join("image"));
        let same = std::fs::read(a).unwrap() == std::fs::read(b).unwrap();
        assert!(
            same,
            "{name}: the replica differs from its source as of epoch {epoch}"
        );
    }

    let (growth, over) = memory.slope();
    for (minutes, first, last) in memory.lives() {
        eprintln!(
            "a life of {minutes:.1} min: {first:.0} KiB of its own after the first, {last:.0} at last"
        );
    }
    let written = ios * u64::from(IO_BYTES);
    assert!(
        copied < SIZE / 2,
        "{copied} bytes went to a copy that was there"
    );
    assert!(
        sent <= bound(written, told.events),
        "{sent} bytes were sent"
    );
    assert!(memory.peak_mib < RESIDENT_MIB, "{} MiB", memory.peak_mib);
    assert!(
        over < STEADY_MINUTES || growth < GROWTH,
        "memory grows by {growth} KiB/min"
    );
    assert!(ios > 1000 && told.events > 3, "nothing happened");
    eprintln!(
        "torture: PASSED, seed {}, {minutes} min: {told}; {ios} I/Os, 0 mismatches, 0 lost acknowledged \
         writes, replicas identical; 0 full resyncs ({} MiB sent for {} MiB of I/O, at most \
         {} MiB to a former copy of {} MiB); longest I/O {:.1} s; at most {:.0} MiB resident, slope {growth:+.0} KiB/min over {over:.1} min of lives",
        seed.0,
        sent >> 20,
        written >> 20,
        copied >> 20,
        SIZE >> 20,
        longest.as_secs_f64(),
        memory.peak_mib,
    );
}

/// What was written, with frames' headers; and for each event an epoch that is sent again, or compared.
fn bound(written: u64, events: u64) -> u64 {
    written + written / 8 + (events + 2) * 2 * guest::HOT
}

/// Bytes of content that one connection has carried in a seeding, at most, since last asked.
fn largest_seeding(fleet: &Fleet) -> u64 {
    let ways = fleet.ways.iter();
    ways.map(|w| w.replication.largest_seeding()).max().unwrap()
}

fn sent(fleet: &Fleet) -> u64 {
    fleet.ways.iter().map(|w| w.replication.sent()).sum()
}

fn sent_since(fleet: &Fleet, before: u64) -> u64 {
    sent(fleet) - before
}

/// The node that owns a volume, once there is one.
fn owner(fleet: &Fleet, volume: &str) -> Who {
    fleet.until("somebody owns it", || {
        [Who::Source, Who::Target].into_iter().find(|who| {
            let report = fleet.report(*who, volume);
            report.is_some_and(|r| r.role() == VolumeRole::Owner)
        })
    })
}

/// Waits until the replica has all that the client did; answers its epoch.
fn at_rest(fleet: &Fleet, volume: &str) -> u64 {
    let owner = owner(fleet, volume);
    let replica = || {
        let replica = fleet.report(owner, volume)?.replicas.into_iter().next()?;
        (replica.state() == ReplicaState::Consistent).then_some(replica.epoch)
    };
    let now = fleet.until("the replica is consistent", replica);
    // The one after the next: the next may have begun already.
    fleet.until("the replica has all", || replica().filter(|e| *e > now + 1))
}
