//! The forecaster: experts, gate and calibration, run through time.
//!
//! ```text
//!  history ──► experts ──► mixture ──► recalibrated quantiles ──► forecast
//!                 ▲           ▲               ▲
//!                 │         gate        calibration
//!                 │           └── CRPS ───────┴── level of the outcome
//!                 └─ issued forecasts, judged when their outcomes are known
//! ```
//!
//! [`Memory`] is all that is kept of a series between cycles: a few kilobytes. A series that has none
//! yet is replayed over its last days first, which is the same code at earlier times.

use std::collections::VecDeque;

use super::conformal::{self, Calibration};
use super::expert::{self, EXPERTS, NAMES};
use super::gate::{Gate, Shares};
use super::quantile::{self, K, Quantiles};
use super::scene::{Outlook, Scene};

/// Forecasts are judged in three ranges of steps: the next quarter hour or so, the hour, the rest.
const RANGES: usize = 3;
const RANGE_ENDS: [usize; RANGES - 1] = [4, 16];
/// Samples between two forecasts that are issued to be judged: about two hours, and prime, so that
/// every phase of an hourly job is judged sooner or later.
pub const ISSUE_EVERY: usize = 23;

/// Scenario paths in a forecast.
const PATHS: usize = 20;

fn range(step: usize) -> usize {
    RANGE_ENDS.iter().filter(|end| step >= **end).count()
}

/// Whether a forecast issued at `at` is judged on `step`. A fifth of the steps say as much as all; which
/// fifth changes with the issue, so that no phase of a job escapes.
fn judged(at: usize, step: usize) -> bool {
    step == 0 || step == 2 || (at + step).is_multiple_of(5)
}

/// A forecast waiting for its outcome.
#[derive(Clone)]
struct Issued {
    at: usize,
    shares: [Shares; RANGES],
    window_shares: Shares,
    settled: usize,
    outlooks: Box<[Outlook; EXPERTS]>,
}

/// What has been learned about one series.
#[derive(Clone)]
pub struct Memory {
    horizon: usize,
    gates: [Gate; RANGES],
    calibrations: [Calibration; RANGES],
    window_gate: Gate,
    window_calibration: Calibration,
    issued: VecDeque<Issued>,
    aged_to: usize,
}

/// Distributions for the samples after now.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// Quantiles at [`quantile::LEVELS`] for each step.
    pub steps: Vec<Quantiles>,
    /// Quantiles of the maximum over all steps.
    pub window_max: Quantiles,
    /// Ways the future could go: past windows of the leading experts, moved to today's level where
    /// the expert says so. Unlike the quantiles they keep the order in time.
    pub paths: Vec<Vec<f64>>,
    /// The expert with the largest share.
    pub chosen: &'static str,
}

impl Memory {
    /// Knows nothing yet.
    pub fn new(horizon: usize) -> Self {
        Self {
            horizon,
            gates: Default::default(),
            calibrations: std::array::from_fn(|_| Calibration::new(conformal::STEPS)),
            window_gate: Gate::default(),
            window_calibration: Calibration::new(conformal::WINDOW),
            issued: VecDeque::new(),
            aged_to: 0,
        }
    }

    /// Learns from the last `span` samples before `now`, as if it had been there.
    pub fn replay(&mut self, scene: &Scene<'_>, now: usize, span: usize) {
        let warm = scene.day.min(now / 2);
        let first = now.saturating_sub(span).max(warm).max(1);
        for at in (first..now).step_by(ISSUE_EVERY) {
            self.advance(scene, at);
        }
        self.settle(scene, now);
    }

    /// Judges what is known by `now`, then issues a forecast to be judged later.
    pub fn advance(&mut self, scene: &Scene<'_>, now: usize) {
        self.settle(scene, now);
        self.issued.push_back(Issued {
            at: now,
            shares: std::array::from_fn(|r| self.gates[r].shares()),
            window_shares: self.window_gate.shares(),
            settled: 0,
            outlooks: Box::new(expert::outlooks(scene, now, self.horizon)),
        });
    }

    /// Learns from every outcome before `now` that was still open.
    pub fn settle(&mut self, scene: &Scene<'_>, now: usize) {
        let passed = now.saturating_sub(self.aged_to);
        self.aged_to = now;
        for gate in self.gates.iter_mut().chain([&mut self.window_gate]) {
            gate.age(passed);
        }
        let mut issued = std::mem::take(&mut self.issued);
        for forecast in &mut issued {
            let due = (now - forecast.at).min(self.horizon);
            for step in (forecast.settled..due).filter(|step| judged(forecast.at, *step)) {
                self.settle_step(scene, forecast, step);
            }
            if due == self.horizon && forecast.settled < due {
                self.settle_window(scene, forecast);
            }
            forecast.settled = due;
        }
        issued.retain(|forecast| forecast.settled < self.horizon);
        self.issued = issued;
    }

    fn settle_step(&mut self, scene: &Scene<'_>, issued: &Issued, step: usize) {
        let range = range(step);
        let sample =
            |outlook: &Outlook, out: &mut Vec<f64>| outlook.sample(scene, issued.at, step, out);
        let actual = scene.values[issued.at + step];
        let (losses, low, high) = judge(issued, &issued.shares[range], actual, sample);
        self.gates[range].learn(&losses);
        self.calibrations[range].learn(low, high);
    }

