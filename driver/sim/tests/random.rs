//! Random runs of a whole cluster: seeding, increments, cutovers, crashes, broken disks and networks.
//!
//! `FORERUN_SEED=n cargo nextest run -p forerun-sim --test random` runs one seed; with
//! `FORERUN_FAULTS=kill,power` and `FORERUN_MILLIS=n` as the message of a failure says.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use sim::hunt;
use sim::swarm::{Swarm, Tally};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A run has failed: the other parts need not go on.
static FAILED: AtomicBool = AtomicBool::new(false);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|s| s.parse().unwrap())
}

fn chosen(seed: u64) -> Swarm {
    let mut swarm = Swarm::of(seed);
    if let Ok(faults) = std::env::var("FORERUN_FAULTS") {
        let names = faults.split(',').filter(|s| !s.is_empty());
        swarm.faults = names.map(|s| s.parse().unwrap()).collect();
    }
    swarm.millis = number("FORERUN_MILLIS").unwrap_or(swarm.millis);
    swarm
}

/// Several tests, so that they run on several processors.
fn run(part: u64, parts: u64, seeds: u64) {
    let began = Instant::now();
    let mut sum = Tally::default();
    let (first, seeds) = match number("FORERUN_SEED") {
        Some(_) if part > 0 => return,
        Some(seed) => (seed, 1),
        None => (0, seeds),
    };
    for seed in (first..first + seeds).filter(|s| seeds == 1 || s % parts == part) {
        if FAILED.load(Ordering::Relaxed) {
            return;
        }
        let swarm = chosen(seed);
        match hunt::run(&swarm) {
            Ok(t) => sum.add(&t),
            Err(why) => {
                FAILED.store(true, Ordering::Relaxed);
                match number("FORERUN_SHRINK") {
                    Some(0) => panic!("seed {seed}: {why}"),
                    _ => panic!("{}", hunt::report(&swarm, &why)),
                }
            }
        }
    }
    eprintln!("{sum:?} in {:?}", began.elapsed());
    if seeds > 1 {
        // Runs that get nowhere prove nothing.
        assert!(sum.answers > 10_000 && sum.commits > 500, "{sum:?}");
        assert!(sum.crashes > 100 && sum.handovers > 10, "{sum:?}");
    }
}

const SEEDS: u64 = 500;

#[test]
fn random_runs_0() {
    run(0, 4, SEEDS);
}

#[test]
fn random_runs_1() {
    run(1, 4, SEEDS);
}

#[test]
fn random_runs_2() {
    run(2, 4, SEEDS);
}

#[test]
fn random_runs_3() {
    run(3, 4, SEEDS);
}

#[test]
fn a_seed_is_one_run() {
    for seed in [3, 17] {
        assert_eq!(Swarm::of(seed).run(), Swarm::of(seed).run());
    }
}
