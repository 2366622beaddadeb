//! Two volumes to replicate between: a source with epochs and copy-before-write, a target.

use super::Dice;
use super::disk::MemDisk;
use block::{
    Area, BLOCK_BYTES, Block, Disk, Epoch, Error, ErrorKind, Extent, Generation, NodeName, Result,
};
use replica::{GuestLoad, MirrorItem, MirrorOp, Pending, Source, Target};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::Notify;

type Content = Arc<[u8; BLOCK_BYTES as usize]>;

#[derive(Default)]
pub struct Snap {
    epoch: Epoch,
    mirrored: bool,
    pending: RefCell<BTreeSet<u64>>,
    frozen: BTreeSet<u64>,
    suspect: BTreeSet<u64>,
    saved: RefCell<BTreeMap<u64, Content>>,
    overrun: Cell<bool>,
}

#[derive(Clone)]
pub struct Snapshot(Rc<Snap>);

impl Pending for Snapshot {
    fn epoch(&self) -> Epoch {
        self.0.epoch
    }
    fn is_mirrored(&self) -> bool {
        self.0.mirrored
    }
    fn is_overrun(&self) -> bool {
        self.0.overrun.get()
    }
    fn pending_bytes(&self) -> u64 {
        self.0.pending.borrow().len() as u64 * BLOCK_BYTES
    }
    fn next_pending(&self, from: Block, max: u64) -> Option<Extent> {
        let pending = self.0.pending.borrow();
        let start = *pending.range(from.0..).next()?;
        let count = (0..max)
            .take_while(|i| pending.contains(&(start + i)))
            .count();
        Some(Extent::new(start, count as u64))
    }
    fn is_suspect(&self, area: Area) -> bool {
        self.0.suspect.contains(&area.0)
    }
    fn saved(&self, block: Block) -> Option<Content> {
        self.0.saved.borrow().get(&block.0).cloned()
    }
    fn shipped(&self, extent: Extent) {
        for b in extent.iter() {
            self.0.pending.borrow_mut().remove(&b.0);
            self.0.saved.borrow_mut().remove(&b.0);
        }
    }
}

#[derive(Default)]
pub struct State {
    pub generation: Cell<Generation>,
    pub epoch: Cell<Epoch>,
    pub cursor: Cell<Option<Epoch>>,
    pub dirty: RefCell<BTreeSet<u64>>,
    pub suspect: RefCell<BTreeSet<u64>>,
    snapshot: RefCell<Option<Snapshot>>,
    /// The image at each epoch that was rotated: what a consistent replica must equal.
    pub history: RefCell<BTreeMap<Epoch, Vec<u8>>>,
    pub frozen: Cell<bool>,
    pub relinquished: RefCell<Option<(Generation, Epoch)>>,
    pub redirected: Cell<Option<Generation>>,
    /// What it was told that its receiver has seen.
    pub replaced: Cell<Option<Generation>>,
    pub paced: Cell<Option<u64>>,
    pub saves: Cell<u64>,
    pub overruns: Cell<u64>,
    /// The next snapshot is overrun after its last block was read, and before it is committed.
    pub forgotten: Cell<bool>,
    mirroring: Cell<bool>,
    mirror: RefCell<VecDeque<MirrorItem>>,
    unanswered: RefCell<BTreeSet<u32>>,
    mirror_broken: Cell<bool>,
    next_id: Cell<u32>,
    changed: Notify,
}

/// A source volume and the guest that writes it.
#[derive(Clone)]
pub struct MemVolume {
    pub image: MemDisk,
    pub s: Rc<State>,
}

impl MemVolume {
    pub fn new(image: MemDisk) -> MemVolume {
        let s = State::default();
        s.generation.set(Generation(1));
        s.epoch.set(Epoch(1));
        MemVolume {
            image,
            s: Rc::new(s),
        }
    }

