//! The moments of the past that looked most like now.
//!
//! The last `width` samples are compared with every stretch of history of that length, on the bent
//! scale of [`Scene`]; the nearest are the analogues, and what followed them is the forecast. With
//! `clock` set, a difference in the time of day counts as distance too, which finds the nightly job
//! before it begins.

use super::scene::Scene;

/// What counts as near.
#[derive(Clone, Copy)]
pub struct Likeness {
    /// Samples compared.
    pub width: usize,
    /// Neighbours wanted.
    pub neighbours: usize,
    /// Weight of the time of day against the shape, 0 for none.
    pub clock: f32,
}

/// How long before now what followed the nearest stretches began, in no order; at least `horizon`.
/// Empty when history is too short.
pub fn nearest(scene: &Scene<'_>, now: usize, horizon: usize, like: Likeness) -> Vec<u32> {
    let Likeness {
        width,
        neighbours,
        clock,
    } = like;
    if now < width + horizon + 1 {
        return Vec::new();
    }
    // Candidate j is the stretch that ends before start j + width.
    let count = now - horizon - width + 1;
    let shape = &scene.shape[..now];
    let mut distance = vec![0.0f32; count];
    let (pairs, rest) = shape[now - width..].as_chunks::<4>();
    for (i, q) in pairs.iter().enumerate() {
        let lag = 4 * i;
        let (a, b, c, d) = (
            &shape[lag..],
            &shape[lag + 1..],
            &shape[lag + 2..],
            &shape[lag + 3..],
        );
        for ((((sum, a), b), c), d) in distance.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            let (a, b, c, d) = (a - q[0], b - q[1], c - q[2], d - q[3]);
            *sum += (a * a + b * b) + (c * c + d * d);
        }
    }
    for (i, q) in rest.iter().enumerate() {
        for (sum, a) in distance.iter_mut().zip(&shape[width - rest.len() + i..]) {
            *sum += (a - q) * (a - q);
        }
    }
    if clock > 0.0 {
        add_clock(
            &mut distance,
            scene,
            now - width,
            clock * width as f32 * variance(shape),
        );
    }
    // A distance is never negative, so its bits sort like itself.
    let mut keys: Vec<u64> = distance
        .iter()
        .enumerate()
        .map(|(j, d)| (u64::from(d.to_bits()) << 32) | j as u64)
        .collect();
    if neighbours < count {
        keys.select_nth_unstable(neighbours - 1);
        keys.truncate(neighbours);
    }
    keys.into_iter()
        .map(|key| (now - width) as u32 - key as u32)
        .collect()
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
    let mean = shape.iter().sum::<f32>() / n;
    shape.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / n
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After a level shift the analogues of the old level foretold a return to it for hours, at up to
    /// eighteen times the loss of smoothing.
    #[test]
    fn a_spike_is_not_new_and_a_new_level_is() {
        let mut values: Vec<f64> = (0..600u32)
            .map(|i| 10.0 + f64::from(i.wrapping_mul(2_654_435_761) >> 24) / 64.0)
            .collect();
        let like = Likeness {
            width: 12,
            neighbours: 60,
            clock: 0.0,
        };
        let novelty = |values: &[f64]| {
            let scene = Scene::new(values, values.len(), 288);
            let backs = nearest(&scene, values.len(), 48, like);
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
