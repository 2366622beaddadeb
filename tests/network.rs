//! What networks do to replication and forwarding, between real nodes, while a client writes.
//!
//! ```text
//!   a ══► link ══► b      one frame spoiled, or the link cut, stalled one way or both, slow, half open
//! ```
//!
//! After each trouble the fleet goes on by itself: no sector is lost or old, nobody sees two owners, no
//! second seeding is begun.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

mod fleet_processes;

use fleet_processes::link::{Hold, Link, Slow, Spoil, Way};
use fleet_processes::scene::{MIB, SIZE, Scene};
use fleet_processes::{VOLUME, Who};
use proto::v1::VolumeRole;
use std::time::Duration;
use wire::Kind;

/// What happens to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Cut,
    /// Cut, and refused until it heals.
    Down,
    /// Nothing passes in one direction; it arrives when the link heals.
    Stalled(Way),
    Partition,
    /// The far end is gone and nobody is told.
    HalfOpen,
    Slow,
    /// A frame.
    Spoiled(Spoil),
}

use Trouble::{Cut, Down, HalfOpen, Partition, Spoiled, Stalled};

/// How long a trouble lasts that ends.
const LASTS: Duration = Duration::from_millis(400);

impl Trouble {
    /// On the next frame of `kind`, if it is one frame's trouble.
    fn strike(self, link: &Link, kind: Kind) {
        eprintln!("{self:?} at {kind:?}");
        match self {
            Cut => link.cut(),
            Down => link.go_down(),
            Stalled(way) => link.stall(way),
            Partition => {
                link.stall(Way::Forth);
                link.stall(Way::Back);
            }
            HalfOpen => link.half_open(),
            Trouble::Slow => link.slow_down(Slow {
                delay: Duration::from_millis(300),
                bytes_per_second: 1 << 20,
            }),
            Spoiled(spoil) => link.spoil(kind, spoil),
        }
    }
}

/// The copy is made in four seconds, and each comes in the midst of it.
#[test]
fn a_seeding_goes_on_after_whatever_the_network_does() {
    let troubles = [
        (Cut, Kind::Data),
        (Spoiled(Spoil::Flip), Kind::Data),
        (Stalled(Way::Back), Kind::Data),
        (Spoiled(Spoil::Half), Kind::Data),
        (Spoiled(Spoil::Twice), Kind::Data),
        (Partition, Kind::Data),
        (Spoiled(Spoil::Swap), Kind::Data),
    ];
    let scene = Scene::seeding();
    for (n, (trouble, kind)) in (1..).zip(troubles) {
        scene.seeded(n * SIZE / 10);
        trouble.strike(scene.fleet.link(), kind);
        std::thread::sleep(LASTS);
        scene.fleet.link().heal();
    }
    let after = scene.committed();
    // A unit of the comparison is 64 KiB: a written block costs one; and each trouble what was under way.
    let bound = SIZE + after.ios * (64 << 10) + troubles.len() as u64 * 8 * MIB;
    eprintln!("{} bytes sent, at most {bound} are right", after.sent);
    assert!(after.sent <= bound, "{} bytes were sent", after.sent);
    scene.cutover().succeeds();
    scene.finish();
}

#[test]
fn increments_go_on_after_whatever_the_network_does() {
    let scene = Scene::replicated();
    let since = scene.committed();
    let mut cases = vec![
        (Cut, Kind::Data),
        (Down, Kind::Data),
        (Stalled(Way::Forth), Kind::Data),
        (Stalled(Way::Back), Kind::Data),
        (Partition, Kind::Data),
        (Trouble::Slow, Kind::Data),
    ];
    for spoil in [Spoil::Flip, Spoil::Half] {
        for kind in [Kind::EpochBegin, Kind::Data, Kind::EpochEnd] {
            cases.push((Spoiled(spoil), kind));
        }
    }
    cases.extend([Spoil::Twice, Spoil::Swap].map(|s| (Spoiled(s), Kind::Data)));
    cases.push((Spoiled(Spoil::Twice), Kind::EpochAck));
    for (trouble, kind) in &cases {
        let spoiled = scene.fleet.link().spoiled();
        trouble.strike(scene.fleet.link(), *kind);
        if let Spoiled(_) = trouble {
            let happened = || (scene.fleet.link().spoiled() > spoiled).then_some(());
            scene.fleet.until("a frame is spoiled", happened);
        } else {
            std::thread::sleep(LASTS);
        }
        scene.fleet.link().heal();
    }
    scene.committed();
    assert_eq!(scene.fleet.link().seen(Kind::SeedBegin), 1, "seeded once");
    let sent = scene.mark().sent - since.sent;
    eprintln!("{sent} bytes sent over {} troubles", cases.len());
    scene.cutover().succeeds();
    scene.finish();
}