    /// A guest's write. `None` while the volume is frozen.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Option<()> {
        if self.s.frozen.get() {
            return None;
        }
        let span = block::Span::new(offset, bytes.len() as u64);
        for b in span.blocks().iter() {
            if let Some(Snapshot(snap)) = &*self.s.snapshot.borrow() {
                let wanted = snap.pending.borrow().contains(&b.0);
                if wanted && !snap.saved.borrow().contains_key(&b.0) {
                    // The last block may be partial.
                    let len = BLOCK_BYTES.min(self.image.size() - b.offset()) as usize;
                    let mut old = [0; BLOCK_BYTES as usize];
                    old[..len].copy_from_slice(&self.image.peek(b.offset(), len));
                    snap.saved.borrow_mut().insert(b.0, Arc::new(old));
                    self.s.saves.set(self.s.saves.get() + 1);
                    if self.s.overruns.get() > 0 {
                        self.s.overruns.set(self.s.overruns.get() - 1);
                        snap.overrun.set(true);
                        snap.saved.borrow_mut().clear();
                    }
                }
            }
            self.s.dirty.borrow_mut().insert(b.0);
        }
        self.image.poke(offset, bytes);
        if self.s.mirroring.get() {
            self.queue(MirrorOp::Write(span, bytes.to_vec()));
        }
        Some(())
    }

    /// Queue a mirrored request and name it.
    pub fn queue(&self, op: MirrorOp) -> u32 {
        let id = self.s.next_id.get();
        self.s.next_id.set(id + 1);
        self.s.unanswered.borrow_mut().insert(id);
        let epoch = self.s.epoch.get();
        self.s
            .mirror
            .borrow_mut()
            .push_back(MirrorItem { id, epoch, op });
        self.s.changed.notify_waiters();
        id
    }

    pub fn unanswered(&self) -> usize {
        self.s.unanswered.borrow().len()
    }

    /// A guest that writes somewhere each time it is let run, until it is told to stop.
    pub async fn guest(&self, dice: Dice, stop: &Cell<bool>, pace: u64) {
        let blocks = self.image.size() / BLOCK_BYTES;
        let mut n = 0u64;
        while !stop.get() {
            super::pause(1 + dice.roll(pace)).await;
            if self.unanswered() > 8 {
                continue;
            }
            n += 1;
            let at = dice.roll(blocks) * BLOCK_BYTES + 512 * dice.roll(8);
            let sectors = 1 + dice.roll(24) as usize;
            let len = (sectors * 512).min((self.image.size() - at) as usize);
            let fill = if dice.roll(4) == 0 { 0 } else { n as u8 | 1 };
            self.write(at, &vec![fill; len]);
        }
    }

    /// The source crashes: maps are gone, areas written since the cursor are suspect.
    pub fn crash(&self) {
        let mut dirty = std::mem::take(&mut *self.s.dirty.borrow_mut());
        if let Some(Snapshot(snap)) = self.s.snapshot.borrow_mut().take() {
            dirty.extend(&snap.frozen);
            self.s.suspect.borrow_mut().extend(&snap.suspect);
        }
        let areas = dirty.iter().map(|b| Block(*b).area().0);
        self.s.suspect.borrow_mut().extend(areas);
        self.s.mirroring.set(false);
        self.s.mirror.borrow_mut().clear();
        self.s.unanswered.borrow_mut().clear();
        self.s.frozen.set(self.s.relinquished.borrow().is_some());
    }

    fn take_snapshot(&self) -> Snapshot {
        let size = self.image.size().div_ceil(BLOCK_BYTES);
        assert!(self.s.snapshot.borrow().is_none(), "one snapshot at a time");
        let mut frozen = std::mem::take(&mut *self.s.dirty.borrow_mut());
        let suspect = std::mem::take(&mut *self.s.suspect.borrow_mut());
        for area in &suspect {
            let blocks = Area(*area).blocks();
            frozen.extend(blocks.start.0..blocks.end().0.min(size));
        }
        let epoch = self.s.epoch.get();
        self.s.epoch.set(epoch.next());
        self.s
            .history
            .borrow_mut()
            .insert(epoch, self.image.content());
        let mirrored = self.s.mirroring.get() && !self.s.mirror_broken.get();
        let snapshot = Snapshot(Rc::new(Snap {
            epoch,
            mirrored,
            pending: RefCell::new(frozen.clone()),
            frozen,
            suspect,
            ..Snap::default()
        }));
        *self.s.snapshot.borrow_mut() = Some(snapshot.clone());
        snapshot
    }
}

impl Source for MemVolume {
    type Snapshot = Snapshot;

