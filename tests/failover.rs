//! A node is gone for good, and a replica takes its volume over: real processes, SIGKILL and SIGSTOP.
//!
//! ```text
//!   a owns, b follows ─ a dies ─ refused: alive, or nobody says that it is off
//!                              ─ b takes over: its point in time, in the next generation
//!                              ─ a comes back ─► it serves nobody; as a replica it is compared, not trusted
//!   b dies in a cutover ─ nobody says that it is off: a waits ─ somebody does: a takes the volume back
//! ```
//!
//! What the copies hold wherever the source stopped is shown byte by byte in `driver/replica/tests/takeover.rs`;
//! here the guest is at rest when its node dies, so that the copy must be all of it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

mod fleet_processes;

use fleet_processes::link::Hold;
use fleet_processes::scene::{FILLED, Scene};
use fleet_processes::{Fleet, PATIENCE, Running, VOLUME, Who};
use nix::sys::signal::Signal;
use node::client::verify::{self, Ledger};
use node::client::{Client, Uri};
use proto::v1::{ReplicaState, VolumeRole};
use std::time::{Duration, Instant};

const SIZE: u64 = 32 << 20;
const OFF: &[&str] = &["failover", VOLUME, "--owner-is-off"];

/// A volume on a whose every byte is known and is on b too.
struct Still {
    fleet: Fleet,
    ledger: Ledger,
}

impl Still {
    fn new() -> Still {
        let fleet = Fleet::start();
        fleet.run(&["volume", "create", VOLUME, "--size", "32M", "--node", "a"]);
        let id = fleet.report(Who::Source, VOLUME).unwrap().id;
        let mut still = Still {
            ledger: Ledger::new(id.parse().unwrap(), SIZE, 4096, 1),
            fleet,
        };
        let mut guest = still.guest("a");
        verify::fill(&mut guest, &mut still.ledger, SIZE / 2).unwrap();
        still.fleet.replicate("b");
        verify::fill(&mut guest, &mut still.ledger, SIZE).unwrap();
        still.follows();
        still
    }

    fn guest(&self, node: &str) -> Client {
        connect(&self.fleet.uri(node, VOLUME))
    }

    fn b_counts_as_silent(&self) {
        let silent = || {
            let nodes = self.fleet.run(&["node-list"]);
            let b = nodes.as_array()?.iter().find(|n| n["name"] == "b")?;
            (b["alive"] == false).then_some(())
        };
        self.fleet.until("b counts as silent", silent);
    }

    /// What has begun waits for b, and whoever asks for more hears how to go on without it.
    fn is_told_the_way_out(&self, again: &[&str], way_out: &str) {
        let begun = || {
            let list = self.fleet.run(&["operation", "list", "--running"]);
            (list.as_array()?.len() == 1).then_some(())
        };
        self.fleet.until("it has begun", begun);
        let told = || {
            let e = self.fleet.refused(again);
            e.contains(way_out).then_some(())
        };
        self.fleet.until("the way out is told", told);
    }

    /// The replica on b has all.
    fn follows(&self) {
        self.follow(Who::Source);
    }

    /// The replica that this node keeps has all.
    fn follow(&self, owner: Who) {
        let has_all = || {
            let replicas = self.fleet.report(owner, VOLUME)?.replicas;
            let r = replicas.into_iter().next()?;
            (r.state() == ReplicaState::Consistent && r.lag_bytes == 0).then_some(())
        };
        self.fleet.until("the replica has all", has_all);
    }

    /// Every byte is served by `node`.
    fn check(&mut self, node: &str) {
        let found = verify::compare(&mut self.guest(node), &mut self.ledger).unwrap();
        assert_eq!(found.mismatches, 0, "{:?}", found.complaints);
        assert_eq!(found.bytes, self.ledger.covers());
    }

    fn is(&self, who: Who, role: VolumeRole) {
        let has = || (self.fleet.role(who)? == role).then_some(());
        self.fleet.until(&format!("{who:?} is {role:?}"), has);
    }
}

