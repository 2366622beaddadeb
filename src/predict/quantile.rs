//! Levels, sample quantiles and the scores that judge them.
//!
//! Experts answer with equally weighted samples; the mixture is a weighted pool of them, and only
//! the pool is cut into quantiles.

/// Number of levels carried inside; the command line prints fewer.
pub const K: usize = 27;

/// The levels carried for each step. Denser in the tails, because capacity is decided there.
pub const LEVELS: [f64; K] = [
    0.005, 0.0125, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.475, 0.5, 0.525,
    0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.975, 0.9875, 0.995,
];

/// Values at [`LEVELS`], never decreasing.
pub type Quantiles = [f64; K];

/// The value at `level` of an ascending sample, linear between order statistics.
pub fn of_sorted(sorted: &[f64], level: f64) -> f64 {
    let n = sorted.len();
    let at = (level * n as f64 - 0.5).clamp(0.0, (n - 1) as f64);
    let low = at as usize;
    let high = (low + 1).min(n - 1);
    sorted[low] + (sorted[high] - sorted[low]) * (at - low as f64)
}

/// Sorts a sample, as integers that are in the order of the numbers: `total_cmp` makes them anew at each
/// comparison, which takes four times as long, and sorting is most of what judging costs.
pub fn sort(sample: &mut [f64]) {
    sample.iter_mut().for_each(|v| *v = turned(*v));
    sample.sort_unstable_by_key(|v| v.to_bits() as i64);
    sample.iter_mut().for_each(|v| *v = turned(*v));
}

/// A number whose bits, as an integer with a sign, are in the order of the numbers; and back again.
fn turned(value: f64) -> f64 {
    let bits = value.to_bits();
    f64::from_bits(bits ^ ((bits as i64 >> 63) as u64 >> 1))
}

/// Sorts a sample and reads off all levels.
pub fn of_sample(sample: &mut [f64]) -> Quantiles {
    sort(sample);
    std::array::from_fn(|k| of_sorted(sample, LEVELS[k]))
}

/// The value at any level, linear between [`LEVELS`] and flat beyond them.
#[must_use]
pub fn at(quantiles: &Quantiles, level: f64) -> f64 {
    let above = LEVELS.partition_point(|l| *l < level);
    if above == 0 || above == K {
        return quantiles[above.min(K - 1)];
    }
    let part = (level - LEVELS[above - 1]) / (LEVELS[above] - LEVELS[above - 1]);
    quantiles[above - 1] + (quantiles[above] - quantiles[above - 1]) * part
}

/// The level at which `value` lies, linear between levels. A value that ties with several counts as
/// above them all.
pub fn level_of(quantiles: &Quantiles, value: f64) -> f64 {
    let upto = quantiles.partition_point(|q| *q <= value);
    if upto == 0 {
        return 0.0;
    }
    if upto == K {
        return 1.0;
    }
    let (below, above) = (quantiles[upto - 1], quantiles[upto]);
    let part = (value - below) / (above - below);
    LEVELS[upto - 1] + (LEVELS[upto] - LEVELS[upto - 1]) * part
}

/// CRPS of an ascending, equally weighted sample, exactly.
pub fn crps_of_sorted(sorted: &[f64], actual: f64) -> f64 {
    let n = sorted.len() as f64;
    let part = |rank: usize, value: f64| {
        let above = if actual < value { n } else { 0.0 };
        (value - actual) * (above - rank as f64 - 0.5)
    };
    // Four sums side by side: one alone waits for each addition.
    let mut sums = [0.0; 4];
    let (fours, rest) = sorted.as_chunks::<4>();
    for (i, four) in fours.iter().enumerate() {
        for (lane, value) in four.iter().enumerate() {
            sums[lane] += part(4 * i + lane, *value);
        }
    }
    let done = 4 * fours.len();
    let rest = rest.iter().enumerate().map(|(i, v)| part(done + i, *v));
    2.0 * (sums.iter().sum::<f64>() + rest.sum::<f64>()) / (n * n)
}

/// The share of an ascending sample strictly below `value`, and the share not above it.
pub fn share_of_sorted(sorted: &[f64], value: f64) -> (f64, f64) {
    let n = sorted.len() as f64;
    let below = sorted.partition_point(|v| *v < value);
    let upto = below + sorted[below..].partition_point(|v| *v <= value);
    (below as f64 / n, upto as f64 / n)
}

/// Samples of several experts, each value with its weight.
#[derive(Default)]
pub struct Pool {
    entries: Vec<(f64, f64)>,
    /// The upper 48 bits of each value in an order like the numbers', above the place of its entry.
    keys: Vec<u64>,
}

/// Places that a key has room for.
const MOST_ENTRIES: usize = 1 << 16;

