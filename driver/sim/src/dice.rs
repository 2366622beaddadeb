//! Numbers that look random and are the same for the same seed.

use std::cell::Cell;
use std::rc::Rc;

/// One stream of random numbers, shared by everything in a world.
#[derive(Clone, Debug)]
pub struct Dice(Rc<Cell<u64>>);

impl Dice {
    /// The stream of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Dice {
        Dice(Rc::new(Cell::new(seed)))
    }

    /// Any number (splitmix64).
    #[must_use]
    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let x = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `n`.
    #[must_use]
    pub fn below(&self, n: u64) -> u64 {
        assert!(n > 0, "nothing is below zero");
        self.next() % n
    }

    /// True once in `n` times on average; never for 0.
    #[must_use]
    pub fn one_in(&self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }

    /// One of several.
    #[must_use]
    pub fn pick<'a, T>(&self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}
