//! Rolling origins: forecast from many moments of the past as if nothing after them were known, and
//! score what came.
//!
//! The baseline is exponential smoothing with the quantiles of its own errors at each step, over all
//! history. Nothing here is fitted to the part that is scored: the forecaster learns as it goes.

use std::num::NonZeroUsize;

use super::engine::{Forecast, ISSUE_EVERY, Memory};
use super::quantile::{self, LEVELS, Quantiles};
use super::scene::Scene;
use super::series::Series;
use super::smoothing;

/// Errors of the baseline kept for each step.
const BASELINE_ERRORS: usize = 600;

/// How a series is cut into forecasts.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Steps forecast from each origin.
    pub horizon: usize,
    /// Share of the series that is history before the first origin.
    pub history: f64,
    /// Whether ARIMA, ETS and MSTL are asked too.
    pub fitted: bool,
    /// Samples between origins. A number prime to the day visits every time of day.
    pub stride: usize,
}

/// Means over all origins of one series.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scores {
    /// Forecasts scored.
    pub origins: usize,
    /// Mean absolute error of the median over that of the last value carried on.
    pub mase: f64,
    /// Continuous ranked probability score, in the unit of the series.
    pub crps: f64,
    /// The same of the baseline.
    pub baseline_crps: f64,
    /// Share of outcomes inside the 80% interval.
    pub cover80: f64,
    /// Share of outcomes inside the 95% interval.
    pub cover95: f64,
    /// Share of windows whose maximum was within its 90% quantile.
    pub cover_max90: f64,
}

impl Scores {
    /// CRPS over the baseline's; 1 when both are exact.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        if self.baseline_crps > 0.0 {
            self.crps / self.baseline_crps
        } else {
            1.0
        }
    }
}

/// The last forecast of a backtest, for drawing.
#[derive(Clone, Debug)]
pub struct Sight {
    /// Index of the first forecast sample.
    pub at: usize,
    /// What was forecast there.
    pub forecast: Forecast,
}

/// Scores one series; nothing when it has no room for an origin.
#[must_use]
pub fn run(series: &Series, plan: Plan) -> Option<(Scores, Sight)> {
    let (values, day, horizon) = (&series.values[..], series.day(), plan.horizon);
    let first = ((values.len() as f64 * plan.history) as usize).max(1);
    let mut memory = if plan.fitted {
        Memory::fitted(horizon)
    } else {
        Memory::new(horizon)
    };
    let past = Scene::new(values, first, day);
    let week = super::forecast::REPLAY_DAYS * day;
    memory.replay(&past, first, week, 0, NonZeroUsize::MIN);
    let mut scene = Scene::new(values, first, day);
    let mut scaled_at = first;
    let mut issue_at = first;
    let mut tally = Tally::default();
    let mut sight = None;
    for now in (first..(values.len() + 1).saturating_sub(horizon)).step_by(plan.stride) {
        while issue_at <= now {
            if issue_at >= scaled_at + day {
                scene = Scene::new(values, issue_at, day);
                scaled_at = issue_at;
            }
            memory.advance(&scene, issue_at);
            issue_at += ISSUE_EVERY;
        }
        memory.settle(&scene, now);
        let forecast = memory.forecast(&scene, now);
        tally.add(&scene, now, &forecast);
        sight = Some(Sight { at: now, forecast });
    }
    Some((tally.means(horizon), sight?))
}

#[derive(Default)]
struct Tally {
    sums: Scores,
    error: f64,
    naive_error: f64,
}

impl Tally {
    fn add(&mut self, scene: &Scene<'_>, now: usize, forecast: &Forecast) {
        let levels = smoothing::Levels::new(scene.values, &[now]);
        let horizon = forecast.steps.len();
        let baseline = smoothing::spread(now, horizon, levels.at(0), BASELINE_ERRORS);
        let mut sample = Vec::new();
        let mut top = f64::MIN;
        for (step, quantiles) in forecast.steps.iter().enumerate() {
            let actual = scene.values[now + step];
            baseline.sample(scene, now, step, &mut sample);
            self.sums.baseline_crps += quantile::crps(&quantile::of_sample(&mut sample), actual);
            self.sums.crps += quantile::crps(quantiles, actual);
            self.sums.cover80 += inside(quantiles, 0.1, 0.9, actual);
            self.sums.cover95 += inside(quantiles, 0.025, 0.975, actual);
            self.error += (quantile::at(quantiles, 0.5) - actual).abs();
            self.naive_error += (scene.values[now - 1] - actual).abs();
            top = top.max(actual);
        }
        self.sums.cover_max90 += inside(&forecast.window_max, 0.0, 0.9, top);
        self.sums.origins += 1;
    }

    fn means(self, horizon: usize) -> Scores {
        let windows = self.sums.origins as f64;
        let steps = windows * horizon as f64;
        let ratio = if self.naive_error > 0.0 {
            self.error / self.naive_error
        } else {
            0.0
        };
        Scores {
            origins: self.sums.origins,
            mase: ratio,
            crps: self.sums.crps / steps,
            baseline_crps: self.sums.baseline_crps / steps,
            cover80: self.sums.cover80 / steps,
            cover95: self.sums.cover95 / steps,
            cover_max90: self.sums.cover_max90 / windows,
        }
    }
}

fn inside(quantiles: &Quantiles, low: f64, high: f64, actual: f64) -> f64 {
    let above = low < LEVELS[0] || quantile::at(quantiles, low) <= actual;
    f64::from(u8::from(above && actual <= quantile::at(quantiles, high)))
}