impl Pool {
    /// Forgets all samples.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Adds a sample that has this share of the pool.
    pub fn add(&mut self, sample: &[f64], share: f64) {
        let weight = share / sample.len() as f64;
        self.entries
            .extend(sample.iter().map(|value| (*value, weight)));
        assert!(
            self.entries.len() <= MOST_ENTRIES,
            "a sample for each expert"
        );
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The pool's quantiles at ascending `levels`. Values that agree in ten digits may change places.
    pub fn quantiles(&mut self, levels: &[f64; K]) -> Quantiles {
        let key = |(place, entry): (usize, &(f64, f64))| {
            let value = turned(entry.0).to_bits() ^ 1 << 63;
            value & !(MOST_ENTRIES as u64 - 1) | place as u64
        };
        self.keys.clear();
        self.keys.extend(self.entries.iter().enumerate().map(key));
        self.keys.sort_unstable();
        let sorted = self
            .keys
            .iter()
            .map(|key| self.entries[*key as usize % MOST_ENTRIES]);
        let total: f64 = self.entries.iter().map(|entry| entry.1).sum();
        let mut out = [0.0; K];
        let (mut passed, mut at) = (0.0, 0);
        let mut before: Option<(f64, f64)> = None;
        for (value, weight) in sorted {
            let (below, last) = before.unwrap_or((0.0, value));
            let value = value.max(last);
            let middle = (passed + weight / 2.0) / total;
            while at < K && levels[at] <= middle {
                let span = middle - below;
                let part = if span > 0.0 {
                    (levels[at] - below) / span
                } else {
                    1.0
                };
                out[at] = (last + (value - last) * part).min(value); // which rounding may pass
                at += 1;
            }
            before = Some((middle, value));
            passed += weight;
        }
        out[at..].fill(before.map_or(0.0, |(_, value)| value));
        out
    }
}

/// Pinball loss of one quantile.
pub fn pinball(level: f64, quantile: f64, actual: f64) -> f64 {
    let miss = actual - quantile;
    if miss >= 0.0 {
        level * miss
    } else {
        (level - 1.0) * miss
    }
}

/// CRPS by the trapezoid rule over the levels: twice the integral of the pinball loss.
pub fn crps(quantiles: &Quantiles, actual: f64) -> f64 {
    let mut sum = 0.0;
    for k in 0..K {
        sum += WEIGHTS[k] * pinball(LEVELS[k], quantiles[k], actual);
    }
    2.0 * sum
}

/// The share of the unit interval that each level stands for.
pub const WEIGHTS: [f64; K] = trapezoid();

const fn trapezoid() -> [f64; K] {
    let mut w = [0.0; K];
    let mut k = 0;
    while k < K {
        let below = if k == 0 {
            0.0
        } else {
            (LEVELS[k - 1] + LEVELS[k]) / 2.0
        };
        let above = if k + 1 == K {
            1.0
        } else {
            (LEVELS[k + 1] + LEVELS[k]) / 2.0
        };
        w[k] = above - below;
        k += 1;
    }
    w
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_sample_is_sorted_as_the_numbers_are(mut sample in prop::collection::vec(any::<f64>(), 0..200)) {
            let mut expected = sample.clone();
            expected.sort_by(f64::total_cmp);
            sort(&mut sample);
            let bits = |sample: &[f64]| sample.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&sample), bits(&expected));
        }

        /// The level of each value of a pool is the share of what is below, and half its own.
        #[test]
        fn a_pool_is_read_at_the_weights_of_its_samples(
            samples in prop::collection::vec((prop::collection::vec(-1e3..1e3f64, 1..30), 0.1..1.0f64), 1..6),
        ) {
            let mut pool = Pool::default();
            let mut all = Vec::new();
            for (sample, share) in &samples {
                pool.add(sample, *share);
                all.extend(sample.iter().map(|v| (*v, share / sample.len() as f64)));
            }
            all.sort_by(|a, b| a.0.total_cmp(&b.0));
            let total: f64 = all.iter().map(|entry| entry.1).sum();
            let quantiles = pool.quantiles(&LEVELS);
            prop_assert!(quantiles.is_sorted());
            for (level, quantile) in LEVELS.iter().zip(quantiles) {
                let below: f64 = all.iter().filter(|e| e.0 < quantile).map(|e| e.1).sum();
                let upto: f64 = all.iter().filter(|e| e.0 <= quantile).map(|e| e.1).sum();
                let most = all.iter().map(|e| e.1).fold(0.0, f64::max);
                let slack = most / total + 1e-9;
                prop_assert!((below / total - slack..=upto / total + slack).contains(level));
            }
        }

        /// The mean distance from the outcome, less half of that between two of the sample.
        #[test]
        fn crps_is_what_its_definition_says(
            mut sample in prop::collection::vec(-1e3..1e3f64, 1..40), actual in -1e3..1e3f64,
        ) {
            sort(&mut sample);
            let n = sample.len() as f64;
            let from = |to: f64| sample.iter().map(|v| (v - to).abs()).sum::<f64>() / n;
            let among = sample.iter().map(|v| from(*v)).sum::<f64>() / n;
            let expected = from(actual) - among / 2.0;
            let crps = crps_of_sorted(&sample, actual);
            prop_assert!((crps - expected).abs() < 1e-9, "{} and {}", crps, expected);
        }
    }
}
