//! How long increments take to become small, and what to promise.
//!
//! A pass of `t` seconds leaves dirty what the guest writes in `t` seconds, and the next pass takes
//! as long as that takes to send. The guest's habits are a [`DirtyCurve`]: for spans of several
//! lengths, the 95th percentile of the distinct bytes written in such a span of its history.

/// Distinct bytes written in spans of growing length, at the 95th percentile.
#[derive(Clone, Debug, Default)]
pub struct DirtyCurve {
    points: Vec<(f64, f64)>,
}

/// What seeding and catching up will take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Convergence {
    /// Increments shrink to the wanted size.
    Within {
        /// Seconds from the start of the first pass, promised at the 95th percentile.
        seconds: f64,
        /// Bytes sent, the first pass included.
        bytes: f64,
    },
    /// The guest writes as fast as the link sends: pace it, or mirror.
    Never,
}

/// Passes after which increments that still shrink are called stuck.
const PASSES: usize = 64;

impl DirtyCurve {
    /// From observations: for each span in seconds, the distinct bytes written in each such span of
    /// history. Spans without observations are left out.
    #[must_use]
    pub fn from_observations(spans: &mut [(f64, Vec<f64>)]) -> Self {
        spans.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut points: Vec<(f64, f64)> = Vec::new();
        for (span, bytes) in spans.iter_mut().filter(|(_, bytes)| !bytes.is_empty()) {
            bytes.sort_by(f64::total_cmp);
            let high = super::quantile::of_sorted(bytes, 0.95);
            // A longer span cannot dirty less.
            points.push((*span, points.last().map_or(high, |point| high.max(point.1))));
        }
        Self { points }
    }

    /// Bytes dirty after `seconds`, at the 95th percentile: linear between spans and from zero, in
    /// proportion beyond the longest.
    #[must_use]
    pub fn dirty_after(&self, seconds: f64) -> f64 {
        let mut before = (0.0, 0.0);
        for point in &self.points {
            if seconds <= point.0 {
                return before.1
                    + (point.1 - before.1) * (seconds - before.0) / (point.0 - before.0);
            }
            before = *point;
        }
        if before.0 > 0.0 {
            before.1 * seconds / before.0
        } else {
            0.0
        }
    }

    /// From a first pass of `bytes` at `bandwidth` bytes a second to an increment of at most `small`.
    #[must_use]
    pub fn convergence(&self, bytes: f64, bandwidth: f64, small: f64) -> Convergence {
        let (mut seconds, mut sent, mut pass) = (0.0, 0.0, bytes);
        for _ in 0..PASSES {
            let took = pass / bandwidth;
            seconds += took;
            sent += pass;
            let dirty = self.dirty_after(took);
            if dirty <= small {
                return Convergence::Within {
                    seconds,
                    bytes: sent,
                };
            }
            if !dirty.is_finite() || (dirty >= pass && sent > bytes) {
                return Convergence::Never;
            }
            pass = dirty;
        }
        Convergence::Never
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve() -> DirtyCurve {
        DirtyCurve::from_observations(&mut [
            (10.0, vec![100.0; 20]),
            (1.0, vec![20.0; 20]),
            (5.0, vec![]),
        ])
    }

    #[test]
    fn increments_shrink_until_small_and_the_time_adds_up() {
        // 1000 bytes at 100 a second: 10 s, 100 dirty; 1 s, 20 dirty; 0.2 s, 4 dirty.
        assert_eq!(
            curve().convergence(1000.0, 100.0, 5.0),
            Convergence::Within {
                seconds: 11.2,
                bytes: 1120.0
            }
        );
    }

    #[test]
    fn a_guest_that_writes_faster_than_the_link_never_converges() {
        assert_eq!(curve().convergence(1000.0, 10.0, 5.0), Convergence::Never);
        assert_eq!(curve().convergence(1000.0, 0.0, 5.0), Convergence::Never);
    }

    #[test]
    fn a_quiet_guest_converges_after_one_pass() {
        let quiet = DirtyCurve::default();
        assert_eq!(
            quiet.convergence(50.0, 10.0, 0.0),
            Convergence::Within {
                seconds: 5.0,
                bytes: 50.0
            }
        );
    }
}
