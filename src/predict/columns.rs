//! The samples of several outcomes, sorted and scored side by side.
//!
//! ```text
//!          outcome 0   outcome 1   outcome 2   outcome 3
//! row 0    expected    expected    expected    expected     less the outcome, in the unit of the
//! row 1    expected    expected    expected    expected     scene; each column sorted by itself
//!   ⋮
//! ```
//!
//! A sort that looks at what it sorts branches on it, and the processor guesses each branch wrong half of the
//! time. A network compares the same places whatever stands there, with nothing to guess, and one instruction
//! compares them in all columns.

use wide::f32x4;

/// Outcomes side by side: those of one forecast, mostly.
pub const LANES: usize = 4 * QUADS;
/// Vectors of four, which any processor has.
const QUADS: usize = 3;

type Row = [f32x4; QUADS];

/// No loss is larger: a sum of many stays finite.
const LARGEST_LOSS: f32 = 1e30;

/// How one sample fared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// CRPS, exactly that of the sample.
    pub crps: f32,
    /// The share of the sample below the outcome.
    pub below: f32,
    /// The share not above it.
    pub upto: f32,
}

/// One sample for each of up to [`LANES`] outcomes.
#[derive(Default)]
pub struct Columns {
    rows: Vec<Row>,
    counts: [usize; LANES],
}

impl Columns {
    /// Forgets all samples.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.counts = [0; LANES];
    }

    /// Whether no column has a sample.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds a row: what was expected, less what came.
    pub fn push(&mut self, differences: [f64; LANES]) {
        let four = |quad: usize| std::array::from_fn(|i| differences[4 * quad + i] as f32);
        self.rows
            .push(std::array::from_fn(|quad| f32x4::new(four(quad))));
    }

    /// Gives every column the rows that were pushed.
    pub fn fill(&mut self) {
        self.counts = [self.rows.len(); LANES];
    }

    /// Sets one column's sample. Places that other columns have and this one does not are beyond everything.
    pub fn set(&mut self, lane: usize, differences: impl Iterator<Item = f64>) {
        let mut count = 0;
        for difference in differences {
            if count == self.rows.len() {
                self.rows.push([BEYOND; QUADS]);
            }
            self.rows[count][lane / 4].as_mut_array()[lane % 4] = difference as f32;
            count += 1;
        }
        for row in &mut self.rows[count..] {
            row[lane / 4].as_mut_array()[lane % 4] = f32::INFINITY;
        }
        self.counts[lane] = count;
    }

    /// Scores all columns; none for an empty one.
    pub fn score(&mut self) -> [Option<Score>; LANES] {
        sort(&mut self.rows);
        let mut scores = [None; LANES];
        for (quad, scores) in scores.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *scores = self.score_quad(quad);
        }
        scores
    }

    fn score_quad(&self, quad: usize) -> [Option<Score>; 4] {
        let counts: [f32; 4] = std::array::from_fn(|i| self.counts[4 * quad + i] as f32);
        let (n, none, one) = (f32x4::new(counts), f32x4::ZERO, f32x4::ONE);
        let (mut loss, mut below, mut upto) = (none, none, none);
        let mut rank = f32x4::splat(0.5);
        for row in &self.rows {
            let d = row[quad];
            // No term is negative, so that nothing cancels.
            let above = d.simd_gt(none) & n;
            loss += rank.simd_lt(n) & (d * (above - rank));
            below += d.simd_lt(none) & one;
            upto += d.simd_le(none) & one;
            rank += one;
        }
        let [loss, below, upto] = [loss, below, upto].map(f32x4::to_array);
        std::array::from_fn(|lane| {
            let n = counts[lane];
            (n > 0.0).then(|| Score {
                crps: (2.0 * loss[lane] / (n * n)).min(LARGEST_LOSS),
                below: below[lane] / n,
                upto: upto[lane] / n,
            })
        })
    }
}

/// Beyond every value.
const BEYOND: f32x4 = f32x4::new([f32::INFINITY; 4]);

/// Sorts every column upwards, by Batcher's merge exchange.
fn sort(rows: &mut [Row]) {
    let count = rows.len();
    if count < 2 {
        return;
    }
    let widest = count.next_power_of_two() / 2;
    let mut run = widest;
    while run > 0 {
        let (mut merged, mut from, mut apart) = (widest, 0, run);
        loop {
            let mut first = from;
            while first + apart < count {
                let pairs = run.min(count - apart - first);
                let (low, high) = rows[first..].split_at_mut(apart);
                for (low, high) in low[..pairs].iter_mut().zip(&mut high[..pairs]) {
                    exchange(low, high);
                }
                first += 2 * run;
            }
            if merged == run {
                break;
            }
            apart = merged - run;
            merged /= 2;
            from = run;
        }
        run /= 2;
    }
}

fn exchange(low: &mut Row, high: &mut Row) {
    for (low, high) in low.iter_mut().zip(high) {
        let (a, b) = (*low, *high);
        *low = a.fast_min(b);
        *high = a.fast_max(b);
    }
}

#[cfg(test)]
mod tests {
    use super::super::quantile;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_column_is_sorted(
            columns in prop::array::uniform12(prop::collection::vec(-9i8..9, 0..200)),
        ) {
            let count = columns.iter().map(Vec::len).max().unwrap_or(0);
            let at = |lane: usize, row: usize| columns[lane].get(row).map_or(f32::INFINITY, |v| f32::from(*v));
            let four = |quad: usize, row| f32x4::new(std::array::from_fn(|i| at(4 * quad + i, row)));
            let row = |row| std::array::from_fn(|quad| four(quad, row));
            let mut rows: Vec<Row> = (0..count).map(row).collect();
            sort(&mut rows);
            for (lane, column) in columns.iter().enumerate() {
                let mut expected = column.clone();
                expected.sort_unstable();
                let found = rows.iter().map(|row| row[lane / 4].to_array()[lane % 4]);
                let found: Vec<f32> = found.take(column.len()).collect();
                prop_assert_eq!(found, expected.into_iter().map(f32::from).collect::<Vec<_>>());
            }
        }

        /// Samples of different sizes side by side, with ties, each as if it were alone.
        #[test]
        fn scores_are_those_of_each_sample_by_itself(
            columns in prop::array::uniform12(prop::collection::vec(-40i16..40, 0..160)),
            outcome in -45i16..45,
        ) {
            let mut together = Columns::default();
            for (lane, column) in columns.iter().enumerate() {
                together.set(lane, column.iter().map(|v| f64::from(v - outcome)));
            }
            for (column, score) in columns.iter().zip(together.score()) {
                let mut sample: Vec<f64> = column.iter().map(|v| f64::from(*v)).collect();
                prop_assert_eq!(score.is_none(), sample.is_empty());
                let Some(score) = score else { continue };
                quantile::sort(&mut sample);
                let actual = f64::from(outcome);
                let crps = quantile::crps_of_sorted(&sample, actual);
                prop_assert!((f64::from(score.crps) - crps).abs() <= 1e-5 * crps, "{score:?} {crps}");
                let (below, upto) = quantile::share_of_sorted(&sample, actual);
                prop_assert_eq!((score.below, score.upto), (below as f32, upto as f32));
            }
        }
    }
}
