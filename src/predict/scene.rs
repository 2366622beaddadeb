//! One series as the experts see it: its values, its shape on a gentle logarithmic scale, and the
//! past windows that an expert thinks could happen again.
//!
//! A disk that writes 4 KB/s and bursts to 4 GB/s has no useful distance on a linear scale: the bursts
//! drown everything. `asinh` of the value over its own median keeps the order, spreads the quiet
//! part, and makes every answer here indifferent to the unit of the series.

use std::sync::OnceLock;

use super::series::Series;

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
    /// What a value is multiplied by before it is bent.
    pub scale: f64,
    /// Samples in a day.
    pub day: usize,
    /// No forecast goes below this: zero when the series never does.
    pub floor: f64,
    /// The place of the first sample on the grid of all time, so that what was said about a sample
    /// can be found again when old ones have left the history.
    pub origin: i64,
    /// Maxima of all windows, once somebody asks for one.
    tops: OnceLock<Tops>,
}

/// The maximum of every window of some width. Two that overlap make the maximum of any window up to
/// twice as wide.
struct Tops {
    /// A power of two.
    width: usize,
    /// One for each first sample.
    of: Vec<f64>,
}

impl Tops {
    /// For windows of `length`: each round doubles the width.
    fn new(values: &[f64], length: usize) -> Self {
        let (mut width, mut of) = (1, values.to_vec());
        while 2 * width <= length.min(values.len()) {
            let pairs = of.iter().zip(&of[width..]);
            of = pairs.map(|(a, b)| a.max(*b)).collect();
            width *= 2;
        }
        Self { width, of }
    }
}

impl<'a> Scene<'a> {
    /// Prepares `values`; only the first `known` samples may set the scale.
    pub fn new(values: &'a [f64], known: usize, day: usize) -> Self {
        let past = &values[..known];
        let scale = BEND / typical(past).max(f64::MIN_POSITIVE);
        let shape = values.iter().map(|v| bend(v * scale)).collect();
        let floor = if past.iter().all(|v| *v >= 0.0) {
            0.0
        } else {
            f64::NEG_INFINITY
        };
        Self {
            values,
            shape,
            scale,
            day,
            floor,
            origin: 0,
            tops: OnceLock::new(),
        }
    }

    /// Prepares a whole series.
    pub fn of(series: &'a Series) -> Self {
        let mut scene = Self::new(&series.values, series.values.len(), series.day());
        scene.origin = series.origin();
        scene
    }

    /// What a value is multiplied by before it is narrowed to thirty-two bits: a power of two, so that nothing
    /// is rounded otherwise when the median has moved.
    pub fn unit(&self) -> f64 {
        const EXPONENT: u64 = 0x7ff << 52;
        f64::from_bits(self.scale.to_bits() & EXPONENT)
    }

    /// The maximum of the `length` samples from `start` on. The first length that is asked for is answered
    /// in no time afterwards; a forecast asks for no other.
    pub fn top(&self, start: usize, length: usize) -> f64 {
        let tops = self.tops.get_or_init(|| Tops::new(self.values, length));
        if (tops.width..=2 * tops.width).contains(&length) {
            return tops.of[start].max(tops.of[start + length - tops.width]);
        }
        let window = self.values[start..start + length].iter().copied();
        window.fold(f64::MIN, f64::max)
    }
}

/// `asinh` to more digits than are kept; that of the standard library takes three times as long.
fn bend(value: f64) -> f32 {
    /// Above it one beside the square is nothing, and the square may not be finite.
    const LARGE: f64 = 1e9;
    let size = value.abs();
    let bent = if size < LARGE {
        (size + (size * size + 1.0).sqrt()).ln()
    } else {
        size.ln() + std::f64::consts::LN_2
    };
    bent.copysign(value) as f32
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
    let middle = sizes.len() / 2;
    let is_even = sizes.len().is_multiple_of(2);
    let (smaller, middle, _) = sizes.select_nth_unstable_by(middle, f64::total_cmp);
    let below = smaller.iter().copied().fold(0.0, f64::max);
    if is_even {
        below + (*middle - below) * 0.5
    } else {
        *middle
    }
}

/// Past windows that could happen again, each with equal weight. `step` counts from 0, the first
/// sample after now.
#[derive(Clone, Debug, PartialEq)]
pub enum Outlook {
    /// Any of the last `span` values at any step.
    Recent {
        /// Samples before now.
        span: usize,
    },
    /// Window `i` replays the samples from `backs[i]` before now, its level moved by `shifts[i]`.
    Windows {
        /// How long before now each window's first sample was.
        backs: Vec<u32>,
        /// What is added to each window; empty when nothing is.
        shifts: Vec<f32>,
    },
    /// The same phase of earlier turns of a period.
    Phase {
        /// Samples in a turn.
        period: usize,
        /// Turns looked back.
        turns: usize,
    },
    /// What a fitted model draws.
    Drawn(Drawn),
}

