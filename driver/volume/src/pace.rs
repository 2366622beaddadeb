//! Pacing: a token bucket for guest writes, for when a guest would outrun its replica. It keeps no
//! tokens but the time at which the bucket will be full again.

use block::Nanos;
use std::time::Duration;

/// How much of a second of the rate may go at once.
const BURST: Duration = Duration::from_millis(20);
/// The least rate: a guest is slowed down, never stopped. One block every quarter of a second.
const RATE_MIN: u64 = 16 << 10;

#[derive(Debug)]
pub(crate) struct Pace {
    rate: u64,
    full_at: Nanos,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: u64) -> Pace {
        Pace {
            rate: bytes_per_second.max(RATE_MIN),
            full_at: Nanos::ZERO,
        }
    }

    /// Change the rate; what was spent stays spent.
    pub(crate) fn set_rate(&mut self, bytes_per_second: u64) {
        self.rate = bytes_per_second.max(RATE_MIN);
    }

    /// Take `bytes` if the bucket is not overdrawn. One request may overdraw it, however large.
    pub(crate) fn take(&mut self, now: Nanos, bytes: u64) -> bool {
        if self.ready_at() > now {
            return false;
        }
        let cost = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate);
        self.full_at = self.full_at.max(now) + Duration::from_nanos(cost as u64);
        true
    }

    /// When [`Pace::take`] will succeed.
    pub(crate) fn ready_at(&self) -> Nanos {
        self.full_at - BURST
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_rate_holds_over_time_whatever_the_sizes(
            rate in RATE_MIN..1 << 30,
            sizes in prop::collection::vec(512u64..1 << 20, 50..200),
        ) {
            let mut pace = Pace::new(rate);
            let (mut now, mut sum) = (Nanos(1 << 40), 0u64);
            let start = now;
            for size in &sizes {
                if !pace.take(now, *size) {
                    now = pace.ready_at();
                    prop_assert!(pace.take(now, *size), "the deadline is when it succeeds");
                }
                sum += size;
            }
            let passed = now.since(start) + BURST;
            let most = passed.as_secs_f64() * rate as f64 + (1 << 20) as f64;
            prop_assert!(sum as f64 <= most * 1.001 + 1.0, "{sum} bytes in {passed:?}");
            let least = now.since(start).as_secs_f64() * rate as f64;
            prop_assert!(sum as f64 >= least * 0.999 - 1.0, "{sum} bytes in {passed:?}");
        }
    }
}
