//! Epochs: the open one, into which writes are marked, and those closed but not yet had by everybody.
//!
//! ```text
//!    cursor of n2      cursor of n3
//!         │                 │
//!   ──────┴── retained ─────┴── retained ──┬── active ──►
//!          map of 8..=9      map of 10     │  open epoch 11
//! ```
//!
//! A rotation closes the open epoch: its map is retained, an empty one takes its place. What a
//! replica lacks is the union of the retained maps behind its cursor, taken lazily: a snapshot keeps
//! pointers to them. A map goes when every cursor has passed it durably *and* the image has been
//! synced since, because content that a power cut can still take from the image must stay marked.

use crate::budget::Budget;
use crate::cursor::{Cursor, CursorName};
use crate::map::{DirtyMap, blocks_of};
use crate::snapshot::Snapshot;
use crate::sync::Arc;
use block::{Area, BLOCKS_PER_REGION, Block, Epoch, Extent};
use std::collections::VecDeque;

/// Retained maps; when there are more, two that nobody tells apart are merged, or the oldest two. A
/// replica that lags then gets a little more than it lacks; memory stays bounded however many cursors
/// stand at different epochs.
const RETAINED_MAX: usize = 4;

#[derive(Debug)]
struct Retained {
    last: Epoch,
    map: Arc<DirtyMap>,
}

/// A snapshot that somebody is shipping.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) name: CursorName,
    pub(crate) snapshot: Arc<Snapshot>,
    /// The mover was told that it may read.
    pub(crate) announced: bool,
}

#[derive(Debug)]
pub(crate) struct Epochs {
    open: Epoch,
    /// Every write of this epoch and later is in a map here.
    tracked_from: Epoch,
    active: DirtyMap,
    /// Oldest first.
    retained: VecDeque<Retained>,
    /// Issued writes of the open epoch that have not completed.
    flying: u32,
    /// The same for closed epochs, oldest first. Empty but for moments after a rotation.
    older: Vec<(Epoch, u32)>,
    pub(crate) cursors: Vec<Cursor>,
    pub(crate) live: Vec<Live>,
    blocks: u64,
    budget: Arc<Budget>,
}

impl Epochs {
    pub(crate) fn new(size: u64, open: Epoch) -> Epochs {
        let blocks = blocks_of(size);
        let budget = Budget::new(blocks.div_ceil(BLOCKS_PER_REGION));
        Epochs {
            open,
            tracked_from: open,
            active: DirtyMap::new(blocks, &budget),
            retained: VecDeque::new(),
            flying: 0,
            older: Vec::new(),
            cursors: Vec::new(),
            live: Vec::new(),
            blocks,
            budget,
        }
    }

    /// After a crash the maps are lost; what the intents cover takes their place.
    pub(crate) fn recover(&mut self, cursors: Vec<Cursor>, suspects: impl Iterator<Item = Area>) {
        let Some(oldest) = cursors.iter().map(|c| c.epoch).min() else {
            return;
        };
        let mut map = DirtyMap::new(self.blocks, &self.budget);
        suspects.for_each(|a| map.suspect_area(a));
        self.tracked_from = oldest.next();
        self.cursors = cursors;
        if !map.is_clean() {
            self.retained.push_back(Retained {
                last: Epoch(self.open.0 - 1),
                map: Arc::new(map),
            });
        }
    }

    /// The epoch into which writes are marked now.
    pub(crate) fn open(&self) -> Epoch {
        self.open
    }

    /// Bytes of memory that all maps and snapshots hold.
    pub(crate) fn memory(&self) -> usize {
        let retained = self.retained.iter().map(|r| r.map.memory());
        self.budget.used() + self.active.memory() + retained.sum::<usize>()
    }

    pub(crate) fn tracked_from(&self) -> Epoch {
        self.tracked_from
    }

    /// A write is being issued: mark it. The epoch it belongs to.
    pub(crate) fn issue(&mut self, blocks: Extent) -> Epoch {
        self.active.set(blocks);
        self.flying += 1;
        self.open
    }

    /// A write of `epoch` has completed; true if that settled a snapshot.
    pub(crate) fn complete(&mut self, epoch: Epoch) -> bool {
        if epoch == self.open {
            self.flying -= 1;
            return false;
        }
        let Some(at) = self.older.iter().position(|(e, _)| *e == epoch) else {
            panic!("a write of epoch {epoch} completed that was not counted");
        };
        self.older[at].1 -= 1;
        if self.older[at].1 > 0 {
            return false;
        }
        self.older.remove(at);
        self.settle()
    }

    /// Close the open epoch. Writes in flight stay its own.
    pub(crate) fn close(&mut self) -> Epoch {
        let closed = self.open;
        let map = std::mem::replace(&mut self.active, DirtyMap::new(self.blocks, &self.budget));
        if !map.is_clean() {
            self.retained.push_back(Retained {
                last: closed,
                map: Arc::new(map),
            });
        }
        if self.flying > 0 {
            self.older.push((closed, std::mem::take(&mut self.flying)));
        }
        self.open = closed.next();
        while self.retained.len() > RETAINED_MAX {
            self.merge_two();
        }
        closed
    }

