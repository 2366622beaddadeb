//! What a workload needs: linear regressions from workload to resources, with what they do not know.
//!
//! ```text
//! requests, reads, writes ─► CPU, memory, disk and replication bandwidth, dirty rate
//! forecast of the workload ─┐
//!                           ├─► what is needed, as quantiles ─► the plan
//! errors of the regression ─┘
//! ```
//!
//! A regression is refitted in every cycle: it takes microseconds, and a guest that was upgraded
//! yesterday needs something else today. How far it errs is measured on the newest third of the
//! samples by a fit that has not seen them. A plan that forgot that spread would buy half the time too
//! little.

use linfa::Dataset;
use linfa::prelude::{Fit, Predict};
use linfa_linear::LinearRegression;
use ndarray::{Array1, Array2};
use std::fmt;

use super::quantile::{self, K, LEVELS, Pool, Quantiles};

/// What a workload may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// Cores.
    Cpu,
    /// Bytes of memory.
    Memory,
    /// Bytes a second from and to the disk.
    DiskBandwidth,
    /// Bytes a second to replicas.
    ReplicationBandwidth,
    /// Bytes a second that become dirty, each counted once.
    DirtyRate,
}

/// Rows without which nothing is fitted: an hour of five minutes.
pub const LEAST_ROWS: usize = 12;
/// Share of the rows that the measured fit sees; the newest rest judges it.
const SEEN: f64 = 2.0 / 3.0;
/// A column that varies less than this, against its size, says nothing.
const STILL: f64 = 1e-9;

/// Why nothing can be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Too few rows in which everything is finite.
    TooFew {
        /// How many there were.
        rows: usize,
    },
    /// A row has more or fewer workloads than the first.
    Ragged,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFew { rows } => write!(
                f,
                "{rows} usable rows of workload and resource, and {LEAST_ROWS} are needed: wait for more samples"
            ),
            Self::Ragged => write!(
                f,
                "rows of workload differ in length: give each the same columns"
            ),
        }
    }
}

impl std::error::Error for Unfit {}

/// What one resource needs, from what a workload does.
#[derive(Clone, Debug, PartialEq)]
pub struct Requirement {
    base: f64,
    each: Vec<f64>,
    /// Quantiles of what was needed beyond the line.
    errors: Quantiles,
    /// Share of the resource's variance that the workload explains, on rows that were not fitted.
    pub explained: f64,
}

impl Requirement {
    /// Fits a resource to workloads: `rows` in order of time, each the workloads and the resource at
    /// one moment. Workloads that stand still, or that others say already, get no weight.
    ///
    /// # Errors
    /// There is too little to fit.
    pub fn fit(rows: &[(Vec<f64>, f64)]) -> Result<Self, Unfit> {
        let columns = rows.first().map_or(0, |row| row.0.len());
        if rows.iter().any(|row| row.0.len() != columns) {
            return Err(Unfit::Ragged);
        }
        let sound =
            |row: &&(Vec<f64>, f64)| row.1.is_finite() && row.0.iter().all(|v| v.is_finite());
        let rows: Vec<&(Vec<f64>, f64)> = rows.iter().filter(sound).collect();
        if rows.len() < LEAST_ROWS {
            return Err(Unfit::TooFew { rows: rows.len() });
        }
        let (seen, unseen) = rows.split_at((rows.len() as f64 * SEEN) as usize);
        let (base, each) = line(seen, columns);
        let mut errors: Vec<f64> = unseen
            .iter()
            .map(|row| row.1 - on(base, &each, &row.0))
            .collect();
        let mean = unseen.iter().map(|row| row.1).sum::<f64>() / unseen.len() as f64;
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
        let missed = square(&mut errors.iter().copied());
        let total = square(&mut unseen.iter().map(|row| row.1 - mean));
        let explained = if total > 0.0 {
            (1.0 - missed / total).max(0.0)
        } else {
            0.0
        };
        let errors = quantile::of_sample(&mut errors);
        let (base, each) = line(&rows, columns);
        Ok(Self {
            base,
            each,
            errors,
            explained,
        })
    }

    /// What is needed when the workloads are as forecast. They are taken to peak together, which is the
    /// cautious side and near the truth: it is the guest that is busy. The regression's errors come on
    /// top, as likely in a busy hour as in a quiet one. Never negative.
    #[must_use]
    pub fn needed(&self, workloads: &[Quantiles]) -> Quantiles {
        assert_eq!(
            workloads.len(),
            self.each.len(),
            "as many workloads as were fitted"
        );
        let line: Quantiles = std::array::from_fn(|k| {
            let term = |(each, workload): (&f64, &Quantiles)| {
                each * if *each < 0.0 {
                    workload[K - 1 - k]
                } else {
                    workload[k]
                }
            };
            self.base + self.each.iter().zip(workloads).map(term).sum::<f64>()
        });
        let mut pool = Pool::default();
        for (need, share) in line.iter().zip(quantile::WEIGHTS) {
            for (error, chance) in self.errors.iter().zip(quantile::WEIGHTS) {
                pool.add(&[(need + error).max(0.0)], share * chance);
            }
        }
        pool.quantiles(&LEVELS)
    }
}

fn on(base: f64, each: &[f64], workloads: &[f64]) -> f64 {
    base + each.iter().zip(workloads).map(|(a, b)| a * b).sum::<f64>()
}

