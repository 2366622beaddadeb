//! A snapshot: what one replica lacks as of one epoch, shared between the gate (which saves the old
//! content of blocks that the guest rewrites) and the mover (which reads and ships them).
//!
//! ```text
//!   gate, on a write to a pending block          mover, for each pending extent
//!   1. wait until the snapshot is settled        1. wait until the snapshot is settled
//!   2. read the old content                      2. read the image
//!   3. keep it here (saved)                      3. look here: saved? then that is the content
//!   4. write the image                           4. shipped: nobody need save it any more
//! ```
//!
//! Step 3 of the gate comes before step 4, so a mover that read new content in its step 2 finds the
//! old content in its step 3. No lock is held over I/O.
//!
//! *Shipped* is only about copy-before-write. What is shipped still counts as dirty for the replica
//! until it has committed the epoch durably; an abandoned snapshot loses nothing. Saved content is
//! bounded: past the bound the snapshot is *overrun*, the guest goes on, and the mover starts over
//! with a later epoch.

use crate::budget::{Budget, Charge};
use crate::map::{DirtyMap, WORDS, mask, next_run};
use crate::sync::{
    Arc, AtomicBool, AtomicU64, AtomicUsize, Mutex, MutexGuard, OnceLock, Ordering, PoisonError,
};
use block::{Area, BLOCKS_PER_REGION, Block, Epoch, Extent};
use std::collections::HashMap;

/// The old content of a block.
pub type OldBlock = Arc<[u8; block::BLOCK_BYTES as usize]>;

/// Most blocks saved for one snapshot: 64 MiB. A sender at 1 Gbit/s clears that in half a second; a
/// guest that overwrites pending blocks faster than that for long is better served by a new epoch.
pub const SAVED_BLOCKS_MAX: usize = 16_384;

#[derive(Debug)]
struct ShippedPage {
    words: [AtomicU64; WORDS as usize],
    _charge: Charge,
}

/// What a replica lacks as of an epoch.
#[derive(Debug)]
pub struct Snapshot {
    epoch: Epoch,
    maps: Vec<Arc<DirtyMap>>,
    /// The replica has nothing yet: every block is pending and suspect.
    whole: bool,
    mirrored: AtomicBool,
    blocks: u64,
    total: OnceLock<u64>,
    /// One page a region, made when the first block of the region is shipped. With no memory left
    /// there is none, and the gate saves more than it must.
    shipped: Vec<OnceLock<Option<Box<ShippedPage>>>>,
    shipped_blocks: AtomicU64,
    saved: Mutex<HashMap<u64, OldBlock>>,
    /// Entries of `saved`, so that a mover that has nothing to find need not lock.
    saved_blocks: AtomicUsize,
    overrun: AtomicBool,
    settled: AtomicBool,
    budget: Arc<Budget>,
}

impl Snapshot {
    /// What `maps` say, or everything if `whole`. A `mirrored` snapshot's blocks are at the replica
    /// already, unconfirmed.
    pub(crate) fn new(
        epoch: Epoch,
        maps: Vec<Arc<DirtyMap>>,
        whole: bool,
        mirrored: bool,
        blocks: u64,
        budget: &Arc<Budget>,
    ) -> Snapshot {
        let regions = blocks.div_ceil(BLOCKS_PER_REGION);
        Snapshot {
            epoch,
            maps,
            whole,
            mirrored: AtomicBool::new(mirrored),
            blocks,
            total: OnceLock::new(),
            shipped: (0..regions).map(|_| OnceLock::new()).collect(),
            shipped_blocks: AtomicU64::new(0),
            saved: Mutex::new(HashMap::new()),
            saved_blocks: AtomicUsize::new(0),
            overrun: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            budget: budget.clone(),
        }
    }

    /// The point in time: everything admitted in this epoch or before is in it, nothing later.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Every write of the epoch was sent to the mirror and confirmed by it, so there is nothing to
    /// read and ship: the epoch only needs committing.
    #[must_use]
    pub fn is_mirrored(&self) -> bool {
        self.mirrored.load(Ordering::Acquire)
    }

    /// Every write of the epoch has completed; before that nobody may read its blocks.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// The guest rewrote more than can be saved: the snapshot is no point in time any more. Give it
    /// up; its blocks have gone back to what the replica lacks. Look *after* the last read and before
    /// the commit is sent: content read before the mark was set is good, later content may not be.
    #[must_use]
    pub fn is_overrun(&self) -> bool {
        self.overrun.load(Ordering::SeqCst)
    }

