//! The dirty map: which blocks of a volume changed.
//!
//! One page a region (128 MiB): `Empty`, `Full`, or 32,768 bits. Pages are allocated when first
//! dirtied and shared copy-on-write between maps; a page whose every block is dirty becomes `Full`
//! and costs nothing. Beside the pages stands a set of *suspect* areas: everything in them counts as
//! dirty, but the mover should compare before it sends. They come from a crash (the map was lost,
//! the intents were not) and from a full [`Budget`].

use crate::area::AreaSet;
use crate::budget::{Budget, Charge};
use crate::sync::Arc;
use block::{Area, BLOCK_BYTES, BLOCKS_PER_AREA, BLOCKS_PER_REGION, Block, Extent, Region};

/// Words of 64 blocks in a page.
pub(crate) const WORDS: u64 = BLOCKS_PER_REGION / 64;
const WORDS_PER_AREA: u64 = BLOCKS_PER_AREA / 64;
const AREAS_PER_REGION: u64 = BLOCKS_PER_REGION / BLOCKS_PER_AREA;

#[derive(Debug)]
struct Bits {
    words: [u64; WORDS as usize],
    count: u32,
    _charge: Charge,
}

#[derive(Clone, Debug, Default)]
enum Page {
    #[default]
    Empty,
    Full,
    Bits(Arc<Bits>),
}

/// Which blocks changed. Cloning shares the pages.
#[derive(Clone, Debug)]
pub struct DirtyMap {
    pages: Vec<Page>,
    suspect: AreaSet,
    blocks: u64,
    budget: Arc<Budget>,
}

/// The number of blocks that a volume of `size` bytes has; its last may be partial.
#[must_use]
pub fn blocks_of(size: u64) -> u64 {
    size.div_ceil(BLOCK_BYTES)
}

/// The bits of `extent` that lie in word `w`.
pub(crate) fn mask(extent: Extent, w: u64) -> u64 {
    let from = extent.start.0.max(w * 64);
    let to = extent.end().0.min(w * 64 + 64);
    if from >= to {
        return 0;
    }
    let n = to - from;
    (u64::MAX >> (64 - n)) << (from - w * 64)
}

impl DirtyMap {
    /// A clean map of `blocks` blocks.
    #[must_use]
    pub fn new(blocks: u64, budget: &Arc<Budget>) -> DirtyMap {
        DirtyMap {
            pages: vec![Page::Empty; blocks.div_ceil(BLOCKS_PER_REGION) as usize],
            suspect: AreaSet::new(blocks.div_ceil(BLOCKS_PER_AREA)),
            blocks,
            budget: budget.clone(),
        }
    }

    /// Blocks of the volume.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The areas to compare before sending.
    #[must_use]
    pub fn suspect(&self) -> &AreaSet {
        &self.suspect
    }

