//! A disk that keeps what was synced, and of the rest whatever it likes, sector by sector.
//!
//! ```text
//!   write ─► in flight ─► cache (what reads see) ─► sync ─► durable
//!                              │
//!                    power cut: each sector is the durable one or any of those written since,
//!                    and of a write in flight any part may have happened
//! ```
//!
//! So writes are lost, kept, torn and reordered in every combination that real disks have, and never
//! within a sector. A sync makes durable what had *completed* before it began, and not a write more.
//! A failed sync forgets what it was to write and says nothing of it again: later ones succeed.

use crate::hits::Hit;
use crate::world::{Process, World};
use block::{AlignedBuf, Error, Result, SECTOR_BYTES};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use tokio::sync::oneshot;

const SECTOR: usize = SECTOR_BYTES as usize;
const PAGE: u64 = 4096;
const PAGE_SECTORS: u64 = PAGE / SECTOR_BYTES;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// A sector; `None` is zeroes.
pub type Sector = Option<Rc<[u8; SECTOR]>>;

/// What may go wrong, each once in so many operations; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A read fails.
    pub read: u64,
    /// A write fails, with any part of it done.
    pub write: u64,
    /// A sync fails, and what it was to write is lost.
    pub sync: u64,
    /// A write goes to another place of the disk.
    pub misdirect: u64,
    /// Allocated bytes, at most.
    pub space: Option<u64>,
}

/// What a power cut leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// All of it, also what was in flight.
    Everything,
    /// Of each sector any version; of what was in flight any part.
    Any,
}

#[derive(Clone, Debug, Default)]
struct Unsynced {
    durable: Sector,
    /// Written since: when, by which operation, what.
    later: VecDeque<(u64, u64, Sector)>,
}

#[derive(Clone, Default)]
struct State {
    cache: BTreeMap<u64, Sector>,
    /// Pages that have space.
    allocated: BTreeMap<u64, ()>,
    unsynced: BTreeMap<u64, Unsynced>,
    /// What each operation in flight has still to write.
    flying: BTreeMap<u64, Vec<(u64, Sector)>>,
    last: u64,
}

struct Inner {
    world: World,
    process: Process,
    size: u64,
    faults: Cell<Faults>,
    state: RefCell<State>,
    /// Microseconds that an operation takes, at most.
    slow: Cell<u64>,
}

/// A disk. Cheap to clone.
#[derive(Clone)]
pub struct SimDisk(Rc<Inner>);

/// What a power cut made of the operations that it found unsynced.
#[derive(Default)]
struct Fates {
    kept: BTreeSet<u64>,
    lost: BTreeSet<u64>,
}

impl Fates {
    fn note(&mut self, entry: &Unsynced, kept: usize) {
        let ops = || entry.later.iter().map(|(_, op, _)| *op);
        // What a later write of the same sector covers is neither.
        self.kept.extend(ops().take(kept).next_back());
        self.lost.extend(ops().skip(kept));
    }

    fn tell(&self, world: &World) {
        if !self.lost.is_empty() {
            world.hit(Hit::Lost);
        }
        if self.kept.intersection(&self.lost).next().is_some() {
            world.hit(Hit::Torn);
        }
        if self.lost.first() < self.kept.last() && !self.lost.is_empty() {
            world.hit(Hit::Reordered);
        }
    }
}

impl State {
    fn put(&mut self, op: u64, sector: u64, content: Sector) {
        self.last += 1;
        let old = self.cache.get(&sector).cloned().flatten();
        let entry = self.unsynced.entry(sector).or_insert_with(|| Unsynced {
            durable: old,
            later: VecDeque::new(),
        });
        entry.later.push_back((self.last, op, content.clone()));
        match content {
            Some(_) => self.cache.insert(sector, content),
            None => self.cache.remove(&sector),
        };
    }

