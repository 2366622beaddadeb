//! The moments of the past that looked most like now.
//!
//! The last `width` samples are compared with every stretch of history of that length, on the bent
//! scale of [`Scene`]; the nearest are the analogues, and what followed them is the forecast. Looked at
//! by the clock, a difference in the time of day counts as distance too, which finds the nightly job
//! before it begins. Those hours contain the last one, which is compared once for both.

use super::scene::Scene;
use wide::f32x4;

/// The stretches of the past that a moment is compared with, and how far each is.
pub struct Search<'a> {
    scene: &'a Scene<'a>,
    now: usize,
    width: usize,
    /// Squared, of the stretches that begin at each sample.
    distances: Vec<f32>,
}

impl<'a> Search<'a> {
    /// Compares the last `width` samples with every stretch that `horizon` samples followed. No stretch is
    /// there when the history is too short.
    pub fn new(scene: &'a Scene<'a>, now: usize, horizon: usize, width: usize) -> Self {
        let mut distances = Vec::new();
        if now > width + horizon {
            distances.resize(now - horizon - width + 1, 0.0);
            add(&mut distances, &scene.shape, &scene.shape[now - width..now]);
        }
        Self {
            scene,
            now,
            width,
            distances,
        }
    }

    /// The same for a longer time: only what is older has to be compared.
    pub fn widened(&self, width: usize) -> Self {
        let older = width - self.width;
        let mut distances = self.distances.get(older..).unwrap_or_default().to_vec();
        if !distances.is_empty() {
            let shape = &self.scene.shape;
            add(
                &mut distances,
                shape,
                &shape[self.now - width..self.now - self.width],
            );
        }
        Self {
            distances,
            width,
            ..*self
        }
    }

    /// Takes a difference in the time of day for a distance too, with this weight against the shape.
    pub fn clocked(mut self, weight: f32) -> Self {
        let (now, width) = (self.now, self.width);
        if !self.distances.is_empty() {
            let weight = weight * width as f32 * variance(&self.scene.shape[..now]);
            add_clock(&mut self.distances, self.scene, now - width, weight);
        }
        self
    }

    /// How long before now what followed the nearest stretches began, in no order; at least the horizon.
    pub fn nearest(&self, wanted: usize) -> Vec<u32> {
        let last = (self.now - self.width.min(self.now)) as u32;
        let nearest = smallest(&self.distances, wanted).into_iter();
        nearest.map(|key| last - key as u32).collect()
    }
}

/// Distances for which all samples are compared while they are at hand.
const STRIP: usize = 2048;

/// Adds to each of `sums` the squared distance of the stretch of `shape` that begins there from `query`.
fn add(sums: &mut [f32], shape: &[f32], query: &[f32]) {
    for (strip, sums) in sums.chunks_mut(STRIP).enumerate() {
        let shape = &shape[STRIP * strip..];
        let (fours, rest) = query.as_chunks::<4>();
        for (i, q) in fours.iter().enumerate() {
            let from = |lag: usize| &shape[4 * i + lag..];
            let (a, b, c, d) = (from(0), from(1), from(2), from(3));
            for ((((sum, a), b), c), d) in sums.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                let (a, b, c, d) = (a - q[0], b - q[1], c - q[2], d - q[3]);
                *sum += (a * a + b * b) + (c * c + d * d);
            }
        }
        for (i, q) in rest.iter().enumerate() {
            for (sum, a) in sums.iter_mut().zip(&shape[query.len() - rest.len() + i..]) {
                *sum += (a - q) * (a - q);
            }
        }
    }
}

/// Every so many distances are looked at to guess which are small. Prime, so that no phase of an hourly
/// job is left out.
const GUESS_EVERY: usize = 13;
/// Distances that are compared at a time: most blocks have no small one in them.
const BLOCK: usize = 16;

/// The `wanted` smallest distances, in no order: their bits above their places.
fn smallest(distances: &[f32], wanted: usize) -> Vec<u64> {
    // Three times as many as wanted are below this, if the distances that are looked at are like all.
    let mut some: Vec<f32> = distances.iter().step_by(GUESS_EVERY).copied().collect();
    let rank = 3 * wanted / GUESS_EVERY;
    let limit = if rank < some.len() {
        *some.select_nth_unstable_by(rank, f32::total_cmp).1
    } else {
        f32::INFINITY
    };
    // A distance is never negative, so its bits sort like itself.
    let upto = |limit: f32| -> Vec<u64> {
        let mut keys = Vec::with_capacity(4 * wanted);
        let mut take = |place: usize| {
            keys.push(u64::from(distances[place].to_bits()) << 32 | place as u64);
        };
        let (blocks, rest) = distances.as_chunks::<BLOCK>();
        let limits = f32x4::splat(limit);
        for (block, some) in blocks.iter().enumerate() {
            let is_near: [f32x4; BLOCK / 4] = std::array::from_fn(|quad| {
                f32x4::new(std::array::from_fn(|i| some[4 * quad + i])).simd_le(limits)
            });
            if (is_near.iter().fold(f32x4::ZERO, |any, near| any | *near)).any() {
                for (quad, near) in is_near.iter().enumerate() {
                    let mut near = near.to_bitmask();
                    while near != 0 {
                        take(BLOCK * block + 4 * quad + near.trailing_zeros() as usize);
                        near &= near - 1;
                    }
                }
            }
        }
        let rest = distances.len() - rest.len()..distances.len();
        rest.filter(|place| distances[*place] <= limit)
            .for_each(take);
        keys
    };
    let mut keys = upto(limit);
    if keys.len() < wanted {
        keys = upto(f32::INFINITY);
    }
    if wanted < keys.len() {
        keys.select_nth_unstable(wanted - 1);
        keys.truncate(wanted);
    }
    keys
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

/// Adds the squared distance on the clock, from candidate j to candidate `query`.
fn add_clock(distance: &mut [f32], scene: &Scene<'_>, query: usize, weight: f32) {
    let day = scene.day;
    let costs: Vec<f32> = (0..day)
        .map(|j| {
            let gap = (query % day).abs_diff(j);
            let turn = gap.min(day - gap) as f32 / (day as f32 / 2.0);
            weight * turn * turn
        })
        .collect();
    for days in distance.chunks_mut(day) {
        for (sum, cost) in days.iter_mut().zip(&costs) {
            *sum += cost;
        }
    }
}

fn variance(shape: &[f32]) -> f32 {
    let n = shape.len() as f32;
    let mean = sum(shape, |v| v) / n;
    sum(shape, |v| (v - mean) * (v - mean)) / n
}

/// Sums in lanes: a single sum waits for each addition.
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
            let mut found = smallest(&distances, wanted);
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
            let backs = Search::new(&scene, values.len(), 48, 12).nearest(60);
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
