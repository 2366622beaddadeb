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
use std::num::NonZeroUsize;

use super::analogue::Search;
use super::conformal::{self, Calibration};
use super::expert::{self, EXPERTS, NAMES, Sight};
use super::gate::{self, Gate, Shares};
use super::quantile::{self, Pool, Quantiles};
use super::scene::{Outlook, Scene};
use super::smoothing::Levels;
use super::verdict::{self, Desk, Panel, Question, Rehearsed, Verdict};

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

/// A forecast waiting for its outcome.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Issued {
    /// The first sample that was forecast.
    pub(super) at: i64,
    pub(super) shares: [Shares; RANGES],
    pub(super) window_shares: Shares,
    pub(super) outlooks: Box<[Outlook; EXPERTS]>,
}

impl Issued {
    fn judge(&self, scene: &Scene<'_>, horizon: usize, question: Question) -> Verdict {
        let at = (self.at - scene.origin) as usize;
        Panel::new(scene, at, horizon, &self.outlooks, &mut Desk::default()).judge(question)
    }
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

    /// Forgets what it knew and learns from the last `span` samples before `now`, as if it had been there,
    /// beginning `phase` samples late. What comes of it does not depend on the number of threads.
    pub fn replay(
        &mut self,
        scene: &Scene<'_>,
        now: usize,
        span: usize,
        phase: usize,
        threads: NonZeroUsize,
    ) {
        *self = Self {
            fitted: self.fitted,
            ..Self::new(self.horizon)
        };
        let warm = scene.day.min(now / 2);
        let first = now.saturating_sub(span).max(warm).max(1) + phase;
        let moments: Vec<usize> = (first..now).step_by(ISSUE_EVERY).collect();
        let past = verdict::rehearse(scene, &moments, now, self.horizon, self.fitted, threads);
        let heard = |past: Rehearsed| (past.sight, past.verdicts.into_iter());
        let (sights, mut verdicts): (Vec<_>, Vec<_>) = past.into_iter().map(heard).unzip();
        let horizon = self.horizon;
        let mut judge = |issued: &Issued, question| {
            let place = ((issued.at - scene.origin) as usize - first) / ISSUE_EVERY;
            let verdict = verdicts[place].next();
            verdict.unwrap_or_else(|| issued.judge(scene, horizon, question))
        };
        for (at, sight) in moments.into_iter().zip(sights) {
            self.settle_by(scene, at, &mut judge);
            self.issue(scene, at, sight);
        }
        self.settle_by(scene, now, &mut judge);
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
        self.issue(scene, now, self.sight(scene, now));
    }

    fn sight(&self, scene: &Scene<'_>, now: usize) -> Sight {
        let levels = Levels::new(scene.values, &[now]);
        let (horizon, mut search) = (self.horizon, Search::default());
        expert::sight(scene, now, horizon, self.fitted, levels.at(0), &mut search)
    }

    fn issue(&mut self, scene: &Scene<'_>, now: usize, sight: Sight) {
        let Sight { outlooks, novelty } = sight;
        self.issued_at = scene.origin + now as i64;
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
        let horizon = self.horizon;
        self.settle_by(scene, now, |issued, question| {
            issued.judge(scene, horizon, question)
        });
    }

