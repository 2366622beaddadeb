//! Which extents will be written again, and in which order to copy them.
//!
//! Time is cut into windows. An extent's state is whether it was written in each of the last four:
//! sixteen states. How often an extent in a state is written in the next window is counted over all
//! extents as the windows pass, so the table needs no training and is calibrated by construction.
//!
//! Two things four windows cannot see are remembered beside it. A **periodic job**: an extent whose
//! writes come at an even distance is due again one distance after the last. And **distance**: new
//! writes fall near old ones, so what lies far from any write is coldest.
//!
//! Seeding in ascending order of these probabilities copies what will stay first and what will be
//! written anyway last, when little time is left to write it again.
//!
//! ```text
//! no write within 1 GiB │ none within 8 MiB  │ nearer: by powers of two │ written: by probability
//! in the disk's order   │ in the disk's order│                          │
//! ```
//!
//! What was never written falls into few classes, because distance tells no more: a file grows where it
//! ends, and a new one is put somewhere into the part of the disk that is in use. Inside a class the order
//! is the disk's. Whatever lies in the second class is then copied no earlier than a copy in the order of
//! the disk would, wherever a burst falls in it.
//!
//! Before a copy begins, both orders are rehearsed over the last four windows with what was known before them,
//! and coldest first has to win ([`Habits::order`]). Where a front of new writes goes over the disk nothing is
//! rehearsed: what lies before it was never written, and will be.

mod record;

use std::collections::HashMap;

/// Windows in a state.
const RECENT: u32 = 4;
const STATES: usize = 1 << RECENT;
/// Weight of the belief, held before counting, that a state is followed by no write.
const PRIOR: f64 = 4.0;
/// The least probability of a write that is due.
const DUE: f64 = 0.5;
/// Distances between writes may differ by this share and still be one period.
const EVEN: f64 = 0.2;
/// Up to here the nearer is the hotter.
const NEAR_BYTES: u64 = 8 << 20;
/// From here on nothing is expected.
const FAR_BYTES: u64 = 1 << 30;

/// Of what the order of the disk would have left, what coldest first may have left at most to be preferred.
const CLEARLY_LESS: f64 = 0.95;

/// Windows that a copy takes, more or less.
const COPY_WINDOWS: u64 = 16;

/// The memory of one extent that was ever written.
#[derive(Clone, Copy, Debug, Default)]
struct Trail {
    /// Bit 0 is the last closed window.
    state: u8,
    /// Windows with a write.
    written: u32,
    /// The last window with a write, and the two distances before it, in windows; 0 is none.
    last: u32,
    gaps: [u32; 2],
}

/// What is known about the writes of one volume.
#[derive(Clone, Debug)]
pub struct Habits {
    trails: HashMap<u64, Trail>,
    /// For each state: how often it was seen, and how often a write followed.
    seen: [f64; STATES],
    followed: [f64; STATES],
    window: u32,
    /// Of them those in which nobody looked.
    unseen: u32,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            trails: HashMap::new(),
            seen: [0.0; STATES],
            followed: [0.0; STATES],
            window: 0,
            unseen: 0,
        }
    }
}

impl Habits {
    /// Closes a window in which exactly these extents were written, each listed once.
    pub fn close_window(&mut self, written: impl IntoIterator<Item = u64>) {
        self.window = self.window.saturating_add(1);
        for extent in written {
            let trail = self.trails.entry(extent).or_default();
            if trail.last > 0 {
                trail.gaps = [self.window - trail.last, trail.gaps[0]];
            }
            trail.last = self.window;
            trail.written = trail.written.saturating_add(1);
        }
        for trail in self.trails.values_mut() {
            let now = trail.last == self.window;
            self.seen[trail.state as usize] += 1.0;
            self.followed[trail.state as usize] += f64::from(u8::from(now));
            trail.state = (trail.state << 1 | u8::from(now)) & (STATES as u8 - 1);
        }
    }