    fn touched(&self, sectors: Range<u64>) -> Vec<u64> {
        let mut all: Vec<u64> = self.cache.range(sectors.clone()).map(|(s, _)| *s).collect();
        all.extend(self.unsynced.range(sectors).map(|(s, _)| *s));
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl SimDisk {
    /// A disk of zeroes, used by `process`.
    #[must_use]
    pub fn new(world: &World, process: Process, size: u64) -> SimDisk {
        assert!(size.is_multiple_of(SECTOR_BYTES));
        SimDisk(Rc::new(Inner {
            world: world.clone(),
            process,
            size,
            faults: Cell::default(),
            state: RefCell::default(),
            slow: Cell::new(40),
        }))
    }

    /// Choose what may go wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.faults.set(faults);
    }

    /// Choose how slow it is, in microseconds an operation at most.
    pub fn set_slow(&self, micros: u64) {
        self.0.slow.set(micros);
    }

    /// A sector as a read finds it.
    #[must_use]
    pub fn peek(&self, sector: u64) -> Sector {
        self.0.state.borrow().cache.get(&sector).cloned().flatten()
    }

    /// Every sector that is not zero.
    #[must_use]
    pub fn data(&self) -> Vec<(u64, Rc<[u8; SECTOR]>)> {
        let state = self.0.state.borrow();
        let data = state.cache.iter();
        data.filter_map(|(s, c)| Some((*s, c.clone()?))).collect()
    }

    /// All of it, for a small disk.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.0.size as usize];
        for (s, content) in self.data() {
            bytes[s as usize * SECTOR..][..SECTOR].copy_from_slice(&*content);
        }
        bytes
    }

    /// Store at once, as into a mapped file. Durable after a sync.
    pub fn store(&self, offset: u64, bytes: &[u8]) {
        let mut state = self.0.state.borrow_mut();
        let first = offset / SECTOR_BYTES;
        for (s, part) in (first..).zip(bytes.as_chunks::<SECTOR>().0) {
            state.put(0, s, sector_of(part));
        }
    }

    /// Flip a bit of a sector, durably. The answer is what it held.
    pub fn rot(&self, sector: u64) -> Sector {
        let mut state = self.0.state.borrow_mut();
        let mut bytes = [0; SECTOR];
        let old = state.cache.get(&sector).cloned().flatten();
        if let Some(old) = &old {
            bytes = **old;
        }
        bytes[self.0.world.dice().below(SECTOR_BYTES) as usize] ^=
            1 << self.0.world.dice().below(8);
        state.unsynced.remove(&sector);
        state.cache.insert(sector, Some(Rc::new(bytes)));
        old
    }

    /// Put a sector back from a good copy, durably.
    pub fn restore(&self, sector: u64, content: Sector) {
        let mut state = self.0.state.borrow_mut();
        state.unsynced.remove(&sector);
        state.cache.insert(sector, content);
    }

    /// The process died: what was in flight happened, or not, or in part.
    pub fn killed(&self) {
        let mut state = self.0.state.borrow_mut();
        for (op, rest) in std::mem::take(&mut state.flying) {
            self.0.world.hit(Hit::HalfDone);
            for (sector, content) in rest {
                if self.0.world.dice().one_in(2) {
                    state.put(op, sector, content);
                }
            }
        }
    }

    /// The power failed.
    pub fn power_cut(&self) {
        self.killed();
        let left = match self.0.world.dice().below(4) {
            0 => Left::Nothing,
            1 => Left::Everything,
            _ => Left::Any,
        };
        self.decide(left);
    }

    /// The disk that a power cut at this moment would leave, in another world. This one goes on.
    #[must_use]
    pub fn after_power_cut(&self, world: &World, left: Left) -> SimDisk {
        let disk = SimDisk::new(world, self.0.process, self.0.size);
        disk.0.state.replace(self.0.state.borrow().clone());
        match left {
            Left::Any => disk.killed(),
            Left::Nothing => disk.0.state.borrow_mut().flying.clear(),
            Left::Everything => {
                let flying: Vec<u64> = disk.0.state.borrow().flying.keys().copied().collect();
                flying.iter().for_each(|op| disk.progress(*op, false));
                disk.0.state.borrow_mut().flying.clear();
            }
        }
        disk.decide(left);
        disk
    }

