//! Seeding and increments between two nodes: byte identity to the source's points in time, whatever
//! the guest writes meanwhile, and no more sent than must be.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod world;

use block::{Clock, ErrorKind, Generation};
use futures_util::future::join;
use replica::{Order, Source, State};
use std::cell::Cell;
use std::ops::Range;
use std::time::Duration;
use world::disk::{MemDisk, forever};
use world::link::Fault;
use world::node::{
    CLEAN, MIB, Node, assert_consistent, assert_same, catch_up, caught_up, connection, fill,
    sender, sender_with,
};
use world::volume::MemVolume;
use world::{Dice, Hand, pause, run};

fn volume(size: u64, dice: &Dice) -> MemVolume {
    let volume = MemVolume::new(MemDisk::new(size, dice, &forever()));
    fill(&volume, dice);
    volume
}

/// A volume and the node of its replica, for each seed.
fn each(seeds: Range<u64>, size: u64, mut test: impl AsyncFnMut(&Dice, &MemVolume, &Node)) {
    for seed in seeds {
        eprintln!("seed {seed}");
        let dice = Dice::new(seed);
        let volume = volume(size, &dice);
        run(async {
            let node = Node::new(size, &dice);
            test(&dice, &volume, &node).await;
        });
    }
}

#[test]
fn seeds_then_follows_a_guest_that_never_stops() {
    let mut saves = 0;
    // The last block is partial.
    each(0..6, 8 * MIB + 1536, async |dice, volume, node| {
        let receiver = node.open().await.unwrap();
        let sender = sender(volume);
        let stop = Cell::new(false);
        let guest = volume.guest(dice.clone(), &stop, 4);
        let work = async {
            let end = connection(dice, &sender, &receiver, CLEAN, async |session| {
                let (seeding, first) = session.catch_up().await?;
                assert!(seeding.is_some());
                assert_consistent(node, &receiver, volume);
                for _ in 0..5 {
                    sender.clock.sleep(Duration::from_millis(10)).await;
                    pause(500).await;
                    let done = session.increment().await?;
                    assert!(done.epoch > first.epoch);
                    assert_consistent(node, &receiver, volume);
                }
                Ok(())
            })
            .await;
            stop.set(true);
            end
        };
        let ((result, end, _), ()) = join(work, guest).await;
        result.unwrap();
        assert_eq!(end.kind(), ErrorKind::Disconnected, "{end}");
        saves += volume.s.saves.get();
    });
    assert!(saves > 0, "nothing was ever copied before a write");
}

/// The links of these tests break at every step of `every` bytes of one direction; each time the
/// source connects again and goes on.
fn broken_again_and_again(fault: fn(u64) -> Fault, order: &[u32]) {
    let dice = Dice::new(11);
    let size = 24 * MIB;
    let volume = volume(size, &dice);
    run(async {
        let node = Node::new(size, &dice);
        let sender = sender(&volume).in_order(Order::of_runs(size, MIB, order));
        let receiver = node.open().await.unwrap();
        let data = volume.image.content().iter().filter(|b| **b != 0).count() as u64;
        let mut sent = 0;
        let mut connections = 0;
        loop {
            connections += 1;
            assert!(connections < 40, "no progress");
            let faults = (fault(3 * MIB), Fault::None);
            let (result, end, bytes) =
                connection(&dice, &sender, &receiver, faults, catch_up).await;
            sent += bytes;
            if result.is_ok() {
                break;
            }
            assert_ne!(end.kind(), ErrorKind::Broken, "{end}");
            volume.write(dice.roll(size / 4096) * 4096, &[connections as u8; 4096]);
        }
        assert!(connections > 1, "nothing broke");
        assert_consistent(&node, &receiver, &volume);
        // What was under way beyond the last watermark is sent again, and no more.
        assert!(sent < data + connections * 5 * MIB, "{sent} of {data}");
    });
}

#[test]
fn a_seeding_resumes_where_it_stopped_after_cuts() {
    broken_again_and_again(Fault::Cut, &[]);
}

#[test]
fn a_seeding_resumes_where_it_stopped_after_corruption() {
    broken_again_and_again(Fault::Flip, &[]);
}

