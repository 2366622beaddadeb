//! The moments of the past that looked most like now.
//!
//! The last `width` samples are compared with every stretch of history of that length, on the bent
//! scale of [`Scene`]; the nearest are the analogues, and what followed them is the forecast. Looked at
//! by the clock, a difference in the time of day counts as distance too, which finds the nightly job
//! before it begins. Those hours contain the last one, which is compared once for both.

use super::scene::Scene;
use pulp::{Arch, Simd, WithSimd};

/// The stretches of the past that moments are compared with, one moment after the other.
#[derive(Default)]
pub struct Search {
    /// How far the stretch that begins at each sample is, squared.
    distances: Vec<f32>,
    /// The same over a longer time and by the clock.
    clocked: Vec<f32>,
    /// What a difference in the time of day costs.
    costs: Vec<f32>,
    /// Distances that were looked at to guess which are small.
    some: Vec<f32>,
    /// Those that may be among the nearest: their bits above their places.
    keys: Vec<u64>,
}

/// A moment, of which the last samples are compared with every stretch that `horizon` samples followed.
#[derive(Clone, Copy)]
pub struct Moment<'a> {
    /// The series.
    pub scene: &'a Scene<'a>,
    /// Samples that are known.
    pub now: usize,
    /// Samples that must have followed.
    pub horizon: usize,
    /// Samples that are compared.
    pub width: usize,
}

impl Moment<'_> {
    /// Stretches there are; none when the history is too short.
    fn count(&self) -> usize {
        match self.now.checked_sub(self.horizon + self.width) {
            None | Some(0) => 0,
            Some(more) => more + 1,
        }
    }
}

impl Search {
    /// How long before now what followed the `wanted` nearest stretches began, in no order; at least the horizon.
    pub fn nearest(&mut self, moment: Moment<'_>, wanted: usize) -> Vec<u32> {
        let Moment { now, width, .. } = moment;
        let count = moment.count();
        self.distances.resize(count, 0.0);
        if count > 0 {
            Arch::new().dispatch(Compare {
                distances: &mut self.distances,
                shape: &moment.scene.shape,
                query: &moment.scene.shape[now - width..now],
            });
        }
        smallest(&self.distances, wanted, &mut self.some, &mut self.keys);
        backs(now, width, &self.keys)
    }

    /// The same by a longer time of `width`, and by the time of day, with this weight against the shape. The moment must
    /// be that of the last search: only what is older has to be compared.
    pub fn nearest_by_clock(
        &mut self,
        moment: Moment<'_>,
        width: usize,
        weight: f32,
        wanted: usize,
    ) -> Vec<u32> {
        let Moment { scene, now, .. } = moment;
        let older = width - moment.width;
        let near = self.distances.get(older..).unwrap_or_default();
        self.clocked.resize(near.len(), 0.0);
        if !near.is_empty() {
            let weight =
                weight * width as f32 * Arch::new().dispatch(Variance(&scene.shape[..now]));
            clock(&mut self.costs, scene.day, now - width, weight);
            Arch::new().dispatch(Lengthen {
                clocked: &mut self.clocked,
                near,
                shape: &scene.shape,
                query: &scene.shape[now - width..now - moment.width],
                costs: &self.costs,
            });
        }
        smallest(&self.clocked, wanted, &mut self.some, &mut self.keys);
        backs(now, width, &self.keys)
    }
}

fn backs(now: usize, width: usize, keys: &[u64]) -> Vec<u32> {
    let last = (now - width.min(now)) as u32;
    keys.iter().map(|key| last - *key as u32).collect()
}

/// Samples of a stretch that are compared while its sum is at hand.
const AT_ONCE: usize = 12;

/// Makes each of `distances` that of the stretch of `shape` that begins there from `query`.
struct Compare<'a> {
    distances: &'a mut [f32],
    shape: &'a [f32],
    query: &'a [f32],
}

impl WithSimd for Compare<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (shape, query) = (self.shape, self.query);
        let (first, rest) = match query.split_first_chunk::<AT_ONCE>() {
            Some((first, rest)) => {
                let stretches = shape.windows(AT_ONCE);
                for (distance, stretch) in self.distances.iter_mut().zip(stretches) {
                    *distance = longer(0.0, stretch, first);
                }
                (AT_ONCE, rest)
            }
            None => {
                self.distances.fill(0.0);
                (0, query)
            }
        };
        add(self.distances, &shape[first..], rest);
    }
}

