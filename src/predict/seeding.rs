//! Seeding replayed over a trace of writes: how much is dirty again after the first pass, in the
//! order of the disk and in the predicted order.
//!
//! The copy runs at an even rate over a share of the trace, from several start times. Before each
//! start the model sees the writes and nothing else. An extent is dirty after the pass if it was
//! written after it was copied. Then increments follow at the same rate, each as long as its bytes
//! take, until one is no larger than [`SMALL`] or the trace ends; their sum is what was resent.

use std::collections::HashSet;

use super::extent::Habits;

/// A write: when, and which extents it touches.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// Seconds since the trace began.
    pub at: f64,
    /// First extent touched.
    pub first: u64,
    /// Last extent touched.
    pub last: u64,
}

/// A volume's writes in order of time.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The writes.
    pub writes: Vec<Write>,
    /// Seconds from beginning to end.
    pub seconds: f64,
    /// Extents of the disk.
    pub extents: u64,
    /// Bytes in an extent.
    pub extent_bytes: u64,
}

/// The mean outcome of one order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Bytes of extents dirty after the first pass.
    pub dirty_bytes_left: f64,
    /// Bytes sent again until an increment was small.
    pub resent_bytes: f64,
}

/// Start times tried, evenly from the first with as much history as a copy takes to the last that
/// leaves room for one.
const STARTS: usize = 9;
/// Windows that the model sees in the time of one copy.
const WINDOWS_PER_COPY: f64 = 16.0;
/// An increment of this many extents ends the seeding.
const SMALL: usize = 16;

/// Both orders, each the mean over all start times; and whether the predicted order was nowhere worse.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    /// In the order of the disk.
    pub linear: Outcome,
    /// Coldest first.
    pub predicted: Outcome,
    /// The predicted order left no more dirty bytes from any start.
    pub never_worse: bool,
}

/// Replays `trace`, each copy taking `copy_fraction` of it.
#[must_use]
pub fn compare(trace: &Trace, copy_fraction: f64) -> Comparison {
    assert!(
        copy_fraction > 0.0 && copy_fraction <= 0.5,
        "a copy needs as much history as it takes"
    );
    let copy = trace.seconds * copy_fraction;
    let (earliest, latest) = (copy.min(trace.seconds - copy), trace.seconds - copy);
    let mut comparison = Comparison {
        linear: Outcome::default(),
        predicted: Outcome::default(),
        never_worse: true,
    };
    let linear: Vec<u64> = (0..trace.extents).collect();
    for i in 0..STARTS {
        let start = earliest + (latest - earliest) * i as f64 / (STARTS - 1) as f64;
        let habits = learn(trace, start, copy / WINDOWS_PER_COPY);
        let predicted = habits.order(trace.extents, trace.extent_bytes);
        let a = seed(trace, &linear, start, copy);
        let b = seed(trace, &predicted, start, copy);
        comparison.never_worse &= b.dirty_bytes_left <= a.dirty_bytes_left;
        for (mean, one) in [(&mut comparison.linear, a), (&mut comparison.predicted, b)] {
            mean.dirty_bytes_left += one.dirty_bytes_left / STARTS as f64;
            mean.resent_bytes += one.resent_bytes / STARTS as f64;
        }
    }
    comparison
}

/// The habits seen in whole windows that end at `start`.
fn learn(trace: &Trace, start: f64, window: f64) -> Habits {
    let windows = (start / window).floor().max(1.0);
    let begin = start - windows * window;
    let mut habits = Habits::default();
    let mut open = HashSet::new();
    let mut closes = begin + window;
    for write in trace.writes.iter().take_while(|write| write.at < start) {
        while write.at >= closes {
            habits.close_window(open.drain());
            closes += window;
        }
        open.extend(write.first..=write.last);
    }
    habits.close_window(open);
    habits
}

fn seed(trace: &Trace, order: &[u64], start: f64, copy: f64) -> Outcome {
    let each = copy / trace.extents as f64;
    let mut copied_at = vec![0.0; order.len()];
    for (place, extent) in order.iter().enumerate() {
        copied_at[*extent as usize] = start + each * (place + 1) as f64;
    }
    let mut end = start + copy;
    let mut dirty: HashSet<u64> = HashSet::new();
    for write in during(trace, start, end) {
        dirty.extend(
            (write.first..=write.last).filter(|extent| copied_at[*extent as usize] <= write.at),
        );
    }
    let mut outcome = Outcome {
        dirty_bytes_left: bytes(trace, dirty.len()),
        resent_bytes: 0.0,
    };
    loop {
        outcome.resent_bytes += bytes(trace, dirty.len());
        if dirty.len() <= SMALL || end >= trace.seconds {
            return outcome;
        }
        let begin = end;
        end += each * dirty.len() as f64;
        dirty = during(trace, begin, end)
            .flat_map(|write| write.first..=write.last)
            .collect();
    }
}

fn during(trace: &Trace, from: f64, to: f64) -> impl Iterator<Item = &Write> {
    let first = trace.writes.partition_point(|write| write.at < from);
    trace.writes[first..]
        .iter()
        .take_while(move |write| write.at < to)
}

fn bytes(trace: &Trace, extents: usize) -> f64 {
    (extents as u64 * trace.extent_bytes) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log that rewrites its eight extents all the time in the first tenth of a disk: in linear order
    /// all of it is dirty again, coldest first nearly none.
    #[test]
    fn a_hot_log_is_copied_last() {
        let writes = (0..4000).map(|i| Write {
            at: f64::from(i),
            first: 100 + i as u64 % 8,
            last: 100 + i as u64 % 8,
        });
        let trace = Trace {
            writes: writes.collect(),
            seconds: 4000.0,
            extents: 2000,
            extent_bytes: 65_536,
        };
        let result = compare(&trace, 0.25);
        assert!(
            (result.linear.dirty_bytes_left - 8.0 * 65_536.0).abs() < 1.0,
            "{result:?}"
        );
        assert!(
            result.predicted.dirty_bytes_left <= 4.0 * 65_536.0,
            "{result:?}"
        );
        assert!(result.never_worse);
    }

    /// Copies of a disk that its guest wrote from end to end left up to 722 MB more than in the order of the disk: what lay
    /// before the front was copied first.
    #[test]
    fn no_copy_is_worse_where_a_front_goes_over_the_disk() {
        const EXTENTS: u64 = 100_000;
        for (turns, is_forwards) in [(1.0, true), (0.5, true), (1.0, false), (0.5, false)] {
            let writes = (0..EXTENTS).map(|i| {
                let first = if is_forwards { i } else { EXTENTS - 1 - i };
                let at = i as f64 / (5.0 * turns);
                let last = first;
                Write { at, first, last }
            });
            let trace = Trace {
                writes: writes.take_while(|write| write.at < 20_000.0).collect(),
                seconds: 20_000.0,
                extents: EXTENTS,
                extent_bytes: 65_536,
            };
            for fraction in [0.1, 0.25, 0.4, 0.5] {
                let result = compare(&trace, fraction);
                assert!(
                    result.never_worse,
                    "{turns} {is_forwards} {fraction} {result:?}"
                );
            }
        }
    }

    #[test]
    fn a_quiet_disk_leaves_nothing_in_either_order() {
        let trace = Trace {
            writes: Vec::new(),
            seconds: 100.0,
            extents: 50,
            extent_bytes: 65_536,
        };
        let result = compare(&trace, 0.5);
        assert_eq!(
            (result.linear, result.predicted),
            (Outcome::default(), Outcome::default())
        );
    }
}