/// There and back and there: each time a frame of the cutover is held, and then the link has trouble.
fn troubled_cutovers(at: Hold, kind: Kind, troubles: &[Trouble]) {
    assert!(troubles.len() % 2 == 1, "the volume ends at b");
    let scene = Scene::replicated();
    let seeded = || [0, 1].map(|i| scene.fleet.ways[i].replication.largest_seeding());
    assert!(seeded()[1] > SIZE / 2, "the first copy");
    for (round, trouble) in troubles.iter().enumerate() {
        let there = round % 2 == 0;
        let (to, link, from) = if there {
            ("b", &scene.fleet.ways[1].replication, Who::Source)
        } else {
            ("a", &scene.fleet.ways[0].replication, Who::Target)
        };
        if round > 0 {
            scene.fleet.run(&["replica", "add", VOLUME, "--to", to]);
        }
        link.hold(at);
        let cutover = scene.fleet.begin(&["cutover", VOLUME, "--to", to]);
        link.wait_held();
        let load = scene.load.as_ref().unwrap();
        let _ = load.longest(); // from here on
        trouble.strike(link, kind);
        link.release();
        std::thread::sleep(LASTS);
        if matches!(at, Hold::Epoch | Hold::LastEpoch) {
            std::thread::sleep(Duration::from_secs(1));
            let longest = load.longest();
            assert!(
                longest < Duration::from_millis(1800),
                "{trouble:?}: {longest:?}"
            );
            if matches!(trouble, Stalled(_) | Partition | Down) {
                let role = scene.fleet.role(from);
                assert_eq!(role, Some(VolumeRole::Owner), "{trouble:?}: it serves on");
            }
        }
        link.heal();
        if !cutover.waits() {
            let abortable = matches!(at, Hold::Epoch | Hold::LastEpoch);
            assert!(abortable, "{trouble:?}: after the volume is relinquished");
            assert_eq!(
                scene.fleet.role(from),
                Some(VolumeRole::Owner),
                "{trouble:?}"
            );
            scene.fleet.run(&["cutover", VOLUME, "--to", to]);
        }
    }
    let seeded = seeded();
    assert!(
        seeded.iter().all(|s| *s < SIZE / 2),
        "copied again: {seeded:?}"
    );
    scene.finish();
}

#[test]
fn a_cutover_that_converges_is_tried_again_after_whatever_the_network_does() {
    let troubles = [
        Cut,
        Stalled(Way::Back),
        Spoiled(Spoil::Flip),
        Trouble::Slow,
        Down,
    ];
    troubled_cutovers(Hold::Epoch, Kind::EpochEnd, &troubles);
}

/// The guest is held while the last epoch is under way: for the freeze budget, whatever happens.
#[test]
fn a_frozen_guest_is_let_go_whatever_the_network_does() {
    let troubles = [
        Cut,
        Stalled(Way::Forth),
        Stalled(Way::Back),
        Partition,
        HalfOpen,
        Trouble::Slow,
        Spoiled(Spoil::Flip),
        Spoiled(Spoil::Half),
        Spoiled(Spoil::Twice),
    ];
    troubled_cutovers(Hold::LastEpoch, Kind::EpochEnd, &troubles);
}

/// Nobody owns the volume. Also over a connection of which only this side knows: the source waited for
/// an answer that could not come, for ever, and so did the guest.
#[test]
fn a_relinquished_volume_is_taken_whatever_the_network_does() {
    let troubles = [
        Cut,
        Stalled(Way::Forth),
        Stalled(Way::Back),
        Partition,
        HalfOpen,
        Down,
        Spoiled(Spoil::Flip),
        Spoiled(Spoil::Half),
        Spoiled(Spoil::Twice),
    ];
    troubled_cutovers(Hold::Activate, Kind::Activate, &troubles);
}

#[test]
fn a_new_owner_is_found_whatever_the_network_does() {
    let troubles = [
        Cut,
        Stalled(Way::Back),
        HalfOpen,
        Spoiled(Spoil::Flip),
        Spoiled(Spoil::Half),
    ];
    troubled_cutovers(Hold::Activated, Kind::Activated, &troubles);
}

/// The client stays at the former owner. A link of which only that side knew held its requests for ever.
#[test]
fn a_former_owner_forwards_after_whatever_the_network_does() {
    let scene = Scene::replicated();
    scene.cutover().succeeds();
    let link = &scene.fleet.ways[1].nbd;
    let load = scene.load.as_ref().unwrap();
    for trouble in [
        Cut,
        Down,
        Stalled(Way::Forth),
        Stalled(Way::Back),
        Partition,
        Trouble::Slow,
        HalfOpen,
    ] {
        trouble.strike(link, Kind::Data);
        std::thread::sleep(LASTS);
        link.heal();
        let before = load.ios();
        let goes_on = || (load.ios() > before + 40).then_some(());
        scene.fleet.until("the client goes on", goes_on);
    }
    scene.finish();
}