    /// Lets windows pass in which nobody looked: nothing is counted, and periodic jobs keep their time.
    pub fn pass_unseen(&mut self, windows: u32) {
        let passed = windows.min(u32::MAX - self.window);
        self.window += passed;
        self.unseen += passed;
    }

    /// The probability that an extent is written in the next window; none for an extent that never
    /// was, about which only its distance from the others is known.
    #[must_use]
    pub fn probability(&self, extent: u64) -> Option<f64> {
        let trail = self.trails.get(&extent)?;
        let table = self.table(trail.state);
        Some(if self.due(trail) {
            table.max(DUE)
        } else {
            table
        })
    }

    fn table(&self, state: u8) -> f64 {
        let state = state as usize;
        (self.followed[state] + 0.5) / (self.seen[state] + PRIOR)
    }

    /// Whether a periodic extent's next write falls into the next window.
    fn due(&self, trail: &Trail) -> bool {
        let [near, far] = trail.gaps.map(f64::from);
        far > f64::from(RECENT)
            && (near - far).abs() <= EVEN * far
            && (f64::from(self.window - trail.last) + 1.0 - near).abs() <= EVEN * near
    }

    /// All extents of a disk of `count` in the order in which to copy them: coldest first, unless that would not
    /// have left clearly less than the order of the disk in the last windows, or a front of writes goes over the disk.
    /// Then it is the order of the disk itself.
    #[must_use]
    pub fn order(&self, count: u64, extent_bytes: u64) -> Vec<u64> {
        if self.is_swept(count, extent_bytes) {
            return (0..count).collect();
        }
        let [linear, coldest] = self.rehearsed(count, extent_bytes);
        if linear > 0.0 && coldest > CLEARLY_LESS * linear {
            return (0..count).collect();
        }
        self.coldest_first(count, extent_bytes)
    }

    /// Whether a front goes over the disk: most of what was written in the last windows was new, and the middle half of
    /// what was new in each lay beyond that of the window before, always on the same side. One that comes no farther
    /// than [`FAR_BYTES`] while a copy lasts is no such front: what lies before it is copied late.
    fn is_swept(&self, count: u64, extent_bytes: u64) -> bool {
        let mut fronts = [const { Vec::new() }; RECENT as usize];
        let mut written = 0;
        let trails = self.trails.iter().filter(|(extent, _)| **extent < count);
        for (extent, trail) in trails.filter(|(_, trail)| trail.state > 0) {
            written += 1;
            if trail.written == trail.state.count_ones() {
                fronts[trail.state.ilog2() as usize].push(*extent);
            }
        }
        let new = fronts.iter().map(Vec::len).sum::<usize>();
        if 2 * new < written || fronts.iter().any(Vec::is_empty) {
            return false;
        }
        // the newest first
        let middles = fronts.map(|mut front| {
            front.sort_unstable();
            let quarter = front.len() / 4;
            (front[quarter], front[front.len() - 1 - quarter])
        });
        let [newest, .., oldest] = middles;
        let way = newest.0.abs_diff(oldest.0) * extent_bytes / u64::from(RECENT - 1);
        if way * COPY_WINDOWS < FAR_BYTES {
            return false;
        }
        let mut pairs = middles.windows(2).map(|pair| (pair[0], pair[1]));
        pairs.clone().all(|(newer, older)| newer.0 > older.1)
            || pairs.all(|(newer, older)| newer.1 < older.0)
    }