/// Base and weights of the least squares. Columns are centred and scaled first, so that bytes beside
/// cores do not spoil the arithmetic.
fn line(rows: &[&(Vec<f64>, f64)], columns: usize) -> (f64, Vec<f64>) {
    let count = rows.len() as f64;
    let moments: Vec<(f64, f64)> = (0..columns)
        .map(|c| {
            let mean = rows.iter().map(|row| row.0[c]).sum::<f64>() / count;
            let square = rows
                .iter()
                .map(|row| (row.0[c] - mean).powi(2))
                .sum::<f64>()
                / count;
            (mean, square.sqrt())
        })
        .collect();
    let scaled = |row: &(Vec<f64>, f64), c: usize| (row.0[c] - moments[c].0) / moments[c].1;
    let mut used: Vec<usize> = (0..columns)
        .filter(|c| moments[*c].1 > STILL * moments[*c].0.abs().max(f64::MIN_POSITIVE))
        .collect();
    let mean = rows.iter().map(|row| row.1).sum::<f64>() / count;
    let mut each = vec![0.0; columns];
    while !used.is_empty() {
        let records =
            Array2::from_shape_fn((rows.len(), used.len()), |(r, c)| scaled(rows[r], used[c]));
        let targets = Array1::from_iter(rows.iter().map(|row| row.1 - mean));
        let scale = targets
            .iter()
            .fold(0.0f64, |most, v| most.max(v.abs()))
            .max(f64::MIN_POSITIVE);
        let fitted = LinearRegression::new()
            .with_intercept(false)
            .fit(&Dataset::new(records.clone(), targets));
        // A column that others say already makes the weights of both absurd: the last one goes.
        let sane = fitted.ok().filter(|fitted| {
            let weights = fitted.params();
            weights.iter().all(|w| w.abs() <= 100.0 * scale)
                && fitted.predict(&records).iter().all(|v| v.is_finite())
        });
        if let Some(fitted) = sane {
            for (c, weight) in used.iter().zip(fitted.params()) {
                each[*c] = weight / moments[*c].1;
            }
            break;
        }
        used.pop();
    }
    let base = mean - each.iter().zip(&moments).map(|(a, m)| a * m.0).sum::<f64>();
    (base, each)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(i: usize) -> f64 {
        ((i * 7919) % 1009) as f64 / 1009.0 - 0.5
    }

    fn certain(value: f64) -> Quantiles {
        [value; K]
    }

    #[test]
    fn the_line_and_the_spread_around_it_are_found() {
        // A tenth of a core, a millicore for each request, and noise of half a core.
        let rows: Vec<_> = (0..300)
            .map(|i| {
                let requests = 1000.0 + 900.0 * (i as f64 / 20.0).sin();
                let bytes = 5e8 * noise(i * 3 + 1);
                (
                    vec![requests, bytes],
                    0.1 + requests / 1000.0 + 2e-9 * bytes + 0.5 * noise(i),
                )
            })
            .collect();
        let fitted = Requirement::fit(&rows).unwrap();
        assert!(fitted.explained > 0.9, "{fitted:?}");
        let needed = fitted.needed(&[certain(3000.0), certain(0.0)]);
        let (middle, high) = (quantile::at(&needed, 0.5), quantile::at(&needed, 0.95));
        assert!((middle - 3.1).abs() < 0.1, "{middle}");
        assert!((high - middle - 0.225).abs() < 0.06, "{middle} to {high}");
    }

    #[test]
    fn two_columns_that_say_the_same_and_one_that_stands_still_do_no_harm() {
        let rows: Vec<_> = (0..60)
            .map(|i| {
                let busy = 10.0 + i as f64 % 7.0;
                (vec![busy, 2.0 * busy, 4.0], 3.0 * busy + noise(i))
            })
            .collect();
        let fitted = Requirement::fit(&rows).unwrap();
        let needed = fitted.needed(&[certain(20.0), certain(40.0), certain(4.0)]);
        assert!(
            (quantile::at(&needed, 0.5) - 60.0).abs() < 1.0,
            "{needed:?}"
        );
    }

    #[test]
    fn workload_that_explains_nothing_leaves_the_resource_own_spread() {
        let rows: Vec<_> = (0..400)
            .map(|i| (vec![noise(i * 31 + 5)], 10.0 + noise(i)))
            .collect();
        let fitted = Requirement::fit(&rows).unwrap();
        assert!(fitted.explained < 0.1, "{fitted:?}");
        let needed = fitted.needed(&[certain(0.0)]);
        assert!((needed[K / 2] - 10.0).abs() < 0.1 && needed[K - 1] - needed[0] > 0.8);
    }

    #[test]
    fn too_little_is_refused_with_what_is_missing() {
        let rows = vec![(vec![f64::NAN], 1.0); 50];
        let error = Requirement::fit(&rows).unwrap_err();
        assert_eq!(error, Unfit::TooFew { rows: 0 });
        assert!(error.to_string().contains("12 are needed"), "{error}");
        let ragged = [(vec![1.0], 1.0), (vec![], 1.0)];
        assert_eq!(Requirement::fit(&ragged), Err(Unfit::Ragged));
    }

    proptest! {
        #[test]
        fn any_rows_give_finite_rising_needs(
            rows in prop::collection::vec(
                (prop::collection::vec(prop_oneof![Just(0.0), -1e9..1e9, 0.0..1.0], 3), -1e9f64..1e9), 0..80),
        ) {
            if let Ok(fitted) = Requirement::fit(&rows) {
                let needed = fitted.needed(&[certain(1.0), certain(1e6), certain(0.0)]);
                prop_assert!(needed.iter().all(|v| v.is_finite() && *v >= 0.0), "{needed:?}");
                prop_assert!(needed.is_sorted());
            }
        }
    }
}
