//! Intervals that cover what they claim.
//!
//! For each known outcome, where did it fall in the forecast made for it? If the forecasts were
//! honest these levels would be uniform. Their empirical distribution, with old ones fading, says at
//! which level to read a forecast so that a fraction `p` of outcomes lies below: the split-conformal
//! rule on probability scale. On top an adaptive nudge moves each level a little after every hit or
//! miss, so that coverage returns to its claim also while the series changes.

use super::quantile::{K, LEVELS};

/// A multiple of four.
pub(super) const BINS: usize = 200;
/// The bound of the adaptive nudge.
const NUDGE_LIMIT: f64 = 0.1;

/// How fast a calibration believes what it sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Outcomes until the weight of an old one has fallen to a third.
    pub fade: f64,
    /// Weight, in outcomes, of the belief that forecasts are honest.
    pub prior: f64,
    /// Step of the adaptive nudge.
    pub nudge: f64,
    /// How far ties are drawn to the middle, from 0 to 1. An interval contains the values that it ends on,
    /// so one that was calibrated with ties spread evenly covers more than it claims.
    pub drawn: f64,
}

/// Steps: many outcomes, close to each other and alike, and a pool that is nearly honest by itself.
pub const STEPS: Pace = Pace {
    fade: 2000.0,
    prior: 500.0,
    nudge: 0.0003,
    drawn: 0.5,
};
/// Window maxima: a few a day, and a pool that is too low by itself. What is asked of them is a bound and no
/// interval.
pub const WINDOW: Pace = Pace {
    fade: 200.0,
    prior: 20.0,
    nudge: 0.01,
    drawn: 0.0,
};

/// The memory of where outcomes fell.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    pub(super) bins: [f32; BINS],
    pub(super) nudge: [f32; K],
    pub(super) seen: u32,
    pace: Pace,
}

impl Calibration {
    /// Has seen nothing.
    pub fn new(pace: Pace) -> Self {
        Self {
            bins: [(pace.prior / BINS as f64) as f32; BINS],
            nudge: [0.0; K],
            seen: 0,
            pace,
        }
    }

    /// Goes on from what was kept.
    pub(super) fn restored(bins: [f32; BINS], nudge: [f32; K], seen: u32, pace: Pace) -> Self {
        Self {
            bins,
            nudge,
            seen,
            pace,
        }
    }

    /// Takes in an outcome that fell between two levels of its forecast: equal when the forecast has
    /// no tie there.
    pub fn learn(&mut self, low: f64, high: f64) {
        // A tie is spread by a sequence that visits every part of it.
        self.seen = self.seen.wrapping_add(1);
        let even = f64::from(self.seen.reverse_bits()) / (f64::from(u32::MAX) + 1.0);
        let level = low + (high - low) * even;
        let level = level + (0.5f64.max(low).min(high) - level) * self.pace.drawn;
        let hits = self.hits(level);
        for k in 0..K {
            let hit = if hits[k] { 1.0 } else { 0.0 };
            let moved = f64::from(self.nudge[k]) + self.pace.nudge * (LEVELS[k] - hit);
            self.nudge[k] = moved.clamp(-NUDGE_LIMIT, NUDGE_LIMIT) as f32;
        }
        let keep = (1.0 - 1.0 / self.pace.fade) as f32;
        self.bins.iter_mut().for_each(|bin| *bin *= keep);
        self.bins[((level * BINS as f64) as usize).min(BINS - 1)] += 1.0;
    }

    /// The level at which to read a forecast for each of [`LEVELS`], never decreasing.
    pub fn levels(&self) -> [f64; K] {
        let (fours, sums) = (self.bins.as_chunks::<4>().0, self.sums());
        let total: f64 = sums.iter().sum();
        let mut read = [1.0; K];
        let (mut passed, mut k) = (0.0, 0);
        for (place, sum) in sums.into_iter().enumerate() {
            // Most groups of bins have no level in them.
            if k < K && passed + sum >= LEVELS[k] * total {
                let mut passed = passed;
                for (i, bin) in (4 * place..).zip(fours[place].map(f64::from)) {
                    while k < K && passed + bin >= LEVELS[k] * total {
                        let part = if bin > 0.0 {
                            ((LEVELS[k] * total - passed) / bin).max(0.0) // sums are rounded
                        } else {
                            0.0
                        };
                        read[k] = (i as f64 + part) / BINS as f64;
                        k += 1;
                    }
                    passed += bin;
                }
            }
            passed += sum;
        }
        let mut least = 0.0f64;
        for (level, nudge) in read.iter_mut().zip(self.nudge) {
            least = least.max((*level + f64::from(nudge)).clamp(0.0, 1.0));
            *level = least;
        }
        read
    }

