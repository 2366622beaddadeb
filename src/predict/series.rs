//! From samples as they come to a series on a grid.
//!
//! Real histories have gaps, samples a second early, the same stamp twice, an hour repeated when a
//! clock was set back, counters that restart at zero, NaN. Each is either repaired in a way that
//! [`Notes`] states, or refused with a typed error.
//!
//! | found | what is done |
//! |---|---|
//! | stamps off the grid | each sample goes to the nearest point |
//! | several samples at a point | their mean |
//! | stamps that go back | sorted first |
//! | NaN, infinite, or beyond [`LARGEST`] | as if missing |
//! | a gap | the last value stays; after more than a week history begins anew |
//! | more points than [`LONGEST`] | the newest are taken |
//! | a counter that falls | it restarted at zero ([`rates`]) |

use std::fmt;

/// One sample: seconds since 1970, and the value.
pub type Sample = (i64, f64);

/// Seconds in a day.
pub const DAY_SECONDS: u32 = 86_400;
/// A gap longer than this ends what came before it: its habits are not today's.
const LONGEST_GAP_SECONDS: i64 = 7 * 86_400;
/// Points on a grid: ten years of five minutes. A median step of a second between gaps of days would
/// otherwise ask for gigabytes.
pub const LONGEST: usize = 1 << 20;
/// No measurement is larger, and the square of a larger one is not finite.
pub const LARGEST: f64 = 1e150;
/// Samples without which nothing can be said.
pub const LEAST_SAMPLES: usize = 12;

/// A series on an even grid without holes.
#[derive(Clone, Debug)]
pub struct Series {
    /// When the first sample was taken, in seconds since 1970.
    pub start: i64,
    /// The grid.
    pub step_seconds: u32,
    /// How long a day is: shorter where recorded load is played faster than it was.
    pub day_seconds: u32,
    /// One value for each point.
    pub values: Vec<f64>,
    /// What had to be repaired.
    pub notes: Notes,
}

/// How many samples had to be repaired, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Samples that were not finite, or beyond [`LARGEST`].
    pub not_finite: usize,
    /// Samples whose stamp was before their predecessor's.
    pub out_of_order: usize,
    /// Samples that shared their point of the grid.
    pub duplicates: usize,
    /// Points filled with the last value.
    pub filled: usize,
    /// Samples dropped because a gap of more than a week followed, or too many points.
    pub before_gap: usize,
}

impl Notes {
    /// What was repaired; none if nothing had to be.
    #[must_use]
    pub fn sentence(&self) -> Option<String> {
        (*self != Notes::default()).then(|| {
            format!(
                "repaired {} values not finite, {} stamps out of order, {} duplicates, {} gaps filled with \
                 the last value, {} samples before a long gap left out",
                self.not_finite, self.out_of_order, self.duplicates, self.filled, self.before_gap
            )
        })
    }
}

/// Why a history cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeriesError {
    /// No samples at all.
    Empty,
    /// Samples, and not one of them finite.
    NothingFinite,
    /// Fewer points than any forecast needs, after repairs.
    TooShort {
        /// Points that remained.
        have: usize,
        /// Samples lost to a long gap.
        before_gap: usize,
    },
}

impl fmt::Display for SeriesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "the history has no samples"),
            Self::NothingFinite => write!(f, "the history has no finite value"),
            Self::TooShort {
                have,
                before_gap: 0,
            } => {
                write!(
                    f,
                    "the history has {have} points and {LEAST_SAMPLES} are needed"
                )
            }
            Self::TooShort { have, before_gap } => write!(
                f,
                "the history has {have} points after its last gap of more than a week ({before_gap} samples \
                 before it do not count) and {LEAST_SAMPLES} are needed: check the stamps"
            ),
        }
    }
}

impl std::error::Error for SeriesError {}

impl Series {
    /// Lays samples on a grid whose step is their median distance.
    pub fn from_samples(samples: &[Sample]) -> Result<Self, SeriesError> {
        Self::lay(samples, median_step)
    }

