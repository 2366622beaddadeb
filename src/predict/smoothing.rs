//! Simple exponential smoothing with the quantiles of its own past errors at each step.
//!
//! It is the baseline that everything else is measured against, and an expert in its own right: on a
//! series that has just changed level it is the only one that knows.

use super::scene::{self, Outlook};

/// Smoothing factors tried; the one with the smallest squared one-step error is kept.
const FACTORS: [f64; 7] = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9];
/// Errors kept for each step.
const ERRORS: usize = 150;
/// Samples before the level has forgotten where it started.
const SETTLE: usize = 100;

/// The level after each sample, with the factor that was best until each of some moments.
pub struct Levels {
    /// For each moment the place of its factor.
    best: Vec<usize>,
    /// For each factor the levels, up to the last moment that it was best at.
    of: [Vec<f64>; FACTORS.len()],
}

impl Levels {
    /// Levels of `values` for ascending `moments`, each a number of samples that are known. A level says
    /// nothing of what came later, so that all moments share one pass.
    pub fn new(values: &[f64], moments: &[usize]) -> Self {
        let start = values.first().copied().unwrap_or_default();
        let mut state = [start; FACTORS.len()];
        let mut loss = [0.0; FACTORS.len()];
        let mut from = 0;
        let mut ends = [0; FACTORS.len()];
        let mut best = Vec::with_capacity(moments.len());
        for moment in moments {
            for value in &values[from..*moment] {
                for (i, factor) in FACTORS.iter().enumerate() {
                    let miss = value - state[i];
                    loss[i] += miss * miss;
                    state[i] += factor * miss;
                }
            }
            from = *moment;
            let least = (0..FACTORS.len()).min_by(|a, b| loss[*a].total_cmp(&loss[*b]));
            best.push(least.unwrap_or(0));
            ends[best[best.len() - 1]] = from;
        }
        let of = std::array::from_fn(|i| {
            let mut level = start;
            let follow = |value: &f64| {
                level += FACTORS[i] * (value - level);
                level
            };
            values[..ends[i]].iter().map(follow).collect()
        });
        Self { best, of }
    }

    /// The levels as of one of the moments, by its place among them.
    pub fn at(&self, moment: usize) -> &[f64] {
        &self.of[self.best[moment]]
    }
}

/// Windows of the past moved from their level to the level of now, which is level plus past error.
pub fn outlook(now: usize, horizon: usize, levels: &[f64]) -> Outlook {
    spread(now, horizon, levels, ERRORS)
}

/// The same with at most `errors` errors for each step.
pub fn spread(now: usize, horizon: usize, levels: &[f64], errors: usize) -> Outlook {
    let last = now.saturating_sub(horizon);
    let first = SETTLE.min(last / 2).max(1);
    let stride = (last.saturating_sub(first) / errors).max(1);
    // An odd stride visits every time of day.
    let stride = stride | 1;
    let count = (last + 1).saturating_sub(first).div_ceil(stride);
    let starts = || (0..count).map(|i| first + i * stride);
    Outlook::Windows {
        backs: starts().map(|start| (now - start) as u32).collect(),
        shifts: starts()
            .map(|start| scene::shift(levels[now - 1] - levels[start - 1]))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_that_share_a_pass_have_the_levels_of_one_alone() {
        // first noise around a level, then a walk: the best factor changes
        let mut walk = 0.0;
        let values: Vec<f64> = (0..900u32)
            .map(|i| {
                let noise = f64::from(i.wrapping_mul(2_654_435_761) >> 20) / 4096.0 - 0.5;
                walk += if i > 300 { 9.0 * noise } else { 0.0 };
                walk + noise
            })
            .collect();
        let moments = [1, 150, 300, 301, 600, 900];
        let shared = Levels::new(&values, &moments);
        assert_ne!(shared.best[2], shared.best[5]);
        for (place, moment) in moments.into_iter().enumerate() {
            let alone = Levels::new(&values, &[moment]);
            assert_eq!(shared.at(place)[..moment], *alone.at(0));
        }
    }
}
