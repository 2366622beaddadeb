//! A forecast as the planner takes it: quantiles of one number.

use super::unit::Invalid;
use serde::Serialize;

/// Quantiles of a number, ascending in both level and value. Between two of them the distribution
/// is a straight line; above the last it falls like the exponential through the last two, so that a
/// threshold beyond every stated quantile still has a probability.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distribution {
    knots: Vec<(f64, f64)>,
}

impl Distribution {
    /// From `(level, value)` pairs in any order. Values that cross are put in order, because two
    /// quantiles fitted apart may cross.
    ///
    /// # Errors
    /// No pair, a level outside 0 to 1, or a value that is no number.
    pub fn new(pairs: impl IntoIterator<Item = (f64, f64)>) -> Result<Distribution, Invalid> {
        let mut knots: Vec<(f64, f64)> = pairs.into_iter().collect();
        if knots.is_empty() {
            return Err(Invalid(
                "a forecast without quantiles: give at least one".into(),
            ));
        }
        if let Some((p, v)) = knots
            .iter()
            .find(|(p, v)| !(0.0..=1.0).contains(p) || !v.is_finite())
        {
            return Err(Invalid(format!(
                "forecast quantile {p} with value {v}: levels lie between 0 and 1 and values are \
                 finite numbers"
            )));
        }
        knots.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut values: Vec<f64> = knots.iter().map(|k| k.1).collect();
        values.sort_by(f64::total_cmp);
        for (knot, value) in knots.iter_mut().zip(values) {
            knot.1 = value;
        }
        Ok(Distribution { knots })
    }

    /// A number that is known.
    #[must_use]
    pub fn certain(value: f64) -> Distribution {
        Distribution {
            knots: vec![(0.0, value), (1.0, value)],
        }
    }

    /// The same number in another unit, `factor` of which make one; not negative.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Distribution {
        debug_assert!(factor >= 0.0, "a unit is not negative");
        let knots = self.knots.iter().map(|(p, v)| (*p, v * factor));
        Distribution {
            knots: knots.collect(),
        }
    }

    /// The value that is not passed with probability `level`.
    #[must_use]
    pub fn quantile(&self, level: f64) -> f64 {
        let after = self.knots.partition_point(|k| k.0 < level);
        match (
            after.checked_sub(1).map(|i| self.knots[i]),
            self.knots.get(after),
        ) {
            (None, Some(first)) => first.1,
            (Some((p0, v0)), Some(&(p1, v1))) => {
                v0 + (v1 - v0) * ((level - p0) / (p1 - p0)).clamp(0.0, 1.0)
            }
            (Some((p, v)), None) => match self.tail_scale() {
                Some(scale) if level < 1.0 => v + scale * ((1.0 - p) / (1.0 - level)).ln(),
                _ => v,
            },
            (None, None) => unreachable!("a distribution has at least one quantile"),
        }
    }

    /// The probability that the number is above `threshold`.
    #[must_use]
    pub fn exceed(&self, threshold: f64) -> f64 {
        let after = self.knots.partition_point(|k| k.1 <= threshold);
        match (
            after.checked_sub(1).map(|i| self.knots[i]),
            self.knots.get(after),
        ) {
            // below every stated quantile nothing is known: take the side of caution
            (None, _) => 1.0,
            (Some((p0, v0)), Some(&(p1, v1))) => {
                1.0 - (p0 + (p1 - p0) * ((threshold - v0) / (v1 - v0)).clamp(0.0, 1.0))
            }
            (Some((p, v)), None) => match self.tail_scale() {
                Some(scale) => (1.0 - p) * (-(threshold - v) / scale).exp(),
                None => 0.0,
            },
        }
    }

    /// The scale of the exponential through the last two quantiles, if they differ.
    fn tail_scale(&self) -> Option<f64> {
        let [.., (p0, v0), (p1, v1)] = self.knots.as_slice() else {
            return None;
        };
        let scale = (v1 - v0) / ((1.0 - p0) / (1.0 - p1)).ln();
        (scale.is_finite() && scale > 0.0).then_some(scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_threshold_between_quantiles_is_read_off_the_line() {
        let d = Distribution::new([(0.1, 10.0), (0.5, 50.0), (0.9, 90.0)]).unwrap();
        assert!((d.exceed(70.0) - 0.3).abs() < 1e-9);
        assert!((d.quantile(0.7) - 70.0).abs() < 1e-9);
        assert_eq!(d.exceed(5.0), 1.0);
        let beyond = d.exceed(120.0);
        assert!(beyond > 0.0 && beyond < 0.1, "{beyond}");
        assert!((d.exceed(d.quantile(0.99)) - 0.01).abs() < 1e-9);
    }

    #[test]
    fn what_is_certain_is_above_only_what_is_smaller() {
        let d = Distribution::certain(3.0);
        assert_eq!(
            (d.exceed(2.9), d.exceed(3.0), d.quantile(0.9)),
            (1.0, 0.0, 3.0)
        );
    }

    #[test]
    fn forecasts_that_are_no_numbers_are_refused() {
        assert!(Distribution::new([]).is_err());
        assert!(Distribution::new([(0.5, f64::NAN)]).is_err());
        assert!(Distribution::new([(1.5, 1.0)]).is_err());
    }

    proptest! {
        #[test]
        fn a_higher_threshold_is_never_likelier(
            pairs in prop::collection::vec((0.01f64..0.99, -1e6f64..1e6), 1..12),
            a in -2e6f64..2e6, b in -2e6f64..2e6,
        ) {
            let d = Distribution::new(pairs).unwrap();
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(d.exceed(low) >= d.exceed(high) - 1e-9);
            prop_assert!((0.0..=1.0).contains(&d.exceed(a)));
        }

        #[test]
        fn quantiles_rise_with_their_level(
            pairs in prop::collection::vec((0.01f64..0.99, -1e6f64..1e6), 1..12),
            a in 0.0f64..1.0, b in 0.0f64..1.0,
        ) {
            let d = Distribution::new(pairs).unwrap();
            prop_assert!(d.quantile(a.min(b)) <= d.quantile(a.max(b)) + 1e-6);
        }
    }
}