    /// Lays samples on a grid of `step` seconds that ends at `until`: what was not measured lately is
    /// taken to have stayed as it was. A history that ended more than a week before says nothing.
    pub fn up_to(samples: &[Sample], step: u32, until: i64) -> Result<Self, SeriesError> {
        let mut series = Self::lay(samples, |_| Some(i64::from(step)))?;
        let length = series.values.len() as i64;
        let missing = (until - series.start).div_euclid(i64::from(step)) + 1 - length;
        if missing.saturating_mul(i64::from(step)) > LONGEST_GAP_SECONDS {
            return Err(SeriesError::TooShort {
                have: 0,
                before_gap: samples.len(),
            });
        }
        if let (Some(last), Ok(missing)) = (series.values.last().copied(), usize::try_from(missing))
        {
            series.notes.filled += missing;
            series.values.extend(std::iter::repeat_n(last, missing));
        }
        Ok(series)
    }

    fn lay(
        samples: &[Sample],
        step_of: impl Fn(&[Sample]) -> Option<i64>,
    ) -> Result<Self, SeriesError> {
        if samples.is_empty() {
            return Err(SeriesError::Empty);
        }
        let mut sorted: Vec<Sample> = samples
            .iter()
            .copied()
            .filter(|sample| sample.1.abs() <= LARGEST)
            .collect();
        if sorted.is_empty() {
            return Err(SeriesError::NothingFinite);
        }
        let mut notes = Notes {
            not_finite: samples.len() - sorted.len(),
            ..Notes::default()
        };
        notes.out_of_order = sorted
            .windows(2)
            .filter(|pair| pair[1].0 < pair[0].0)
            .count();
        sorted.sort_by_key(|sample| sample.0);

        let last_gap = sorted
            .windows(2)
            .rposition(|pair| pair[1].0.saturating_sub(pair[0].0) > LONGEST_GAP_SECONDS);
        notes.before_gap = last_gap.map_or(0, |at| at + 1);
        let mut recent = &sorted[notes.before_gap..];
        let step = step_of(recent).ok_or(SeriesError::TooShort {
            have: 1,
            before_gap: notes.before_gap,
        })?;
        let reach = step.saturating_mul(LONGEST as i64 - 1);
        let oldest = recent[recent.len() - 1].0.saturating_sub(reach);
        let too_old = recent.partition_point(|sample| sample.0 < oldest);
        notes.before_gap += too_old;
        recent = &recent[too_old..];
        let start = recent[0].0;
        let point = |stamp: i64| ((stamp - start + step / 2) / step) as usize;
        let length = point(recent[recent.len() - 1].0) + 1;
        if length < LEAST_SAMPLES {
            return Err(SeriesError::TooShort {
                have: length,
                before_gap: notes.before_gap,
            });
        }

        let mut sums = vec![(0.0, 0u32); length];
        for (stamp, value) in recent {
            let cell = &mut sums[point(*stamp)];
            cell.0 += value;
            cell.1 += 1;
        }
        let mut last = recent[0].1;
        let mut values = Vec::with_capacity(length);
        for (sum, count) in sums {
            match count {
                0 => notes.filled += 1,
                _ => last = sum / f64::from(count),
            }
            notes.duplicates += count.saturating_sub(1) as usize;
            values.push(last);
        }
        Ok(Self {
            start,
            step_seconds: step as u32,
            day_seconds: DAY_SECONDS,
            values,
            notes,
        })
    }

    /// The first point's place on the grid of all time: steps since 1970, to the nearest.
    #[must_use]
    pub fn origin(&self) -> i64 {
        let step = i64::from(self.step_seconds);
        self.start.saturating_add(step / 2).div_euclid(step)
    }

    /// Points in a day, at least one.
    #[must_use]
    pub fn day(&self) -> usize {
        ((self.day_seconds / self.step_seconds) as usize).max(1)
    }
}

