//! Random runs of a whole cluster: seeding, increments, cutovers, crashes, broken disks and networks.
//!
//! `FORERUN_SEED=n cargo nextest run -p forerun-sim --test random` runs one seed; with
//! `FORERUN_FAULTS=kill,power` and `FORERUN_MILLIS=n` as the message of a failure says.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use sim::hits::Hit;
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

/// Threads, each with worlds of its own.
const PARTS: u64 = 4;
const SEEDS: u64 = 500;

/// What must have happened in all runs together, at least this often: some quarter of what does, so
/// that a change of the code may shift it. A fault that never strikes proves nothing.
const AT_LEAST: &[(Hit, u64)] = &[
    (Hit::Kill, 150),
    (Hit::PowerCut, 200),
    (Hit::Lost, 60),
    (Hit::Torn, 40),
    (Hit::Reordered, 25),
    (Hit::HalfDone, 50),
    (Hit::ReadError, 20),
    (Hit::WriteError, 50),
    (Hit::SyncError, 10),
    (Hit::SyncDropped, 50),
    (Hit::NoSpace, 25),
    (Hit::Misdirected, 10),
    (Hit::MetaRot, 30),
    (Hit::RecordRot, 30),
    (Hit::StagingRot, 30),
    (Hit::Cut, 200),
    (Hit::Flip, 90),
    (Hit::Twice, 100),
    (Hit::Swap, 30),
    (Hit::OneWay, 50),
    (Hit::Slow, 8),
    (Hit::SlowDisk, 70),
    (Hit::Stop, 60),
    (Hit::Jump, 60),
    (Hit::Leap, 400),
    (Hit::Cleared, 30),
    (Hit::Suspect, 150),
    (Hit::Saved, 3000),
    (Hit::Redone, 5),
    (Hit::Restarted, 4),
    (Hit::Aborted, 10),
    (Hit::RolledForward, 30),
    (Hit::Mirroring, 7),
    (Hit::Mirrored, 5),
    (Hit::TakenOver, 65),
    (Hit::TailLost, 60),
    (Hit::TakingDied, 3),
    (Hit::CameBack, 30),
    (Hit::CutOff, 30),
    (Hit::Unaware, 5000),
    (Hit::Deposed, 9),
    (Hit::Fenced, 3),
];

fn part(seeds: impl Iterator<Item = u64>) -> Tally {
    let mut sum = Tally::default();
    for seed in seeds {
        if FAILED.load(Ordering::Relaxed) {
            break;
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
    sum
}

#[test]
fn random_runs() {
    let began = Instant::now();
    let (first, seeds) = number("FORERUN_SEED").map_or((0, SEEDS), |seed| (seed, 1));
    let mut sum = Tally::default();
    std::thread::scope(|threads| {
        let of = |p| (first..first + seeds).filter(move |s| s % PARTS == p);
        let parts: Vec<_> = (0..PARTS)
            .map(|p| threads.spawn(move || part(of(p))))
            .collect();
        for part in parts {
            match part.join() {
                Ok(tally) => sum.add(&tally),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    eprintln!("{} in {:?}", sum.hits, began.elapsed());
    if seeds > 1 {
        // Runs that get nowhere prove nothing.
        assert!(sum.answers > 40_000 && sum.commits > 2000, "{sum:?}");
        assert!(sum.crashes > 400 && sum.handovers > 40, "{sum:?}");
        for (hit, least) in AT_LEAST {
            assert!(sum.hits[*hit] >= *least, "{}", sum.hits);
        }
    }
}

#[test]
fn a_seed_is_one_run() {
    for seed in [3, 17] {
        assert_eq!(Swarm::of(seed).run(), Swarm::of(seed).run());
    }
}
