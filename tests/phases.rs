//! Source, target and controller are killed in each phase of a volume's move, while a client writes.
//!
//! ```text
//!   seeding ─ increment ─ converging ─┬─ relinquished ─ activated ─ redirected
//!                                     └─ here the owner changes, once
//! ```
//!
//! Real processes and SIGKILL. In each case the killed process is started again and does nothing but
//! what it does by itself; then the cutover ends, every sector is what the client had acknowledged or
//! later, nobody ever saw two owners, and what was replicated meanwhile is what had changed.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

mod fleet_processes;

use fleet_processes::gate::Hold;
use fleet_processes::load::{IO_BYTES, Load};
use fleet_processes::owners::Owners;
use fleet_processes::{Fleet, VOLUME, Who};
use nix::sys::signal::Signal;
use proto::v1::{ReplicaState, VolumeRole};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
/// Written before the replica is made, with bytes that no compression shrinks.
const FILLED: u64 = 60 * MIB;
/// I/Os of the client a second.
const RATE: u32 = 200;

struct Scene {
    fleet: Fleet,
    load: Option<Load>,
    owners: Owners,
}

/// What was there at some moment.
#[derive(Clone, Copy)]
struct Mark {
    ios: u64,
    sent: u64,
}

impl Scene {
    fn start(rate: u32) -> Scene {
        let fleet = Fleet::start();
        let size = format!("{}M", SIZE / MIB);
        fleet.run(&["volume", "create", VOLUME, "--size", &size, "--node", "a"]);
        let id = fleet.report(Who::Source, VOLUME).unwrap().id;
        let uri = fleet.uri("a", VOLUME);
        let load = Load::start(&uri, id.parse().unwrap(), SIZE, FILLED, rate);
        Scene {
            owners: Owners::watch(fleet.node_addresses()),
            fleet,
            load: Some(load),
        }
    }

    /// With a replica on b that has had an increment.
    fn replicated() -> Scene {
        let scene = Scene::start(RATE);
        let bound = "bounded=500ms";
        scene.fleet.run(&[
            "replica",
            "add",
            VOLUME,
            "--to",
            "b",
            "--consistency",
            bound,
        ]);
        scene.committed();
        scene
    }

    /// Waits for the next epoch that begins from now on to be at the replica.
    fn committed(&self) -> Mark {
        let mark = self.mark();
        let epoch = || {
            let replica = self.fleet.replica()?;
            (replica.state() == ReplicaState::Consistent).then_some(replica.epoch)
        };
        let now = self.fleet.until("the replica is consistent", epoch);
        // The one after the next: the next may have begun already.
        self.fleet
            .until("an epoch is committed", || epoch().filter(|e| *e > now + 1));
        mark
    }

    fn mark(&self) -> Mark {
        Mark {
            ios: self.load.as_ref().unwrap().ios(),
            sent: self.fleet.gate.sent(),
        }
    }

    fn kill_and_restart(&mut self, who: Who) {
        self.fleet.kill(who);
        // Long enough for the others to notice.
        std::thread::sleep(Duration::from_millis(200));
        self.fleet.restart(who);
        if who == Who::Source {
            let load = self.load.take().unwrap();
            self.load = Some(load.reconnect());
        }
    }

    /// What was sent since is what was written since, and digests of the areas that were suspect.
    fn assert_no_resync(&self, since: Mark) {
        let now = self.mark();
        let (sent, ios) = (now.sent - since.sent, now.ios - since.ios);
        // A block with its part of a frame's header; 32 bytes for 4 KiB of a suspect area, twice.
        let bound = ios * u64::from(IO_BYTES + 512) + SIZE / 64 + MIB / 4;
        eprintln!("{sent} bytes sent for {ios} I/Os, at most {bound} are right");
        assert!(sent <= bound, "{sent} bytes were sent, {bound} are right");
        assert!(
            bound < FILLED / 2,
            "the bound is too large to show anything"
        );
    }

    fn cutover(&self) -> fleet_processes::Running {
        self.fleet.begin(&["cutover", VOLUME, "--to", "b"])
    }

    /// b owns the volume; everything that the client knows of it is there.
    fn finish(self) {
        let Scene {
            fleet,
            load,
            owners,
        } = self;
        assert_eq!(fleet.role(Who::Target), Some(VolumeRole::Owner));
        assert_eq!(fleet.role(Who::Source), Some(VolumeRole::Forwarding));
        load.unwrap().check(&fleet.uri("b", VOLUME));
        owners.check();
        assert_eq!(fleet.run(&["volume", "show", VOLUME])["owner"], "b");
    }
}

/// The replica's bandwidth is capped, so that the kill comes in the middle of the first copy.
fn killed_while_seeding(who: Who) {
    eprintln!("{who:?} is killed when half of the volume is seeded");
    let mut scene = Scene::start(20);
    let rate = format!("{}M", SIZE / MIB / 4);
    let add = ["replica", "add", VOLUME, "--to", "b", "--no-wait"];
    scene.fleet.run(
        &[
            &add[..],
            &["--rate", &rate, "--consistency", "bounded=500ms"],
        ]
        .concat(),
    );
    let done = || scene.fleet.replica()?.seed.map(|s| s.bytes_done);
    let done = scene
        .fleet
        .until("half is seeded", || done().filter(|d| *d > SIZE / 2));
    let before = scene.mark();
    scene.kill_and_restart(who);
    scene.committed();
    let after = scene.mark();
    // A unit of the comparison is 64 KiB: a written block costs one, and what was in flight is lost.
    let bound = SIZE - done + after.ios * (64 << 10) + 8 * MIB;
    let sent = after.sent - before.sent;
    eprintln!("{done} bytes seeded before, {sent} sent after, at most {bound} are right");
    assert!(sent <= bound, "{sent} bytes were sent, {bound} are right");
    scene.cutover().succeeds();
    scene.finish();
}

