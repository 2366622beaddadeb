//! What nodes and volumes did, on a grid of one sample a cycle.
//!
//! Bounded and in memory: after a restart it fills again, and until it has enough only events
//! count, which every plan says.

use crate::planner::{Seconds, UnixTime};
use std::collections::{BTreeMap, VecDeque};

/// Samples kept of a series: ten days of five minutes.
const SAMPLES: usize = 2880;
/// A gap longer than this many samples ends what came before: its habits are not today's.
const GAP: u64 = 288;
/// Series kept. More than a fleet of ten thousand volumes has.
const SERIES_MAX: usize = 60_000;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Metric {
    /// Busy share of a node's processors.
    Cpu,
    /// Used share of a node's memory.
    Memory,
    /// Bytes a second that a node's disks read.
    DiskRead,
    /// Bytes a second that a node's disks wrote.
    DiskWrite,
    /// Bytes a second that came to a node and left it.
    Network,
    /// Bytes a second that guests wrote to a volume.
    Written,
    /// Bytes of a volume's extents that were written in the sample's time, a second.
    Dirtied,
}

struct Track {
    /// The grid's point of the last value.
    last: u64,
    values: VecDeque<f64>,
}

/// The series of a fleet.
pub(super) struct History {
    period: u64,
    tracks: BTreeMap<(Metric, String), Track>,
}

impl History {
    /// With one sample in `period`.
    pub fn new(period: Seconds) -> History {
        History {
            period: period.0.max(1),
            tracks: BTreeMap::new(),
        }
    }

    /// Take a sample. What is no number, or from a time that has been sampled already because the
    /// clock went back, is passed over; false says so.
    pub fn add(&mut self, metric: Metric, of: &str, at: UnixTime, value: f64) -> bool {
        if !value.is_finite() {
            return false;
        }
        let point = at.0 / self.period;
        let key = (metric, of.to_owned());
        let Some(track) = self.tracks.get_mut(&key) else {
            if self.tracks.len() >= SERIES_MAX {
                return false;
            }
            let values = VecDeque::from([value]);
            self.tracks.insert(
                key,
                Track {
                    last: point,
                    values,
                },
            );
            return true;
        };
        if point <= track.last {
            return false;
        }
        let gap = point - track.last - 1;
        if gap > GAP {
            track.values.clear();
        } else if let Some(last) = track.values.back().copied() {
            // what was not measured stayed as it was
            track.values.extend(std::iter::repeat_n(last, gap as usize));
        }
        track.values.push_back(value);
        track.last = point;
        while track.values.len() > SAMPLES {
            track.values.pop_front();
        }
        true
    }

    /// All of a series, oldest first.
    pub fn values(&self, metric: Metric, of: &str) -> Vec<f64> {
        let track = self.tracks.get(&(metric, of.to_owned()));
        track.map_or(Vec::new(), |t| t.values.iter().copied().collect())
    }

    /// The largest value from one time to another; none if nothing was measured then.
    pub fn max_between(
        &self,
        metric: Metric,
        of: &str,
        from: UnixTime,
        to: UnixTime,
    ) -> Option<f64> {
        let track = self.tracks.get(&(metric, of.to_owned()))?;
        let first = track.last + 1 - track.values.len() as u64;
        let (from, to) = (from.0 / self.period, to.0 / self.period);
        let points = track.values.iter().zip(first..);
        let inside = points.filter(|(_, point)| (from..=to).contains(point));
        inside.map(|(v, _)| *v).reduce(f64::max)
    }
}

/// Totals that only grow, as rates.
#[derive(Default)]
pub(super) struct Totals(BTreeMap<(Metric, String), (UnixTime, u64)>);

impl Totals {
    /// What a total grew by in a second since it was seen last. None at first, when the clock did not
    /// advance, and when the total fell because its counter began anew.
    pub fn rate(&mut self, metric: Metric, of: &str, at: UnixTime, total: u64) -> Option<f64> {
        let before = self.0.insert((metric, of.to_owned()), (at, total))?;
        let seconds = at.since(before.0).0;
        let grown = total.checked_sub(before.1)?;
        (seconds > 0).then(|| grown as f64 / seconds as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(h: &mut History, at: u64, v: f64) -> bool {
        h.add(Metric::Cpu, "a", UnixTime(at), v)
    }

    #[test]
    fn gaps_are_filled_and_what_cannot_be_is_passed_over() {
        let mut h = History::new(Seconds(300));
        assert!(add(&mut h, 3000, 0.1));
        assert!(!add(&mut h, 3300, f64::NAN));
        assert!(add(&mut h, 3900, 0.4));
        assert!(!add(&mut h, 3000, 0.9)); // the clock went back
        assert!(!add(&mut h, 3950, 0.9)); // twice in one period
        assert_eq!(h.values(Metric::Cpu, "a"), [0.1, 0.1, 0.1, 0.4]);
        let max = |from, to| h.max_between(Metric::Cpu, "a", UnixTime(from), UnixTime(to));
        assert_eq!(
            (max(0, 3600), max(3600, 9000), max(9000, 9900)),
            (Some(0.1), Some(0.4), None)
        );
        assert!(add(&mut h, 3900 + 300 * 400, 0.2)); // more than a day later
        assert_eq!(h.values(Metric::Cpu, "a"), [0.2]);
        assert!(h.values(Metric::Memory, "a").is_empty());
    }

    #[test]
    fn totals_become_rates_and_a_restart_gives_none() {
        let mut t = Totals::default();
        let mut rate = |at, total| t.rate(Metric::DiskRead, "a", UnixTime(at), total);
        assert_eq!(rate(10, 100), None);
        assert_eq!(rate(20, 300), Some(20.0));
        assert_eq!(rate(20, 400), None);
        assert_eq!(rate(30, 50), None);
        assert_eq!(rate(40, 60), Some(1.0));
    }
}