    /// Whether nothing is dirty.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.suspect.is_empty() && self.pages.iter().all(|p| matches!(p, Page::Empty))
    }

    /// Whether a block is dirty.
    #[must_use]
    pub fn test(&self, b: Block) -> bool {
        self.word(b.0 / 64) & (1 << (b.0 % 64)) != 0
    }

    /// Mark an extent. What lies past the last block is ignored.
    pub fn set(&mut self, extent: Extent) {
        let end = extent.end().0.min(self.blocks);
        let mut at = extent.start.0;
        while at < end {
            let region = Block(at).region();
            let stop = end.min((region.0 + 1) * BLOCKS_PER_REGION);
            self.set_in(region, Extent::new(at, stop - at));
            at = stop;
        }
    }

    /// Make a whole area suspect.
    pub fn suspect_area(&mut self, a: Area) {
        self.suspect.insert(a);
    }

    /// Add everything that is dirty in `other`, sharing its pages where possible.
    pub fn union(&mut self, other: &DirtyMap) {
        assert_eq!(self.blocks, other.blocks, "maps of one volume");
        self.suspect.union(&other.suspect);
        for (i, theirs) in other.pages.iter().enumerate() {
            let region = Region(i as u64);
            match (&mut self.pages[i], theirs) {
                (_, Page::Empty) | (Page::Full, _) => {}
                (ours, Page::Full) => *ours = Page::Full,
                (ours @ Page::Empty, shared) => *ours = shared.clone(),
                (Page::Bits(a), Page::Bits(b)) if Arc::ptr_eq(a, b) => {}
                (Page::Bits(_), Page::Bits(b)) => self.edit(region, |words| {
                    words
                        .iter_mut()
                        .zip(&b.words)
                        .map(|(w, o)| add(w, *o))
                        .sum()
                }),
            }
        }
    }

    /// Number of dirty blocks.
    #[must_use]
    pub fn count(&self) -> u64 {
        let mut n = 0;
        for (i, page) in self.pages.iter().enumerate() {
            n += match page {
                Page::Empty => 0,
                Page::Full => self.blocks_in(Region(i as u64)),
                Page::Bits(bits) => u64::from(bits.count),
            };
        }
        for a in self.suspect.iter() {
            let words = a.0 * WORDS_PER_AREA..(a.0 + 1) * WORDS_PER_AREA;
            n += words
                .map(|w| (self.valid(w) & !self.page_word(w)).count_ones() as u64)
                .sum::<u64>();
        }
        n
    }

    /// The dirty extents from `from` on, in order and as long as can be.
    pub fn extents(&self, from: Block) -> impl Iterator<Item = Extent> + '_ {
        let mut at = from;
        std::iter::from_fn(move || {
            let e = next_run(
                |w| self.word(w),
                |r| self.touches_region(r),
                at,
                u64::MAX,
                self.blocks,
            )?;
            at = e.end();
            Some(e)
        })
    }

    /// Whether any block of `a` is dirty.
    #[must_use]
    pub fn touches(&self, a: Area) -> bool {
        self.suspect.contains(a)
            || match self.pages.get((a.0 / AREAS_PER_REGION) as usize) {
                None | Some(Page::Empty) => false,
                Some(Page::Full) => true,
                Some(Page::Bits(bits)) => {
                    let first = (a.0 % AREAS_PER_REGION * WORDS_PER_AREA) as usize;
                    bits.words[first..first + WORDS_PER_AREA as usize]
                        .iter()
                        .any(|w| *w != 0)
                }
            }
    }

    /// Whether any block of `r` may be dirty. A quick way past clean regions.
    #[must_use]
    pub fn touches_region(&self, r: Region) -> bool {
        !matches!(self.pages.get(r.0 as usize), None | Some(Page::Empty))
            || self
                .suspect
                .next(Area(r.0 * AREAS_PER_REGION))
                .is_some_and(|a| a.0 < (r.0 + 1) * AREAS_PER_REGION)
    }

    /// Bytes held by this map beside its pages, which the [`Budget`] counts.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.pages.capacity() * size_of::<Page>() + self.suspect.memory()
    }

    /// The dirty bits of blocks `64 * w` and following.
    pub(crate) fn word(&self, w: u64) -> u64 {
        if !self.suspect.is_empty() && self.suspect.contains(Area(w / WORDS_PER_AREA)) {
            return self.valid(w);
        }
        self.page_word(w)
    }

    fn page_word(&self, w: u64) -> u64 {
        match self.pages.get((w / WORDS) as usize) {
            None | Some(Page::Empty) => 0,
            Some(Page::Full) => self.valid(w),
            Some(Page::Bits(bits)) => bits.words[(w % WORDS) as usize],
        }
    }

    fn valid(&self, w: u64) -> u64 {
        mask(Extent::new(0, self.blocks), w)
    }

    fn blocks_in(&self, r: Region) -> u64 {
        (self.blocks - r.0 * BLOCKS_PER_REGION).min(BLOCKS_PER_REGION)
    }

    /// Mark an extent that lies in one region.
    fn set_in(&mut self, region: Region, extent: Extent) {
        if extent.count == self.blocks_in(region) {
            self.pages[region.0 as usize] = Page::Full;
            return;
        }
        match &self.pages[region.0 as usize] {
            Page::Full => return,
            Page::Bits(bits) if extent.count == 1 => {
                let (w, bit) = (extent.start.bit() / 64, 1 << (extent.start.0 % 64));
                if bits.words[w] & bit != 0 {
                    return;
                }
            }
            Page::Empty if self.covered_by_suspects(extent) => return,
            _ => {}
        }
        let base = region.0 * WORDS;
        let first = extent.start.0 / 64 - base;
        let last = (extent.end().0 - 1) / 64 - base;
        self.edit(region, |words| {
            (first..=last)
                .map(|w| add(&mut words[w as usize], mask(extent, base + w)))
                .sum()
        });
    }

    fn covered_by_suspects(&self, extent: Extent) -> bool {
        let (a, z) = extent.areas();
        !self.suspect.is_empty() && (a.0..=z.0).all(|a| self.suspect.contains(Area(a)))
    }

    /// Add bits to a page (`change` says how many were new), making it our own first; or, with no
    /// memory left, make the region suspect.
    fn edit(&mut self, region: Region, change: impl FnOnce(&mut [u64; WORDS as usize]) -> u32) {
        let full = self.blocks_in(region);
        let page = &mut self.pages[region.0 as usize];
        let own = match page {
            Page::Full => return,
            Page::Bits(bits) => Arc::get_mut(bits).is_some(),
            Page::Empty => false,
        };
        if !own {
            let Some(charge) = self.budget.charge(size_of::<Bits>(), 0) else {
                *page = Page::Empty;
                for a in region.0 * AREAS_PER_REGION..(region.0 + 1) * AREAS_PER_REGION {
                    self.suspect.insert(Area(a));
                }
                return;
            };
            let (words, count) = match page {
                Page::Bits(shared) => (shared.words, shared.count),
                _ => ([0; WORDS as usize], 0),
            };
            *page = Page::Bits(Arc::new(Bits {
                words,
                count,
                _charge: charge,
            }));
        }
        if let Page::Bits(bits) = page {
            // The page is ours alone by now: it was just made, or get_mut answered above.
            if let Some(bits) = Arc::get_mut(bits) {
                bits.count += change(&mut bits.words);
                if u64::from(bits.count) == full {
                    *page = Page::Full;
                }
            }
        }
    }
}

