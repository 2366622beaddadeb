//! Random runs of a whole volume on a disk that loses, reorders and tears whatever was not synced.
//!
//! Checked all along: a flushed sector is never older than its flush, overlapping writes are issued
//! in order, every request is answered once, a replica is exactly the source's point in time at every
//! commit, and after every crash whatever differs from a replica is known to be suspect.
//!
//! `FORERUN_SEED=n cargo test -p forerun-volume --test crash` runs one seed; `FORERUN_SEEDS=n` so
//! many.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)] // a test program

mod world;

use world::World;

fn run(seed: u64, totals: &mut [u64; 5]) {
    let mut w = World::new(seed);
    for _ in 0..1 + w.rng.below(12) {
        for _ in 0..w.rng.below(700) {
            w.step();
            if w.vol.is_poisoned() {
                break;
            }
        }
        if !w.vol.is_poisoned() && w.rng.one_in(3) {
            w.settle_down();
        }
        let power = w.rng.one_in(3) || w.vol.is_poisoned();
        w.crash(power);
        if !power && w.rng.one_in(2) {
            w.crash(true);
        }
    }
    let movers = |f: fn(&world::mover::Mover) -> u64| w.movers.iter().map(f).sum::<u64>();
    totals[0] += w.replies;
    totals[1] += w.crashes;
    totals[2] += movers(|m| m.commits);
    totals[3] += movers(|m| m.mirrored);
    totals[4] += movers(|m| m.saved);
}

#[test]
fn nothing_flushed_is_lost_and_nothing_differs_unknown() {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    let seeds = match number("FORERUN_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FORERUN_SEEDS").unwrap_or(150),
    };
    let all = seeds.end - seeds.start;
    let mut totals = [0; 5];
    for seed in seeds {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut t = [0; 5];
            run(seed, &mut t);
            t
        }));
        match result {
            Ok(t) => totals.iter_mut().zip(t).for_each(|(sum, n)| *sum += n),
            Err(panic) => {
                eprintln!("replay with FORERUN_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    let [replies, crashes, commits, mirrored, saved] = totals;
    println!(
        "{replies} replies, {crashes} crashes, {commits} commits, {mirrored} mirrored, {saved} saved"
    );
    if all >= 100 {
        // A run that never gets anywhere proves nothing.
        assert!(commits > 50 && mirrored > 0 && saved > 0 && crashes > 100);
    }
}