/// Coldest first: the copy is whole whatever the order, and what has arrived is compared, not sent.
#[test]
fn a_seeding_in_an_order_of_its_own_is_whole_after_cuts() {
    broken_again_and_again(Fault::Cut, &[9, 4, 20, 9, 3, 2, 0, 1]);
    broken_again_and_again(Fault::Flip, &[5, 1]);
}

/// Break the link at many places of an increment, forth or back. The copy is the former or the new
/// epoch and nothing between, and the next connection sends no more than what was dirty.
#[test]
fn an_increment_that_breaks_anywhere_leaves_a_point_in_time() {
    let dice = Dice::new(5);
    let size = 16 * MIB;
    let volume = volume(size, &dice);
    run(async {
        let node = Node::new(size, &dice);
        let receiver = node.open().await.unwrap();
        let sender = sender(&volume);
        caught_up(&dice, &sender, &receiver).await;
        for round in 0..120u64 {
            for _ in 0..10 {
                let noise: Vec<u8> = (0..8192).map(|_| dice.roll(256) as u8).collect();
                volume.write(dice.roll(size / 4096 - 2) * 4096, &noise);
            }
            let faults = match round % 4 {
                0 => (Fault::Cut(round * 700), Fault::None),
                1 => (Fault::None, Fault::Cut(round)),
                2 => (Fault::Flip(round * 700), Fault::None),
                _ => (Fault::None, Fault::Flip(round)),
            };
            let broken = connection(&dice, &sender, &receiver, faults, catch_up).await;
            assert_consistent(&node, &receiver, &volume);
            if round % 8 == 7 {
                let (_, _, sent) = caught_up(&dice, &sender, &receiver).await;
                assert_consistent(&node, &receiver, &volume);
                assert!(sent < MIB, "round {round} sent {sent} after {:?}", broken.1);
            }
        }
    });
}

/// The receiver's power fails at each write and sync of an increment in turn.
#[test]
fn a_receiver_that_loses_power_anywhere_recovers_a_point_in_time() {
    each(0..4, 2 * MIB, async |dice, volume, node| {
        let sender = sender(volume);
        let receiver = node.open().await.unwrap();
        caught_up(dice, &sender, &receiver).await;
        for steps in 0..40 {
            for i in 0..6 {
                volume.write(dice.roll(500) * 4096, &[steps as u8 + i; 6 * 512]);
            }
            let receiver = node.open().await.unwrap();
            node.power.set(steps);
            let _ = connection(dice, &sender, &receiver, CLEAN, catch_up).await;
            node.power_cut();
            // Power may also fail while it recovers.
            node.power.set(dice.roll(6));
            let _ = node.open().await;
            node.power_cut();
            let receiver = node.open().await.unwrap();
            assert_consistent(node, &receiver, volume);
            let (_, _, sent) = caught_up(dice, &sender, &receiver).await;
            assert_consistent(node, &receiver, volume);
            assert!(sent < MIB / 4, "{sent} bytes after a crash at step {steps}");
        }
    });
}

/// A receiver was killed between writing that an epoch was committed and the end of that write's sync. Its next
/// life found the record and put the epoch onto the image, and then the power failed: the record was gone
/// again, a part of the epoch was not, and the copy said that it was the epoch before. A soak found it.
#[test]
fn a_record_that_was_not_durable_when_the_receiver_was_killed_is_before_it_is_acted_upon() {
    each(2000..2012, 2 * MIB, async |dice, volume, node| {
        let sender = sender(volume);
        let receiver = node.open().await.unwrap();
        caught_up(dice, &sender, &receiver).await;
        // An epoch of six blocks takes some sixteen writes and syncs.
        for steps in 0..24 {
            for i in 0..6 {
                volume.write(dice.roll(500) * 4096, &[steps as u8 + i; 6 * 512]);
            }
            let receiver = node.open().await.unwrap();
            node.power.set(steps);
            let _ = connection(dice, &sender, &receiver, CLEAN, catch_up).await;
            // What was written is there, be it durable or not; and so it goes on.
            node.power.set(1 + dice.roll(12));
            let _ = node.open().await;
            node.power_cut();
            let receiver = node.open().await.unwrap();
            assert_consistent(node, &receiver, volume);
        }
    });
}

