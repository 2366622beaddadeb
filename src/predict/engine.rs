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
//! [`Memory`] is all that is kept of a series between cycles: a few kilobytes, which [`super::record`]
//! turns into bytes and back. A series that has none yet is replayed over its last days first, which
//! is the same code at earlier times.
//!
//! Time is counted in samples since 1970, so that a memory finds its place in a history whose oldest
//! samples have been dropped. Outcomes are learned in the order of time whenever they are looked at:
//! every five minutes or once an hour comes to the same memory.

use std::collections::VecDeque;

use super::conformal::{self, Calibration};
use super::expert::{self, EXPERTS, NAMES, Sight};
use super::gate::{Gate, Shares};
use super::quantile::{self, K, Quantiles};
use super::scene::{Outlook, Scene};

/// Forecasts are judged in three ranges of steps: the next quarter hour or so, the hour, the rest.
pub(super) const RANGES: usize = 3;
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
fn judged(at: i64, step: usize) -> bool {
    step == 0 || step == 2 || (at + step as i64) % 5 == 0
}

/// A forecast waiting for its outcome.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Issued {
    /// The first sample that was forecast.
    pub(super) at: i64,
    pub(super) shares: [Shares; RANGES],
    pub(super) window_shares: Shares,
    pub(super) outlooks: Box<[Outlook; EXPERTS]>,
}

