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

use fleet_processes::link::{Hold, Way};
use fleet_processes::scene::{MIB, SIZE, Scene};
use fleet_processes::{Fleet, PATIENCE, VOLUME, Who};
use nix::sys::signal::Signal;
use proto::v1::VolumeRole;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The replica's bandwidth is capped, so that the kill comes in the middle of the first copy.
fn killed_while_seeding(who: Who) {
    eprintln!("{who:?} is killed when half of the volume is seeded");
    let mut scene = Scene::seeding();
    let done = scene.seeded(SIZE / 2);
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

/// The link holds a frame of the cutover; then the kill, the restart, and the frame goes on.
fn killed_in_cutover(who: Who, at: Hold) {
    eprintln!("{who:?} is killed in a cutover that is at {at:?}");
    let mut scene = Scene::replicated();
    let since = scene.committed();
    scene.fleet.link().hold(at);
    let cutover = scene.cutover();
    scene.fleet.link().wait_held();
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
    scene.fleet.link().release();
    scene.kill_and_restart(who);
    cutover.succeeds();
    scene.assert_no_resync(since);
    scene.finish();
}

/// Both nodes die and start at the same time: the former owner first, when the new one cannot be asked yet.
fn both_killed_in_cutover(at: Hold) {
    eprintln!("both nodes are killed in a cutover that is at {at:?}, and start at once");
    let mut scene = Scene::replicated();
    scene.fleet.link().hold(at);
    let cutover = scene.cutover();
    scene.fleet.link().wait_held();
    scene.fleet.kill(Who::Source);
    scene.fleet.kill(Who::Target);
    scene.fleet.link().release();
    scene.fleet.restart_both();
    let load = scene.load.take().unwrap();
    scene.load = Some(load.reconnect());
    cutover.succeeds();
    scene.finish();
}

#[test]
fn both_killed_while_a_cutover_converges_have_one_owner_when_they_start_at_once() {
    both_killed_in_cutover(Hold::LastEpoch);
}

#[test]
fn both_killed_after_relinquish_have_one_owner_when_they_start_at_once() {
    both_killed_in_cutover(Hold::Activate);
}

#[test]
fn both_killed_when_the_target_has_taken_it_have_one_owner_when_they_start_at_once() {
    both_killed_in_cutover(Hold::Activated);
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
    scene.fleet.link().hold(Hold::LastEpoch);
    let cutover = scene.cutover();
    scene.fleet.link().wait_held();
    scene.fleet.signal(Who::Target, Signal::SIGSTOP);
    let load = scene.load.as_ref().unwrap();
    let _ = load.longest(); // from here on
    scene.fleet.link().release();
    std::thread::sleep(Duration::from_millis(1500));
    let before = load.ios();
    std::thread::sleep(Duration::from_millis(1500));
    let (served, longest) = (load.ios() - before, load.longest());
    let role = scene.fleet.role(Who::Source);
    scene.fleet.signal(Who::Target, Signal::SIGCONT);
    eprintln!("{served} I/Os in 1.5 s with the target stopped; the longest took {longest:?}");
    assert_eq!(role, Some(VolumeRole::Owner));
    assert!(served > 100, "the source serves on");
    assert!(longest < Duration::from_millis(1800), "{longest:?}");
    cutover.succeeds();
    scene.finish();
}

/// A cutover that was ordered while an increment was under way waited for it without a word, and for as
/// long as it took at the rate that spares the guest.
#[test]
fn a_cutover_says_that_it_waits_for_the_increment_under_way() {
    let scene = Scene::replicated();
    let link = scene.fleet.link();
    link.stall(Way::Forth);
    // Time for an increment to begin.
    std::thread::sleep(Duration::from_secs(1));
    let cutover = scene.cutover();
    scene.fleet.until("it says what it waits for", || {
        let said = cutover.said();
        said.contains("an increment that was under way is finished first")
            .then_some(())
    });
    assert_eq!(scene.fleet.role(Who::Source), Some(VolumeRole::Owner));
    link.heal();
    cutover.succeeds();
    scene.finish();
}

/// Longer than anybody waits for an answer in a cutover. Whoever comes back finds one owner.
fn stopped_past_every_patience(who: Who, at: Hold) {
    eprintln!("{who:?} is stopped in a cutover that is at {at:?}");
    let scene = Scene::replicated();
    scene.fleet.link().hold(at);
    let cutover = scene.cutover();
    scene.fleet.link().wait_held();
    scene.fleet.signal(who, Signal::SIGSTOP);
    scene.fleet.link().release();
    std::thread::sleep(Duration::from_secs(7));
    scene.fleet.signal(who, Signal::SIGCONT);
    cutover.succeeds();
    scene.finish();
}

#[test]
fn a_source_that_stops_while_nobody_owns_the_volume_finds_one_owner() {
    stopped_past_every_patience(Who::Source, Hold::Activate);
}

#[test]
fn a_target_that_stops_while_nobody_owns_the_volume_takes_it_after() {
    stopped_past_every_patience(Who::Target, Hold::Activate);
}

#[test]
fn a_former_owner_that_was_stopped_forwards_when_it_goes_on() {
    stopped_past_every_patience(Who::Source, Hold::Activated);
}

/// Clients that stop in the middle of a word: of the handshake, of an option, of a request, of a payload.
struct HalfSaid(Vec<UnixStream>);

/// A request to read the first sector.
fn read_request() -> Vec<u8> {
    let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
    request.extend([0; 4]); // no flags, a read
    request.extend(7_u64.to_be_bytes());
    request.extend(0_u64.to_be_bytes());
    request.extend(512_u32.to_be_bytes());
    request
}

impl HalfSaid {
    fn to(fleet: &Fleet) -> HalfSaid {
        let handshake = |said: usize| {
            let mut stream = UnixStream::connect(fleet.nbd_socket("a")).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut greeting = [0; 18];
            stream.read_exact(&mut greeting).unwrap();
            let mut words = 3_u32.to_be_bytes().to_vec();
            words.extend(b"IHAVEOPT");
            words.extend(7_u32.to_be_bytes()); // go
            words.extend(7_u32.to_be_bytes());
            words.extend(1_u32.to_be_bytes());
            words.extend(VOLUME.as_bytes());
            words.extend([0; 2]);
            stream.write_all(&words[..said.min(words.len())]).unwrap();
            stream
        };
        let request = |words: &[u8]| {
            let mut stream = handshake(usize::MAX);
            loop {
                let mut reply = [0; 20];
                stream.read_exact(&mut reply).unwrap();
                let word = |at: usize| u32::from_be_bytes(reply[at..at + 4].try_into().unwrap());
                let mut about = vec![0; word(16) as usize];
                stream.read_exact(&mut about).unwrap();
                if word(12) == 1 {
                    break;
                }
            }
            stream.write_all(words).unwrap();
            stream
        };
        let mut write = read_request();
        write[7] = 1;
        write[24..].copy_from_slice(&4096_u32.to_be_bytes());
        write.extend([0; 1000]);
        let mut all = vec![request(&read_request()[..14])];
        all.extend((0..8).map(|_| request(&write)));
        all.extend((0..8).flat_map(|_| [handshake(2), handshake(20)]));
        HalfSaid(all)
    }

    /// The first of them says the rest, and is answered.
    fn finish(mut self) {
        let stream = &mut self.0[0];
        stream.write_all(&read_request()[14..]).unwrap();
        let mut answer = [0; 16 + 512];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..4], 0x6744_6698_u32.to_be_bytes());
        assert_eq!(answer[4..8], [0; 4], "no error");
    }
}

/// A request of which only a part has come is none yet: it holds up no other client, no epoch and no
/// freeze, whatever the volume is going through.
#[test]
fn clients_that_stop_in_the_middle_of_a_word_hold_nobody_up_in_any_phase() {
    let scene = Scene::seeding();
    let seeding = HalfSaid::to(&scene.fleet);
    scene.seeded(SIZE / 2);
    scene.committed();
    let increments = HalfSaid::to(&scene.fleet);
    scene.committed();
    scene.cutover().succeeds();
    let after = HalfSaid::to(&scene.fleet);
    [seeding, increments, after]
        .into_iter()
        .for_each(HalfSaid::finish);
    let longest = scene.load.as_ref().unwrap().longest();
    assert!(
        longest < Duration::from_secs(5),
        "a request took {longest:?}"
    );
    scene.finish();
}