    /// Bytes to ship or compare in all. The first call counts them.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        *self.total.get_or_init(|| match self.maps.as_slice() {
            _ if self.whole => self.blocks,
            [one] => one.count(),
            _ => (0..self.blocks.div_ceil(64))
                .map(|w| u64::from(self.frozen(w).count_ones()))
                .sum(),
        }) * block::BLOCK_BYTES
    }

    /// Bytes not shipped yet.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        let shipped = self.shipped_blocks.load(Ordering::Relaxed) * block::BLOCK_BYTES;
        self.total_bytes().saturating_sub(shipped)
    }

    /// The next extent at or after `from` that is not shipped, at most `max` blocks long.
    #[must_use]
    pub fn next_pending(&self, from: Block, max: u64) -> Option<Extent> {
        let touches = |r| self.whole || self.maps.iter().any(|m| m.touches_region(r));
        next_run(|w| self.pending(w), touches, from, max, self.blocks)
    }

    /// Whether a block is still to be shipped.
    #[must_use]
    pub fn is_pending(&self, b: Block) -> bool {
        self.pending(b.0 / 64) & (1 << (b.0 % 64)) != 0
    }

    /// Whether to compare the area by digest before sending: what is dirty in it is not known, or
    /// may be much more than what differs.
    #[must_use]
    pub fn is_suspect(&self, a: Area) -> bool {
        self.whole || self.maps.iter().any(|m| m.suspect().contains(a))
    }

    /// The content that a block had at the epoch, if the guest has rewritten it since. Look *after*
    /// reading the image.
    #[must_use]
    pub fn saved(&self, b: Block) -> Option<OldBlock> {
        if self.saved_blocks.load(Ordering::SeqCst) == 0 {
            return None;
        }
        self.lock().get(&b.0).cloned()
    }

    /// The content of an extent has left the image: the gate need not save it any more. What this
    /// snapshot saved of it is freed.
    pub fn shipped(&self, e: Extent) {
        let end = e.end().0.min(self.blocks);
        let e = Extent::new(e.start.0, end.saturating_sub(e.start.0));
        if e.count == 0 {
            return;
        }
        let mut new = 0;
        for w in e.start.0 / 64..e.end().0.div_ceil(64) {
            let bits = self.frozen(w) & mask(e, w);
            if bits != 0 {
                let before = self.page_to_ship((w / WORDS) as usize).map_or(0, |p| {
                    p.words[(w % WORDS) as usize].fetch_or(bits, Ordering::SeqCst)
                });
                new += u64::from((bits & !before).count_ones());
            }
        }
        self.shipped_blocks.fetch_add(new, Ordering::Relaxed);
        if self.saved_blocks.load(Ordering::SeqCst) != 0 {
            let mut saved = self.lock();
            // The gate may be waiting for this lock: look at whichever of the two is shorter.
            if e.count < saved.len() as u64 {
                e.iter().for_each(|b| drop(saved.remove(&b.0)));
            } else {
                saved.retain(|b, _| !(e.start.0..end).contains(b));
            }
            self.saved_blocks.store(saved.len(), Ordering::SeqCst);
        }
    }

    /// Gate: the first run of blocks within `e` whose content must be saved before it may change.
    pub(crate) fn must_save(&self, e: Extent) -> Option<Extent> {
        if self.is_overrun() || self.is_mirrored() && self.is_settled() {
            return None;
        }
        let (first, last) = (e.start.0 / 64, (e.end().0 - 1) / 64);
        if (first..=last).all(|w| self.pending(w) & mask(e, w) == 0) {
            return None;
        }
        let saved = self.lock();
        let needs = |b: &Block| self.is_pending(*b) && !saved.contains_key(&b.0);
        let start = e.iter().find(needs)?;
        // Not asked again of the first: the mover may have shipped it meanwhile.
        let rest = Extent::new(start.0 + 1, e.end().0 - start.0 - 1);
        let count = 1 + rest.iter().take_while(needs).count();
        Some(Extent::new(start.0, count as u64))
    }

    /// Gate: keep the old content of a block, unless it was shipped meanwhile. A snapshot that can
    /// keep no more is overrun.
    pub(crate) fn keep(&self, b: Block, content: &OldBlock) {
        if self.is_overrun() || !self.is_pending(b) {
            return;
        }
        let mut saved = self.lock();
        if saved.len() >= SAVED_BLOCKS_MAX {
            drop(saved);
            self.overrun();
            return;
        }
        saved.entry(b.0).or_insert_with(|| content.clone());
        self.saved_blocks.store(saved.len(), Ordering::SeqCst);
    }

    /// Gate: give the snapshot up.
    pub(crate) fn overrun(&self) {
        // The mark comes first: a mover that finds nothing saved must find the mark.
        self.overrun.store(true, Ordering::SeqCst);
        let mut saved = self.lock();
        *saved = HashMap::new();
        self.saved_blocks.store(0, Ordering::SeqCst);
    }

    /// Gate: the last write of the epoch has completed.
    pub(crate) fn settle(&self) {
        self.settled.store(true, Ordering::Release);
    }

    /// Gate: the mirror broke. If writes of the epoch were still unconfirmed, ship it all.
    pub(crate) fn mirror_broke(&self) {
        if !self.is_settled() {
            self.mirrored.store(false, Ordering::Release);
        }
    }

    fn frozen(&self, w: u64) -> u64 {
        if self.whole {
            return mask(Extent::new(0, self.blocks), w);
        }
        self.maps.iter().fold(0, |bits, m| bits | m.word(w))
    }

    fn pending(&self, w: u64) -> u64 {
        let frozen = self.frozen(w);
        if frozen == 0 {
            return 0;
        }
        let shipped = self.shipped[(w / WORDS) as usize]
            .get()
            .and_then(Option::as_deref)
            .map_or(0, |p| p.words[(w % WORDS) as usize].load(Ordering::SeqCst));
        frozen & !shipped
    }

    fn page_to_ship(&self, region: usize) -> Option<&ShippedPage> {
        self.shipped[region]
            .get_or_init(|| {
                // Half of the budget is left to the dirty maps: they lose more by going without.
                let spare = self.budget.limit() / 2;
                let charge = self.budget.charge(size_of::<ShippedPage>(), spare)?;
                Some(Box::new(ShippedPage {
                    words: [const { AtomicU64::new(0) }; WORDS as usize],
                    _charge: charge,
                }))
            })
            .as_deref()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, OldBlock>> {
        // A panic while it was held cannot have left the map half changed.
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
