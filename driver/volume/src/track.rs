//! Control calls about tracking: cursors, rotations, commits, checkpoints, the mirror.
//!
//! ```text
//!  add_cursor ► ControlDone ► (seed the replica) ► seeded
//!  rotate ► Settled(snapshot) ► ship ► committed ► ControlDone     or abandon: nothing is lost
//!  mirror_on ► Settled(the last increment), Mirror, MirrorFlush, ... ► rotate ► committed
//! ```

use crate::cursor::{CURSORS_MAX, Cursor, CursorName, Start};
use crate::epoch::Live;
use crate::gate::Stage;
use crate::request::{Action, Completion, Control, Outcome, RequestId};
use crate::snapshot::Snapshot;
use crate::sync::Arc;
use crate::volume::{SWEEP_AREAS, SWEEP_EVERY, Volume};
use block::{Area, Block, Epoch, Error, ErrorKind, Extent, Nanos, Result};

/// Epochs reserved at a time, so that a rotation need not wait for the superblock.
pub(crate) const EPOCHS_RESERVED: u64 = 64;

/// A mirror and what it covers.
#[derive(Debug)]
pub(crate) struct Mirror {
    name: CursorName,
    /// Every write of this epoch and later went to it.
    from: Epoch,
}

impl Volume {
    /// Begin to track what a replica or checkpoint lacks.
    pub fn add_cursor(&mut self, name: CursorName, start: Start) -> Result<Control> {
        self.must_own("add a cursor")?;
        if start == Start::Now {
            self.must_not_end_a_mirrors_epoch(&name)?;
        }
        let refuse = |kind, why: String| Err(Error::new(kind, format!("track {name}: {why}")));
        if self.epochs.cursor(&name).is_some() {
            return refuse(ErrorKind::Exists, "it is tracked already".into());
        }
        let takes_place =
            |c: &Cursor| c.name == CursorName::FormerOwner && start == Start::At(c.epoch);
        let former = self.epochs.cursors.iter().position(takes_place);
        if self.epochs.cursors.len() == CURSORS_MAX && former.is_none() {
            let why = format!("the volume has {CURSORS_MAX} replicas and checkpoints; remove one");
            return refuse(ErrorKind::Busy, why);
        }
        let (epoch, seeded) = match start {
            Start::At(e) if e.next() < self.epochs.tracked_from() || e >= self.epochs.open() => {
                let why = format!("what changed since epoch {e} is not known; seed it instead");
                return refuse(ErrorKind::NotFound, why);
            }
            Start::At(e) => (e, true),
            Start::Now => {
                let closed = self.close_epoch();
                if self.epochs.cursors.is_empty() && self.oldest_cursor().is_none() {
                    self.epochs.forget();
                }
                // What is in flight may land after whoever begins here has read the image.
                for id in self.order.iter() {
                    let slot = &self.slots[id.index()];
                    if slot.stage == Stage::Issued {
                        self.epochs.mark(slot.span.blocks());
                    }
                }
                (closed, matches!(name, CursorName::Checkpoint(_)))
            }
        };
        let first = self.epochs.cursors.is_empty();
        if first {
            self.intend_what_is_dirty();
        }
        if let Some(former) = former {
            self.epochs.cursors.remove(former);
        }
        self.epochs.cursors.push(Cursor {
            name,
            epoch,
            seeded,
        });
        if first && start == Start::Now {
            // What was written while nobody was tracked has no intent. A copy of it must not begin
            // while a power cut can still take it from the image.
            return self.change_and_sync();
        }
        self.change()
    }

    /// Stop tracking for a replica or checkpoint. Its snapshot, if there is one, is overrun.
    pub fn remove_cursor(&mut self, now: Nanos, name: &CursorName) -> Result<Control> {
        self.must_own("remove a cursor")?;
        self.must_have(name)?;
        if self.mirror.as_ref().is_some_and(|m| m.name == *name) {
            self.mirror_off(now);
        }
        self.drop_live(|l| l.name == *name);
        self.epochs.cursors.retain(|c| c.name != *name);
        self.change()
    }

    /// The replica's seeding is complete and durable there: from now on its snapshots hold only what
    /// changed since its cursor began.
    pub fn seeded(&mut self, name: &CursorName) -> Result<Control> {
        self.must_own("finish seeding")?;
        self.must_have(name)?;
        if let Some(cursor) = self.epochs.cursor_mut(name) {
            cursor.seeded = true;
        }
        self.change()
    }

    /// Close the open epoch and hand out what the replica lacks as of it. Read it after
    /// [`Action::Settled`]. A snapshot that the replica still has is abandoned: whoever asked for it
    /// may have gone before it was settled.
    pub fn rotate(&mut self, name: &CursorName) -> Result<Arc<Snapshot>> {
        let snapshot = self.close_for(name)?;
        self.wake_saves();
        Ok(snapshot)
    }