    /// Decide the fate of every sector that is not synced.
    fn decide(&self, left: Left) {
        let dice = self.0.world.dice();
        let mut state = self.0.state.borrow_mut();
        let mut fates = Fates::default();
        for (sector, entry) in std::mem::take(&mut state.unsynced) {
            let n = entry.later.len() as u64;
            let kept = match left {
                Left::Nothing => 0,
                Left::Everything => n,
                Left::Any => dice.below(n + 1),
            };
            fates.note(&entry, kept as usize);
            let content = match kept {
                0 => entry.durable,
                k => entry.later[k as usize - 1].2.clone(),
            };
            if content.is_some() {
                state.allocated.insert(sector / PAGE_SECTORS, ());
            }
            match content {
                Some(_) => state.cache.insert(sector, content),
                None => state.cache.remove(&sector),
            };
        }
        fates.tell(&self.0.world);
    }

    /// Sectors whose fate a power cut now would decide, with the number of things each may be.
    #[must_use]
    pub fn undecided(&self) -> Vec<(u64, usize)> {
        let state = self.0.state.borrow();
        let entries = state.unsynced.iter();
        entries.map(|(s, e)| (*s, e.later.len() + 1)).collect()
    }

    fn copy_out(&self, offset: u64, buf: &mut [u8]) {
        buf.fill(0);
        let end = (offset + buf.len() as u64).div_ceil(SECTOR_BYTES);
        let state = self.0.state.borrow();
        for (s, content) in state.cache.range(offset / SECTOR_BYTES..end) {
            if let Some(content) = content {
                let at = (s * SECTOR_BYTES - offset) as usize;
                buf[at..at + SECTOR].copy_from_slice(&**content);
            }
        }
    }

    async fn delay(&self) {
        self.0.world.wait_up_to(self.0.slow.get()).await;
    }

    fn fault(&self, which: impl Fn(&Faults) -> u64) -> bool {
        self.0.world.dice().one_in(which(&self.0.faults.get()))
    }

    fn has_space(&self, sectors: &[(u64, Sector)]) -> bool {
        let Some(limit) = self.0.faults.get().space else {
            return true;
        };
        let state = self.0.state.borrow();
        let mut pages: Vec<u64> = sectors.iter().map(|(s, _)| s / PAGE_SECTORS).collect();
        pages.dedup();
        let new = pages
            .iter()
            .filter(|p| !state.allocated.contains_key(p))
            .count();
        (state.allocated.len() + new) as u64 * PAGE <= limit || new == 0
    }

    /// Do a write, in pieces and in its own time. It goes on when nobody waits for it any more.
    async fn change(&self, mut sectors: Vec<(u64, Sector)>) -> Result<()> {
        if sectors.is_empty() {
            self.delay().await;
            return Ok(());
        }
        if !self.has_space(&sectors) {
            self.0.world.hit(Hit::NoSpace);
            return Err(Error::errno("write the simulated disk", ENOSPC));
        }
        let fails = self.fault(|f| f.write);
        if fails {
            self.0.world.hit(Hit::WriteError);
        }
        if self.fault(|f| f.misdirect) {
            self.0.world.hit(Hit::Misdirected);
            let by = self.0.world.dice().below(64) * PAGE_SECTORS;
            let last = self.0.size / SECTOR_BYTES;
            sectors.iter_mut().for_each(|(s, _)| *s = (*s + by) % last);
        }
        let op = {
            let mut state = self.0.state.borrow_mut();
            for (s, content) in &sectors {
                if content.is_some() {
                    state.allocated.insert(s / PAGE_SECTORS, ());
                }
            }
            state.last += 1;
            let op = state.last;
            state.flying.insert(op, sectors);
            op
        };
        let (tell, told) = oneshot::channel();
        let disk = self.clone();
        self.0.world.spawn(self.0.process, async move {
            disk.delay().await;
            disk.progress(op, true);
            disk.delay().await;
            if !fails {
                disk.progress(op, false);
            }
            disk.0.state.borrow_mut().flying.remove(&op);
            // Who asked may have gone.
            let _ = tell.send(());
        });
        let done = told.await.is_ok();
        if fails || !done {
            return Err(Error::errno("write the simulated disk", EIO));
        }
        Ok(())
    }

