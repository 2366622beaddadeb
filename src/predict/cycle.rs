//! One cycle over many series: what the controller does every five minutes, and what is measured.
//!
//! ```text
//! (key, history, memory) ─► judge what is known ─► forecast ─► keep(key, forecast, memory)
//!                                   │
//!                          issue, every 23rd sample
//! ```
//!
//! Series are independent, so that threads share nothing but the iterator they take them from. What
//! comes out goes to `keep` at once and is not collected: 60,000 forecasts would be a gigabyte.
//!
//! A series without memory ought to be replayed first, which costs as much as a hundred forecasts. A
//! controller that meets a whole fleet on its first day cannot pay that in one cycle: at most
//! [`Limits::replays`] series are replayed, and the others are forecast by all experts alike until a
//! later cycle has time for them. So is a series of which its memory has missed more than a day.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::engine::{Forecast, ISSUE_EVERY, Memory};
use super::forecast::REPLAY_DAYS;
use super::scene::Scene;
use super::series::Series;

/// A series to forecast.
pub struct Task<K> {
    /// Whose it is.
    pub key: K,
    /// What happened.
    pub history: Series,
    /// What was kept of it by the last cycle; it is not believed if it was about another horizon.
    pub memory: Option<Memory>,
    /// Steps ahead.
    pub horizon: usize,
}

/// What a cycle found out about a series.
pub struct Foresight<K> {
    /// Whose it is.
    pub key: K,
    /// What was forecast from.
    pub history: Series,
    /// What comes.
    pub forecast: Forecast,
    /// What the next cycle needs.
    pub memory: Memory,
    /// Whether the memory is worth storing now. What it learns between two such moments it learns
    /// again from the history, bit for bit.
    pub store: bool,
}

/// What a cycle may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Threads that forecast.
    pub threads: NonZeroUsize,
    /// Series that may be replayed because they have no memory.
    pub replays: usize,
}

/// Forecasts every series of `tasks`, in no order. `keep` is called on the forecasting threads.
pub fn cycle<K: Send>(
    tasks: impl Iterator<Item = Task<K>> + Send,
    limits: Limits,
    keep: impl Fn(Foresight<K>) + Sync,
) {
    let tasks = Mutex::new(tasks.enumerate());
    let replays = AtomicUsize::new(0);
    std::thread::scope(|threads| {
        for _ in 0..limits.threads.get() {
            threads.spawn(|| {
                let next = || tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
                while let Some((place, task)) = next() {
                    keep(foresee(task, place, limits, &replays));
                }
            });
        }
    });
}

/// Forecasts one series as a cycle does, which replays it if it must.
pub fn one<K>(task: Task<K>) -> Foresight<K> {
    let limits = Limits {
        threads: NonZeroUsize::MIN,
        replays: 1,
    };
    foresee(task, 0, limits, &AtomicUsize::new(0))
}

fn foresee<K>(task: Task<K>, place: usize, limits: Limits, replays: &AtomicUsize) -> Foresight<K> {
    let Task {
        key,
        history,
        memory,
        horizon,
    } = task;
    let scene = Scene::of(&history);
    let now = history.values.len();
    let mut memory = memory
        .filter(|memory| memory.horizon() == horizon)
        .unwrap_or_else(|| Memory::new(horizon));
    let is_due = !memory.is_replayed() || memory.missed(&scene, now) > scene.day as i64;
    let replay = is_due && replays.fetch_add(1, Ordering::Relaxed) < limits.replays;
    if replay {
        // Each series at another phase, so that not all of them issue in the same cycle.
        let (span, phase) = (REPLAY_DAYS * scene.day, place % ISSUE_EVERY);
        memory.replay(&scene, now, span, phase, NonZeroUsize::MIN);
    }
    let issued = memory.keep_up(&scene, now);
    Foresight {
        forecast: memory.forecast(&scene, now),
        key,
        history,
        memory,
        store: replay || issued,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn series(key: usize, length: i64) -> Series {
        let value = |i: i64| (i * (key as i64 + 3) % 50) as f64;
        let samples: Vec<_> = (0..length).map(|i| (i * 300, value(i))).collect();
        Series::from_samples(&samples).unwrap()
    }

    fn run(
        length: i64,
        replays: usize,
        threads: usize,
        memories: &mut BTreeMap<usize, Memory>,
    ) -> (BTreeMap<usize, String>, usize) {
        let found = Mutex::new((BTreeMap::new(), BTreeMap::new(), 0));
        let tasks = (0..40).map(|key| Task {
            key,
            history: series(key, length),
            memory: memories.get(&key).cloned(),
            horizon: 12,
        });
        let limits = Limits {
            threads: NonZeroUsize::new(threads).unwrap(),
            replays,
        };
        cycle(tasks, limits, |foresight| {
            let mut found = found.lock().unwrap();
            found
                .0
                .insert(foresight.key, format!("{:?}", foresight.forecast));
            found.1.insert(foresight.key, foresight.memory);
            found.2 += usize::from(foresight.store);
        });
        let (forecasts, after, stored) = found.into_inner().unwrap();
        *memories = after;
        (forecasts, stored)
    }

    #[test]
    fn two_threads_foresee_what_one_does_and_leave_no_series_out() {
        let (mut one, mut two) = (BTreeMap::new(), BTreeMap::new());
        for length in 600..604 {
            let alone = run(length, 1000, 1, &mut one);
            assert_eq!(alone, run(length, 1000, 2, &mut two));
            assert_eq!(alone.0.len(), 40);
        }
        assert_eq!(one, two);
    }

    #[test]
    fn newcomers_are_replayed_a_few_in_each_cycle_until_all_are() {
        let mut memories = BTreeMap::new();
        let replayed = |memories: &BTreeMap<usize, Memory>| {
            memories.values().filter(|m| m.is_replayed()).count()
        };
        for (length, expected) in [(600, 15), (601, 30), (602, 40), (603, 40)] {
            run(length, 15, 2, &mut memories);
            assert_eq!(replayed(&memories), expected);
        }
    }

    #[test]
    fn a_series_whose_memory_missed_more_than_a_day_is_replayed_if_there_is_time() {
        let mut memories = BTreeMap::new();
        run(600, 1000, 2, &mut memories);
        let mut fresh = BTreeMap::new();
        run(900, 1000, 2, &mut fresh);
        let mut late = memories.clone();
        run(900, 0, 2, &mut late);
        assert_ne!(late, fresh, "no time: what it had learned is kept");
        run(900, 1000, 2, &mut memories);
        assert_eq!(memories, fresh);
    }

    #[test]
    fn a_memory_is_worth_storing_once_in_so_many_cycles() {
        let mut memories = BTreeMap::new();
        assert_eq!(run(600, 1000, 2, &mut memories).1, 40, "all are new");
        let stored =
            (601..601 + ISSUE_EVERY as i64).map(|length| run(length, 0, 2, &mut memories).1);
        let stored: Vec<usize> = stored.collect();
        assert_eq!(stored.iter().sum::<usize>(), 40, "{stored:?}");
        assert!(
            stored.iter().all(|n| *n <= 4),
            "not all at once: {stored:?}"
        );
    }
}
