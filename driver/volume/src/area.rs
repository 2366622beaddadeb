//! A set of areas: one bit for 4 MiB. Allocated when the first area enters, 32 KiB for a TiB.

use block::Area;

/// A set of areas below a fixed count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AreaSet {
    words: Vec<u64>,
    areas: u64,
    len: u64,
}

impl AreaSet {
    /// An empty set for a volume of `areas` areas.
    #[must_use]
    pub fn new(areas: u64) -> AreaSet {
        AreaSet {
            words: Vec::new(),
            areas,
            len: 0,
        }
    }

    /// Number of areas in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no area is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `a` is in the set.
    #[must_use]
    pub fn contains(&self, a: Area) -> bool {
        self.word(a.0 / 64) & bit(a) != 0
    }

    /// Add `a`; true if it was not there. Areas past the volume's end are not kept.
    pub fn insert(&mut self, a: Area) -> bool {
        if a.0 >= self.areas {
            return false;
        }
        if self.words.is_empty() {
            self.words = vec![0; self.areas.div_ceil(64) as usize];
        }
        let word = &mut self.words[(a.0 / 64) as usize];
        let new = *word & bit(a) == 0;
        *word |= bit(a);
        self.len += u64::from(new);
        new
    }

    /// Remove `a`; true if it was there.
    pub fn remove(&mut self, a: Area) -> bool {
        if !self.contains(a) {
            return false;
        }
        self.words[(a.0 / 64) as usize] &= !bit(a);
        self.len -= 1;
        true
    }

    /// Remove every area.
    pub fn clear(&mut self) {
        self.words = Vec::new();
        self.len = 0;
    }

    /// Add every area of `other`.
    pub fn union(&mut self, other: &AreaSet) {
        for a in other.iter() {
            self.insert(a);
        }
    }

    /// The areas in order.
    pub fn iter(&self) -> impl Iterator<Item = Area> + '_ {
        self.words.iter().enumerate().flat_map(|(i, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| u64::from(rest.trailing_zeros()))?;
                rest &= rest - 1;
                Some(Area(i as u64 * 64 + bit))
            })
        })
    }

    /// The first area at or after `from`.
    #[must_use]
    pub fn next(&self, from: Area) -> Option<Area> {
        let mut i = from.0 / 64;
        let mut word = self.word(i) & (u64::MAX << (from.0 % 64));
        while word == 0 {
            i += 1;
            word = *self.words.get(i as usize)?;
        }
        Some(Area(i * 64 + u64::from(word.trailing_zeros())))
    }

    /// The bits of areas `64 * i` and following.
    #[must_use]
    pub fn word(&self, i: u64) -> u64 {
        self.words.get(i as usize).copied().unwrap_or(0)
    }

    /// Replace the bits of areas `64 * i` and following.
    pub fn set_word(&mut self, i: u64, bits: u64) {
        let valid = match self.areas.saturating_sub(i * 64) {
            0 => 0,
            n if n < 64 => (1 << n) - 1,
            _ => u64::MAX,
        };
        let bits = bits & valid;
        if self.words.is_empty() {
            if bits == 0 {
                return;
            }
            self.words = vec![0; self.areas.div_ceil(64) as usize];
        }
        if let Some(word) = self.words.get_mut(i as usize) {
            self.len = self.len - u64::from(word.count_ones()) + u64::from(bits.count_ones());
            *word = bits;
        }
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.words.capacity() * 8
    }
}

fn bit(a: Area) -> u64 {
    1 << (a.0 % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_as_a_set(ops in prop::collection::vec((any::<bool>(), 0u64..200), 0..200)) {
            let mut set = AreaSet::new(190);
            let mut model = BTreeSet::new();
            for (add, a) in ops {
                if add {
                    prop_assert_eq!(set.insert(Area(a)), a < 190 && model.insert(a));
                } else {
                    prop_assert_eq!(set.remove(Area(a)), model.remove(&a));
                }
                prop_assert_eq!(set.len(), model.len() as u64);
                prop_assert_eq!(set.next(Area(a)).map(|a| a.0), model.range(a..).next().copied());
            }
            let got: Vec<u64> = set.iter().map(|a| a.0).collect();
            prop_assert_eq!(got, model.iter().copied().collect::<Vec<_>>());
            let mut copy = AreaSet::new(190);
            for i in 0..4 {
                copy.set_word(i, set.word(i));
            }
            prop_assert_eq!(copy.iter().count(), model.len());
            prop_assert_eq!(copy.len(), set.len());
        }
    }
}