    fn generation(&self) -> Generation {
        self.s.generation.get()
    }
    fn epoch(&self) -> Epoch {
        self.s.epoch.get()
    }
    fn cursor(&self) -> Option<Epoch> {
        self.s.cursor.get()
    }
    fn guest_load(&self) -> GuestLoad {
        GuestLoad::default()
    }
    async fn replaced(&self, by: Generation) -> Result<()> {
        self.s.replaced.set(Some(by));
        Ok(())
    }
    async fn begin_seed(&self) -> Result<Epoch> {
        self.s.dirty.borrow_mut().clear();
        self.s.suspect.borrow_mut().clear();
        self.s.cursor.set(Some(self.s.epoch.get()));
        Ok(self.s.epoch.get())
    }
    async fn resume_at(&self, _epoch: Epoch) -> Result<bool> {
        Ok(false)
    }
    async fn seeded(&self) -> Result<()> {
        Ok(())
    }
    async fn rotate(&self) -> Result<Snapshot> {
        let snapshot = self.take_snapshot();
        super::pause(3).await;
        Ok(snapshot)
    }
    async fn committed(&self, epoch: Epoch) -> Result<()> {
        if self.s.forgotten.replace(false) {
            self.abandon(epoch).await?;
            return Err(Error::new(ErrorKind::NotFound, "it was overrun"));
        }
        let snapshot = self.s.snapshot.borrow_mut().take();
        assert_eq!(snapshot.map(|s| s.epoch()), Some(epoch));
        self.s.cursor.set(Some(epoch));
        Ok(())
    }
    async fn abandon(&self, epoch: Epoch) -> Result<()> {
        if let Some(Snapshot(snap)) = self.s.snapshot.borrow_mut().take() {
            assert_eq!(snap.epoch, epoch);
            self.s.dirty.borrow_mut().extend(&snap.frozen);
            self.s.suspect.borrow_mut().extend(&snap.suspect);
        }
        Ok(())
    }
    async fn freeze(&self) -> Result<()> {
        self.s.frozen.set(true);
        while self.unanswered() > 0 && !self.s.mirror_broken.get() {
            super::pause(1).await;
        }
        Ok(())
    }
    async fn thaw(&self) -> Result<()> {
        assert!(
            self.s.relinquished.borrow().is_none(),
            "thawed after relinquish"
        );
        self.s.frozen.set(false);
        Ok(())
    }
    async fn pace(&self, rate: Option<u64>) -> Result<()> {
        self.s.paced.set(rate);
        Ok(())
    }
    async fn relinquish(&self, _to: &NodeName, next: Generation, epoch: Epoch) -> Result<()> {
        assert!(self.s.frozen.get(), "relinquished while serving");
        *self.s.relinquished.borrow_mut() = Some((next, epoch));
        Ok(())
    }
    async fn redirect(&self, _to: &NodeName, generation: Generation) -> Result<()> {
        assert!(self.s.relinquished.borrow().is_some());
        self.s.redirected.set(Some(generation));
        Ok(())
    }
    async fn mirror_on(&self) -> Result<Snapshot> {
        let snapshot = self.take_snapshot();
        self.s.mirroring.set(true);
        self.s.mirror_broken.set(false);
        super::pause(2).await;
        Ok(snapshot)
    }
    async fn mirror_off(&self) -> Result<()> {
        self.s.mirroring.set(false);
        self.s.mirror.borrow_mut().clear();
        self.s.unanswered.borrow_mut().clear();
        self.s.changed.notify_waiters();
        Ok(())
    }
    async fn mirror_next(&self) -> Option<MirrorItem> {
        loop {
            let changed = self.s.changed.notified();
            if let Some(item) = self.s.mirror.borrow_mut().pop_front() {
                return Some(item);
            }
            if !self.s.mirroring.get() {
                return None;
            }
            changed.await;
        }
    }
    fn mirrored(&self, id: u32, result: std::result::Result<(), i32>) {
        assert!(self.s.unanswered.borrow_mut().remove(&id), "answered twice");
        if result.is_err() {
            self.s.mirror_broken.set(true);
        }
    }
}

/// The standby volume.
#[derive(Clone, Default)]
pub struct MemTarget {
    pub seen: Rc<Cell<Generation>>,
    pub owned: Rc<Cell<Option<Generation>>>,
    /// It is activated for this generation just after somebody asks whether it owns the volume.
    pub taken_when_asked: Rc<Cell<Option<Generation>>>,
    pub activations: Rc<Cell<u64>>,
}

impl Target for MemTarget {
    async fn observe(&self, generation: Generation) -> Result<()> {
        if generation < self.seen.get() {
            return Err(Error::new(ErrorKind::Fenced, "a former owner"));
        }
        self.seen.set(generation);
        if self.owned.get().is_some_and(|o| o < generation) {
            self.owned.set(None);
        }
        Ok(())
    }
    async fn last_owned(&self) -> Result<Generation> {
        Ok(self.seen.get())
    }
    async fn activate(&self, generation: Generation, _epoch: Epoch) -> Result<()> {
        assert!(self.owned.get().is_none_or(|o| o == generation));
        self.owned.set(Some(generation));
        self.seen.set(generation);
        self.activations.set(self.activations.get() + 1);
        Ok(())
    }
    async fn seen(&self) -> Result<Generation> {
        Ok(self.seen.get())
    }
    async fn owned(&self) -> Result<Option<Generation>> {
        let owned = self.owned.get();
        if let Some(generation) = self.taken_when_asked.take() {
            self.owned.set(Some(generation));
            self.seen.set(generation);
        }
        Ok(owned)
    }
    async fn gave_up(&self) -> Result<Option<(Generation, Epoch)>> {
        Ok(None)
    }
}
