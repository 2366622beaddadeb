//! How long a piece of work takes, by the clock: no threads, no I/O, no statistics beyond a median.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// A round is long enough that reading the clock does not show.
const ROUND: Duration = Duration::from_millis(100);
/// Rounds of which the median is shown, with the fastest and the slowest.
const ROUNDS: usize = 9;

/// Print what one of the `operations` costs that a call of `work` does.
pub fn measure<T>(what: &str, operations: u32, mut work: impl FnMut() -> T) {
    let mut calls = 1;
    while timed(calls, &mut work) < ROUND {
        calls *= 2;
    }
    let mut rounds = [0.0; ROUNDS];
    for round in &mut rounds {
        let took = timed(calls, &mut work);
        *round = took.as_nanos() as f64 / (f64::from(calls) * f64::from(operations));
    }
    rounds.sort_by(f64::total_cmp);
    let (least, median, most) = (rounds[0], rounds[ROUNDS / 2], rounds[ROUNDS - 1]);
    println!("{what:<44} {median:8.1} ns  ({least:.1} to {most:.1})");
}

fn timed<T>(calls: u32, work: &mut impl FnMut() -> T) -> Duration {
    let began = Instant::now();
    for _ in 0..calls {
        black_box(work());
    }
    began.elapsed()
}
