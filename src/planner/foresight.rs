//! How often needs come that nothing had announced, counted as they come: what copies that are there are
//! worth rests on it.

use super::unit::Seconds;
use serde::{Deserialize, Serialize};

/// One is no rate: it counts as if as much had been seen before without any.
const SEEN_BEFORE: Seconds = Seconds(7 * 86_400);
/// How many overloads the policy's share counts for, as long as few have been seen.
const PRIOR_OVERLOADS: f64 = 4.0;

/// Needs of one subject. One was foreseen if a forecast or the calendar had said it as early as a copy takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Foresight {
    /// Overloads that a forecast had announced.
    pub foreseen: u32,
    /// Overloads that none had.
    pub missed: u32,
    /// Times that it had to leave, or left, unannounced.
    pub surprises: u32,
    /// For how long it was looked.
    pub seconds: u64,
}

impl Foresight {
    /// An overload began, and was said or was not.
    pub fn overload(&mut self, said: bool) {
        let of = if said {
            &mut self.foreseen
        } else {
            &mut self.missed
        };
        *of = of.saturating_add(1);
    }

    /// It left, or had to, and nothing had said so.
    pub fn surprise(&mut self) {
        self.surprises = self.surprises.saturating_add(1);
    }

    /// So much time was looked at.
    pub fn pass(&mut self, time: Seconds) {
        self.seconds = self.seconds.saturating_add(time.0);
    }

    /// Unannounced needs in a second.
    #[must_use]
    pub fn unforeseen(&self) -> f64 {
        self.in_a_second(self.surprises)
    }

    /// Overloads in a second, said or not.
    #[must_use]
    pub fn overloads(&self) -> f64 {
        self.in_a_second(self.foreseen.saturating_add(self.missed))
    }

    fn in_a_second(&self, count: u32) -> f64 {
        f64::from(count) / (self.seconds.saturating_add(SEEN_BEFORE.0)) as f64
    }

    /// Share of overloads that no forecast announces; `before` is believed until some were seen.
    #[must_use]
    pub fn missed_share(&self, before: f64) -> f64 {
        let (foreseen, missed) = (f64::from(self.foreseen), f64::from(self.missed));
        (missed + before * PRIOR_OVERLOADS) / (foreseen + missed + PRIOR_OVERLOADS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_believed_until_enough_was_seen() {
        let mut seen = Foresight::default();
        assert_eq!((seen.unforeseen(), seen.missed_share(0.25)), (0.0, 0.25));
        for said in [true, true, true, false] {
            seen.overload(said);
        }
        assert!((seen.missed_share(0.25) - 0.25).abs() < 1e-9, "one of four");
        assert!((seen.missed_share(0.0) - 0.125).abs() < 1e-9);
        assert!((seen.overloads() * 604_800.0 - 4.0).abs() < 1e-9);
        seen.surprise();
        assert!((seen.unforeseen() * 604_800.0 - 1.0).abs() < 1e-9);
        seen.pass(SEEN_BEFORE);
        assert!(
            (seen.unforeseen() * 604_800.0 - 0.5).abs() < 1e-9,
            "one in two weeks"
        );
    }
}
