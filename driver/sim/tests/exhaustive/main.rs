//! Every short history of a volume, its replica and its hand-over, with a power cut at every point
//! of it and everything that the power cut may leave.
//!
//! ```text
//!   histories   up to 4 of: write, overwrite, discard, flush, rotate, copy, acknowledge, clear,
//!               cutover step, crash; on 4 regions (named in the order of their first use)
//!   starts      a volume without a replica, and one with a replica that has everything
//!   pace        each operation to its end, or overlapping: 0, 1 or 2 disk operations between two
//!   images      after every disk operation of the last one: every subset of the sectors that are
//!               written and not synced (more than 10 are taken in 10 groups)
//! ```
//!
//! The receiving side has histories of its own, one operation longer (see `replica.rs`): write, overwrite,
//! discard, copy, acknowledge, cutover step, cut, crash; from nothing, from a copy that has everything and
//! from the image of a former owner.
//!
//! At each image the checks, by name: *flushed data reads back*, *never older than its flush*, *no
//! false clean*, *one owner*, *an epoch is one point in time*, *recovery* (it ends, is idempotent and
//! survives a power cut at each of its own steps); at each commit, *point in time*.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod disk;
mod replica;
mod store;
mod world;

use world::{Op, Start, World};

/// Operations of a history, at most.
const LENGTH: usize = 4;
/// Disk operations between two operations that overlap; `None`: as many as there are.
const PACES: [Option<usize>; 4] = [None, Some(0), Some(1), Some(2)];

#[derive(Default)]
struct Counts {
    histories: u64,
    images: u64,
    recoveries: u64,
}

struct Search {
    start: Start,
    pace: Option<usize>,
    counts: Counts,
}

impl Search {
    fn explore(&mut self, history: &mut Vec<Op>) {
        let mut world = World::replay(self.start, self.pace, history);
        if history.len() == LENGTH {
            return;
        }
        for op in world.possible() {
            // What a power cut leaves is a choice of its own, and where everything overlaps it comes
            // last: there every step is looked at anyway.
            let choices = match op {
                Op::Crash(_) if self.pace.is_some() || history.len() + 1 == LENGTH => 0,
                Op::Crash(_) => world.images(),
                _ => 1,
            };
            for choice in 0..choices {
                history.push(match op {
                    Op::Crash(_) => Op::Crash(choice),
                    op => op,
                });
                self.check(history);
                self.explore(history);
                history.pop();
            }
        }
    }

    /// Look at every step of the last operation.
    fn check(&mut self, history: &[Op]) {
        let (last, before) = history.split_last().unwrap();
        let mut world = World::replay(self.start, self.pace, before);
        self.counts.histories += 1;
        world.begin(*last);
        loop {
            let (images, recoveries) = world.check_all(history);
            self.counts.images += images;
            self.counts.recoveries += recoveries;
            if !world.step() {
                return;
            }
        }
    }
}

/// Histories of writes, overwrites, discards and flushes alone, which are possible always: with how
/// many images, if none of them is a flush or a discard.
fn at_least(length: usize, used: u64, unsynced: u32) -> (u64, u64) {
    if length == 0 {
        return (0, 0);
    }
    let (mut histories, mut images) = (0, 0);
    let mut count = |times: u64, used: u64, unsynced: Option<u32>| {
        let (h, i) = at_least(length - 1, used, unsynced.unwrap_or(0));
        histories += times * (1 + h);
        images += times * unsynced.map_or(0, |n| (1 << n) + i);
    };
    if used < world::REGIONS {
        count(1, used + 1, Some(unsynced + 2));
    }
    count(used, used, Some(unsynced + 2));
    count(used, used, None);
    count(1, used, None);
    (histories, images)
}

fn search(start: Start) {
    let began = std::time::Instant::now();
    let mut sum = Counts::default();
    for pace in PACES {
        let mut search = Search {
            start,
            pace,
            counts: Counts::default(),
        };
        search.explore(&mut Vec::new());
        let n = search.counts;
        let (histories, images) = at_least(LENGTH, 0, 0);
        assert!(
            n.histories >= histories && n.images >= images,
            "{} histories of at least {histories}, {} images of at least {images}",
            n.histories,
            n.images
        );
        sum.histories += n.histories;
        sum.images += n.images;
        sum.recoveries += n.recoveries;
    }
    eprintln!(
        "{start:?}: {} histories, {} crash images, {} crashes inside recovery, in {:?}",
        sum.histories,
        sum.images,
        sum.recoveries,
        began.elapsed()
    );
    assert!(sum.recoveries > 1000, "recovery was hardly looked at");
}

/// Histories of the receiving side: how long, and how far an operation gets before the next.
const RECEIVER_LENGTH: usize = 5;
const RECEIVER_PACES: [Option<usize>; 3] = [None, Some(1), Some(2)];

fn explore_replica(
    (start, pace): (replica::Start, Option<usize>),
    history: &mut Vec<replica::Op>,
    counts: &mut Counts,
) {
    let world = replica::World::replay(start, pace, history);
    for op in world.possible() {
        let choices = match op {
            replica::Op::Crash(_) if history.len() + 1 == RECEIVER_LENGTH => 0,
            replica::Op::Crash(_) => world.images(),
            _ => 1,
        };
        for choice in 0..choices {
            let op = match op {
                replica::Op::Crash(_) => replica::Op::Crash(choice),
                op => op,
            };
            let mut world = replica::World::replay(start, pace, history);
            history.push(op);
            counts.histories += 1;
            world.begin(op);
            loop {
                let (images, recoveries) = world.check_all(history);
                counts.images += images;
                counts.recoveries += recoveries;
                if !world.step() {
                    break;
                }
            }
            if history.len() < RECEIVER_LENGTH {
                explore_replica((start, pace), history, counts);
            }
            history.pop();
        }
    }
}

#[test]
fn every_history_of_a_replica() {
    let began = std::time::Instant::now();
    let least = [(10_000, 70_000, 0), (50_000, 1_000_000, 200_000)];
    let least = [least[0], least[1], least[1]];
    for (start, least) in replica::Start::ALL.into_iter().zip(least) {
        let mut n = Counts::default();
        for pace in RECEIVER_PACES {
            explore_replica((start, pace), &mut Vec::new(), &mut n);
        }
        eprintln!(
            "replica, {start:?}: {} histories, {} crash images, {} crashes inside recovery, in {:?}",
            n.histories,
            n.images,
            n.recoveries,
            began.elapsed()
        );
        assert!(
            n.histories >= least.0 && n.images >= least.1 && n.recoveries >= least.2,
            "hardly anything was possible"
        );
    }
}

#[test]
fn every_history_of_a_volume_without_a_replica() {
    search(Start::Alone);
}

#[test]
fn every_history_of_a_volume_with_a_replica() {
    search(Start::Replicated);
}