fn connect(uri: &Uri) -> Client {
    let until = Instant::now() + PATIENCE;
    loop {
        match Client::connect(uri, &[], PATIENCE) {
            Ok(client) => return client,
            Err(e) => assert!(Instant::now() < until, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Silence is noticed after some seconds; until then it is refused.
fn failed_over(fleet: &Fleet) {
    fleet.until("the owner counts as silent", || match fleet.try_run(OFF) {
        Ok(_) => Some(()),
        Err(e) => {
            assert!(e.contains("sends heartbeats"), "{e}");
            None
        }
    });
}

/// The same, while the test goes on.
fn failing_over(fleet: &Fleet) -> Running {
    fleet.until("the owner counts as silent", || {
        let e = fleet.refused(&["failover", VOLUME]);
        e.contains("--owner-is-off").then_some(())
    });
    fleet.begin(OFF)
}

#[test]
fn a_dead_owner_is_replaced_and_comes_back_as_nobody() {
    let mut still = Still::new();
    let e = still.fleet.refused(OFF);
    assert!(e.contains("forerun cutover"), "{e}");

    still.fleet.kill(Who::Source);
    failed_over(&still.fleet);
    still.is(Who::Target, VolumeRole::Owner);
    let shown = still.fleet.run(&["volume", "show", VOLUME]);
    assert_eq!(
        (&shown["owner"], &shown["generation"]),
        (&"b".into(), &2.into())
    );
    still.check("b");
    // It is written to there, so that what a has is no point in time of it any more.
    let mut guest = still.guest("b");
    verify::fill(&mut guest, &mut still.ledger, SIZE / 4).unwrap();
    still.check("b");

    still.fleet.restart(Who::Source);
    still.is(Who::Source, VolumeRole::Standby);
    let a = still.fleet.uri("a", VOLUME);
    assert!(Client::connect(&a, &[], PATIENCE).is_err(), "a serves it");
    let e = still.fleet.refused(&[OFF, &["--to", "a"]].concat());
    assert!(e.contains("sends heartbeats"), "{e}");

    still.fleet.run(&["replica", "add", VOLUME, "--to", "a"]);
    still.fleet.run(&["cutover", VOLUME, "--to", "a"]);
    still.check("a");
    let shown = still.fleet.run(&["volume", "show", VOLUME]);
    assert_eq!(shown["generation"], 3);
}

/// Somebody was wrong about the owner: it was stopped, and goes on while its guest is connected. What lies in
/// its sockets it may answer still, in its own generation; then it hears of the next, ends its guests'
/// connections and serves nobody.
#[test]
fn an_owner_that_only_slept_is_nobody_soon_after_it_wakes() {
    let mut still = Still::new();
    let mut guest = still.guest("a");
    still.fleet.signal(Who::Source, Signal::SIGSTOP);
    failed_over(&still.fleet);
    still.check("b");
    let woken = std::thread::spawn(move || (guest.write(0, &[7; 4096], false), guest));
    // It is in the sleeper's socket before that wakes.
    std::thread::sleep(Duration::from_millis(200));
    still.fleet.signal(Who::Source, Signal::SIGCONT);
    let awake = Instant::now();
    still.is(Who::Source, VolumeRole::Standby);
    let (late, mut guest) = woken.join().unwrap();
    eprintln!("the write that the sleeper was asked: {late:?}");
    assert!(
        guest.write(0, &[7; 4096], false).is_err(),
        "its guest goes on"
    );
    assert!(
        awake.elapsed() < PATIENCE / 2,
        "its guest is left to wait for an answer"
    );
    let a = still.fleet.uri("a", VOLUME);
    assert!(Client::connect(&a, &[], PATIENCE).is_err(), "a serves it");
    // Whatever came of that write, the owner's disk does not have it.
    still.check("b");
}

#[test]
fn a_target_killed_in_a_failover_takes_over_when_it_is_back() {
    let mut still = Still::new();
    still.fleet.kill(Who::Source);
    let failover = {
        let begun = failing_over(&still.fleet);
        still.fleet.kill(Who::Target);
        begun
    };
    still.fleet.restart(Who::Target);
    failover.succeeds();
    still.is(Who::Target, VolumeRole::Owner);
    still.check("b");
    // and it is the owner after another death
    still.fleet.kill(Who::Target);
    still.fleet.restart(Who::Target);
    still.check("b");
}

#[test]
fn a_controller_killed_in_a_failover_ends_it_when_it_is_back() {
    let mut still = Still::new();
    still.fleet.kill(Who::Source);
    still.fleet.until("the owner counts as silent", || {
        let e = still.fleet.refused(&["failover", VOLUME]);
        e.contains("--owner-is-off").then_some(())
    });
    still.fleet.signal(Who::Target, Signal::SIGSTOP);
    let failover = still.fleet.begin(OFF);
    let logged = || {
        let list = still.fleet.run(&["operation", "list", "--running"]);
        (list.as_array()?.len() == 1).then_some(())
    };
    still.fleet.until("the failover is logged", logged);
    still.fleet.kill(Who::Controller);
    still.fleet.restart(Who::Controller);
    still.fleet.signal(Who::Target, Signal::SIGCONT);
    failover.succeeds();
    still.is(Who::Target, VolumeRole::Owner);
    let shown = still.fleet.run(&["volume", "show", VOLUME]);
    assert_eq!(
        (&shown["owner"], &shown["generation"]),
        (&"b".into(), &2.into())
    );
    still.check("b");
}

/// The owner gave the volume away and died before the target knew. The operation waits for the owner; the
/// target has all that was acknowledged, and takes it. The owner's guests are sent on when it comes back.
#[test]
fn a_target_to_which_the_dead_owner_gave_the_volume_has_all_of_it() {
    let mut scene = Scene::replicated();
    scene.committed();
    assert!(scene.mark().sent < 2 * FILLED);
    scene.fleet.link().hold(Hold::Activate);
    let cutover = scene.cutover();
    scene.fleet.link().wait_held();
    scene.fleet.kill(Who::Source);
    scene.fleet.link().release();
    failed_over(&scene.fleet);
    assert!(!cutover.waits(), "the cutover was given up");
    scene.kill_and_restart(Who::Source);
    let before = scene.mark().ios;
    let goes_on = || (scene.mark().ios > before + 100).then_some(());
    scene
        .fleet
        .until("the guest goes on through its node", goes_on);
    scene.finish();
}

const TARGET_OFF: &[&str] = &["failover", VOLUME, "--target-is-off"];

/// The target of a cutover dies at some frame of it, for good.
fn taken_back_at(at: Hold) {
    eprintln!("the target is gone for good in a cutover that is at {at:?}");
    let mut scene = Scene::replicated();
    scene.committed();
    scene.fleet.link().hold(at);
    let cutover = scene.cutover();
    scene.fleet.link().wait_held();
    scene.fleet.link().go_down();
    scene.fleet.kill(Who::Target);
    scene.fleet.link().release();
    scene.fleet.until("the way out is told", || {
        let e = scene.fleet.refused(&["cutover", VOLUME, "--to", "b"]);
        e.contains("failover v --target-is-off").then_some(())
    });
    let e = scene.fleet.refused(OFF);
    assert!(e.contains("say so with --target-is-off"), "{e}");
    let before = scene.mark().ios;
    let done = scene.fleet.run(TARGET_OFF);
    let step = done["steps"][0].as_str().unwrap();
    assert!(step.contains("acknowledged is on its disk only"), "{step}");
    assert!(!cutover.waits(), "the cutover was given up");
    let goes_on = || (scene.mark().ios > before + 100).then_some(());
    scene.fleet.until("the guest goes on", goes_on);

    let mut fleet = scene.taken_back();
    let shown = fleet.run(&["volume", "show", VOLUME]);
    assert_eq!(shown["generation"], 3);
    fleet.link().heal();
    fleet.restart(Who::Target);
    let is_nobody = || (fleet.role(Who::Target)? == VolumeRole::Standby).then_some(());
    fleet.until("the target is nobody", is_nobody);
    fleet.replicate("b");
    fleet.run(&["cutover", VOLUME, "--to", "b"]);
    assert_eq!(fleet.role(Who::Target), Some(VolumeRole::Owner));
}

/// The owner had given the volume away, and the node that was to have it died before it knew. Nobody owned the
/// volume from then on, no command could change that, and the guests waited for good.
#[test]
fn an_owner_takes_back_what_its_dead_target_never_took() {
    taken_back_at(Hold::Activate);
}

/// The target had taken it, and died before it served anybody.
#[test]
fn an_owner_takes_back_what_its_dead_target_had_taken() {
    taken_back_at(Hold::Activated);
}

/// The volume was not given away yet. The owner served on, but it could never be moved, nor anything else be
/// asked of it.
#[test]
fn an_owner_gives_a_cutover_to_a_dead_target_up() {
    taken_back_at(Hold::LastEpoch);
}

/// The cutover was long over when its target's host burnt down, and there was no other replica. The former owner
/// still had what it gave away, and no command could make use of it.
#[test]
fn what_a_former_owner_gave_away_is_served_when_it_is_named() {
    let mut still = Still::new();
    let mut guest = still.guest("a");
    still.fleet.run(&["cutover", VOLUME, "--to", "b"]);
    guest.write(0, &[7; 4096], false).unwrap();
    still.fleet.kill(Who::Target);
    still.fleet.until("the remedy is told", || {
        let e = still.fleet.refused(OFF);
        e.contains("--to a takes that").then_some(())
    });
    still.fleet.run(&[OFF, &["--to", "a"]].concat());
    still.is(Who::Source, VolumeRole::Owner);
    // What it was told by b is gone: it has to learn that.
    assert!(guest.write(0, &[7; 4096], false).is_err(), "it goes on");
    still.check("a");
    still.fleet.restart(Who::Target);
    still.is(Who::Target, VolumeRole::Standby);
    still.check("a");
}

/// A volume had moved to b, and a was its replica when b died. What a said of itself was that it had owned the
/// volume, and not what its copy was, so that nobody could take the volume over.
#[test]
fn a_former_owner_that_is_a_replica_takes_over() {
    let mut still = Still::new();
    still.fleet.run(&["cutover", VOLUME, "--to", "b"]);
    still.fleet.replicate("a");
    let mut guest = still.guest("b");
    verify::fill(&mut guest, &mut still.ledger, SIZE / 4).unwrap();
    still.follow(Who::Target);
    still.fleet.kill(Who::Target);
    failed_over(&still.fleet);
    still.is(Who::Source, VolumeRole::Owner);
    still.check("a");
}

/// A replica's host had burnt down. Deleting the volume waited for it, for ever, and whoever tried again was told
/// that the volume was busy. Should the host come back after all, its copy goes.
#[test]
fn a_volume_is_deleted_without_a_node_that_is_gone() {
    let mut still = Still::new();
    let there = still.fleet.volume("b", VOLUME);
    still.fleet.kill(Who::Target);
    still.b_counts_as_silent();
    let delete = ["volume", "delete", VOLUME];
    let mut waiting = still.fleet.begin(&delete);
    let gone_from_a = || {
        still
            .fleet
            .report(Who::Source, VOLUME)
            .is_none()
            .then_some(())
    };
    still.is_told_the_way_out(&delete, "volume delete v --forget-unreachable");
    assert_eq!(waiting.ended(), None);

    still
        .fleet
        .run(&[&delete[..], &["--forget-unreachable"]].concat());
    assert!(!waiting.waits(), "its place was taken");
    still.fleet.until("a has nothing of it", gone_from_a);
    let left = still.fleet.run(&["volume", "list"]);
    assert_eq!(left.as_array().map(Vec::len), Some(0), "{left}");
    assert!(there.exists());

    still.fleet.restart(Who::Target);
    let gone = || (!there.exists()).then_some(());
    still.fleet.until("b has nothing of it", gone);
}

/// The same of a replica that was to be removed. When the host is back its copy goes, and it can be given another.
#[test]
fn a_replica_is_given_up_without_a_node_that_is_gone() {
    let mut still = Still::new();
    let there = still.fleet.volume("b", VOLUME);
    still.fleet.kill(Who::Target);
    still.b_counts_as_silent();
    let remove = ["replica", "remove", VOLUME, "--to", "b"];
    let mut waiting = still.fleet.begin(&remove);
    let way_out = "replica remove v --to b --forget-unreachable";
    still.is_told_the_way_out(&remove, way_out);
    assert_eq!(waiting.ended(), None);

    let forget = [&remove[..], &["--forget-unreachable"]].concat();
    still.fleet.run(&forget);
    assert!(!waiting.waits(), "its place was taken");
    let left = still.fleet.run(&["replica", "list", VOLUME]);
    assert_eq!(left.as_array().map(Vec::len), Some(0), "{left}");
    assert!(there.exists());

    still.fleet.restart(Who::Target);
    let gone = || (!there.exists()).then_some(());
    still.fleet.until("b has nothing of it", gone);
    still.fleet.replicate("b");
    still.follows();
}