    /// The same with verdicts from elsewhere. They are asked for in the order of time: of each issue first
    /// the steps, then the window.
    fn settle_by(
        &mut self,
        scene: &Scene<'_>,
        now: usize,
        mut judge: impl FnMut(&Issued, Question) -> Verdict,
    ) {
        let end = scene.origin + now as i64;
        // A clock set back: what was issued after now will never be judged at its time.
        self.issued
            .retain(|issued| issued.at <= end && issued.at > scene.origin);
        self.settled_to = self.settled_to.min(end);
        let mut issued = std::mem::take(&mut self.issued);
        let last = issued
            .back()
            .map_or(i64::MIN, |last| last.at + self.horizon as i64);
        let one = gate::kept_after(1);
        for point in self.settled_to.max(scene.origin)..end.min(last) {
            self.age(one);
            for issued in issued.iter().filter(|issued| issued.at <= point) {
                let step = (point - issued.at) as usize;
                if step < self.horizon && verdict::judged(issued.at, step) {
                    let (verdict, range) = (judge(issued, Question::Step(step)), range(step));
                    let (low, high) = verdict.place(&issued.shares[range]);
                    self.gates[range].learn(&verdict.losses);
                    self.calibrations[range].learn(low, high);
                }
                if step + 1 == self.horizon {
                    let verdict = judge(issued, Question::Window);
                    let (low, high) = verdict.place(&issued.window_shares);
                    self.window_gate.learn(&verdict.losses);
                    self.window_calibration.learn(low, high);
                }
            }
            self.settled_to = point + 1;
        }
        self.age(gate::kept_after(end.saturating_sub(self.settled_to)));
        self.settled_to = end;
        issued.retain(|issued| issued.at + self.horizon as i64 > end);
        self.issued = issued;
    }

    fn age(&mut self, kept: gate::Kept) {
        for gate in self.gates.iter_mut().chain([&mut self.window_gate]) {
            gate.age(kept);
        }
    }

    /// The forecast from `now` on.
    pub fn forecast(&self, scene: &Scene<'_>, now: usize) -> Forecast {
        let Sight { outlooks, novelty } = self.sight(scene, now);
        let shares: [Shares; RANGES] = std::array::from_fn(|r| self.gates[r].shares(novelty));
        let window_shares = self.window_gate.shares(novelty);
        let levels: [_; RANGES] = std::array::from_fn(|r| self.calibrations[r].levels());
        let (mut sample, mut pool) = (Vec::new(), Pool::default());
        let voiced = |shares: &Shares| {
            let all = outlooks.iter().zip(*shares);
            all.filter(|(_, share)| *share > 0.0).collect::<Vec<_>>()
        };
        let heard = shares.each_ref().map(voiced);
        let steps = (0..self.horizon)
            .map(|step| {
                let r = range(step);
                pool.clear();
                for (outlook, share) in &heard[r] {
                    outlook.sample(scene, now, step, &mut sample);
                    pool.add(&sample, f64::from(*share));
                }
                pool.quantiles(&levels[r])
            })
            .collect::<Vec<Quantiles>>();
        pool.clear();
        for (outlook, share) in voiced(&window_shares) {
            outlook.maxima(scene, now, self.horizon, &mut sample);
            pool.add(&sample, f64::from(share));
        }
        let window_max = if pool.is_empty() {
            // History is shorter than the horizon and no window of that length was ever seen: the
            // largest of the steps' quantiles stands in, and is too low.
            std::array::from_fn(|k| steps.iter().map(|step| step[k]).fold(f64::MIN, f64::max))
        } else {
            pool.quantiles(&self.window_calibration.levels())
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

#[cfg(test)]
mod tests {
    use super::super::series::Series;
    use super::*;

    /// A replay hears all verdicts beforehand, and on several threads; a memory that was there hears them
    /// one by one.
    #[test]
    fn a_replay_comes_to_the_memory_that_was_there_all_the_time() {
        let value = |i: i64| (i * 7919 % 61) as f64 + if i > 1100 { 40.0 } else { 0.0 };
        let samples: Vec<_> = (0..1500).map(|i| (i * 300, value(i))).collect();
        let series = Series::from_samples(&samples).unwrap();
        let scene = Scene::of(&series);
        for (now, span, phase) in [
            (1500, 700, 0),
            (1490, 700, 5),
            (1100, 2000, 22),
            (40, 10, 0),
        ] {
            let mut there = Memory::new(48);
            let first = (now - now.min(span)).max(scene.day.min(now / 2));
            for at in (first + phase..now).step_by(ISSUE_EVERY) {
                there.advance(&scene, at);
            }
            there.settle(&scene, now);
            there.replayed = true;
            for threads in [1, 3] {
                let mut replayed = there.clone();
                let threads = NonZeroUsize::new(threads).unwrap();
                replayed.replay(&scene, now, span, phase, threads);
                assert_eq!(replayed, there, "{now} {span} {phase} {threads}");
            }
        }
    }
}
