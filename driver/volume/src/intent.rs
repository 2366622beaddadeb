//! Intents: one durable bit an area (4 MiB), set before the area's first write is issued.
//!
//! `wanted` is what the pages should say, `durable` what they surely say. A write goes when all its
//! areas are durable; otherwise it waits for the next commit of the metadata, together with every
//! other. Clearing takes a bit out of both sets at once: from then on the cleared page may reach the
//! disk at any time, so nobody may count on the old one.

use crate::area::AreaSet;
use crate::meta::page::PAYLOAD;
use block::{Area, Extent};

const WORDS: u64 = PAYLOAD as u64 / 8;
/// Areas whose bits fit a page: 124 GiB.
pub(crate) const AREAS_PER_PAGE: u64 = WORDS * 64;

/// How a page differs from what the disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Dirt {
    Clean,
    /// Bits were cleared: write it when something else is written.
    Lazy,
    /// Bits were set: somebody waits.
    Urgent,
}

#[derive(Debug)]
pub(crate) struct Intents {
    wanted: AreaSet,
    durable: AreaSet,
    pages: Vec<Dirt>,
    /// The pages of the commit under way, as they were written.
    flying: Vec<(usize, Vec<u64>)>,
    /// Where the sweep under way goes on.
    sweep_at: Area,
}

impl Intents {
    pub(crate) fn new(areas: u64) -> Intents {
        Intents {
            wanted: AreaSet::new(areas),
            durable: AreaSet::new(areas),
            pages: vec![Dirt::Clean; pages_of(areas)],
            flying: Vec::new(),
            sweep_at: Area(0),
        }
    }

    /// Take over a page that was read; durable after the next commit. What could not be read counts
    /// as set and must be written again.
    pub(crate) fn load(&mut self, page: usize, payload: Option<&[u8]>) {
        let first = page as u64 * WORDS;
        for i in 0..WORDS {
            let word = payload.map_or(u64::MAX, |p| {
                let mut word = [0; 8];
                word.copy_from_slice(&p[i as usize * 8..][..8]);
                u64::from_le_bytes(word)
            });
            self.wanted.set_word(first + i, word);
        }
        if payload.is_some() {
            self.flying.push((page, self.words(page)));
        } else {
            self.pages[page] = Dirt::Urgent;
        }
    }

    /// The areas that may differ from a replica.
    pub(crate) fn wanted(&self) -> &AreaSet {
        &self.wanted
    }

    /// Whether every area of the extent has a durable intent. If not, the next commit will see to it.
    pub(crate) fn cover(&mut self, blocks: Extent) -> bool {
        let (first, last) = blocks.areas();
        let mut covered = true;
        for a in (first.0..=last.0).map(Area) {
            covered &= self.durable.contains(a) || !self.set(a);
        }
        covered
    }

    /// Want an intent; true unless the area lies past the end of the volume.
    pub(crate) fn set(&mut self, a: Area) -> bool {
        if self.wanted.insert(a) {
            self.pages[(a.0 / AREAS_PER_PAGE) as usize] = Dirt::Urgent;
        }
        self.wanted.contains(a)
    }

    /// Drop the intents of areas that `needed` does not speak for.
    pub(crate) fn sweep(&mut self, needed: impl Fn(Area) -> bool) {
        self.sweep_at = Area(0);
        self.sweep_on(needed, usize::MAX);
    }

    /// Go on with a sweep, past at most so many areas; true at its end.
    pub(crate) fn sweep_on(&mut self, needed: impl Fn(Area) -> bool, most: usize) -> bool {
        for _ in 0..most {
            let Some(a) = self.wanted.next(self.sweep_at) else {
                self.sweep_at = Area(0);
                return true;
            };
            if !needed(a) {
                self.wanted.remove(a);
                self.durable.remove(a);
                let page = &mut self.pages[(a.0 / AREAS_PER_PAGE) as usize];
                *page = Dirt::Lazy.max(*page);
            }
            self.sweep_at = Area(a.0 + 1);
        }
        false
    }

    /// Whether somebody waits for a commit.
    pub(crate) fn is_urgent(&self) -> bool {
        self.pages.contains(&Dirt::Urgent)
    }

    /// The pages that a commit which begins now must write, with their payloads.
    pub(crate) fn begin(&mut self, all: bool) -> Vec<(usize, Vec<u8>)> {
        assert!(self.flying.is_empty(), "one commit at a time");
        for page in 0..self.pages.len() {
            if all || self.pages[page] != Dirt::Clean {
                self.pages[page] = Dirt::Clean;
                self.flying.push((page, self.words(page)));
            }
        }
        let bytes = |words: &Vec<u64>| words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.flying.iter().map(|(p, w)| (*p, bytes(w))).collect()
    }