    /// Do a part of an operation, or the rest.
    fn progress(&self, op: u64, part: bool) {
        let mut state = self.0.state.borrow_mut();
        let Some(mut rest) = state.flying.remove(&op) else {
            return;
        };
        let mut left = Vec::new();
        for (sector, content) in rest.drain(..) {
            if part && self.0.world.dice().one_in(2) {
                left.push((sector, content));
            } else {
                state.put(op, sector, content);
            }
        }
        state.flying.insert(op, left);
    }
}

fn sector_of(bytes: &[u8; SECTOR]) -> Sector {
    bytes.iter().any(|b| *b != 0).then(|| Rc::new(*bytes))
}

impl block::Disk for SimDisk {
    fn size(&self) -> u64 {
        self.0.size
    }

    async fn read(&self, offset: u64, mut buf: AlignedBuf) -> (Result<()>, AlignedBuf) {
        assert!(
            offset + buf.len() as u64 <= self.0.size,
            "a read past the end"
        );
        self.delay().await;
        if self.fault(|f| f.read) {
            self.0.world.hit(Hit::ReadError);
            return (Err(Error::errno("read the simulated disk", EIO)), buf);
        }
        self.copy_out(offset, &mut buf);
        self.delay().await;
        (Ok(()), buf)
    }

    async fn write(&self, offset: u64, buf: AlignedBuf) -> (Result<()>, AlignedBuf) {
        assert!(
            offset + buf.len() as u64 <= self.0.size,
            "a write past the end"
        );
        let (parts, rest) = buf.as_chunks::<SECTOR>();
        assert!(
            rest.is_empty() && offset.is_multiple_of(SECTOR_BYTES),
            "whole sectors"
        );
        let first = offset / SECTOR_BYTES;
        let sectors = (first..).zip(parts.iter().map(sector_of)).collect();
        (self.change(sectors).await, buf)
    }

    async fn zero(&self, offset: u64, len: u64) -> Result<()> {
        assert!(offset + len <= self.0.size, "zeroes past the end");
        let range = offset / SECTOR_BYTES..(offset + len) / SECTOR_BYTES;
        let sectors = self.0.state.borrow().touched(range);
        self.change(sectors.into_iter().map(|s| (s, None)).collect())
            .await?;
        let first = offset.div_ceil(PAGE);
        let pages = first..((offset + len) / PAGE).max(first);
        let mut state = self.0.state.borrow_mut();
        let whole: Vec<u64> = state.allocated.range(pages).map(|(p, ())| *p).collect();
        for page in whole {
            let sectors = page * PAGE_SECTORS..(page + 1) * PAGE_SECTORS;
            if state.cache.range(sectors).next().is_none() {
                state.allocated.remove(&page);
            }
        }
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        let (upto, flying) = {
            let state = self.0.state.borrow();
            let flying: Vec<u64> = state.flying.keys().copied().collect();
            (state.last, flying)
        };
        self.delay().await;
        self.delay().await;
        let failed = self.fault(|f| f.sync);
        let dice = self.0.world.dice();
        let mut state = self.0.state.borrow_mut();
        for entry in state.unsynced.values_mut() {
            let covered = |(at, op, _): &(u64, u64, Sector)| *at <= upto && !flying.contains(op);
            let Some(n) = entry.later.iter().rposition(covered) else {
                continue;
            };
            let lost = failed && dice.one_in(2);
            if lost {
                self.0.world.hit(Hit::SyncDropped);
            }
            let mut gone = entry.later.drain(..=n);
            if let Some((.., content)) = gone.next_back()
                && !lost
            {
                entry.durable = content;
            }
        }
        // An entry that lost something stays: the cache shows what the disk has not.
        let State {
            unsynced, cache, ..
        } = &mut *state;
        unsynced.retain(|s, e| {
            let shown = cache.get(s).cloned().flatten();
            !e.later.is_empty() || e.durable != shown
        });
        if failed {
            self.0.world.hit(Hit::SyncError);
            return Err(Error::errno("sync the simulated disk", EIO));
        }
        Ok(())
    }

    async fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        let state = self.0.state.borrow();
        let Some((first, ())) = state.allocated.range(offset / PAGE..).next() else {
            return Ok(None);
        };
        let mut end = *first;
        while state.allocated.contains_key(&end) {
            end += 1;
        }
        Ok(Some((
            (first * PAGE).max(offset),
            (end * PAGE).min(self.0.size),
        )))
    }
}