/// Set bits of a word; how many were clear.
fn add(word: &mut u64, bits: u64) -> u32 {
    let new = bits & !*word;
    *word |= new;
    new.count_ones()
}

/// The next run of set bits at or after `from`, at most `max` long, of the `blocks` bits that
/// `word` gives; `touches` tells regions that are not worth looking into.
pub(crate) fn next_run(
    word: impl Fn(u64) -> u64,
    touches: impl Fn(Region) -> bool,
    from: Block,
    max: u64,
    blocks: u64,
) -> Option<Extent> {
    let mut at = from.0;
    let start = loop {
        if at >= blocks {
            return None;
        }
        let region = Block(at).region();
        if (at == from.0 || at.is_multiple_of(BLOCKS_PER_REGION)) && !touches(region) {
            at = (region.0 + 1) * BLOCKS_PER_REGION;
            continue;
        }
        let bits = word(at / 64) >> (at % 64);
        if bits != 0 {
            break at + u64::from(bits.trailing_zeros());
        }
        at = (at / 64 + 1) * 64;
    };
    let mut end = start;
    while end - start < max && end < blocks {
        let clear = !word(end / 64) >> (end % 64);
        let run = u64::from(clear.trailing_zeros()).min(64 - end % 64);
        end += run;
        if run == 0 || end % 64 != 0 {
            break;
        }
    }
    Some(Extent::new(start, (end - start).min(max)))
}

#[cfg(test)]
mod tests;