    /// Mark writes in flight once more, into the open epoch: for a cursor that begins here.
    pub(crate) fn mark(&mut self, blocks: Extent) {
        self.active.set(blocks);
    }

    /// What the cursor lacks as of the closed epoch `as_of`.
    pub(crate) fn snapshot(
        &mut self,
        name: &CursorName,
        as_of: Epoch,
        mirrored: bool,
    ) -> Arc<Snapshot> {
        let cursor = self.cursor(name);
        let (after, whole) = cursor.map_or((Epoch(0), true), |c| (c.epoch, !c.seeded));
        let maps = self.retained.iter().filter(|r| r.last > after);
        let snapshot = Arc::new(Snapshot::new(
            as_of,
            maps.map(|r| r.map.clone()).collect(),
            whole,
            mirrored && !whole,
            self.blocks,
            &self.budget,
        ));
        self.live.push(Live {
            name: name.clone(),
            snapshot: snapshot.clone(),
            announced: false,
        });
        self.settle();
        snapshot
    }

    /// Settle snapshots none of whose writes is in flight; true if there was one.
    fn settle(&mut self) -> bool {
        let oldest_flying = self.older.first().map(|(e, _)| *e);
        let mut any = false;
        for live in &self.live {
            let s = &live.snapshot;
            if !s.is_settled() && oldest_flying.is_none_or(|e| e > s.epoch()) {
                s.settle();
                any = true;
            }
        }
        any
    }

    pub(crate) fn cursor(&self, name: &CursorName) -> Option<&Cursor> {
        self.cursors.iter().find(|c| c.name == *name)
    }

    pub(crate) fn cursor_mut(&mut self, name: &CursorName) -> Option<&mut Cursor> {
        self.cursors.iter_mut().find(|c| c.name == *name)
    }

    /// Whether everything written is in epoch `epoch` or before, and no later map has a block.
    pub(crate) fn is_clean_since(&self, epoch: Epoch) -> bool {
        self.active.is_clean()
            && self.flying == 0
            && self.older.is_empty()
            && self.retained.iter().all(|r| r.last <= epoch)
    }

    /// Forget maps that every cursor has passed, as far as `safe`.
    pub(crate) fn trim(&mut self, safe: Epoch) {
        let oldest = self.cursors.iter().map(|c| c.epoch).min();
        let upto = oldest.map_or(safe, |e| e.min(safe));
        while self.retained.front().is_some_and(|r| r.last <= upto) {
            self.retained.pop_front();
        }
        self.tracked_from = self.tracked_from.max(upto.next());
    }

    /// Nobody has a cursor: forget every map.
    pub(crate) fn forget(&mut self) {
        assert!(self.cursors.is_empty());
        self.retained.clear();
        self.live.clear();
        if !self.active.is_clean() {
            self.close();
            self.retained.clear();
        }
        self.tracked_from = self.open;
    }

    /// Begin anew after `epoch`, with nothing written yet and nobody tracked.
    pub(crate) fn restart(&mut self, epoch: Epoch) {
        self.cursors.clear();
        self.retained.clear();
        self.live.clear();
        self.active = DirtyMap::new(self.blocks, &self.budget);
        self.open = epoch.next();
        self.tracked_from = self.open;
    }

    /// Whether any map says that a block of the area changed.
    pub(crate) fn touches(&self, a: Area) -> bool {
        self.active.touches(a) || self.retained.iter().any(|r| r.map.touches(a))
    }

    /// Blocks that changed after the cursor's epoch. One in two maps counts twice.
    pub(crate) fn dirty_blocks(&self, cursor: &Cursor) -> u64 {
        let retained = self.retained.iter().filter(|r| r.last > cursor.epoch);
        self.active.count() + retained.map(|r| r.map.count()).sum::<u64>()
    }

    /// The next extent at or after `from` that changed after the cursor's epoch.
    pub(crate) fn next_dirty(&self, cursor: &Cursor, from: Block, max: u64) -> Option<Extent> {
        let retained = || self.retained.iter().filter(|r| r.last > cursor.epoch);
        crate::map::next_run(
            |w| retained().fold(self.active.word(w), |bits, r| bits | r.map.word(w)),
            |r| self.active.touches_region(r) || retained().any(|k| k.map.touches_region(r)),
            from,
            max,
            self.blocks,
        )
    }

    /// Merge the oldest two maps between which no cursor stands; if there are none, the oldest two.
    fn merge_two(&mut self) {
        let parted = |a: &Retained, b: &Retained| {
            let between = |c: &Cursor| (a.last..b.last).contains(&c.epoch);
            self.cursors.iter().any(between)
        };
        let pairs = self.retained.iter().zip(self.retained.iter().skip(1));
        let at = pairs.into_iter().position(|(a, b)| !parted(a, b));
        let at = at.unwrap_or(0);
        if let (Some(a), Some(b)) = (self.retained.remove(at), self.retained.get_mut(at)) {
            let mut map = DirtyMap::clone(&a.map);
            map.union(&b.map);
            b.map = Arc::new(map);
        }
    }
}
