//! When the load of a subject drives its volumes to the copies that were made ready, and when they
//! come back.
//!
//! ```text
//!            over the limit in the latest samples,             calm for as long as is idle,
//!            or all but certain to pass capacity soon          and away for the minimum hold
//! at home ───────────────────────────────────────────► away ───────────────────────────────► at home
//! ```
//!
//! Both sides look at what was observed, and between them lies a band in which nothing happens: a load
//! that trembles around the limit moves a volume once.

use super::policy::Policy;
use super::score::Windows;
use super::unit::{Seconds, UnixTime};
use serde::Serialize;

/// Samples in a row over the limit that are an overload: one alone may be a burst.
const SAMPLES: usize = 2;
/// Below this share of the limit the load is calm.
const CALM: f64 = 0.9;

/// What is known of a subject's load.
#[derive(Clone, Copy, Debug)]
pub struct Pressure<'a> {
    /// What was observed lately, oldest first, in units of the capacity below.
    pub observed: &'a [(UnixTime, f64)],
    /// Forecast of its maximum over windows.
    pub windows: &'a Windows,
    /// What it must not pass.
    pub capacity: f64,
    /// When something last left because of load and is away still.
    pub left: Option<UnixTime>,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Relief {
    /// Nothing.
    Stay,
    /// Something should leave, for this reason.
    Leave(String),
    /// What left may come back.
    Return,
}

impl Relief {
    /// Look at the load as it is now.
    #[must_use]
    pub fn of(now: UnixTime, pressure: &Pressure<'_>, policy: &Policy) -> Relief {
        let limit = pressure.capacity * policy.utilisation_limit;
        // a subject that is silent, or a clock that went back, says nothing of the present
        let fresh = Seconds(policy.cycle_seconds.saturating_mul(1 + SAMPLES as u64));
        let known: Vec<(UnixTime, f64)> = (pressure.observed.iter().copied())
            .filter(|(at, _)| *at <= now)
            .collect();
        let current = known.last().is_some_and(|(at, _)| now.since(*at) <= fresh);
        let latest = &known[known.len().saturating_sub(SAMPLES)..];
        if current && latest.len() == SAMPLES && latest.iter().all(|(_, v)| *v > limit) {
            return Relief::Leave(format!(
                "it used {:.2} of {:.2} in the last {SAMPLES} samples",
                latest.iter().map(|(_, v)| *v).fold(f64::MAX, f64::min) / pressure.capacity,
                policy.utilisation_limit
            ));
        }
        let soon = pressure.windows.over(Seconds(policy.cycle_seconds));
        let p = soon.map_or(0.0, |max| max.exceed(pressure.capacity));
        if current && p >= policy.leave_probability {
            return Relief::Leave(format!("it runs out of capacity soon with P {p:.2}"));
        }
        let calm_since = now.0.saturating_sub(policy.idle_seconds);
        let mut lately = known.iter().filter(|(at, _)| at.0 >= calm_since).peekable();
        let seen_calm = lately.peek().is_some() && lately.all(|(_, v)| *v <= CALM * limit);
        match pressure.left {
            Some(left)
                if current
                    && seen_calm
                    && now.since(left) >= Seconds(policy.minimum_hold_seconds) =>
            {
                Relief::Return
            }
            _ => Relief::Stay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::distribution::Distribution;
    use super::*;

    fn policy() -> Policy {
        Policy {
            utilisation_limit: 0.9,
            leave_probability: 0.8,
            cycle_seconds: 300,
            idle_seconds: 1200,
            minimum_hold_seconds: 3600,
            ..Policy::default()
        }
    }

    fn look(loads: &[f64], p: f64, left: Option<u64>) -> Relief {
        let now = 300 * loads.len() as u64;
        let observed: Vec<(UnixTime, f64)> = (1..)
            .zip(loads)
            .map(|(i, v)| (UnixTime(300 * i), *v))
            .collect();
        let max = Distribution::new([(0.0, 0.0), (1.0 - p, 1.0), (1.0, 2.0)]).unwrap();
        let windows = Windows::new(vec![(Seconds(1800), max)]);
        let pressure = Pressure {
            observed: &observed,
            windows: &windows,
            capacity: 1.0,
            left: left.map(UnixTime),
        };
        Relief::of(UnixTime(now), &pressure, &policy())
    }

    fn leaves(r: &Relief) -> bool {
        matches!(r, Relief::Leave(_))
    }

    #[test]
    fn a_burst_of_one_sample_moves_nothing_and_two_do() {
        assert_eq!(look(&[0.3, 0.3, 1.2], 0.0, None), Relief::Stay);
        let r = look(&[0.3, 1.2, 1.1], 0.0, None);
        assert_eq!(
            r,
            Relief::Leave("it used 1.10 of 0.90 in the last 2 samples".into())
        );
    }

    #[test]
    fn what_is_all_but_certain_is_not_waited_for() {
        assert_eq!(look(&[0.3; 5], 0.7, None), Relief::Stay);
        assert!(leaves(&look(&[0.3; 5], 0.9, None)));
    }

    #[test]
    fn it_comes_back_only_when_seen_calm_and_held_long_enough() {
        let calm = [0.5; 20];
        assert_eq!(look(&calm, 0.0, Some(6000 - 3600)), Relief::Return);
        assert_eq!(look(&calm, 0.0, Some(6000 - 3599)), Relief::Stay);
        assert_eq!(look(&calm, 0.0, None), Relief::Stay, "nothing is away");
        let mut high = calm;
        high[17] = 0.85; // below the limit, and not calm
        assert_eq!(look(&high, 0.0, Some(0)), Relief::Stay);
        assert!(leaves(&look(&calm, 0.9, Some(0))), "it is due again");
    }

    #[test]
    fn who_is_silent_or_in_the_future_is_not_moved() {
        let observed = [(UnixTime(300), 1.5), (UnixTime(600), 1.5)];
        let look = |now| {
            let pressure = Pressure {
                observed: &observed,
                windows: &Windows::default(),
                capacity: 1.0,
                left: Some(UnixTime(0)),
            };
            Relief::of(UnixTime(now), &pressure, &policy())
        };
        assert!(leaves(&look(600)));
        assert_eq!(look(600 + 901), Relief::Stay);
        assert_eq!(look(200), Relief::Stay, "the clock went back");
        assert_eq!(look(400), Relief::Stay, "one sample alone");
    }

    /// A load that trembled around the limit moved a volume there and back in each cycle.
    #[test]
    fn a_load_that_trembles_around_the_limit_moves_once() {
        let mut loads = vec![0.5; 10];
        let (mut left, mut moves) = (None, 0);
        for i in 0..200 {
            // two over, two under: each pair alone would be reason enough
            loads.push(if i % 4 < 2 { 0.95 } else { 0.84 });
            match look(&loads, 0.0, left) {
                Relief::Leave(_) if left.is_none() => {
                    left = Some(300 * loads.len() as u64);
                    moves += 1;
                }
                Relief::Return => {
                    left = None;
                    moves += 1;
                }
                _ => {}
            }
        }
        assert_eq!((moves, left.is_some()), (1, true));
    }
}