    /// Whether the open epoch may be closed for a replica.
    pub(crate) fn can_rotate(&self, name: &CursorName) -> Result<()> {
        self.must_own("rotate")?;
        self.must_have(name)?;
        self.must_not_end_a_mirrors_epoch(name)
    }

    /// As [`Volume::rotate`], but for what waited for a snapshot that was given up: it belongs to the
    /// next epoch, may have to wait for the new snapshot, and is to be woken when all is in place.
    fn close_for(&mut self, name: &CursorName) -> Result<Arc<Snapshot>> {
        self.can_rotate(name)?;
        let cursor = self.must_have(name)?.epoch;
        self.forget_live(|l| l.name == *name);
        let mirrored = |m: &Mirror| m.name == *name && cursor.next() >= m.from;
        let mirrored = self.mirror.as_ref().is_some_and(mirrored);
        let closed = self.close_epoch();
        let snapshot = self.epochs.snapshot(name, closed, mirrored);
        self.announce();
        Ok(snapshot)
    }

    /// The replica has durably committed the epoch of its snapshot.
    pub fn committed(&mut self, name: &CursorName, epoch: Epoch) -> Result<Control> {
        self.must_own("commit an epoch")?;
        self.must_have(name)?;
        let live = |l: &Live| l.name == *name && l.snapshot.epoch() == epoch;
        if !self.epochs.live.iter().any(|l| live(l) && l.announced) {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("commit epoch {epoch} for {name}: its snapshot was abandoned or overrun"),
            ));
        }
        self.epochs.live.retain(|l| !live(l));
        if let Some(cursor) = self.epochs.cursor_mut(name) {
            cursor.epoch = epoch;
            cursor.seeded = true;
        }
        self.wake_saves();
        self.change()
    }

    /// The replica did not get the epoch: all of it stays dirty for it.
    pub fn abandon(&mut self, name: &CursorName, epoch: Epoch) {
        self.drop_live(|l| l.name == *name && l.snapshot.epoch() == epoch);
    }

    /// Whatever the replica was being sent, nobody sends it any more: a mover that lost track begins
    /// with this.
    pub fn abandon_any(&mut self, name: &CursorName) {
        self.drop_live(|l| l.name == *name);
    }

    /// The next extent at or after `from`, at most `max` blocks long, that changed since a
    /// checkpoint was made (or that a replica lacks).
    pub fn next_dirty(&self, name: &CursorName, from: Block, max: u64) -> Result<Option<Extent>> {
        let cursor = self.must_have(name)?;
        Ok(self.epochs.next_dirty(cursor, from, max))
    }

    /// How far behind a replica or checkpoint is, in bytes: at least what it lacks, at most the
    /// volume.
    #[must_use]
    pub fn lag_bytes(&self, name: &CursorName) -> u64 {
        let Some(cursor) = self.epochs.cursor(name) else {
            return 0;
        };
        if !cursor.seeded {
            return self.config.size;
        }
        let dirty = self.epochs.dirty_blocks(cursor) * block::BLOCK_BYTES;
        dirty.min(self.config.size)
    }

    /// The cursors, as last set.
    #[must_use]
    pub fn cursors(&self) -> &[Cursor] {
        &self.epochs.cursors
    }

    /// The epoch into which writes go now.
    #[must_use]
    pub fn open_epoch(&self) -> Epoch {
        self.epochs.open()
    }

    /// Bytes of memory that the dirty maps and snapshots hold.
    #[must_use]
    pub fn map_memory(&self) -> usize {
        self.epochs.memory()
    }

    /// Send every write issued from now on to the replica as well, and answer it only when both have
    /// it. The snapshot is the last ordinary increment; ship it beside.
    pub fn mirror_on(&mut self, name: &CursorName) -> Result<Arc<Snapshot>> {
        if let Some(m) = &self.mirror {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "mirror to {name}: the volume is mirrored for {} already",
                    m.name
                ),
            ));
        }
        let snapshot = self.close_for(name)?;
        self.mirror = Some(Mirror {
            name: name.clone(),
            from: self.epochs.open(),
        });
        self.wake_saves();
        Ok(snapshot)
    }

    /// The mirror answered a write. A failure turns the mirror off.
    pub fn mirrored(&mut self, now: Nanos, id: RequestId, result: Outcome) {
        if self.mirror.is_none() {
            return;
        }
        if result.is_err() {
            return self.mirror_off(now);
        }
        if std::mem::take(&mut self.slots[id.index()].mirror) {
            self.mirror_part_ended(now, id);
        }
    }

    /// The mirror answered [`Action::MirrorFlush`]. A failure turns the mirror off.
    pub fn mirror_flushed(&mut self, now: Nanos, result: Outcome) {
        if self.mirror.is_none() {
            return;
        }
        if result.is_err() {
            return self.mirror_off(now);
        }
        if let Some(done) = self.flush.mirror_flushed() {
            self.flushed(now, done);
        }
    }

    /// Stop mirroring. Writes that the mirror had not confirmed are answered when the image has them;
    /// everything since the mirror was turned on is shipped as an ordinary increment.
    pub fn mirror_off(&mut self, now: Nanos) {
        if self.mirror.take().is_none() {
            return;
        }
        self.actions.push_back(Action::MirrorOff);
        for live in &self.epochs.live {
            live.snapshot.mirror_broke();
        }
        for i in 0..self.slots.len() {
            if std::mem::take(&mut self.slots[i].mirror) {
                self.mirror_part_ended(now, RequestId(i as u32));
            }
        }
        if let Some(done) = self.flush.mirror_flushed() {
            self.flushed(now, done);
        }
    }

    fn mirror_part_ended(&mut self, now: Nanos, id: RequestId) {
        if !self.slots[id.index()].image
            && let Completion::Reply(result) = self.wrote(now, id)
        {
            self.actions.push_back(Action::Reply(id, result));
        }
    }

    /// Tell movers about snapshots that may be read now.
    pub(crate) fn announce(&mut self) {
        let ceiling = self.meta.as_ref().map_or(Epoch(0), |m| m.store.ceiling());
        for live in &mut self.epochs.live {
            let s = &live.snapshot;
            if !live.announced && s.is_settled() && s.epoch() <= ceiling {
                live.announced = true;
                self.actions.push_back(Action::Settled(s.clone()));
            }
        }
    }

    /// Give up snapshots.
    pub(crate) fn drop_live(&mut self, which: impl Fn(&Live) -> bool) {
        self.forget_live(which);
        self.wake_saves();
    }

    /// Forget snapshots that are overrun.
    pub(crate) fn forget_overrun(&mut self) {
        self.forget_live(|l| l.snapshot.is_overrun());
    }

    fn forget_live(&mut self, which: impl Fn(&Live) -> bool) {
        let open = self.epochs.open();
        self.epochs.live.retain(|l| {
            let gone = which(l);
            if gone {
                l.snapshot.overrun();
                // What the mirror holds of that epoch is given up with it: ship it next time.
                if let Some(m) = self.mirror.as_mut().filter(|m| m.name == l.name) {
                    m.from = open;
                }
            }
            !gone
        });
    }

    /// The image was synced after every cursor had durably passed `safe`: forget what only older
    /// epochs dirtied.
    pub(crate) fn forget_passed(&mut self, now: Nanos, safe: Option<Epoch>) {
        let Some(meta) = &mut self.meta else { return };
        if let Some(safe) = safe {
            self.epochs.trim(safe);
        }
        if !meta.sweeping && now.since(meta.swept_at) >= SWEEP_EVERY {
            meta.swept_at = now;
            meta.sweeping = true;
        }
        if meta.sweeping {
            let epochs = &self.epochs;
            let swept = meta.intents.sweep_on(|a| epochs.touches(a), SWEEP_AREAS);
            meta.sweeping = !swept;
        }
    }

    /// Close the open epoch; if the reserve of epochs runs low, have it filled up.
    fn close_epoch(&mut self) -> Epoch {
        let closed = self.epochs.close();
        if let Some(meta) = &mut self.meta
            && closed.0 + EPOCHS_RESERVED / 2 > meta.superblock.ceiling.0
        {
            meta.superblock.ceiling = Epoch(closed.0 + EPOCHS_RESERVED);
            meta.store.change();
        }
        closed
    }

    /// From now on there is something to protect: what was written before needs intents, too.
    fn intend_what_is_dirty(&mut self) {
        let Some(meta) = &mut self.meta else { return };
        for a in (0..self.config.size.div_ceil(block::AREA_BYTES)).map(Area) {
            if self.epochs.touches(a) {
                meta.intents.set(a);
            }
        }
    }

    /// A mirror's epoch ends with its own rotation: what it has is committed under that number.
    fn must_not_end_a_mirrors_epoch(&self, name: &CursorName) -> Result<()> {
        match &self.mirror {
            Some(m) if m.name != *name => Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "close an epoch for {name}: the volume is mirrored for {}; try again when that \
                     is over",
                    m.name
                ),
            )),
            _ => Ok(()),
        }
    }

    fn must_have(&self, name: &CursorName) -> Result<&Cursor> {
        self.epochs.cursor(name).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("{name}: the volume does not track it"),
            )
        })
    }
}
