//! Simple exponential smoothing with the quantiles of its own past errors at each step.
//!
//! It is the baseline that everything else is measured against, and an expert in its own right: on a
//! series that has just changed level it is the only one that knows.

use super::scene::{self, Outlook, Scene};

/// Smoothing factors tried; the one with the smallest squared one-step error is kept.
const FACTORS: [f64; 7] = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9];
/// Errors kept for each step.
const ERRORS: usize = 150;
/// Samples before the level has forgotten where it started.
const SETTLE: usize = 100;

/// The level after each sample, with the best factor.
fn levels(past: &[f64]) -> Vec<f64> {
    let mut state = [past[0]; FACTORS.len()];
    let mut loss = [0.0; FACTORS.len()];
    for value in past {
        for (i, factor) in FACTORS.iter().enumerate() {
            let miss = value - state[i];
            loss[i] += miss * miss;
            state[i] += factor * miss;
        }
    }
    let best = (0..FACTORS.len())
        .min_by(|a, b| loss[*a].total_cmp(&loss[*b]))
        .unwrap_or(0);
    let mut level = past[0];
    let follow = |value: &f64| {
        level += FACTORS[best] * (value - level);
        level
    };
    past.iter().map(follow).collect()
}

/// Windows of the past moved from their level to the level of now, which is level plus past error.
pub fn outlook(scene: &Scene<'_>, now: usize, horizon: usize) -> Outlook {
    spread(scene, now, horizon, ERRORS)
}

/// The same with at most `errors` errors for each step.
pub fn spread(scene: &Scene<'_>, now: usize, horizon: usize, errors: usize) -> Outlook {
    let levels = levels(&scene.values[..now]);
    let last = now.saturating_sub(horizon);
    let first = SETTLE.min(last / 2).max(1);
    let stride = (last.saturating_sub(first) / errors).max(1);
    // An odd stride visits every time of day.
    let starts = || (first..=last).step_by(stride | 1);
    Outlook::Windows {
        backs: starts().map(|start| (now - start) as u32).collect(),
        shifts: starts()
            .map(|start| scene::shift(levels[now - 1] - levels[start - 1]))
            .collect(),
    }
}