/// A link is cut while the disk works on what came by it, and the source is back at once with newer content of
/// the same blocks. Nothing of the dead connection may land over that: it is waited for first.
#[test]
fn what_a_dead_connection_wrote_lands_before_the_next_is_served() {
    let mut cuts = 0;
    let size = 4 * MIB;
    each(3000..3008, size, async |dice, volume, node| {
        node.image.slow_write(20_000);
        let receiver = node.open().await.unwrap();
        let sender = sender(volume);
        for cut in 1..4 {
            let faults = (Fault::Cut(cut * 300_000), Fault::None);
            let (result, ..) = connection(dice, &sender, &receiver, faults, catch_up).await;
            cuts += u64::from(result.is_err());
            let noise: Vec<u8> = (0..size).map(|_| dice.roll(256) as u8).collect();
            volume.write(0, &noise);
        }
        node.image.slow_write(0);
        caught_up(dice, &sender, &receiver).await;
        pause(40_000).await;
        assert_consistent(node, &receiver, volume);
    });
    assert!(cuts > 8, "hardly a connection was cut: {cuts}");
}

/// A watermark stopped the stream until its sync was over: on a disk with slow syncs a seeding stood
/// still after every 64 MiB.
#[test]
fn content_goes_on_arriving_while_a_watermark_is_made_durable() {
    let dice = Dice::new(31);
    let size = 16 * MIB;
    let volume = volume(size, &dice);
    run(async {
        let node = Node::new(size, &dice);
        node.image.slow_sync(500);
        let sender = sender(&volume);
        let receiver = node.open().await.unwrap();
        caught_up(&dice, &sender, &receiver).await;
        assert_consistent(&node, &receiver, &volume);
        assert!(node.image.written_while_syncing() > 2 * MIB);
    });
}

/// What is below a durable watermark is never sent again, so all of it must have survived, wherever the
/// power failed: also what was on its way to the disk when the watermark came, and whatever else was
/// written while its sync ran.
#[test]
fn all_below_a_watermark_survives_power_loss() {
    let mut marked = 0;
    let mut steps = (4..).step_by(3);
    each(1000..1024, 8 * MIB, async |dice, volume, node| {
        node.image.slow_sync(dice.roll(40));
        let sender = sender(volume);
        let receiver = node.open().await.unwrap();
        node.power.set(steps.next().unwrap());
        let _ = connection(dice, &sender, &receiver, CLEAN, async |s| s.seed().await).await;
        node.power_cut();
        let receiver = node.open().await.unwrap();
        let State::Seeding { watermark, .. } = receiver.record().state else {
            return;
        };
        marked += u64::from(watermark > 0);
        let below = watermark as usize;
        let (copy, source) = (node.image.content(), volume.image.content());
        assert_same("below the watermark", &copy[..below], &source[..below]);
    });
    assert!(marked > 5, "hardly a watermark was durable: {marked}");
}

#[test]
fn a_seeding_survives_power_loss_at_the_receiver() {
    let dice = Dice::new(21);
    let size = 8 * MIB;
    let volume = volume(size, &dice);
    run(async {
        let node = Node::new(size, &dice);
        let sender = sender(&volume);
        let mut last = 0;
        for steps in [3, 9, 20, 35, 60, u64::MAX] {
            let receiver = node.open().await.unwrap();
            if let State::Seeding { watermark, .. } = receiver.record().state {
                assert!(watermark >= last, "a durable watermark went back");
                last = watermark;
            }
            node.power.set(steps);
            let (result, ..) = connection(&dice, &sender, &receiver, CLEAN, catch_up).await;
            if steps == u64::MAX {
                result.unwrap();
                assert_consistent(&node, &receiver, &volume);
                return;
            }
            node.power_cut();
        }
    });
}