    /// For each of [`LEVELS`] whether an outcome at `level` lies within it, without reading where they lie:
    /// what lies below `level` is less than the level's share.
    fn hits(&self, level: f64) -> [bool; K] {
        let sums = self.sums();
        let mut below = [0.0; BINS / 4];
        let mut total = 0.0;
        for (below, sum) in below.iter_mut().zip(sums) {
            *below = total;
            total += sum;
        }
        let share = |level: f64| {
            let place = level.clamp(0.0, 1.0) * BINS as f64;
            let bin = (place as usize).min(BINS - 1);
            let before = &self.bins[bin / 4 * 4..bin];
            let part = (place - bin as f64) * f64::from(self.bins[bin]);
            below[bin / 4] + f64::from(before.iter().sum::<f32>()) + part
        };
        // Nudges are small: most levels lie so far from the outcome that theirs need not be looked at.
        let widest = self.nudge.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let (least, most) = (
            share(level - f64::from(widest)),
            share(level + f64::from(widest)),
        );
        let mut hit = level <= 0.0;
        std::array::from_fn(|k| {
            let claimed = LEVELS[k] * total;
            hit |= most <= claimed
                || least <= claimed && share(level - f64::from(self.nudge[k])) <= claimed;
            hit
        })
    }

    /// Of each four bins.
    fn sums(&self) -> [f64; BINS / 4] {
        let fours = self.bins.as_chunks::<4>().0;
        std::array::from_fn(|place| {
            let [a, b, c, d] = fours[place];
            f64::from((a + b) + (c + d))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Intervals of machines whose writes are of few sizes covered up to 94% where they claimed 80%.
    #[test]
    fn an_interval_of_values_that_repeat_covers_less_than_all_of_its_ties() {
        let covered = |pace: Pace| {
            let mut calibration = Calibration::new(pace);
            // sizes with a share of 5, 90 and 5% in the pool, and of 2, 96 and 2% in truth
            for i in 0..5000 {
                let (low, high) = match i % 50 {
                    0 => (0.0, 0.05),
                    1 => (0.95, 1.0),
                    _ => (0.05, 0.95),
                };
                calibration.learn(low, high);
            }
            let levels = calibration.levels();
            (levels[4], levels[K - 5])
        };
        assert_eq!((LEVELS[4], LEVELS[K - 5]), (0.1, 0.9));
        let even = covered(Pace {
            drawn: 0.0,
            ..STEPS
        });
        let drawn = covered(STEPS);
        assert!(
            drawn.0 > even.0 + 0.1 && drawn.1 < even.1 - 0.1,
            "{even:?} {drawn:?}"
        );
        assert!(drawn.0 < 0.4 && drawn.1 > 0.6, "{drawn:?}");
    }

    proptest! {
        #[test]
        fn an_outcome_lies_within_the_levels_that_are_read_above_it(
            outcomes in prop::collection::vec(0.0..=1.0f64, 0..300), level in 0.0..=1.0f64, fast in any::<bool>(),
        ) {
            let mut calibration = Calibration::new(if fast { WINDOW } else { STEPS });
            for outcome in outcomes {
                calibration.learn(outcome, outcome);
            }
            for (read, hit) in calibration.levels().into_iter().zip(calibration.hits(level)) {
                let is_told_apart = (level - read).abs() > 1e-5; // sums are rounded
                prop_assert!(!is_told_apart || hit == (level <= read), "{level} {read} {hit}");
            }
        }
    }
}
