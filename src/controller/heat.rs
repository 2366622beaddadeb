//! Which extents guests write, by volume: from the trails in heartbeats, for the order in which a
//! baseline is copied, and for how long increments will take to become small. Without it a baseline is copied
//! from end to end, and nothing is promised; so it is left to the next process, in files that may be lost.

mod kept;

use crate::predict::convergence::{Convergence, DirtyCurve};
use crate::predict::extent::Habits;
use node::VolumeName;
use proto::v1::WriteTrail;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The windows in which habits are counted.
const WINDOW: Duration = Duration::from_secs(10);
/// Windows without a word that are counted as windows without a write.
const MISSED_MOST: u32 = 64;
/// Extents of a volume that are followed; nodes tell no more.
const EXTENTS_MAX: u64 = 1 << 16;

/// Windows in each of the spans of which it is known how much became dirty: ten seconds, a minute, ten
/// minutes.
const SPANS: [u32; 3] = [1, 6, 60];
/// Spans of each length that are looked back at.
const OBSERVED: usize = 360;
/// An increment of this size is sent while the guest waits.
const SMALL: f64 = 1e6;

/// Distinct extents written in spans of one length.
#[derive(Default)]
struct Span {
    windows: u32,
    written: HashSet<u64>,
    /// Extents written in each of the last spans.
    observed: VecDeque<u32>,
}

impl Span {
    fn close_window(&mut self, open: &HashSet<u64>, length: u32) {
        self.written.extend(open);
        self.windows += 1;
        if self.windows < length {
            return;
        }
        if self.observed.len() == OBSERVED {
            self.observed.pop_front();
        }
        self.observed.push_back(self.written.len() as u32); // at most EXTENTS_MAX
        self.written.clear();
        self.windows = 0;
    }
}

/// What is known of every volume.
#[derive(Default)]
pub(super) struct Heat(Mutex<HashMap<VolumeName, Volume>>);

struct Volume {
    extent_bytes: u64,
    open: HashSet<u64>,
    opened: Instant,
    habits: Habits,
    spans: [Span; SPANS.len()],
    windows: u32,
    /// How many of them are in its file.
    kept: u32,
    dirtied: u64,
}

impl Volume {
    fn close_windows(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.opened).as_nanos() / WINDOW.as_nanos();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        if passed == 0 {
            return;
        }
        for _ in 0..passed.min(MISSED_MOST) {
            for (span, length) in self.spans.iter_mut().zip(SPANS) {
                span.close_window(&self.open, length);
            }
            self.habits.close_window(self.open.drain());
            self.windows = self.windows.saturating_add(1);
        }
        self.opened += WINDOW * passed;
    }
}

/// The extents that a trail names as written.
fn written(runs: &[u32]) -> impl Iterator<Item = u64> + '_ {
    let mut at = 0u64;
    let spans = runs.iter().enumerate().map(move |(i, run)| {
        let first = at;
        at += u64::from(*run);
        (i % 2 == 1, first..at)
    });
    spans
        .filter(|(is_written, _)| *is_written)
        .flat_map(|(_, span)| span.start.min(EXTENTS_MAX)..span.end.min(EXTENTS_MAX))
}

impl Heat {
    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeName, Volume>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take what a heartbeat said.
    pub fn add(&self, trails: &[WriteTrail], now: Instant) {
        let mut all = self.lock();
        for t in trails {
            let Ok(name) = t.volume.parse::<VolumeName>() else {
                continue; // no volume of the fleet has such a name
            };
            let fresh = || Volume {
                extent_bytes: t.extent_bytes,
                open: HashSet::new(),
                opened: now,
                habits: Habits::default(),
                spans: Default::default(),
                windows: 0,
                kept: 0,
                dirtied: 0,
            };
            let v = all.entry(name).or_insert_with(fresh);
            if v.extent_bytes != t.extent_bytes {
                *v = fresh(); // another volume of that name
            }
            v.close_windows(now);
            for extent in written(&t.runs) {
                v.open.insert(extent);
                v.dirtied = v.dirtied.saturating_add(t.extent_bytes);
            }
        }
    }

    /// Bytes of a volume's extents that were written, each counted once a heartbeat.
    pub fn dirtied(&self, volume: &VolumeName) -> u64 {
        self.lock().get(volume).map_or(0, |v| v.dirtied)
    }

