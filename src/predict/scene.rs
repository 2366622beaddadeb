//! One series as the experts see it: its values, its shape on a gentle logarithmic scale, and the
//! past windows that an expert thinks could happen again.
//!
//! A disk that writes 4 KB/s and bursts to 4 GB/s has no useful distance on a linear scale: the bursts
//! drown everything. `asinh` of the value over its own median keeps the order, spreads the quiet
//! part, and makes every answer here indifferent to the unit of the series.

use super::quantile;

/// How strongly the scale bends: values below a third of the median are nearly linear.
const BEND: f64 = 3.0;

/// Values that [`Outlook::Recent`] keeps of its span.
const RECENT: usize = 100;

/// A series prepared for searching.
pub struct Scene<'a> {
    /// The samples on their grid, oldest first.
    pub values: &'a [f64],
    /// The same on the bent scale.
    pub shape: Vec<f32>,
    /// Samples in a day.
    pub day: usize,
    /// No forecast goes below this: zero when the series never does.
    pub floor: f64,
}

impl<'a> Scene<'a> {
    /// Prepares `values`; only the first `known` samples may set the scale.
    pub fn new(values: &'a [f64], known: usize, day: usize) -> Self {
        let past = &values[..known];
        let scale = BEND / typical(past);
        let shape = values.iter().map(|v| (v * scale).asinh() as f32).collect();
        let floor = if past.iter().all(|v| *v >= 0.0) {
            0.0
        } else {
            f64::NEG_INFINITY
        };
        Self {
            values,
            shape,
            day,
            floor,
        }
    }
}

/// The median size of what is not zero; 1 for a series of zeroes.
fn typical(past: &[f64]) -> f64 {
    let stride = past.len() / 4096 + 1;
    let mut sizes: Vec<f64> = past
        .iter()
        .step_by(stride)
        .map(|v| v.abs())
        .filter(|v| *v > 0.0)
        .collect();
    if sizes.is_empty() {
        return 1.0;
    }
    sizes.sort_unstable_by(f64::total_cmp);
    quantile::of_sorted(&sizes, 0.5)
}

#[derive(Clone)]
/// Past windows that could happen again, each with equal weight. `step` counts from 0, the first
/// sample after now.
pub enum Outlook {
    /// Any of the last `span` values at any step.
    Recent {
        /// Samples before now.
        span: usize,
    },
    /// Window `i` replays the samples from `starts[i]`, its level moved by `shifts[i]`.
    Windows {
        /// Index of each window's first sample.
        starts: Vec<u32>,
        /// What is added to each window.
        shifts: Vec<f64>,
    },
    /// The same phase of earlier turns of a period.
    Phase {
        /// Samples in a turn.
        period: usize,
        /// Turns looked back.
        turns: usize,
    },
}

impl Outlook {
    /// Replaces `out` with the sample for `step`, unsorted.
    pub fn sample(&self, scene: &Scene<'_>, now: usize, step: usize, out: &mut Vec<f64>) {
        out.clear();
        match self {
            Self::Recent { span } => {
                let recent = &scene.values[now.saturating_sub(*span)..now];
                out.extend(recent.iter().step_by(recent.len() / RECENT + 1));
            }
            Self::Windows { starts, shifts } => {
                for (start, shift) in starts.iter().zip(shifts) {
                    let at = *start as usize + step;
                    if at < now {
                        out.push((scene.values[at] + shift).max(scene.floor));
                    }
                }
            }
            Self::Phase { period, turns } => {
                let back = (step / period + 1) * period;
                let mut next = (now + step).checked_sub(back);
                for _ in 0..*turns {
                    let Some(at) = next else { break };
                    out.push(scene.values[at]);
                    next = at.checked_sub(*period);
                }
            }
        }
        if out.is_empty() {
            out.push(scene.values[now - 1]);
        }
    }

    /// Replaces `out` with the maximum of each window over `horizon` steps, unsorted; empty when the
    /// outlook has no windows of that length.
    pub fn maxima(&self, scene: &Scene<'_>, now: usize, horizon: usize, out: &mut Vec<f64>) {
        out.clear();
        let top = |start: usize| {
            scene.values[start..start + horizon]
                .iter()
                .copied()
                .fold(f64::MIN, f64::max)
        };
        match self {
            Self::Recent { span } => {
                let first = now.saturating_sub(*span);
                let stride = (span / RECENT).max(1) * 4;
                out.extend(
                    (first..(now + 1).saturating_sub(horizon))
                        .step_by(stride)
                        .map(top),
                );
            }
            Self::Windows { starts, shifts } => {
                let whole = starts
                    .iter()
                    .zip(shifts)
                    .filter(|(start, _)| **start as usize + horizon <= now);
                out.extend(
                    whole.map(|(start, shift)| (top(*start as usize) + shift).max(scene.floor)),
                );
            }
            Self::Phase { .. } => {}
        }
    }

    /// Appends up to `count` of the windows of `horizon` steps, evenly chosen.
    pub fn paths(
        &self,
        scene: &Scene<'_>,
        now: usize,
        horizon: usize,
        count: usize,
        out: &mut Vec<Vec<f64>>,
    ) {
        let path = |start: usize, shift: f64| -> Vec<f64> {
            scene.values[start..start + horizon]
                .iter()
                .map(|v| (v + shift).max(scene.floor))
                .collect()
        };
        match self {
            Self::Recent { span } if count > 0 => {
                let first = now.saturating_sub(*span);
                let whole = (now + 1).saturating_sub(horizon + first);
                out.extend((0..count.min(whole)).map(|i| path(first + i * whole / count, 0.0)));
            }
            Self::Windows { starts, shifts } if count > 0 => {
                let whole = starts
                    .iter()
                    .zip(shifts)
                    .filter(|(start, _)| **start as usize + horizon <= now);
                let stride = (starts.len() / count).max(1);
                out.extend(
                    whole
                        .step_by(stride)
                        .take(count)
                        .map(|(start, shift)| path(*start as usize, *shift)),
                );
            }
            _ => {}
        }
    }
}
