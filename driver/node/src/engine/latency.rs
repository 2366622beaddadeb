//! How long guests wait: a histogram with one writer, read by movers, which back off when it rises.
//!
//! Buckets are a power of two of nanoseconds divided in four, so a quantile is off by less than a
//! fifth. The shard only adds; a reader takes snapshots and subtracts.

use block::Nanos;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const PARTS: usize = 4;
const BUCKETS: usize = 48 * PARTS;

/// A volume's request latencies.
#[derive(Debug)]
pub struct Latency {
    buckets: [AtomicU64; BUCKETS],
    /// When the last request was answered, on the shard's clock.
    last: AtomicU64,
}

impl Default for Latency {
    fn default() -> Latency {
        Latency {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            last: AtomicU64::new(0),
        }
    }
}

impl Latency {
    /// Count one request, answered `now`. Only the home shard calls this.
    pub(super) fn record(&self, now: Nanos, took: Duration) {
        self.last.store(now.0, Ordering::Relaxed);
        let bucket = &self.buckets[bucket(took)];
        // One writer: no read-modify-write needed.
        bucket.store(bucket.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// When the last request was answered, on the home shard's clock; zero if none was.
    #[must_use]
    pub fn last(&self) -> Nanos {
        Nanos(self.last.load(Ordering::Relaxed))
    }

    /// All counts so far.
    #[must_use]
    pub fn snapshot(&self) -> LatencySnapshot {
        LatencySnapshot {
            counts: std::array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed)),
        }
    }
}

/// Counts at one moment, or between two.
#[derive(Clone, Debug)]
pub struct LatencySnapshot {
    counts: [u64; BUCKETS],
}

impl LatencySnapshot {
    /// What was counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &LatencySnapshot) -> LatencySnapshot {
        LatencySnapshot {
            counts: std::array::from_fn(|i| self.counts[i].saturating_sub(earlier.counts[i])),
        }
    }

    /// Requests counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The time that `q` (0 to 1) of the requests took at most; zero if there were none.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Duration {
        let total = self.count();
        let rank = ((total as f64) * q).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (i, n) in self.counts.iter().enumerate() {
            seen += n;
            if seen >= rank && total > 0 {
                return upper_bound(i);
            }
        }
        Duration::ZERO
    }
}

fn bucket(took: Duration) -> usize {
    let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(4);
    let power = ns.ilog2() as usize;
    let part = (ns >> (power - 2)) as usize & (PARTS - 1);
    ((power - 2) * PARTS + part).min(BUCKETS - 1)
}

fn upper_bound(bucket: usize) -> Duration {
    let (power, part) = (bucket / PARTS + 2, bucket % PARTS);
    Duration::from_nanos((1 << power) + ((part as u64 + 1) << (power - 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_near_and_a_difference_counts_only_what_is_new() {
        let latency = Latency::default();
        for us in 1..=1000 {
            latency.record(Nanos(us), Duration::from_micros(us));
        }
        let first = latency.snapshot();
        let p99 = first.quantile(0.99).as_micros();
        assert!((990..1250).contains(&p99), "{p99}");
        latency.record(Nanos(7), Duration::from_secs(1));
        assert_eq!(latency.last(), Nanos(7));
        let new = latency.snapshot().since(&first);
        assert_eq!(new.count(), 1);
        assert!(new.quantile(0.5) >= Duration::from_secs(1));
        assert_eq!(first.since(&first).quantile(0.5), Duration::ZERO);
    }
}
