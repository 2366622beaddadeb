//! Who is right lately. Each expert's CRPS is remembered with two half-lives, half a day and three
//! days; its share of the mixture falls with the fifth power of its loss over the best one's, under
//! both memories at once. An expert must be good now and have been good to be heard.
//!
//! Losses arrive only when outcomes are known, so the gate cannot look ahead. It is blind for hours after
//! a level shift for the same reason. But that the present is new shows at once, without any outcome: in
//! that measure it falls back on smoothing, which expects of any present that it stays.

use super::expert::{self, EXPERTS};

/// Half-lives of the two memories, in samples.
const HALF_LIVES: [f64; 2] = [144.0, 864.0];
/// How sharply a worse loss cuts a share.
const SHARPNESS: i32 = 5;
/// The share that smoothing always keeps: it is the first to see that the level has changed, before any
/// loss can say so.
const SMOOTHING_KEEPS: f64 = 0.1;
/// The part of the others' share that a wholly new present takes from them. Not all of it: what looks like
/// a new level may still be a spike of some samples, and a quarter of the pool on the wrong side costs
/// little.
const NEW_TAKES: f64 = 0.75;
/// Shares below this are silence: they cost time and move nothing.
const SILENCE: f64 = 0.01;

/// One share for each expert; they sum to one. Kept with every forecast, hence no wider than needed.
pub type Shares = [f32; EXPERTS];

/// What remains of a loss in each memory.
pub type Kept = [f64; 2];

/// What remains after so many samples.
pub fn kept_after(samples: i64) -> Kept {
    HALF_LIVES.map(|half_life| (-(samples as f64) / half_life).exp2())
}

/// The recent losses of all experts on one kind of question.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    pub(super) losses: [[f64; EXPERTS]; 2],
}

impl Gate {
    /// Has seen nothing.
    pub const fn new() -> Self {
        Self {
            losses: [[0.0; EXPERTS]; 2],
        }
    }

    /// Lets time pass.
    pub fn age(&mut self, kept: Kept) {
        for (losses, kept) in self.losses.iter_mut().zip(kept) {
            losses.iter_mut().for_each(|loss| *loss *= kept);
        }
    }

    /// Takes in what each expert lost on one outcome.
    pub fn learn(&mut self, losses: &[f64; EXPERTS]) {
        for memory in &mut self.losses {
            for (sum, loss) in memory.iter_mut().zip(losses) {
                *sum += loss;
            }
        }
    }

    /// The mixture to use in a present of some novelty, 0 to 1. Before the first outcome all experts are
    /// equal.
    pub fn shares(&self, novelty: f32) -> Shares {
        let mut shares = [1.0f64; EXPERTS];
        for losses in &self.losses {
            let best = losses.iter().copied().fold(f64::INFINITY, f64::min);
            let mean = losses.iter().sum::<f64>() / EXPERTS as f64;
            // Keeps the ratio defined on a series that everybody foresees exactly.
            let least = mean * 1e-6 + f64::MIN_POSITIVE;
            for (share, loss) in shares.iter_mut().zip(losses) {
                *share *= ((best + least) / (loss + least)).powi(SHARPNESS);
            }
        }
        let total: f64 = shares.iter().sum();
        shares.iter_mut().for_each(|share| {
            *share = if *share < SILENCE * total {
                0.0
            } else {
                *share
            }
        });
        let total: f64 = shares.iter().sum();
        let kept = SMOOTHING_KEEPS + (1.0 - SMOOTHING_KEEPS) * NEW_TAKES * f64::from(novelty);
        let mut shares = shares.map(|share| share / total * (1.0 - kept));
        shares[expert::SMOOTHING] += kept;
        shares.map(|share| share as f32)
    }
}
