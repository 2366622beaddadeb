//! Runs a scenario of several threads in very many interleavings. Tests only; the ring's tests include
//! this file too.
//!
//! With the feature `shuttle` (`scripts/races`) the threads take turns as a scheduler draws them: at
//! random, and by PCT, which makes few preemptions and so finds what needs them in awkward places. The
//! seed is printed, and the same seed draws the same schedules: `FORERUN_SEED=n`, `FORERUN_SCHEDULES=n`.
//! Every access is sequentially consistent there.
//!
//! Without it the threads are real: a few runs in every test run, and under Miri (`scripts/miri`), which
//! knows weaker memory than any processor at hand.

/// Run `scenario` again and again. It must not keep anything from one run to the next.
#[cfg(feature = "shuttle")]
pub(crate) fn explore(scenario: fn()) {
    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    let seed = number("FORERUN_SEED").unwrap_or(1);
    let runs = number("FORERUN_SCHEDULES").unwrap_or(5000) as usize;
    println!("{runs} random and {runs} PCT schedules, FORERUN_SEED={seed}");
    let mut config = shuttle::Config::new();
    // A page of the model's atomics is made on the stack.
    config.stack_size = 1 << 20;
    let random = RandomScheduler::new_from_seed(seed, runs);
    shuttle::Runner::new(random, config.clone()).run(scenario);
    let pct = PctScheduler::new_from_seed(seed, 3, runs);
    shuttle::Runner::new(pct, config).run(scenario);
}

/// The same on real threads.
#[cfg(not(feature = "shuttle"))]
pub(crate) fn explore(scenario: fn()) {
    for _ in 0..if cfg!(miri) { 3 } else { 300 } {
        scenario();
    }
}