    /// Extents that a copy over the last windows would have left dirty: in the order of the disk, and coldest
    /// first by what was known before them.
    fn rehearsed(&self, count: u64, extent_bytes: u64) -> [f64; 2] {
        let Some(window) = self.window.checked_sub(RECENT).filter(|then| *then > 0) else {
            return [0.0; 2];
        };
        let mut then = Habits {
            seen: self.seen,
            followed: self.followed,
            window,
            unseen: self.unseen.min(window - 1),
            ..Habits::default()
        };
        let mut written = Vec::new();
        for (extent, trail) in self.trails.iter().filter(|(extent, _)| **extent < count) {
            let before = trail.written.saturating_sub(trail.state.count_ones());
            if before > 0 {
                let trail = Trail {
                    written: before,
                    last: window,
                    ..Trail::default()
                };
                then.trails.insert(*extent, trail);
            }
            if trail.state > 0 {
                // windows until the end of that with the last write
                written.push((*extent, f64::from(RECENT - trail.state.trailing_zeros())));
            }
        }
        let mut place = vec![0; count as usize];
        for (at, extent) in (0u32..).zip(then.coldest_first(count, extent_bytes)) {
            place[extent as usize] = at;
        }
        let each = f64::from(RECENT) / count as f64;
        // the share of that window which came after the extent was copied
        let dirty = |end: f64, place: f64| (end - place * each).clamp(0.0, 1.0);
        let mut left = [0.0; 2];
        for (extent, end) in written {
            left[0] += dirty(end, extent as f64);
            left[1] += dirty(end, f64::from(place[extent as usize]));
        }
        left
    }

    /// All extents of a disk of `count`, coldest first; among equals in the order of the disk, so that
    /// the copy stays sequential.
    #[must_use]
    pub fn coldest_first(&self, count: u64, extent_bytes: u64) -> Vec<u64> {
        let reaches = self.reaches(count, extent_bytes);
        let mut order: Vec<(f64, u64)> = reaches.into_iter().zip(0..).collect();
        for (extent, trail) in self.trails.iter().filter(|(extent, _)| **extent < count) {
            let often = f64::from(trail.written) / f64::from((self.window - self.unseen).max(1));
            order[*extent as usize].0 = self.probability(*extent).unwrap_or(0.0) + often;
        }
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        order.into_iter().map(|(_, extent)| extent).collect()
    }

    /// For each extent, minus the class of its distance from the nearest written one: always below the
    /// heat of a written extent.
    fn reaches(&self, count: u64, extent_bytes: u64) -> Vec<f64> {
        let mut distance = vec![u64::MAX; count as usize];
        for extent in self.trails.keys().filter(|extent| **extent < count) {
            distance[*extent as usize] = 0;
        }
        for i in 1..distance.len() {
            distance[i] = distance[i].min(distance[i - 1].saturating_add(1));
        }
        for i in (1..distance.len()).rev() {
            distance[i - 1] = distance[i - 1].min(distance[i].saturating_add(1));
        }
        let class = |extents: u64| match extents.saturating_mul(extent_bytes) {
            FAR_BYTES.. => u64::BITS + 2,
            NEAR_BYTES.. => u64::BITS + 1,
            _ => u64::BITS - extents.leading_zeros(),
        };
        distance.into_iter().map(|d| -f64::from(class(d))).collect()
    }