/// Makes each of `clocked` the distance over a longer time from that over a shorter one, which is its end, and adds what the
/// difference in the time of day costs.
struct Lengthen<'a> {
    clocked: &'a mut [f32],
    near: &'a [f32],
    shape: &'a [f32],
    query: &'a [f32],
    costs: &'a [f32],
}

impl WithSimd for Lengthen<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (shape, query) = (self.shape, self.query);
        let (first, rest) = match query.split_first_chunk::<AT_ONCE>() {
            Some((first, rest)) => {
                let stretches = shape.windows(AT_ONCE);
                let all = self.clocked.iter_mut().zip(self.near).zip(stretches);
                for ((clocked, near), stretch) in all {
                    *clocked = longer(*near, stretch, first);
                }
                (AT_ONCE, rest)
            }
            None => {
                self.clocked.copy_from_slice(self.near);
                (0, query)
            }
        };
        add(self.clocked, &shape[first..], rest);
        for days in self.clocked.chunks_mut(self.costs.len()) {
            for (sum, cost) in days.iter_mut().zip(self.costs) {
                *sum += cost;
            }
        }
    }
}

/// Adds to each of `sums` the squared distance of the stretch of `shape` that begins there from `query`.
#[inline(always)]
fn add(sums: &mut [f32], mut shape: &[f32], query: &[f32]) {
    let (many, rest) = query.as_chunks::<AT_ONCE>();
    for query in many {
        for (sum, stretch) in sums.iter_mut().zip(shape.windows(AT_ONCE)) {
            *sum = longer(*sum, stretch, query);
        }
        shape = &shape[AT_ONCE..];
    }
    for query in rest {
        for (sum, value) in sums.iter_mut().zip(shape) {
            *sum += (value - query) * (value - query);
        }
        shape = &shape[1..];
    }
}

/// A squared distance, and that of so many more samples.
#[inline(always)]
fn longer(mut sum: f32, stretch: &[f32], query: &[f32; AT_ONCE]) -> f32 {
    let square = |i: usize| {
        let apart = stretch[i] - query[i];
        apart * apart
    };
    for i in [0, 4, 8] {
        sum += (square(i) + square(i + 1)) + (square(i + 2) + square(i + 3));
    }
    sum
}

/// Every so many distances are looked at to guess which are small. Prime, so that no phase of an hourly
/// job is left out.
const GUESS_EVERY: usize = 13;
/// Distances that are compared at a time: most blocks have no small one in them.
const BLOCK: usize = 16;

/// Leaves the `wanted` smallest distances in `keys`, in no order: their bits above their places.
fn smallest(distances: &[f32], wanted: usize, some: &mut Vec<f32>, keys: &mut Vec<u64>) {
    // Three times as many as wanted are below this, if the distances that are looked at are like all.
    some.clear();
    some.extend(distances.iter().step_by(GUESS_EVERY));
    let rank = 3 * wanted / GUESS_EVERY;
    let limit = if rank < some.len() {
        *some.select_nth_unstable_by(rank, f32::total_cmp).1
    } else {
        f32::INFINITY
    };
    for limit in [limit, f32::INFINITY] {
        keys.clear();
        Arch::new().dispatch(Upto {
            distances,
            limit,
            keys,
        });
        if keys.len() >= wanted {
            break;
        }
    }
    if wanted < keys.len() {
        keys.select_nth_unstable(wanted - 1);
        keys.truncate(wanted);
    }
}

/// Appends the distances up to a limit to `keys`: their bits above their places. None is negative, so that bits
/// sort like themselves.
struct Upto<'a> {
    distances: &'a [f32],
    limit: f32,
    keys: &'a mut Vec<u64>,
}

impl WithSimd for Upto<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (limit, keys) = (self.limit, self.keys);
        let key = |place: usize, d: f32| u64::from(d.to_bits()) << 32 | place as u64;
        let (blocks, rest) = self.distances.as_chunks::<BLOCK>();
        for (i, block) in blocks.iter().enumerate() {
            if block.iter().fold(false, |any, d| any | (*d <= limit)) {
                // Which of them are near cannot be guessed: each is written where the next near one belongs.
                let (mut near, mut count) = ([0; BLOCK + 1], 0);
                for (place, d) in (BLOCK * i..).zip(block) {
                    near[count.min(BLOCK)] = key(place, *d);
                    count += usize::from(*d <= limit);
                }
                keys.extend_from_slice(&near[..count]);
            }
        }
        let done = self.distances.len() - rest.len();
        let rest = (done..).zip(rest).filter(|(_, d)| **d <= limit);
        keys.extend(rest.map(|(place, d)| key(place, *d)));
    }
}

