//! How a forecast fared, once its outcomes are known.
//!
//! ```text
//! moment ─► what each expert expects ─► for each judged step, and for the window's maximum:
//!                                       each expert's loss, and where in its sample the outcome fell
//! ```
//!
//! None of it depends on what the memory has learned: shares come into it only when the verdicts of
//! all experts are drawn together. That is why a replay hears its verdicts beforehand, on several
//! threads ([`rehearse`]), and learns from them afterwards in the order of time.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::expert::{self, EXPERTS, Sight};
use super::gate::Shares;
use super::quantile;
use super::scene::{Outlook, Scene};
use super::smoothing::Levels;

/// What is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The sample so many steps after the first.
    Step(usize),
    /// The maximum of the window.
    Window,
}

/// Whether a forecast issued at `at` is judged on `step`. A fifth of the steps say as much as all; which
/// fifth changes with the issue, so that no phase of a job escapes.
pub fn judged(at: i64, step: usize) -> bool {
    step == 0 || step == 2 || (at + step as i64) % 5 == 0
}

/// What one outcome said about every expert.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// CRPS; an expert without an opinion loses the most.
    pub losses: [f64; EXPERTS],
    /// The shares of each expert's sample below the outcome and not above it; none of those that are silent.
    places: [Option<(f64, f64)>; EXPERTS],
}

impl Verdict {
    /// Between which levels of the mixture the outcome fell.
    pub fn place(&self, shares: &Shares) -> (f64, f64) {
        let (mut low, mut high, mut voiced) = (0.0, 0.0, 0.0);
        for (place, share) in self.places.iter().zip(shares) {
            let Some((below, upto)) = place else { continue };
            let share = f64::from(*share);
            low += share * below;
            high += share * upto;
            voiced += share;
        }
        if voiced > 0.0 {
            (low / voiced, high / voiced)
        } else {
            (0.0, 1.0)
        }
    }
}

/// The experts' outlooks at one moment, before their judge.
pub struct Panel<'a> {
    scene: &'a Scene<'a>,
    at: usize,
    horizon: usize,
    outlooks: &'a [Outlook; EXPERTS],
    /// Sorted samples of the outlooks that expect the same at every step.
    still: [Vec<f64>; EXPERTS],
    sample: Vec<f64>,
}

impl<'a> Panel<'a> {
    /// What was expected of the `horizon` samples from `at` on.
    pub fn new(
        scene: &'a Scene<'a>,
        at: usize,
        horizon: usize,
        outlooks: &'a [Outlook; EXPERTS],
    ) -> Self {
        Self {
            scene,
            at,
            horizon,
            outlooks,
            still: [const { Vec::new() }; EXPERTS],
            sample: Vec::new(),
        }
    }

    /// Judges all experts on one outcome, which must be known.
    pub fn judge(&mut self, question: Question) -> Verdict {
        let actual = match question {
            Question::Step(step) => self.scene.values[self.at + step],
            Question::Window => self.scene.top(self.at, self.horizon),
        };
        let mut losses = [f64::NAN; EXPERTS];
        let mut places = [None; EXPERTS];
        for i in 0..EXPERTS {
            let sample = self.sample(i, question);
            if !sample.is_empty() {
                losses[i] = quantile::crps_of_sorted(sample, actual);
                places[i] = Some(quantile::share_of_sorted(sample, actual));
            }
        }
        let worst = losses.iter().copied().fold(0.0, f64::max);
        let losses = losses.map(|loss| if loss.is_nan() { 2.0 * worst } else { loss });
        Verdict { losses, places }
    }

    /// One expert's sample, ascending.
    fn sample(&mut self, expert: usize, question: Question) -> &[f64] {
        let outlook = &self.outlooks[expert];
        let is_still = matches!(outlook, Outlook::Recent { .. });
        let sample = match question {
            Question::Step(_) if is_still && !self.still[expert].is_empty() => {
                return &self.still[expert];
            }
            Question::Step(step) => {
                let sample = if is_still {
                    &mut self.still[expert]
                } else {
                    &mut self.sample
                };
                outlook.sample(self.scene, self.at, step, sample);
                sample
            }
            Question::Window => {
                outlook.maxima(self.scene, self.at, self.horizon, &mut self.sample);
                &mut self.sample
            }
        };
        quantile::sort(sample);
        sample
    }
}

/// What was expected at a moment of the past, and every verdict on it that is known since, in the order
/// of time: first a step's, then that of the window that ends with it.
pub struct Rehearsed {
    /// What was expected.
    pub sight: Sight,
    /// How it fared.
    pub verdicts: Vec<Verdict>,
}

/// Looks from each of the ascending `moments` at what is known at `now`, on so many threads.
pub fn rehearse(
    scene: &Scene<'_>,
    moments: &[usize],
    now: usize,
    horizon: usize,
    fitted: bool,
    threads: NonZeroUsize,
) -> Vec<Rehearsed> {
    let levels = Levels::new(scene.values, moments);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(&at) = moments.get(place) else {
                return done;
            };
            let sight = expert::sight(scene, at, horizon, fitted, levels.at(place));
            let mut panel = Panel::new(scene, at, horizon, &sight.outlooks);
            let questions = questions(scene.origin + at as i64, horizon, now - at);
            let verdicts = questions.map(|question| panel.judge(question)).collect();
            done.push((place, Rehearsed { sight, verdicts }));
        }
    };
    let mut done = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads.get().min(moments.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let mut done = work();
        for helper in helpers {
            match helper.join() {
                Ok(theirs) => done.extend(theirs),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, rehearsed)| rehearsed).collect()
}

/// What is judged of a forecast issued at `at`, once so many samples after it are known.
fn questions(at: i64, horizon: usize, known: usize) -> impl Iterator<Item = Question> {
    let steps = (0..horizon.min(known)).filter(move |step| judged(at, *step));
    let window = (known >= horizon).then_some(Question::Window);
    steps.map(Question::Step).chain(window)
}
