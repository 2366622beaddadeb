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

use pulp::{Arch, Simd, WithSimd};

/// Outcomes side by side: those of one forecast, mostly.
pub const LANES: usize = 16;

type Row = [f32; LANES];

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
    /// Row after row.
    rows: Vec<f32>,
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

    /// Adds a row: what was expected, less what came, in this unit.
    #[inline]
    pub fn push(&mut self, expected: &[f64; LANES], came: &[f64; LANES], unit: f64) {
        let mut row = [0.0; LANES];
        for ((narrow, expected), came) in row.iter_mut().zip(expected).zip(came) {
            *narrow = ((expected - came) * unit) as f32;
        }
        self.rows.extend_from_slice(&row);
    }

    /// Gives every column the rows that were pushed.
    pub fn fill(&mut self) {
        self.counts = [self.rows.len() / LANES; LANES];
    }

    /// Sets one column's sample. Places that other columns have and this one does not are beyond everything.
    pub fn set(&mut self, lane: usize, differences: impl Iterator<Item = f64>) {
        let mut count = 0;
        for difference in differences {
            if LANES * count == self.rows.len() {
                self.rows.extend_from_slice(&[f32::INFINITY; LANES]);
            }
            self.rows[LANES * count + lane] = difference as f32;
            count += 1;
        }
        let beyond = self.rows[LANES * count..].iter_mut();
        beyond
            .skip(lane)
            .step_by(LANES)
            .for_each(|v| *v = f32::INFINITY);
        self.counts[lane] = count;
    }

    /// Scores all columns; none for an empty one.
    pub fn score(&mut self) -> [Option<Score>; LANES] {
        let counts = self.counts.map(|count| count as f32);
        let sorted = Sorted {
            rows: &mut self.rows,
            counts: &counts,
        };
        let [loss, below, upto] = Arch::new().dispatch(sorted);
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

/// Sorts the columns, and sums of each so long a one its loss, and how many are below the outcome and not above it.
struct Sorted<'a> {
    rows: &'a mut [f32],
    counts: &'a Row,
}

impl WithSimd for Sorted<'_> {
    type Output = [Row; 3];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> [Row; 3] {
        let (rows, _) = S::as_mut_simd_f32s(self.rows);
        sort(simd, rows);
        let (counts, _) = S::as_simd_f32s(self.counts);
        let mut sums = [[0.0; LANES]; 3];
        let [losses, belows, uptos] = &mut sums;
        let [losses, belows, uptos] =
            [losses, belows, uptos].map(|sums| S::as_mut_simd_f32s(sums).0);
        let (none, one) = (simd.splat_f32s(0.0), simd.splat_f32s(1.0));
        for (at, n) in counts.iter().enumerate() {
            let (mut loss, mut below, mut upto) = (none, none, none);
            let mut rank = simd.splat_f32s(0.5);
            for row in rows.chunks_exact(counts.len()) {
                let d = row[at];
                // No term is negative, so that nothing cancels.
                let above = simd.select_f32s(simd.greater_than_f32s(d, none), *n, none);
                let part = simd.mul_f32s(d, simd.sub_f32s(above, rank));
                let is_there = simd.less_than_f32s(rank, *n);
                loss = simd.add_f32s(loss, simd.select_f32s(is_there, part, none));
                let is_below = simd.less_than_f32s(d, none);
                below = simd.add_f32s(below, simd.select_f32s(is_below, one, none));
                let is_upto = simd.less_than_or_equal_f32s(d, none);
                upto = simd.add_f32s(upto, simd.select_f32s(is_upto, one, none));
                rank = simd.add_f32s(rank, one);
            }
            (losses[at], belows[at], uptos[at]) = (loss, below, upto);
        }
        sums
    }
}

/// Sorts every column upwards, by Batcher's merge exchange.
#[inline(always)]
fn sort<S: Simd>(simd: S, rows: &mut [S::f32s]) {
    // Vectors in a row.
    let wide = LANES / S::F32_LANES;
    let count = rows.len() / wide;
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
                let (low, high) = rows[wide * first..].split_at_mut(wide * apart);
                let (low, high) = (&mut low[..wide * pairs], &mut high[..wide * pairs]);
                for (low, high) in low.chunks_exact_mut(wide).zip(high.chunks_exact_mut(wide)) {
                    for (low, high) in low.iter_mut().zip(high) {
                        let (a, b) = (*low, *high);
                        *low = simd.min_f32s(a, b);
                        *high = simd.max_f32s(a, b);
                    }
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

#[cfg(test)]
mod tests {
    use super::super::quantile;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_column_is_sorted(
            columns in prop::array::uniform16(prop::collection::vec(-9i8..9, 0..200)),
        ) {
            let count = columns.iter().map(Vec::len).max().unwrap_or(0);
            let at = |lane: usize, row: usize| columns[lane].get(row).map_or(f32::INFINITY, |v| f32::from(*v));
            let rows = (0..count).flat_map(|row| (0..LANES).map(move |lane| at(lane, row)));
            let mut rows: Vec<f32> = rows.collect();
            Arch::new().dispatch(Sorted { rows: &mut rows, counts: &[count as f32; LANES] });
            for (lane, column) in columns.iter().enumerate() {
                let mut expected = column.clone();
                expected.sort_unstable();
                let found = rows[lane.min(rows.len())..].iter().step_by(LANES).copied();
                let found: Vec<f32> = found.take(column.len()).collect();
                prop_assert_eq!(found, expected.into_iter().map(f32::from).collect::<Vec<_>>());
            }
        }

        /// Samples of different sizes side by side, with ties, each as if it were alone.
        #[test]
        fn scores_are_those_of_each_sample_by_itself(
            columns in prop::array::uniform16(prop::collection::vec(-40i16..40, 0..160)),
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