    /// How long sending `bytes` and then what becomes dirty meanwhile takes at `bandwidth` bytes a second,
    /// until so little is left that a cutover sends it while the guest waits; in 95 of 100 cases not
    /// longer. None where too little is known of what the guest writes.
    pub fn convergence(
        &self,
        volume: &VolumeName,
        bytes: u64,
        bandwidth: u64,
    ) -> Option<Convergence> {
        let all = self.lock();
        let v = all.get(volume).filter(|v| v.windows > 0)?;
        let span = |(span, length): (&Span, u32)| {
            let bytes = |extents: &u32| f64::from(*extents) * v.extent_bytes as f64;
            let seconds = WINDOW.as_secs_f64() * f64::from(length);
            (seconds, span.observed.iter().map(bytes).collect())
        };
        let mut observed: Vec<(f64, Vec<f64>)> = v.spans.iter().zip(SPANS).map(span).collect();
        let curve = DirtyCurve::from_observations(&mut observed);
        Some(curve.convergence(bytes as f64, bandwidth as f64, SMALL))
    }

    /// The best order for a baseline, coldest first: bytes of an extent, and runs of extents, first
    /// and number in turn. Nothing where too little is known.
    pub fn order(&self, volume: &VolumeName, size: u64, now: Instant) -> (u64, Vec<u32>) {
        let mut all = self.lock();
        let Some(v) = all.get_mut(volume) else {
            return (0, Vec::new());
        };
        v.close_windows(now);
        if v.windows == 0 || v.extent_bytes == 0 {
            return (0, Vec::new());
        }
        let count = size.div_ceil(v.extent_bytes).min(EXTENTS_MAX);
        let mut runs: Vec<u32> = Vec::new();
        for extent in v.habits.order(count, v.extent_bytes) {
            let extent = extent as u32; // below EXTENTS_MAX
            match runs.as_mut_slice() {
                [.., first, number] if *first + *number == extent => *number += 1,
                _ => runs.extend([extent, 1]),
            }
        }
        (v.extent_bytes, runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trail(runs: &[u32]) -> [WriteTrail; 1] {
        [WriteTrail {
            volume: "v".into(),
            extent_bytes: 10,
            runs: runs.to_vec(),
        }]
    }

    #[test]
    fn what_is_written_again_and_again_is_copied_last() {
        let (heat, began) = (Heat::default(), Instant::now());
        let v: VolumeName = "v".parse().unwrap();
        assert_eq!(heat.order(&v, 100, began), (0, vec![]));
        for i in 0..30 {
            heat.add(&trail(&[7, 1]), began + WINDOW * i);
        }
        heat.add(&trail(&[2, 1, 4, 1]), began + WINDOW * 30);
        let (extent, runs) = heat.order(&v, 100, began + WINDOW * 31);
        assert_eq!(extent, 10);
        assert_eq!(runs[runs.len() - 2..], [7, 1]);
        assert_eq!(runs[runs.len() - 4..runs.len() - 2], [2, 1]);
        let named: u32 = runs.chunks(2).map(|r| r[1]).sum();
        assert_eq!(named, 10);
        assert_eq!(heat.dirtied(&v), 320);
    }

    #[test]
    fn a_convergence_is_promised_by_what_spans_made_dirty() {
        let (heat, began) = (Heat::default(), Instant::now());
        let v: VolumeName = "v".parse().unwrap();
        assert_eq!(heat.convergence(&v, 1000, 100), None, "nothing is known");
        // three extents of a megabyte in each window, the same ones for a minute
        for i in 0..60 {
            let trail = [WriteTrail {
                volume: "v".into(),
                extent_bytes: 1_000_000,
                runs: vec![i / 6 * 3, 3],
            }];
            heat.add(&trail, began + WINDOW * i);
        }
        heat.order(&v, 100_000_000, began + WINDOW * 60);
        // 200 MB at 20 MB/s: 10 s, in which 3 MB become dirty; 0.15 s, in which 45 kB do
        let Some(Convergence::Within { seconds, bytes }) =
            heat.convergence(&v, 200_000_000, 20_000_000)
        else {
            panic!("it converges");
        };
        assert!((seconds - 10.15).abs() < 1e-9, "{seconds}");
        assert!((bytes - 203e6).abs() < 1.0, "{bytes}");
        let slow = heat.convergence(&v, 200_000_000, 200_000);
        assert_eq!(slow, Some(Convergence::Never));
    }

    #[test]
    fn a_trail_of_nonsense_costs_no_more_than_a_true_one() {
        let heat = Heat::default();
        heat.add(&trail(&[5, u32::MAX, 5, u32::MAX]), Instant::now());
        let v: VolumeName = "v".parse().unwrap();
        assert_eq!(heat.dirtied(&v), (EXTENTS_MAX - 5) * 10);
    }
}
