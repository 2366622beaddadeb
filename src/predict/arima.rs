//! A small ARIMA: up to two autoregressive terms and one of moving average, with or without a
//! difference, on the bent scale of [`Scene`].
//!
//! Fitted by the conditional sum of squares: what came before the first sample counts as zero, the
//! errors follow one from another, and Gauss-Newton steps lower their squares. Of the orders tried the
//! one with the lowest AIC stays. On the bent scale one burst is no outlier that owns the fit, and a
//! forecast that runs away is held inside what was ever seen.

use super::fitted;
use super::scene::{Drawn, Outlook, Scene};

/// Samples fitted: two days of five minutes.
const FITTED: usize = 576;
/// Fewer say nothing.
const LEAST: usize = 48;
/// Orders tried: autoregressive terms, differences, terms of moving average.
const ORDERS: [(usize, usize, usize); 5] = [(1, 0, 0), (2, 0, 1), (0, 1, 1), (1, 1, 1), (2, 1, 1)];
/// Steps of Gauss-Newton; most fits stand still after five.
const STEPS: usize = 8;
/// Parameters: two autoregressive terms and one of moving average.
const P: usize = 3;

#[derive(Clone, Copy)]
struct Model {
    p: usize,
    d: usize,
    q: usize,
    theta: [f64; P],
}

impl Model {
    /// The error of each sample, given those before it.
    fn errors(&self, x: &[f64], out: &mut Vec<f64>) -> f64 {
        out.clear();
        let [a, b, m] = self.theta;
        let (mut one, mut two, mut error, mut sum) = (0.0, 0.0, 0.0, 0.0);
        for value in x {
            error = value - a * one - b * two - m * error;
            two = one;
            one = *value;
            sum += error * error;
            out.push(error);
        }
        sum
    }

    /// Which of the parameters this order has.
    fn free(&self) -> impl Iterator<Item = usize> + use<> {
        let (p, q) = (self.p, self.q);
        (0..P).filter(move |i| if *i < 2 { *i < p } else { q > 0 })
    }