    /// The commit is durable.
    pub(crate) fn committed(&mut self) {
        for (page, words) in std::mem::take(&mut self.flying) {
            for (i, word) in words.into_iter().enumerate() {
                let i = page as u64 * WORDS + i as u64;
                self.durable.set_word(i, word & self.wanted.word(i));
            }
        }
    }

    fn words(&self, page: usize) -> Vec<u64> {
        let first = page as u64 * WORDS;
        (first..first + WORDS)
            .map(|i| self.wanted.word(i))
            .collect()
    }
}

/// Pages that hold the intents of a volume with so many areas.
pub(crate) fn pages_of(areas: u64) -> usize {
    areas.div_ceil(AREAS_PER_PAGE).max(1) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::BLOCKS_PER_AREA;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const AREAS: u64 = AREAS_PER_PAGE + 40;

    #[derive(Clone, Debug)]
    enum Step {
        Cover(u64),
        Clear(u64),
        Begin,
        Committed,
    }

    fn step() -> impl Strategy<Value = Step> {
        let area = prop_oneof![0u64..6, AREAS - 6..AREAS];
        prop_oneof![
            4 => area.clone().prop_map(Step::Cover),
            2 => area.prop_map(Step::Clear),
            1 => Just(Step::Begin),
            1 => Just(Step::Committed),
        ]
    }

    proptest! {
        /// Whatever a power cut leaves of pages that were written and not synced, a write that was
        /// let go finds its area set.
        #[test]
        fn what_is_covered_is_on_every_possible_disk(steps in prop::collection::vec(step(), 1..120)) {
            let mut intents = Intents::new(AREAS);
            // For each page, every content that the disk may have: the synced one and those after.
            let mut disk: Vec<Vec<BTreeSet<u64>>> = vec![vec![BTreeSet::new()]; 2];
            let mut busy = false;
            let mut released: BTreeSet<u64> = BTreeSet::new();
            for s in steps {
                match s {
                    Step::Cover(a) if intents.cover(Extent::new(a * BLOCKS_PER_AREA, 1)) => {
                        released.insert(a);
                    }
                    Step::Clear(a) => {
                        intents.sweep(|x| x.0 != a);
                        released.remove(&a);
                    }
                    Step::Begin if !busy => {
                        busy = true;
                        for (page, bytes) in intents.begin(false) {
                            let bit = |a: &u64| bytes[(*a / 8) as usize] & (1 << (a % 8)) != 0;
                            let first = page as u64 * AREAS_PER_PAGE;
                            disk[page].push((0..AREAS_PER_PAGE).filter(bit).map(|a| a + first).collect());
                        }
                    }
                    Step::Committed if busy => {
                        busy = false;
                        intents.committed();
                        for versions in &mut disk {
                            versions.drain(..versions.len() - 1);
                        }
                    }
                    _ => {}
                }
                for a in &released {
                    let versions = &disk[(a / AREAS_PER_PAGE) as usize];
                    prop_assert!(versions.iter().all(|v| v.contains(a)), "area {} may be lost", a);
                }
            }
            // And nobody waits forever: two commits later everything wanted is durable.
            for _ in 0..2 {
                if !std::mem::take(&mut busy) {
                    intents.begin(false);
                }
                intents.committed();
            }
            let wanted: Vec<_> = intents.wanted().iter().collect();
            for a in wanted {
                prop_assert!(intents.cover(Extent::new(a.0 * BLOCKS_PER_AREA, 1)));
            }
        }
    }

    /// A sweep of a large volume is done in parts, so that no guest waits for the whole of it. A bit
    /// that is set behind it stays for the next.
    #[test]
    fn a_sweep_in_parts_passes_every_area_once() {
        let mut intents = Intents::new(AREAS);
        (0..AREAS).for_each(|a| assert!(intents.set(Area(a))));
        let asked = std::cell::Cell::new(0);
        let needed = |a: Area| {
            asked.set(asked.get() + 1);
            a.0 % 1000 == 7
        };
        let mut parts = 1;
        while !intents.sweep_on(needed, 100) {
            assert_eq!(asked.take(), 100);
            parts += 1;
            intents.set(Area(3));
        }
        assert_eq!(parts, AREAS.div_ceil(100));
        let left: Vec<_> = intents.wanted().iter().map(|a| a.0).collect();
        let kept = (0..AREAS).filter(|a| *a == 3 || a % 1000 == 7);
        assert_eq!(left, kept.collect::<Vec<_>>());
    }

    #[test]
    fn a_page_that_cannot_be_read_counts_as_all_dirty() {
        let mut intents = Intents::new(AREAS);
        intents.load(0, Some(&[0; PAYLOAD]));
        intents.load(1, None);
        assert_eq!(intents.wanted().len(), 40);
        assert!(intents.is_urgent(), "and is written again");
    }
}