/// Samples in which something new shows: one may be a spike that is over at once, three are a level.
const NEW: usize = 3;

/// How new the present is, from 0 to 1: the share of the newest samples but one that lie beyond what
/// all of the neighbours were at that point. Nothing like it was ever seen, and what followed the
/// neighbours says nothing about what comes now.
pub fn novelty(scene: &Scene<'_>, now: usize, backs: &[u32]) -> f32 {
    if backs.is_empty() {
        return 0.0;
    }
    let is_beyond = |age: &usize| {
        let own = scene.shape[now - age];
        let theirs = || backs.iter().map(|b| scene.shape[now - *b as usize - age]);
        theirs().all(|v| v < own) || theirs().all(|v| v > own)
    };
    let beyond = (1..=NEW).filter(is_beyond).count();
    beyond.saturating_sub(1) as f32 / (NEW - 1) as f32
}

/// Makes `costs` the squared distances on the clock from each sample of the first day to the sample `query`.
fn clock(costs: &mut Vec<f32>, day: usize, query: usize, weight: f32) {
    costs.clear();
    costs.extend((0..day).map(|j| {
        let gap = (query % day).abs_diff(j);
        let turn = gap.min(day - gap) as f32 / (day as f32 / 2.0);
        weight * turn * turn
    }));
}

struct Variance<'a>(&'a [f32]);

impl WithSimd for Variance<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f32 {
        let n = self.0.len() as f32;
        let mean = sum(self.0, |v| v) / n;
        sum(self.0, |v| (v - mean) * (v - mean)) / n
    }
}

/// Sums in lanes: a single sum waits for each addition.
#[inline(always)]
fn sum(shape: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; 8];
    let (eights, rest) = shape.as_chunks::<8>();
    for eight in eights {
        for (lane, value) in lanes.iter_mut().zip(eight) {
            *lane += of(*value);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|v| of(*v)).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Distances with ties, and with all of the small ones where the guess looks, so that it is too low.
        #[test]
        fn the_smallest_are_those_of_a_sort(
            distances in prop::collection::vec((0u8..40).prop_map(|d| f32::from(d) / 8.0), 1..600),
            hidden in any::<bool>(), wanted in 1usize..80,
        ) {
            let hide = |(place, d): (usize, f32)| match place % GUESS_EVERY {
                0 if hidden => d / 100.0,
                _ => d,
            };
            let distances: Vec<f32> = distances.into_iter().enumerate().map(hide).collect();
            let key = |(place, d): (usize, &f32)| u64::from(d.to_bits()) << 32 | place as u64;
            let mut expected: Vec<u64> = distances.iter().enumerate().map(key).collect();
            expected.sort_unstable();
            expected.truncate(wanted);
            let (mut some, mut found) = (vec![1.0], vec![7]);
            smallest(&distances, wanted, &mut some, &mut found);
            found.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }

    /// After a level shift the analogues of the old level foretold a return to it for hours, at up to
    /// eighteen times the loss of smoothing.
    #[test]
    fn a_spike_is_not_new_and_a_new_level_is() {
        let mut values: Vec<f64> = (0..600u32)
            .map(|i| 10.0 + f64::from(i.wrapping_mul(2_654_435_761) >> 24) / 64.0)
            .collect();
        let novelty = |values: &[f64]| {
            let scene = Scene::new(values, values.len(), 288);
            let moment = Moment {
                scene: &scene,
                now: values.len(),
                horizon: 48,
                width: 12,
            };
            let backs = Search::default().nearest(moment, 60);
            super::novelty(&scene, values.len(), &backs)
        };
        assert_eq!(novelty(&values), 0.0);
        values.push(80.0);
        assert_eq!(novelty(&values), 0.0, "one sample is a spike");
        values.extend([80.0; 2]);
        assert_eq!(novelty(&values), 1.0);
        values.extend([11.0, 12.0]);
        assert_eq!(novelty(&values), 0.0, "it is over");
        assert_eq!(super::novelty(&Scene::new(&values, 5, 288), 5, &[]), 0.0);
    }
}