/// The source crashes with epochs on their way: what its intents cover is compared, not sent.
#[test]
fn a_source_that_crashed_compares_and_sends_only_what_differs() {
    let dice = Dice::new(31);
    let size = 24 * MIB;
    let volume = volume(size, &dice);
    run(async {
        let node = Node::new(size, &dice);
        let receiver = node.open().await.unwrap();
        let first = sender(&volume);
        caught_up(&dice, &first, &receiver).await;
        for i in 0..20 {
            let noise: Vec<u8> = (0..4096).map(|_| dice.roll(256) as u8).collect();
            volume.write(i * 70 * 4096, &noise);
        }
        let broken = (Fault::Cut(30_000), Fault::None);
        assert!(
            connection(&dice, &first, &receiver, broken, catch_up)
                .await
                .0
                .is_err()
        );
        volume.crash();
        let again = sender(&volume);
        let (seeding, increment, sent) = caught_up(&dice, &again, &receiver).await;
        assert!(seeding.is_none(), "a crash must not seed again");
        assert!(increment.dirty >= 8 * MIB, "whole areas are suspect");
        assert!(sent < 20 * 4096 + 100_000, "{sent} bytes were sent");
        assert_consistent(&node, &receiver, &volume);
    });
}

/// The receiver has an old copy of unknown origin: only what differs travels, holes become holes.
#[test]
fn an_old_copy_is_compared_and_only_its_differences_sent() {
    let dice = Dice::new(41);
    let size = 16 * MIB;
    let volume = volume(size, &dice);
    run(async {
        let node = Node::new(size, &dice);
        let old = volume.image.content();
        node.image.poke(0, &old);
        node.image.poke(5 * MIB, &[0xee; 100_000]);
        node.image.poke(size - 4096, &[0xdd; 4096]);
        let receiver = node.open().await.unwrap();
        let sender = sender(&volume);
        let (_, _, sent) = caught_up(&dice, &sender, &receiver).await;
        assert_consistent(&node, &receiver, &volume);
        assert!(sent < 400_000, "{sent} bytes for 100 KiB of differences");
    });
}

/// The acknowledgement of an epoch is lost: the source learns of it from the next hello and does not
/// send the epoch again.
#[test]
fn a_lost_acknowledgement_costs_nothing() {
    let dice = Dice::new(51);
    let size = 4 * MIB;
    let volume = volume(size, &dice);
    run(async {
        let node = Node::new(size, &dice);
        let receiver = node.open().await.unwrap();
        let sender = sender(&volume);
        caught_up(&dice, &sender, &receiver).await;
        let noise: Vec<u8> = (0..MIB).map(|_| dice.roll(256) as u8).collect();
        volume.write(MIB, &noise);
        // The hello comes back whole, the acknowledgement does not.
        let before = volume.cursor().unwrap();
        let faults = (Fault::None, Fault::Cut(80));
        assert!(
            connection(&dice, &sender, &receiver, faults, catch_up)
                .await
                .0
                .is_err()
        );
        assert!(receiver.record().epoch > before, "the epoch had arrived");
        assert_eq!(volume.cursor(), Some(before));
        let (_, _, sent) = caught_up(&dice, &sender, &receiver).await;
        assert!(sent < 10_000, "{sent} bytes were sent again");
        assert_consistent(&node, &receiver, &volume);
    });
}

/// A former owner comes back: refused before anything of it is taken, also after a restart.
#[test]
fn a_lower_generation_is_refused() {
    let dice = Dice::new(61);
    let size = MIB;
    let volume = volume(size, &dice);
    run(async {
        let node = Node::new(size, &dice);
        let sender = sender(&volume);
        volume.s.generation.set(Generation(5));
        let receiver = node.open().await.unwrap();
        caught_up(&dice, &sender, &receiver).await;
        let before = node.image.content();
        volume.s.generation.set(Generation(4));
        volume.write(0, &[9; 4096]);
        let receiver = node.open().await.unwrap();
        let (result, end, _) = connection(&dice, &sender, &receiver, CLEAN, catch_up).await;
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Fenced);
        assert_eq!(end.kind(), ErrorKind::Fenced);
        assert_same("the copy", &before, &node.image.content());
    });
}

