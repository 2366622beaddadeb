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

use super::analogue::Search;
use super::columns::{Columns, LANES, Score};
use super::expert::{self, EXPERTS, Sight};
use super::gate::Shares;
use super::quantile;
use super::scene::{Outlook, Scene};
use super::smoothing::Levels;

/// Members of a sample that are judged: of more than these only every second, every third, and so on.
const ENOUGH: usize = 64;

/// What is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The sample so many steps after the first.
    Step(usize),
    /// The maximum of the window.
    Window,
}

impl Question {
    fn step(self) -> Option<usize> {
        match self {
            Question::Step(step) => Some(step),
            Question::Window => None,
        }
    }
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
    places: [Option<(f32, f32)>; EXPERTS],
}

impl Verdict {
    /// Before any expert is heard.
    const SILENT: Verdict = Verdict {
        losses: [f64::NAN; EXPERTS],
        places: [None; EXPERTS],
    };

    fn hear(&mut self, expert: usize, score: Score, unit: f64) {
        self.losses[expert] = f64::from(score.crps) / unit;
        self.places[expert] = Some((score.below, score.upto));
    }

    /// After all were heard.
    fn close(&mut self) {
        let worst = self.losses.iter().copied().fold(0.0, f64::max);
        for loss in self.losses.iter_mut().filter(|loss| loss.is_nan()) {
            *loss = 2.0 * worst;
        }
    }

    /// Between which levels of the mixture the outcome fell.
    pub fn place(&self, shares: &Shares) -> (f64, f64) {
        let (mut low, mut high, mut voiced) = (0.0, 0.0, 0.0);
        for (place, share) in self.places.iter().zip(shares) {
            let Some((below, upto)) = place else { continue };
            let share = f64::from(*share);
            low += share * f64::from(*below);
            high += share * f64::from(*upto);
            voiced += share;
        }
        if voiced > 0.0 {
            (low / voiced, high / voiced)
        } else {
            (0.0, 1.0)
        }
    }
}

/// What a judge works with, one panel after the other.
#[derive(Default)]
pub struct Desk {
    /// Sorted samples of the outlooks that expect the same at every step.
    still: [Vec<f64>; EXPERTS],
    sample: Vec<f64>,
    columns: Columns,
}

/// The experts' outlooks at one moment, before their judge.
pub struct Panel<'a> {
    scene: &'a Scene<'a>,
    at: usize,
    horizon: usize,
    outlooks: &'a [Outlook; EXPERTS],
    desk: &'a mut Desk,
}

impl<'a> Panel<'a> {
    /// What was expected of the `horizon` samples from `at` on.
    pub fn new(
        scene: &'a Scene<'a>,
        at: usize,
        horizon: usize,
        outlooks: &'a [Outlook; EXPERTS],
        desk: &'a mut Desk,
    ) -> Self {
        let sample = &mut desk.sample;
        for (still, outlook) in desk.still.iter_mut().zip(outlooks) {
            still.clear();
            if matches!(outlook, Outlook::Recent { .. }) {
                outlook.sample(scene, at, 0, sample);
                let some = sample.len().div_ceil(ENOUGH);
                still.extend(sample.iter().step_by(some));
                quantile::sort(still);
            }
        }
        Self {
            scene,
            at,
            horizon,
            outlooks,
            desk,
        }
    }

    /// Judges all experts on one outcome, which must be known.
    pub fn judge(&mut self, question: Question) -> Verdict {
        let mut verdict = [Verdict::SILENT];
        self.side_by_side(&[question], &mut verdict);
        let [verdict] = verdict;
        verdict
    }

    /// Judges all experts on up to [`LANES`] outcomes at a time.
    fn side_by_side(&mut self, questions: &[Question], verdicts: &mut [Verdict]) {
        let unit = self.scene.unit();
        // A column without a step gets another's, and is overwritten or not looked at.
        let step = |lane: usize| questions.get(lane).and_then(|question| question.step());
        let any = (0..questions.len()).find_map(step).unwrap_or(0);
        let steps: [usize; LANES] = std::array::from_fn(|lane| step(lane).unwrap_or(any));
        let outcomes = steps.map(|step| self.scene.values[self.at + step]);
        for (expert, outlook) in self.outlooks.iter().enumerate() {
            self.desk.columns.clear();
            let columns = &mut self.desk.columns;
            let put = |row: &[f64; LANES]| columns.push(row, &outcomes, unit);
            let (scene, at, horizon) = (self.scene, self.at, self.horizon);
            let together = outlook.side_by_side(scene, at, horizon, &steps, ENOUGH, put);
            if together {
                self.desk.columns.fill();
            }
            for (lane, question) in questions.iter().enumerate() {
                match question {
                    Question::Step(_) if together => continue,
                    Question::Step(_) if !self.desk.still[expert].is_empty() => {
                        let score = self.score_still(expert, outcomes[lane]);
                        verdicts[lane].hear(expert, score, unit);
                        continue;
                    }
                    Question::Step(step) => outlook.sample(scene, at, *step, &mut self.desk.sample),
                    Question::Window => outlook.maxima(scene, at, horizon, &mut self.desk.sample),
                }
                let outcome = self.outcome(*question);
                let differences = self.desk.sample.iter().map(|v| (v - outcome) * unit);
                self.desk.columns.set(lane, differences);
            }
            if !self.desk.columns.is_empty() {
                for (verdict, score) in verdicts.iter_mut().zip(self.desk.columns.score()) {
                    if let Some(score) = score {
                        verdict.hear(expert, score, unit);
                    }
                }
            }
        }
        verdicts.iter_mut().for_each(Verdict::close);
    }

    fn score_still(&self, expert: usize, outcome: f64) -> Score {
        let still = &self.desk.still[expert];
        let (below, upto) = quantile::share_of_sorted(still, outcome);
        Score {
            crps: (quantile::crps_of_sorted(still, outcome) * self.scene.unit()) as f32,
            below: below as f32,
            upto: upto as f32,
        }
    }

    fn outcome(&self, question: Question) -> f64 {
        match question {
            Question::Step(step) => self.scene.values[self.at + step],
            Question::Window => self.scene.top(self.at, self.horizon),
        }
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
        let (mut search, mut desk) = (Search::default(), Desk::default());
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(&at) = moments.get(place) else {
                return done;
            };
            let sight = expert::sight(scene, at, horizon, fitted, levels.at(place), &mut search);
            let mut panel = Panel::new(scene, at, horizon, &sight.outlooks, &mut desk);
            let questions: Vec<_> =
                questions(scene.origin + at as i64, horizon, now - at).collect();
            let mut verdicts = vec![Verdict::SILENT; questions.len()];
            for (questions, verdicts) in questions.chunks(LANES).zip(verdicts.chunks_mut(LANES)) {
                panel.side_by_side(questions, verdicts);
            }
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