fn killed_between_increments(who: Who) {
    eprintln!("{who:?} is killed while increments are replicated");
    let mut scene = Scene::replicated();
    let since = scene.committed();
    scene.kill_and_restart(who);
    scene.committed();
    scene.assert_no_resync(since);
    scene.cutover().succeeds();
    scene.finish();
}

/// The gate holds a frame of the cutover; then the kill, the restart, and the frame goes on.
fn killed_in_cutover(who: Who, at: Hold) {
    eprintln!("{who:?} is killed in a cutover that is at {at:?}");
    let mut scene = Scene::replicated();
    let since = scene.committed();
    scene.fleet.gate.hold(at);
    let cutover = scene.cutover();
    scene.fleet.gate.wait_held();
    let roles = (
        scene.fleet.role(Who::Source).unwrap(),
        scene.fleet.role(Who::Target).unwrap(),
    );
    let expected = match at {
        Hold::Epoch | Hold::LastEpoch => (VolumeRole::Owner, VolumeRole::Standby),
        Hold::Activate => (VolumeRole::Forwarding, VolumeRole::Standby),
        Hold::Activated => (VolumeRole::Forwarding, VolumeRole::Owner),
    };
    assert_eq!(roles, expected, "at {at:?}");
    scene.fleet.kill(who);
    scene.fleet.gate.release();
    scene.kill_and_restart(who);
    cutover.succeeds();
    scene.assert_no_resync(since);
    scene.finish();
}

#[test]
fn a_source_killed_while_it_seeds_goes_on_where_it_was() {
    killed_while_seeding(Who::Source);
}

#[test]
fn a_target_killed_while_it_is_seeded_goes_on_where_it_was() {
    killed_while_seeding(Who::Target);
}

#[test]
fn a_controller_killed_while_a_replica_is_seeded_is_not_missed() {
    killed_while_seeding(Who::Controller);
}

#[test]
fn a_source_killed_between_increments_compares_what_it_cannot_know() {
    killed_between_increments(Who::Source);
}

#[test]
fn a_target_killed_between_increments_takes_the_next() {
    killed_between_increments(Who::Target);
}

#[test]
fn a_controller_killed_between_increments_is_not_missed() {
    killed_between_increments(Who::Controller);
}

#[test]
fn a_source_killed_while_a_cutover_converges_converges_again() {
    killed_in_cutover(Who::Source, Hold::Epoch);
}

#[test]
fn a_target_killed_while_a_cutover_converges_is_waited_for() {
    killed_in_cutover(Who::Target, Hold::Epoch);
}

#[test]
fn a_controller_killed_while_a_cutover_converges_records_its_end() {
    killed_in_cutover(Who::Controller, Hold::Epoch);
}

#[test]
fn a_source_killed_after_relinquish_activates_the_target() {
    killed_in_cutover(Who::Source, Hold::Activate);
}

#[test]
fn a_target_killed_before_it_takes_the_volume_takes_it_later() {
    killed_in_cutover(Who::Target, Hold::Activate);
}

#[test]
fn a_controller_killed_after_relinquish_records_the_new_owner() {
    killed_in_cutover(Who::Controller, Hold::Activate);
}

#[test]
fn a_source_killed_before_it_hears_of_the_new_owner_forwards_to_it() {
    killed_in_cutover(Who::Source, Hold::Activated);
}

#[test]
fn a_target_killed_when_it_has_taken_the_volume_still_owns_it() {
    killed_in_cutover(Who::Target, Hold::Activated);
}

/// The target stops answering when the guest is already held. The guest must not wait for it.
#[test]
fn a_target_that_stops_while_the_guest_is_frozen_costs_the_freeze_budget() {
    eprintln!("the target is stopped for 3 s when the last epoch is on its way");
    let scene = Scene::replicated();
    scene.fleet.gate.hold(Hold::LastEpoch);
    let cutover = scene.cutover();
    scene.fleet.gate.wait_held();
    scene.fleet.signal_target(Signal::SIGSTOP);
    let load = scene.load.as_ref().unwrap();
    let _ = load.longest(); // from here on
    scene.fleet.gate.release();
    std::thread::sleep(Duration::from_millis(1500));
    let before = load.ios();
    std::thread::sleep(Duration::from_millis(1500));
    let (served, longest) = (load.ios() - before, load.longest());
    let role = scene.fleet.role(Who::Source);
    scene.fleet.signal_target(Signal::SIGCONT);
    eprintln!("{served} I/Os in 1.5 s with the target stopped; the longest took {longest:?}");
    assert_eq!(role, Some(VolumeRole::Owner));
    assert!(served > 100, "the source serves on");
    assert!(longest < Duration::from_millis(1800), "{longest:?}");
    cutover.succeeds();
    scene.finish();
}
