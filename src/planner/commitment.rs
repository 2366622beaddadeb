//! What the planner has begun and stands by. Without it a plan made every five minutes from noisy
//! forecasts would open a site in one cycle and give it up in the next, and pay a baseline each
//! time. A copy is given up on observation only: never because a forecast says it will be idle.

use super::policy::Policy;
use super::unit::{Seconds, UnixTime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A copy that was decided on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Commitment {
    /// Where.
    pub site: String,
    /// On which nodes, one for each volume; empty while a new one is on its way.
    pub nodes: Vec<String>,
    /// Since when.
    pub since: UnixTime,
}

impl Commitment {
    /// Whether it has been held long enough and has been observed idle long enough.
    #[must_use]
    pub fn may_go(&self, idle_since: Option<UnixTime>, now: UnixTime, policy: &Policy) -> bool {
        let held = now.since(self.since) >= Seconds(policy.minimum_hold_seconds);
        let idle = idle_since
            .is_some_and(|since| now.since(since.max(self.since)) >= Seconds(policy.idle_seconds));
        held && idle
    }
}

/// All commitments, by subject.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commitments(BTreeMap<String, Commitment>);

impl Commitments {
    /// The commitment for a subject.
    #[must_use]
    pub fn get(&self, subject: &str) -> Option<&Commitment> {
        self.0.get(subject)
    }

    /// Every commitment.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Commitment)> {
        self.0.iter().map(|(s, c)| (s.as_str(), c))
    }

    /// Stand by this one from now on.
    pub fn open(&mut self, subject: &str, commitment: Commitment) {
        self.0.insert(subject.to_owned(), commitment);
    }

    /// No longer.
    pub fn release(&mut self, subject: &str) {
        self.0.remove(subject);
    }
}

/// How one past prediction turned out.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Outcome {
    /// The probability that was given.
    pub p: f64,
    /// Whether a copy was made ready because of it.
    pub acted: bool,
    /// Whether what was predicted happened in time.
    pub happened: bool,
}

/// How right past decisions were.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Review {
    /// Predictions whose outcome is known.
    pub count: usize,
    /// Mean squared difference of probability and outcome: 0 is perfect, 0.25 a coin.
    pub brier: f64,
    /// Of what happened, the share for which a copy was ready; none if nothing happened.
    pub caught: Option<f64>,
    /// Of the copies made ready, the share that was needed; none if none was made.
    pub needed: Option<f64>,
    /// Mean probability, share that happened and count, in fifths of the probability.
    pub calibration: Vec<Bin>,
}

/// One fifth of the probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// Mean of what was said.
    pub said: f64,
    /// Share that happened.
    pub happened: f64,
    /// How many.
    pub count: usize,
}

const BINS: usize = 5;

impl Review {
    /// Review past predictions; `None` if there are none.
    #[must_use]
    pub fn of(outcomes: &[Outcome]) -> Option<Review> {
        if outcomes.is_empty() {
            return None;
        }
        let truth = |o: &Outcome| f64::from(u8::from(o.happened));
        let share = |of: usize, all: usize| (all > 0).then(|| of as f64 / all as f64);
        let count = |f: &dyn Fn(&Outcome) -> bool| outcomes.iter().filter(|o| f(o)).count();
        let right = count(&|o| o.acted && o.happened);
        let bin_of = |o: &Outcome| ((o.p * BINS as f64) as usize).min(BINS - 1);
        let calibration = (0..BINS)
            .filter_map(|b| {
                let inside: Vec<&Outcome> = outcomes.iter().filter(|o| bin_of(o) == b).collect();
                let n = inside.len() as f64;
                (!inside.is_empty()).then(|| Bin {
                    said: inside.iter().map(|o| o.p).sum::<f64>() / n,
                    happened: inside.iter().map(|o| truth(o)).sum::<f64>() / n,
                    count: inside.len(),
                })
            })
            .collect();
        Some(Review {
            count: outcomes.len(),
            brier: outcomes
                .iter()
                .map(|o| (o.p - truth(o)).powi(2))
                .sum::<f64>()
                / outcomes.len() as f64,
            caught: share(right, count(&|o| o.happened)),
            needed: share(right, count(&|o| o.acted)),
            calibration,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_goes_only_after_its_hold_and_only_when_seen_idle() {
        let policy = Policy {
            minimum_hold_seconds: 100,
            idle_seconds: 50,
            ..Policy::default()
        };
        let c = Commitment {
            site: "x".into(),
            nodes: vec![],
            since: UnixTime(1000),
        };
        let go = |idle: Option<u64>, now| c.may_go(idle.map(UnixTime), UnixTime(now), &policy);
        assert!(!go(None, 9999)); // never seen idle
        assert!(!go(Some(0), 1099)); // not held long enough
        assert!(!go(Some(1080), 1120)); // not idle long enough
        assert!(go(Some(0), 1100));
        assert!(!go(Some(0), 900)); // the clock went back
    }

    #[test]
    fn a_review_counts_what_was_caught_and_what_was_needed() {
        let o = |p, acted, happened| Outcome { p, acted, happened };
        let r = Review::of(&[
            o(0.9, true, true),
            o(0.9, true, false),
            o(0.1, false, true),
            o(0.1, false, false),
        ])
        .unwrap();
        assert_eq!((r.count, r.caught, r.needed), (4, Some(0.5), Some(0.5)));
        assert!((r.brier - 0.41).abs() < 1e-9);
        assert_eq!(r.calibration.len(), 2);
        assert_eq!(Review::of(&[]), None);
    }
}