/// A path on the bent scale and errors around it that grow with the step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Drawn {
    /// The scale on which it was drawn.
    pub scale: f64,
    /// The least and the most that was ever seen there.
    pub bounds: [f32; 2],
    /// The middle of each step; empty when the model has no opinion.
    pub path: Vec<f32>,
    /// How much larger an error is at each step than at the first.
    pub spread: Vec<f32>,
    /// Errors of one step, ascending and equally likely.
    pub errors: Vec<f32>,
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
            Self::Windows { backs, shifts } => {
                for (start, shift) in windows(now, step + 1, backs, shifts) {
                    out.push((scene.values[start + step] + shift).max(scene.floor));
                }
            }
            Self::Drawn(_) => {}
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
        if let Self::Drawn(drawn) = self
            && let Some(path) = drawn.path.get(step)
        {
            let [lowest, highest] = drawn.bounds;
            out.extend(drawn.errors.iter().map(|error| {
                let bent = path + error * drawn.spread[step];
                f64::from(bent.clamp(lowest, highest)).sinh() / drawn.scale
            }));
        }
        // A model that was not asked or could not be fitted says nothing.
        if out.is_empty() && !matches!(self, Self::Drawn(_)) {
            out.push(scene.values[now - 1]);
        }
    }

    /// Hands at least half of `enough` members of the samples for several steps below `horizon` to `each`, side
    /// by side, if it is windows or phases that all of the steps have; else says that it did not.
    pub fn side_by_side<const N: usize>(
        &self,
        scene: &Scene<'_>,
        now: usize,
        horizon: usize,
        steps: &[usize; N],
        enough: usize,
        mut each: impl FnMut(&[f64; N]),
    ) -> bool {
        let mut row = [0.0; N];
        match self {
            Self::Windows { backs, shifts } => {
                let mut all = backs.iter().map(|back| *back as usize);
                if backs.is_empty() || !all.all(|back| (horizon..=now).contains(&back)) {
                    return false;
                }
                let some = backs.len().div_ceil(enough);
                for (start, shift) in windows(now, horizon, backs, shifts).step_by(some) {
                    let window = &scene.values[start..start + horizon];
                    for (value, step) in row.iter_mut().zip(steps) {
                        let moved = window[*step] + shift;
                        *value = if moved > scene.floor {
                            moved
                        } else {
                            scene.floor
                        };
                    }
                    each(&row);
                }
            }
            Self::Phase { period, turns } => {
                let first = |step: usize| (now + step).checked_sub((step / period + 1) * period);
                let reach = turns.saturating_sub(1).saturating_mul(*period);
                let has_all = |step: &usize| first(*step).is_some_and(|at| at >= reach);
                if *turns == 0 || !steps.iter().all(has_all) {
                    return false;
                }
                let mut at: [usize; N] = std::array::from_fn(|i| first(steps[i]).unwrap_or(0));
                for _ in 0..*turns {
                    for (value, at) in row.iter_mut().zip(&mut at) {
                        *value = scene.values[*at];
                        *at = at.saturating_sub(*period);
                    }
                    each(&row);
                }
            }
            Self::Recent { .. } | Self::Drawn(_) => return false,
        }
        true
    }

    /// Replaces `out` with the maximum of each window over `horizon` steps, unsorted; empty when the
    /// outlook has no windows of that length.
    pub fn maxima(&self, scene: &Scene<'_>, now: usize, horizon: usize, out: &mut Vec<f64>) {
        out.clear();
        let top = |start: usize| scene.top(start, horizon);
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
            Self::Windows { backs, shifts } => {
                let whole = windows(now, horizon, backs, shifts);
                out.extend(whole.map(|(start, shift)| (top(start) + shift).max(scene.floor)));
            }
            Self::Phase { .. } | Self::Drawn(_) => {}
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
            Self::Windows { backs, shifts } if count > 0 => {
                let whole = windows(now, horizon, backs, shifts);
                let stride = (backs.len() / count).max(1);
                out.extend(
                    whole
                        .step_by(stride)
                        .take(count)
                        .map(|(start, shift)| path(start, shift)),
                );
            }
            _ => {}
        }
    }
}

/// The first sample and the shift of each window of which `length` samples are known at `now`. Those
/// that began before the history does are left out: it has moved on since they were chosen.
fn windows<'a>(
    now: usize,
    length: usize,
    backs: &'a [u32],
    shifts: &'a [f32],
) -> impl Iterator<Item = (usize, f64)> + 'a {
    let known = backs
        .iter()
        .enumerate()
        .filter(move |(_, back)| (length..=now).contains(&(**back as usize)));
    known.map(move |(i, back)| {
        let shift = shifts.get(i).map_or(0.0, |shift| f64::from(*shift));
        (now - *back as usize, shift)
    })
}

/// A shift in the precision in which it is kept; one too large for that stays finite.
pub fn shift(by: f64) -> f32 {
    (by as f32).clamp(f32::MIN, f32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_scale_is_bent_as_asinh_bends_it(size in -30f64..30.0, negative in any::<bool>()) {
            let value = if negative { -1.0 } else { 1.0 } * 10f64.powf(size);
            let (bent, exact) = (f64::from(bend(value)), value.asinh());
            prop_assert!((bent - exact).abs() <= 1e-6 * exact.abs() + 1e-15, "{bent} {exact}");
        }

        #[test]
        fn a_top_is_the_largest_of_its_window(
            values in prop::collection::vec(-1e3..1e3f64, 1..80),
            asked in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..8),
        ) {
            let scene = Scene::new(&values, values.len(), 288);
            for (start, length) in asked {
                let start = start.index(values.len());
                let length = 1 + length.index(values.len() - start);
                let largest = values[start..start + length].iter().copied().fold(f64::MIN, f64::max);
                prop_assert_eq!(scene.top(start, length), largest);
            }
        }
    }
}