/// The guest overruns an epoch's copy-before-write: the epoch is given up and a later one sent.
#[test]
fn an_overrun_epoch_is_given_up_and_the_next_one_taken() {
    let dice = Dice::new(71);
    let size = 8 * MIB;
    let volume = volume(size, &dice);
    run(async {
        let node = Node::new(size, &dice);
        let receiver = node.open().await.unwrap();
        let sender = sender(&volume);
        let stop = Cell::new(false);
        let guest = volume.guest(dice.clone(), &stop, 3);
        let work = async {
            let end = connection(&dice, &sender, &receiver, CLEAN, async |session| {
                session.catch_up().await?;
                volume.s.overruns.set(2);
                let before = volume.epoch();
                let mut increments = 0;
                while volume.s.overruns.get() > 0 {
                    pause(2000).await;
                    session.increment().await?;
                    increments += 1;
                    assert_consistent(&node, &receiver, &volume);
                }
                assert!(
                    volume.epoch().0 > before.0 + increments,
                    "none was given up"
                );
                Ok(())
            })
            .await;
            stop.set(true);
            end
        };
        let ((result, ..), ()) = join(work, guest).await;
        result.unwrap();
    });
}

/// A snapshot was overrun between the end of its epoch and the receiver's answer. The volume knew
/// nothing of it any more and refused the commit; the sender kept it, and every later connection began
/// with the same refusal: the replica was never updated again.
#[test]
fn an_epoch_that_is_overrun_after_it_was_sent_is_sent_again() {
    let dice = Dice::new(81);
    let size = 4 * MIB;
    let volume = volume(size, &dice);
    run(async {
        let node = Node::new(size, &dice);
        let receiver = node.open().await.unwrap();
        let sender = sender(&volume);
        caught_up(&dice, &sender, &receiver).await;
        for lost in [false, true] {
            volume.write(MIB, &[7; 8192]);
            volume.s.forgotten.set(true);
            // The answer arrives at once, or only the next hello tells of it.
            let faults = if lost {
                (Fault::None, Fault::Cut(80))
            } else {
                CLEAN
            };
            let before = receiver.record().epoch;
            let _ = connection(&dice, &sender, &receiver, faults, catch_up).await;
            caught_up(&dice, &sender, &receiver).await;
            assert!(receiver.record().epoch > before && !volume.s.forgotten.get());
            assert_consistent(&node, &receiver, &volume);
        }
    });
}

/// An epoch was being applied when the node died, and the page of the record that said so rotted. The
/// older page said that the copy was consistent; it was neither the one epoch nor the other.
#[test]
fn a_rotten_record_is_not_taken_for_the_older_one() {
    let dice = Dice::new(91);
    let size = 4 * MIB;
    let volume = volume(size, &dice);
    run(async {
        let node = Node::new(size, &dice);
        let sender = sender(&volume);
        for slot in [0, 4096] {
            let receiver = node.open().await.unwrap();
            volume.write(MIB, &[3; 4096]);
            caught_up(&dice, &sender, &receiver).await;
            let byte = node.replica.peek(slot + 20, 1)[0];
            node.replica.poke(slot + 20, &[byte ^ 1]);
            let receiver = node.open().await.unwrap();
            assert_eq!(receiver.record().state, State::Empty);
            let (_, _, sent) = caught_up(&dice, &sender, &receiver).await;
            assert!(sent < MIB / 4, "{sent} bytes: it is compared, not copied");
            assert_consistent(&node, &receiver, &volume);
        }
    });
}

/// A firewall forgot the connection: what was sent went nowhere, and no reset came back. The sender
/// waited for the answer for ever, took no order meanwhile, and the replica stayed where it was.
#[test]
fn a_receiver_that_is_silent_is_given_up_and_dialled_anew() {
    let dice = Dice::new(71);
    let size = 4 * MIB;
    for (at, back) in [
        (0, false),
        (60, true),
        (3000, false),
        (150, true),
        (200_000, false),
    ] {
        let volume = volume(size, &dice);
        run(async {
            let node = Node::new(size, &dice);
            let receiver = node.open().await.unwrap();
            let sender = sender_with(&volume, Hand::hasty());
            let silent = Fault::Silent(at);
            let faults = if back {
                (Fault::None, silent)
            } else {
                (silent, Fault::None)
            };
            let (result, _, _) = connection(&dice, &sender, &receiver, faults, catch_up).await;
            assert_eq!(
                result.unwrap_err().kind(),
                ErrorKind::Timeout,
                "silent after {at}"
            );
            caught_up(&dice, &sender, &receiver).await;
            assert_consistent(&node, &receiver, &volume);
        });
    }
}
