//! What the operator wants: thresholds, holds and the mode.

use super::place::Limits;
use super::unit::{Invalid, Seconds};
use serde::{Deserialize, Serialize};

/// How far the planner goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Scores only.
    ForecastOnly,
    /// Scores and decisions, for a person to carry out.
    #[default]
    Advise,
    /// Decisions are carried out.
    Auto,
}

/// The operator's policy. Every figure has a default that suits a fleet of VMs looked at every five
/// minutes; a TOML table overrides single ones.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// How far to go.
    pub mode: Mode,
    /// A score from here on opens a site.
    pub open_score: f64,
    /// An open site is wanted as long as its score is above this: below `open_score`, so that a
    /// score that trembles around one figure does not open and close.
    pub close_score: f64,
    /// Share of capacity that predicted utilisation should not pass.
    pub utilisation_limit: f64,
    /// The probability of passing it that is too much.
    pub utilisation_probability: f64,
    /// The probability of running out of capacity soon from which on volumes leave before it is seen.
    pub leave_probability: f64,
    /// What a second without a warm copy costs, in the price table's currency.
    pub value_of_second: f64,
    /// What a move without a warm copy costs beside that, however short the wait.
    pub value_of_move: f64,
    /// Share of needs that no forecast announces. A copy that is given up and foreseen again in time
    /// costs only the sending, so keeping saves the lead for this share alone.
    pub missed_share: f64,
    /// The quantile by which shapes are chosen.
    pub shape_quantile: f64,
    /// How long what has moved is expected to stay away, for the price of its host.
    pub expected_stay_seconds: u64,
    /// How long a copy is expected to be kept, for its cost.
    pub expected_hold_seconds: u64,
    /// How long it is kept at least.
    pub minimum_hold_seconds: u64,
    /// How long it must have been observed idle before it is given up.
    pub idle_seconds: u64,
    /// How much earlier than its lead a copy for an announced event is begun.
    pub event_margin_seconds: u64,
    /// The time between two plans.
    pub cycle_seconds: u64,
    /// Largest round trip to a target.
    pub latency_ms_limit: f64,
    /// Share of a node's storage that stays free.
    pub spare: f64,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            mode: Mode::default(),
            open_score: 1.0,
            close_score: 0.0,
            utilisation_limit: 0.9,
            utilisation_probability: 0.3,
            leave_probability: 0.8,
            value_of_second: 0.01,
            value_of_move: 0.0,
            missed_share: 0.1,
            shape_quantile: 0.95,
            expected_stay_seconds: 2 * 3600,
            expected_hold_seconds: 4 * 3600,
            minimum_hold_seconds: 3600,
            idle_seconds: 1800,
            event_margin_seconds: 900,
            cycle_seconds: 300,
            latency_ms_limit: 50.0,
            spare: 0.1,
        }
    }
}

impl Policy {
    /// Read a policy.
    ///
    /// # Errors
    /// It is no TOML, or figures contradict each other.
    pub fn parse(toml: &str) -> Result<Policy, Invalid> {
        let policy: Policy = toml::from_str(toml).map_err(|e| Invalid(format!("policy: {e}")))?;
        let shares = [
            ("utilisation_limit", policy.utilisation_limit),
            ("utilisation_probability", policy.utilisation_probability),
            ("leave_probability", policy.leave_probability),
            ("missed_share", policy.missed_share),
            ("shape_quantile", policy.shape_quantile),
            ("spare", policy.spare),
        ];
        if let Some((name, x)) = shares.iter().find(|(_, x)| !(0.0..=1.0).contains(x)) {
            return Err(Invalid(format!("policy: {name} = {x} is not in 0 to 1")));
        }
        let ordered = policy.close_score <= policy.open_score;
        let values = [policy.value_of_second, policy.value_of_move];
        if !ordered || !values.iter().all(|v| v.is_finite()) {
            return Err(Invalid(format!(
                "policy: close_score {} must not be above open_score {}, and value_of_second {} \
                 and value_of_move {} must be numbers",
                policy.close_score, policy.open_score, policy.value_of_second, policy.value_of_move
            )));
        }
        if policy.cycle_seconds == 0 {
            return Err(Invalid("policy: cycle_seconds = 0 would never rest".into()));
        }
        Ok(policy)
    }

    /// What a target must respect.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            latency_ms: self.latency_ms_limit,
            utilisation: self.utilisation_limit,
            spare: self.spare,
        }
    }

    pub(super) fn cycle(&self) -> Seconds {
        Seconds(self.cycle_seconds)
    }

    pub(super) fn stay(&self) -> Seconds {
        Seconds(self.expected_stay_seconds)
    }

    pub(super) fn hold(&self) -> Seconds {
        Seconds(self.expected_hold_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_figures_override_the_defaults() {
        let p = Policy::parse("mode = \"auto\"\nopen_score = 3.0").unwrap();
        assert_eq!((p.mode, p.open_score), (Mode::Auto, 3.0));
        assert_eq!(p.idle_seconds, Policy::default().idle_seconds);
    }

    #[test]
    fn contradictions_are_refused() {
        for bad in [
            "open_score = -0.1",
            "open_score = nan",
            "spare = 1.5",
            "cycle_seconds = 0",
            "no_such = 1",
        ] {
            assert!(Policy::parse(bad).is_err(), "{bad}");
        }
    }
}