    /// Extents expected to be written in the next window.
    #[must_use]
    pub fn expected_writes(&self) -> f64 {
        self.trails
            .keys()
            .filter_map(|extent| self.probability(*extent))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_hot_extent_comes_last_and_the_untouched_first() {
        let mut habits = Habits::default();
        for window in 0..20u64 {
            habits.close_window(if window % 5 == 0 {
                vec![700, 7]
            } else {
                vec![700]
            });
        }
        let order = habits.coldest_first(1000, 64 << 10);
        assert_eq!(order.len(), 1000);
        assert_eq!(order[998..], [7, 700]);
        assert_eq!(order[0], 135, "the first that is eight MiB from both");
        let larger = habits.coldest_first(1000, 4 << 20);
        assert_eq!(larger[0], 263, "the first that is a GiB from both");
        assert_eq!(larger[181..183], [444, 956], "in the order of the disk");
        assert_eq!(larger[226], 0, "then what is eight MiB from both");
        assert!(habits.probability(700) > Some(0.7));
        assert!(
            habits.probability(7) >= Some(DUE),
            "every fifth window, and the next is one"
        );
        assert_eq!(habits.probability(8), None);
    }

    /// A copy that was made coldest first left up to 800 MB more than one in the order of the disk, where a
    /// guest wrote its disk from end to end: what was written last is not what is written next. A rehearsal saw it only
    /// when the front had come far, because it is shorter than a copy.
    #[test]
    fn a_guest_that_writes_its_disk_from_end_to_end_is_followed_in_the_order_of_the_disk() {
        for (windows, is_forwards) in [(4, true), (10, true), (50, true), (10, false)] {
            let mut habits = Habits::default();
            for window in 0..windows {
                let place = if is_forwards { window } else { 60 - window };
                // and a few blocks that are always written
                habits.close_window((place * 8000..(place + 1) * 8000).chain(490_000..490_100));
            }
            let order = habits.order(500_000, 64 << 10);
            assert!(
                order.is_sorted(),
                "{windows} {is_forwards} {:?}",
                &order[..10]
            );
            let coldest = habits.coldest_first(500_000, 64 << 10);
            assert!(!coldest.is_sorted());
        }
    }

    /// Files that are new in each window, but not one beyond the other, are no sweep; nor is what comes back.
    #[test]
    fn new_files_here_and_there_are_no_front() {
        let (mut files, mut ring) = (Habits::default(), Habits::default());
        for window in 0..12u64 {
            let place = window * 7 % 12;
            files.close_window(place * 9000..place * 9000 + 500);
            let place = window % 6;
            ring.close_window(place * 500..place * 500 + 500);
        }
        assert!(!files.is_swept(500_000, 64 << 10));
        assert!(!ring.is_swept(500_000, 64 << 10));
    }

    #[test]
    fn writes_that_are_alike_everywhere_leave_the_order_of_the_disk_and_hot_ones_do_not() {
        let mut random = 7u64;
        let mut next = |below: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let (mut even, mut hot) = (Habits::default(), Habits::default());
        for _ in 0..20 {
            let written: HashSet<u64> = (0..500).map(|_| next(100_000)).collect();
            even.close_window(written);
            let written: HashSet<u64> = (0..500).map(|_| 1000 + next(900)).collect();
            hot.close_window(written);
        }
        assert!(even.order(100_000, 64 << 10).is_sorted());
        let order = hot.order(100_000, 64 << 10);
        let early = order[..90_000].iter().filter(|e| (1000..1900).contains(*e));
        assert_eq!(early.count(), 0);
        // nothing was written lately, so that nothing speaks against it
        (0..4).for_each(|_| hot.close_window([]));
        assert!(!hot.order(100_000, 64 << 10).is_sorted());
    }

    #[test]
    fn a_periodic_job_is_remembered_beyond_four_windows() {
        let mut habits = Habits::default();
        for window in 1..=30u64 {
            habits.close_window(if window % 10 == 0 { vec![3] } else { vec![] });
        }
        for _ in 31..=36 {
            habits.close_window([]);
        }
        assert!(habits.probability(3) < Some(0.3), "not yet");
        for _ in 37..=39 {
            habits.close_window([]);
        }
        assert!(habits.probability(3) >= Some(0.5), "due in the fortieth");
    }

    #[test]
    fn the_table_is_calibrated_on_random_writes() {
        let mut habits = Habits::default();
        let mut random = 1u64;
        let mut hits = 0.0;
        for window in 0..400 {
            let written: Vec<u64> = (0..64)
                .filter(|_| {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    random >> 33 < (1 << 31) / 4
                })
                .collect();
            if window >= 200 {
                hits += written.len() as f64 - habits.expected_writes();
            }
            habits.close_window(written);
        }
        assert!(
            (hits / (200.0 * 64.0)).abs() < 0.03,
            "off by {hits} writes of 12800 chances"
        );
    }
}