    fn fit(&mut self, x: &[f64]) -> f64 {
        const NUDGE: f64 = 1e-5;
        let (mut errors, mut moved) = (Vec::new(), Vec::new());
        let mut best = self.errors(x, &mut errors);
        for _ in 0..STEPS {
            let (mut normal, mut right) = ([[0.0; P]; P], [0.0; P]);
            let mut slopes: [Vec<f64>; P] = Default::default();
            for i in self.free() {
                let mut other = *self;
                other.theta[i] += NUDGE;
                other.errors(x, &mut moved);
                slopes[i] = moved
                    .iter()
                    .zip(&errors)
                    .map(|(a, b)| (a - b) / NUDGE)
                    .collect();
            }
            for i in 0..P {
                normal[i][i] = 1.0;
                if slopes[i].is_empty() {
                    continue;
                }
                right[i] = -dot(&slopes[i], &errors);
                for j in 0..P {
                    if !slopes[j].is_empty() {
                        normal[i][j] = dot(&slopes[i], &slopes[j]);
                    }
                }
                // Keeps the system solvable when two terms say the same.
                normal[i][i] *= 1.0 + 1e-6;
            }
            let Some(step) = solve(normal, right) else {
                break;
            };
            let mut gained = false;
            for halving in 0..6 {
                let mut other = *self;
                for i in other.free() {
                    other.theta[i] += step[i] / f64::from(1 << halving);
                }
                // An error must not feed itself.
                other.theta[2] = other.theta[2].clamp(-0.98, 0.98);
                let sum = other.errors(x, &mut moved);
                if sum.is_finite() && sum < best {
                    gained = sum < best * (1.0 - 1e-5);
                    (*self, best) = (other, sum);
                    std::mem::swap(&mut errors, &mut moved);
                    break;
                }
            }
            if !gained {
                break;
            }
        }
        best
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Elimination with the largest pivot; nothing when the system has no one answer.
fn solve(mut a: [[f64; P]; P], mut b: [f64; P]) -> Option<[f64; P]> {
    for i in 0..P {
        let pivot = (i..P).max_by(|j, k| a[*j][i].abs().total_cmp(&a[*k][i].abs()))?;
        a.swap(i, pivot);
        b.swap(i, pivot);
        if a[i][i].abs() < 1e-12 {
            return None;
        }
        let (top, top_right) = (a[i], b[i]);
        for (row, right) in a.iter_mut().zip(&mut b).skip(i + 1) {
            let by = row[i] / top[i];
            for (cell, above) in row.iter_mut().zip(top) {
                *cell -= by * above;
            }
            *right -= by * top_right;
        }
    }
    for i in (0..P).rev() {
        for k in i + 1..P {
            b[i] -= a[i][k] * b[k];
        }
        b[i] /= a[i][i];
    }
    b.iter().all(|v| v.is_finite()).then_some(b)
}

/// What the best small ARIMA of the last days expects; nothing while history is short.
pub fn outlook(scene: &Scene<'_>, now: usize, horizon: usize) -> Outlook {
    let Some(past) = fitted::past(scene, now, FITTED, LEAST) else {
        return Outlook::Drawn(Drawn::default());
    };
    let mean = past.iter().sum::<f64>() / past.len() as f64;
    let centred: Vec<f64> = past.iter().map(|v| v - mean).collect();
    let steps: Vec<f64> = past.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let tried = ORDERS.iter().map(|(p, d, q)| {
        let x = if *d == 0 { &centred[1..] } else { &steps[..] };
        let mut model = Model {
            p: *p,
            d: *d,
            q: *q,
            theta: [if *d == 0 { 0.5 } else { 0.0 }, 0.0, 0.0],
        };
        let sum = model.fit(x).max(f64::MIN_POSITIVE);
        let aic = x.len() as f64 * sum.ln() + 2.0 * (p + q + (1 - d)) as f64;
        (aic, model)
    });
    let Some((_, model)) = tried.min_by(|a, b| a.0.total_cmp(&b.0)) else {
        return Outlook::Drawn(Drawn::default());
    };
    let x = if model.d == 0 {
        &centred[1..]
    } else {
        &steps[..]
    };
    let mut errors = Vec::new();
    model.errors(x, &mut errors);
    let last = errors[errors.len() - 1];

    let [a, b, m] = model.theta;
    let (mut one, mut two) = (x[x.len() - 1], x[x.len() - 2]);
    let mut level = past[past.len() - 1];
    // The weight of an error so many steps ago: how uncertainty grows.
    let (mut psi, mut psi_before, mut sum_psi, mut variance) = (1.0, 0.0, 1.0, 0.0);
    let (mut path, mut spread) = (Vec::new(), Vec::new());
    for step in 0..horizon {
        let next = a * one + b * two + if step == 0 { m * last } else { 0.0 };
        (two, one) = (one, next);
        level = if model.d == 0 {
            mean + next
        } else {
            level + next
        };
        let weight: f64 = if model.d == 0 { psi } else { sum_psi };
        variance += weight * weight;
        path.push(level);
        spread.push(variance.sqrt());
        let psi_next = a * psi + b * psi_before + if step == 0 { m } else { 0.0 };
        (psi_before, psi) = (psi, psi_next.clamp(-2.0, 2.0));
        sum_psi += psi;
    }
    let growth = spread.into_iter();
    Outlook::Drawn(fitted::drawn(scene, &past, &path, growth, errors).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::quantile;
    use super::*;

    fn scene_of(values: &[f64]) -> Scene<'_> {
        Scene::new(values, values.len(), 288)
    }

    fn noise(i: usize) -> f64 {
        let mixed = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    }

    #[test]
    fn a_term_that_made_a_series_is_found_again() {
        let mut values = vec![0.0];
        for i in 1..600 {
            values.push(0.8 * values[i - 1] + noise(i));
        }
        let mut model = Model {
            p: 1,
            d: 0,
            q: 0,
            theta: [0.1, 0.0, 0.0],
        };
        model.fit(&values);
        assert!((model.theta[0] - 0.8).abs() < 0.08, "{:?}", model.theta);
    }

    #[test]
    fn an_error_that_is_half_taken_back_is_found_again() {
        let values: Vec<f64> = (1..600).map(|i| noise(i) - 0.5 * noise(i - 1)).collect();
        let mut model = Model {
            p: 0,
            d: 1,
            q: 1,
            theta: [0.0; P],
        };
        model.fit(&values);
        assert!((model.theta[2] + 0.5).abs() < 0.08, "{:?}", model.theta);
    }

    #[test]
    fn what_falls_back_to_its_mean_is_forecast_to() {
        let mut values: Vec<f64> = (0..500).map(|i| 50.0 + noise(i)).collect();
        for i in 1..values.len() {
            values[i] = 50.0 + 0.9 * (values[i - 1] - 50.0) + noise(i);
        }
        let last = values.len() - 1;
        values[last] = 54.0;
        let scene = scene_of(&values);
        let outlook = outlook(&scene, values.len(), 48);
        let mut sample = Vec::new();
        let mut middle = |step| {
            outlook.sample(&scene, values.len(), step, &mut sample);
            quantile::of_sample(&mut sample)[quantile::K / 2]
        };
        let (soon, late) = (middle(0), middle(47));
        assert!(
            soon > late && soon > 51.5 && (late - 50.0).abs() < 1.5,
            "{soon} then {late}"
        );
    }

    #[test]
    fn a_series_that_stands_still_or_is_short_has_no_opinion() {
        for values in [vec![3.0; 300], vec![1.0, 2.0, 3.0]] {
            let silent = outlook(&scene_of(&values), values.len(), 5);
            assert_eq!(silent, Outlook::Drawn(Drawn::default()));
        }
    }
}