/// The median distance of neighbours that are not at the same time; none for a single time.
fn median_step(sorted: &[Sample]) -> Option<i64> {
    let mut steps: Vec<i64> = sorted
        .windows(2)
        .map(|pair| pair[1].0 - pair[0].0)
        .filter(|step| *step > 0)
        .collect();
    if steps.is_empty() {
        return None;
    }
    let middle = steps.len() / 2;
    Some(*steps.select_nth_unstable(middle).1)
}

/// A counter's samples as rates a second. A fall means that it restarted at zero; a stamp that does
/// not advance gives no rate.
#[must_use]
pub fn rates(counter: &[Sample]) -> Vec<Sample> {
    let steps = counter.windows(2).filter(|pair| pair[1].0 > pair[0].0);
    steps
        .map(|pair| {
            let grown = if pair[1].1 >= pair[0].1 {
                pair[1].1 - pair[0].1
            } else {
                pair[1].1
            };
            (pair[1].0, grown / (pair[1].0 - pair[0].0) as f64)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{cycle, forecast};
    use super::*;
    use proptest::prelude::*;

    fn stamp() -> impl Strategy<Value = i64> {
        prop_oneof![
            8 => (0i64..200).prop_map(|i| 1_700_000_000 + i * 300),
            3 => 1_700_000_000i64..1_700_900_000,
            1 => any::<i64>(),
        ]
    }

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![
            4 => 0.0..1e6,
            2 => Just(0.0),
            1 => any::<f64>(),
            1 => Just(f64::NAN),
        ]
    }

    proptest! {
        /// Clocks that go back, stamps from nowhere, NaN, the largest numbers there are: an error, or a
        /// series that can be forecast.
        #[test]
        fn any_samples_are_refused_or_forecast(
            samples in prop::collection::vec((stamp(), value()), 0..150),
        ) {
            if let Ok(series) = Series::from_samples(&samples) {
                prop_assert!((LEAST_SAMPLES..=LONGEST).contains(&series.values.len()));
                prop_assert!(series.values.iter().all(|v| v.is_finite()));
                let short = series.values.len() < 20_000;
                let ahead = short.then(|| forecast(&series, 12));
                let quantiles = ahead.iter().flat_map(|f| f.steps.iter().chain([&f.window_max]));
                for quantiles in quantiles {
                    prop_assert!(quantiles.iter().all(|q| q.is_finite()) && quantiles.is_sorted());
                }
            }
        }

        /// A memory meets the next cycle's history whatever became of it: shorter, older, at another
        /// pace.
        #[test]
        fn a_memory_survives_any_other_history(
            one in prop::collection::vec((stamp(), value()), 60..150),
            other in prop::collection::vec((stamp(), value()), 12..150),
        ) {
            let mut memory = None;
            for samples in [&one, &other, &one] {
                let Ok(history) = Series::from_samples(samples) else { continue };
                if history.values.len() > 20_000 {
                    continue;
                }
                let task = cycle::Task { key: (), history, memory: memory.take(), horizon: 5 };
                let kept = std::sync::Mutex::new(None);
                let limits = cycle::Limits { threads: std::num::NonZeroUsize::MIN, replays: 1 };
                cycle::cycle(std::iter::once(task), limits, |found| *kept.lock().unwrap() = Some(found));
                let found = kept.into_inner().unwrap().unwrap();
                prop_assert!(found.forecast.steps.iter().flatten().all(|q| q.is_finite()));
                memory = Some(found.memory);
            }
        }
    }

    fn steady(count: i64) -> Vec<Sample> {
        (0..count).map(|i| (1000 + i * 300, i as f64)).collect()
    }

    #[test]
    fn a_clean_history_is_taken_as_it_is() {
        let series = Series::from_samples(&steady(20)).unwrap();
        assert_eq!(
            (series.start, series.step_seconds, series.day()),
            (1000, 300, 288)
        );
        assert_eq!(series.values, (0..20).map(f64::from).collect::<Vec<_>>());
        assert_eq!(series.notes, Notes::default());
    }

    #[test]
    fn what_was_not_measured_lately_stayed_as_it_was_for_a_week() {
        let series = Series::up_to(&steady(20), 300, 1000 + 25 * 300).unwrap();
        assert_eq!((series.values.len(), series.notes.filled), (26, 6));
        assert_eq!(series.values[19..], [19.0; 7]);
        // every second sample is missing, and the grid stays what it is
        let half: Vec<_> = steady(40).into_iter().step_by(2).collect();
        let series = Series::up_to(&half, 300, half[19].0).unwrap();
        assert_eq!((series.values.len(), series.step_seconds), (39, 300));
        let week = LONGEST_GAP_SECONDS + 600;
        let ended = Series::up_to(&steady(20), 300, 1000 + 19 * 300 + week);
        assert!(matches!(ended, Err(SeriesError::TooShort { .. })));
        // a clock set back: what came after it stays
        assert_eq!(
            Series::up_to(&steady(20), 300, 1000).unwrap().values.len(),
            20
        );
    }

    #[test]
    fn gaps_duplicates_jitter_and_nan_are_repaired_and_counted() {
        let mut samples = steady(20);
        samples[4].0 += 7;
        samples[6].1 = f64::NAN;
        samples.remove(10);
        samples.push((1000 + 3 * 300, 5.0));
        let series = Series::from_samples(&samples).unwrap();
        assert_eq!(series.values.len(), 20);
        assert_eq!(series.values[3], 4.0, "the mean of both");
        assert_eq!(series.values[6], 5.0, "the last value stays");
        assert_eq!(series.values[10], 9.0);
        let expected = Notes {
            not_finite: 1,
            out_of_order: 1,
            duplicates: 1,
            filled: 2,
            before_gap: 0,
        };
        assert_eq!(series.notes, expected);
    }

    #[test]
    fn a_clock_set_back_does_not_lose_or_invent_samples() {
        let mut samples = steady(40);
        for sample in &mut samples[20..] {
            sample.0 -= 3600;
        }
        let series = Series::from_samples(&samples).unwrap();
        assert_eq!(series.values.len(), 28);
        assert_eq!(
            (series.notes.out_of_order, series.notes.duplicates),
            (1, 12)
        );
    }

    #[test]
    fn history_begins_anew_after_a_gap_of_more_than_a_week() {
        let mut samples = steady(30);
        for sample in &mut samples[10..] {
            sample.0 += 8 * 86_400;
        }
        let series = Series::from_samples(&samples).unwrap();
        assert_eq!((series.values.len(), series.notes.before_gap), (20, 10));
        samples.push((i64::MAX / 2, 1.0));
        let error = Series::from_samples(&samples).unwrap_err();
        assert_eq!(
            error,
            SeriesError::TooShort {
                have: 1,
                before_gap: 30
            }
        );
        assert!(error.to_string().contains("check the stamps"));
    }

    #[test]
    fn nothing_usable_is_an_error_that_says_so() {
        assert_eq!(Series::from_samples(&[]).unwrap_err(), SeriesError::Empty);
        let nan = vec![(0, f64::NAN); 50];
        assert_eq!(
            Series::from_samples(&nan).unwrap_err(),
            SeriesError::NothingFinite
        );
        let same = vec![(7, 1.0); 50];
        assert_eq!(
            Series::from_samples(&same).unwrap_err(),
            SeriesError::TooShort {
                have: 1,
                before_gap: 0
            }
        );
        let short = Series::from_samples(&steady(5)).unwrap_err();
        assert_eq!(
            short,
            SeriesError::TooShort {
                have: 5,
                before_gap: 0
            }
        );
    }

    #[test]
    fn a_counter_that_restarts_never_gives_a_negative_rate() {
        let counter = [(0, 100.0), (10, 200.0), (20, 50.0), (20, 60.0), (30, 150.0)];
        assert_eq!(rates(&counter), vec![(10, 10.0), (20, 5.0), (30, 9.0)]);
    }
}
