//! What the replayed planner knows of the future.

use super::super::Distribution;

/// Foresees the maximum of a node's demand over the next steps from what came before.
pub trait Forecaster {
    /// `past` ends with the present value.
    fn window_max(&mut self, node: usize, past: &[f64], steps: usize) -> Option<Distribution>;
}

/// Forecasts by what happened: the windows of the last day, and those at the same time of earlier
/// days. No learning; the yardstick for better ones.
pub struct Recent {
    /// Steps in a day.
    pub day: usize,
}

/// Days whose window at the same time of day is taken.
const DAYS: usize = 7;
/// How often such a window counts, against one of the last day.
const SAME_TIME_WEIGHT: usize = 8;

impl Forecaster for Recent {
    fn window_max(&mut self, _: usize, past: &[f64], steps: usize) -> Option<Distribution> {
        let now = past.len();
        let max = |from: usize| {
            past[from..(from + steps).min(now)]
                .iter()
                .copied()
                .fold(f64::MIN, f64::max)
        };
        let mut sample: Vec<f64> = (now.saturating_sub(self.day)..now.saturating_sub(steps))
            .step_by(steps)
            .map(max)
            .collect();
        for days in 1..=DAYS {
            if let Some(from) = now.checked_sub(days * self.day) {
                sample.extend(std::iter::repeat_n(max(from), SAME_TIME_WEIGHT));
            }
        }
        sample.sort_by(f64::total_cmp);
        let n = sample.len() as f64;
        let level = |i: usize| (i as f64 + 0.5) / n;
        Distribution::new(sample.iter().enumerate().map(|(i, v)| (level(i), *v))).ok()
    }
}
