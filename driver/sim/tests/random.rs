//! Random runs of a whole cluster: seeding, increments, cutovers, crashes, broken disks and networks.
//!
//! `FORERUN_SEED=n cargo nextest run -p forerun-sim --test random` runs one seed; with
//! `FORERUN_FAULTS=kill,power` and `FORERUN_MILLIS=n` as the message of a failure says.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use sim::swarm::{Swarm, Tally};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

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

/// What went wrong, if something did.
fn fails(swarm: &Swarm) -> Result<Tally, String> {
    catch_unwind(AssertUnwindSafe(|| swarm.run())).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_default()
    })
}

/// The smallest run that still fails, and how.
fn shrink(swarm: &Swarm, why: String) -> (Swarm, String) {
    let (mut best, mut why) = (swarm.clone(), why);
    loop {
        let fewer = best.faults.iter().map(|f| {
            let mut s = best.clone();
            s.faults.remove(f);
            s
        });
        let shorter = Swarm {
            millis: best.millis * 2 / 3,
            ..best.clone()
        };
        let candidates: Vec<Swarm> = fewer.chain((best.millis > 5).then_some(shorter)).collect();
        let found = candidates
            .into_iter()
            .find_map(|s| fails(&s).err().map(|w| (s, w)));
        match found {
            Some(smaller) => (best, why) = smaller,
            None => return (best, why),
        }
    }
}

fn report(swarm: &Swarm, why: String) -> ! {
    std::panic::set_hook(Box::new(|_| {}));
    let (small, why_small) = match number("FORERUN_SHRINK") {
        Some(0) => (swarm.clone(), String::new()),
        _ => shrink(swarm, why.clone()),
    };
    let _ = std::panic::take_hook();
    let faults: Vec<String> = small.faults.iter().map(ToString::to_string).collect();
    panic!(
        "seed {}: {why}\nshrunk: {why_small}\nreplay: FORERUN_SEED={} FORERUN_FAULTS={} \
         FORERUN_MILLIS={} cargo nextest run -p forerun-sim --test random",
        swarm.seed,
        small.seed,
        faults.join(","),
        small.millis
    );
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
        let swarm = chosen(seed);
        match fails(&swarm) {
            Ok(t) => {
                sum.answers += t.answers;
                sum.crashes += t.crashes;
                sum.commits += t.commits;
                sum.handovers += t.handovers;
                sum.mirrored += t.mirrored;
            }
            Err(why) => report(&swarm, why),
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