    fn settle_window(&mut self, scene: &Scene<'_>, issued: &Issued) {
        let sample = |outlook: &Outlook, out: &mut Vec<f64>| {
            outlook.maxima(scene, issued.at, self.horizon, out)
        };
        let actual = scene.values[issued.at..issued.at + self.horizon]
            .iter()
            .copied()
            .fold(f64::MIN, f64::max);
        let (losses, low, high) = judge(issued, &issued.window_shares, actual, sample);
        self.window_gate.learn(&losses);
        self.window_calibration.learn(low, high);
    }

    /// The forecast from `now` on.
    pub fn forecast(&self, scene: &Scene<'_>, now: usize) -> Forecast {
        let outlooks = expert::outlooks(scene, now, self.horizon);
        let shares: [Shares; RANGES] = std::array::from_fn(|r| self.gates[r].shares());
        let levels: [_; RANGES] = std::array::from_fn(|r| self.calibrations[r].levels());
        let (mut sample, mut pool) = (Vec::new(), Vec::new());
        let steps = (0..self.horizon)
            .map(|step| {
                let r = range(step);
                pool.clear();
                for (outlook, share) in outlooks
                    .iter()
                    .zip(shares[r])
                    .filter(|(_, share)| *share > 0.0)
                {
                    outlook.sample(scene, now, step, &mut sample);
                    let weight = share / sample.len() as f64;
                    pool.extend(sample.iter().map(|value| (*value, weight)));
                }
                read(&mut pool, &levels[r])
            })
            .collect::<Vec<Quantiles>>();
        pool.clear();
        for (outlook, share) in outlooks
            .iter()
            .zip(self.window_gate.shares())
            .filter(|(_, share)| *share > 0.0)
        {
            outlook.maxima(scene, now, self.horizon, &mut sample);
            let weight = share / sample.len() as f64;
            pool.extend(sample.iter().map(|value| (*value, weight)));
        }
        let window_max = if pool.is_empty() {
            // History is shorter than the horizon and no window of that length was ever seen: the
            // largest of the steps' quantiles stands in, and is too low.
            std::array::from_fn(|k| steps.iter().map(|step| step[k]).fold(f64::MIN, f64::max))
        } else {
            read(&mut pool, &self.window_calibration.levels())
        };
        let paths = self.paths(scene, now, &outlooks);
        let total = |expert: usize| shares.iter().map(|shares| shares[expert]).sum::<f64>();
        let chosen = (0..EXPERTS)
            .max_by(|a, b| total(*a).total_cmp(&total(*b)))
            .unwrap_or(0);
        Forecast {
            steps,
            window_max,
            paths,
            chosen: NAMES[chosen],
        }
    }

    /// Each expert that deals in windows gives as many paths as its share of the window's maximum.
    fn paths(&self, scene: &Scene<'_>, now: usize, outlooks: &[Outlook]) -> Vec<Vec<f64>> {
        let mut paths = Vec::new();
        for (outlook, share) in outlooks.iter().zip(self.window_gate.shares()) {
            outlook.paths(
                scene,
                now,
                self.horizon,
                (share * PATHS as f64).round() as usize,
                &mut paths,
            );
        }
        paths
    }
}

impl Forecast {
    /// The probability that the window's maximum passes `threshold`.
    #[must_use]
    pub fn passing(&self, threshold: f64) -> f64 {
        1.0 - quantile::level_of(&self.window_max, threshold)
    }
}

fn read(pool: &mut [(f64, f64)], levels: &[f64; K]) -> Quantiles {
    let mut quantiles = [0.0; K];
    quantile::of_pool(pool, levels, &mut quantiles);
    quantiles
}

/// Each expert's loss on one outcome, and between which levels of the mixture it fell. An expert
/// without an opinion loses the most.
fn judge(
    issued: &Issued,
    shares: &Shares,
    actual: f64,
    mut draw: impl FnMut(&Outlook, &mut Vec<f64>),
) -> ([f64; EXPERTS], f64, f64) {
    let (mut low, mut high, mut voiced) = (0.0, 0.0, 0.0);
    let mut sample = Vec::new();
    let mut losses = [f64::NAN; EXPERTS];
    for (i, outlook) in issued.outlooks.iter().enumerate() {
        draw(outlook, &mut sample);
        if sample.is_empty() {
            continue;
        }
        sample.sort_unstable_by(f64::total_cmp);
        losses[i] = quantile::crps_of_sorted(&sample, actual);
        let (below, upto) = quantile::share_of_sorted(&sample, actual);
        low += shares[i] * below;
        high += shares[i] * upto;
        voiced += shares[i];
    }
    let worst = losses.iter().copied().fold(0.0, f64::max);
    let losses = losses.map(|loss| if loss.is_nan() { 2.0 * worst } else { loss });
    if voiced > 0.0 {
        (losses, low / voiced, high / voiced)
    } else {
        (losses, 0.0, 1.0)
    }
}