/// What has been learned about one series.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    pub(super) horizon: usize,
    pub(super) gates: [Gate; RANGES],
    pub(super) calibrations: [Calibration; RANGES],
    pub(super) window_gate: Gate,
    pub(super) window_calibration: Calibration,
    /// Oldest first; at most as many as a horizon has room for.
    pub(super) issued: VecDeque<Issued>,
    /// The first sample of the latest of them, judged or not.
    pub(super) issued_at: i64,
    /// Every outcome before this sample has been learned.
    pub(super) settled_to: i64,
    /// Whether it has learned from the history before its first forecast.
    pub(super) replayed: bool,
    /// Whether the experts are asked that have to be fitted.
    pub(super) fitted: bool,
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
            gates: [const { Gate::new() }; RANGES],
            calibrations: std::array::from_fn(|_| Calibration::new(conformal::STEPS)),
            window_gate: Gate::new(),
            window_calibration: Calibration::new(conformal::WINDOW),
            issued: VecDeque::new(),
            issued_at: i64::MIN,
            settled_to: i64::MIN,
            replayed: false,
            fitted: false,
        }
    }

    /// Knows nothing yet, and will ask ARIMA, ETS and MSTL too: a little better, and ten times slower.
    #[must_use]
    pub fn fitted(horizon: usize) -> Self {
        Self {
            fitted: true,
            ..Self::new(horizon)
        }
    }

    /// Learns from the last `span` samples before `now`, as if it had been there, beginning `phase`
    /// samples late.
    pub fn replay(&mut self, scene: &Scene<'_>, now: usize, span: usize, phase: usize) {
        let warm = scene.day.min(now / 2);
        let first = now.saturating_sub(span).max(warm).max(1);
        for at in (first + phase..now).step_by(ISSUE_EVERY) {
            self.advance(scene, at);
        }
        self.settle(scene, now);
        self.replayed = true;
    }

    /// Steps that its forecasts reach.
    #[must_use]
    pub fn horizon(&self) -> usize {
        self.horizon
    }

    /// Whether it has learned from the history before its first forecast.
    #[must_use]
    pub fn is_replayed(&self) -> bool {
        self.replayed
    }

    /// Samples before `now` that it has not looked at.
    #[must_use]
    pub fn missed(&self, scene: &Scene<'_>, now: usize) -> i64 {
        (scene.origin + now as i64).saturating_sub(self.settled_to)
    }

    /// Judges what is known by `now`, then issues a forecast to be judged later.
    pub fn advance(&mut self, scene: &Scene<'_>, now: usize) {
        self.settle(scene, now);
        self.issued_at = scene.origin + now as i64;
        let Sight { outlooks, novelty } = expert::sight(scene, now, self.horizon, self.fitted);
        self.issued.push_back(Issued {
            at: self.issued_at,
            shares: std::array::from_fn(|r| self.gates[r].shares(novelty)),
            window_shares: self.window_gate.shares(novelty),
            outlooks: Box::new(outlooks),
        });
    }

    /// Judges what is known by `now`, and issues a forecast if it is time for one. Says whether it did:
    /// what a memory learns between two issues it can learn again from the history, so that it need not
    /// be stored more often.
    pub fn keep_up(&mut self, scene: &Scene<'_>, now: usize) -> bool {
        self.settle(scene, now);
        let at = scene.origin + now as i64;
        let due = at.saturating_sub(self.issued_at) >= ISSUE_EVERY as i64 || at < self.issued_at;
        if due {
            self.advance(scene, now);
        }
        due
    }

    /// Learns from every outcome before `now` that was still open.
    pub fn settle(&mut self, scene: &Scene<'_>, now: usize) {
        let end = scene.origin + now as i64;
        // A clock set back: what was issued after now will never be judged at its time.
        self.issued
            .retain(|issued| issued.at <= end && issued.at > scene.origin);
        self.settled_to = self.settled_to.min(end);
        let mut issued = std::mem::take(&mut self.issued);
        let last = issued
            .back()
            .map_or(i64::MIN, |last| last.at + self.horizon as i64);
        for point in self.settled_to.max(scene.origin)..end.min(last) {
            self.age(1);
            for issued in issued.iter().filter(|issued| issued.at <= point) {
                let step = (point - issued.at) as usize;
                if step < self.horizon && judged(issued.at, step) {
                    self.settle_step(scene, issued, step);
                }
                if step + 1 == self.horizon {
                    self.settle_window(scene, issued);
                }
            }
            self.settled_to = point + 1;
        }
        self.age(end.saturating_sub(self.settled_to));
        self.settled_to = end;
        issued.retain(|issued| issued.at + self.horizon as i64 > end);
        self.issued = issued;
    }

    fn age(&mut self, samples: i64) {
        for gate in self.gates.iter_mut().chain([&mut self.window_gate]) {
            gate.age(samples);
        }
    }

    fn settle_step(&mut self, scene: &Scene<'_>, issued: &Issued, step: usize) {
        let range = range(step);
        let at = (issued.at - scene.origin) as usize;
        let sample = |outlook: &Outlook, out: &mut Vec<f64>| outlook.sample(scene, at, step, out);
        let actual = scene.values[at + step];
        let (losses, low, high) = judge(issued, &issued.shares[range], actual, sample);
        self.gates[range].learn(&losses);
        self.calibrations[range].learn(low, high);
    }

    fn settle_window(&mut self, scene: &Scene<'_>, issued: &Issued) {
        let at = (issued.at - scene.origin) as usize;
        let sample =
            |outlook: &Outlook, out: &mut Vec<f64>| outlook.maxima(scene, at, self.horizon, out);
        let actual = scene.values[at..at + self.horizon]
            .iter()
            .copied()
            .fold(f64::MIN, f64::max);
        let (losses, low, high) = judge(issued, &issued.window_shares, actual, sample);
        self.window_gate.learn(&losses);
        self.window_calibration.learn(low, high);
    }

    /// The forecast from `now` on.
    pub fn forecast(&self, scene: &Scene<'_>, now: usize) -> Forecast {
        let Sight { outlooks, novelty } = expert::sight(scene, now, self.horizon, self.fitted);
        let shares: [Shares; RANGES] = std::array::from_fn(|r| self.gates[r].shares(novelty));
        let window_shares = self.window_gate.shares(novelty);
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
                    if sample.is_empty() {
                        continue;
                    }
                    let weight = f64::from(share) / sample.len() as f64;
                    pool.extend(sample.iter().map(|value| (*value, weight)));
                }
                read(&mut pool, &levels[r])
            })
            .collect::<Vec<Quantiles>>();
        pool.clear();
        for (outlook, share) in outlooks
            .iter()
            .zip(window_shares)
            .filter(|(_, share)| *share > 0.0)
        {
            outlook.maxima(scene, now, self.horizon, &mut sample);
            let weight = f64::from(share) / sample.len() as f64;
            pool.extend(sample.iter().map(|value| (*value, weight)));
        }
        let window_max = if pool.is_empty() {
            // History is shorter than the horizon and no window of that length was ever seen: the
            // largest of the steps' quantiles stands in, and is too low.
            std::array::from_fn(|k| steps.iter().map(|step| step[k]).fold(f64::MIN, f64::max))
        } else {
            read(&mut pool, &self.window_calibration.levels())
        };
        let paths = self.paths(scene, now, &outlooks, &window_shares);
        let total = |expert: usize| shares.iter().map(|shares| shares[expert]).sum::<f32>();
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
    fn paths(
        &self,
        scene: &Scene<'_>,
        now: usize,
        outlooks: &[Outlook],
        shares: &Shares,
    ) -> Vec<Vec<f64>> {
        let mut paths = Vec::new();
        for (outlook, share) in outlooks.iter().zip(shares) {
            outlook.paths(
                scene,
                now,
                self.horizon,
                (share * PATHS as f32).round() as usize,
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
        let share = f64::from(shares[i]);
        low += share * below;
        high += share * upto;
        voiced += share;
    }
    let worst = losses.iter().copied().fold(0.0, f64::max);
    let losses = losses.map(|loss| if loss.is_nan() { 2.0 * worst } else { loss });
    if voiced > 0.0 {
        (losses, low / voiced, high / voiced)
    } else {
        (losses, 0.0, 1.0)
    }
}
