//! Two nodes with a real [`Volume`] each, and the plainest engine, guest and mover around them.

use crate::disk::{Image, MetaDisk};
use block::{AlignedBuf, Block, Epoch, Extent, Generation, Nanos, SECTOR_BYTES, Span, VolumeId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use volume::{
    Action, Admission, Completion, Config, Control, CursorName, Identity, Outcome, Request,
    RequestId, Role, SaveTicket, Snapshot, Volume, meta_bytes,
};

pub const REGIONS: u64 = 4;
const REGION: u64 = block::BLOCKS_PER_REGION * block::BLOCK_BYTES;
/// Sectors that a write covers: enough to be torn.
const WIDE: usize = 2;
const SIZE: u64 = REGIONS * REGION;
/// Bits of a crash image, at most.
const BITS: usize = 10;
/// More than a volume waits before it forgets.
const LATER: Duration = Duration::from_secs(11);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Alone,
    Replicated,
}

/// One operation of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// To a region that was not written before.
    Write,
    Overwrite(u64),
    Discard(u64),
    Flush,
    Rotate,
    /// Ship the snapshot; without a replica, seed one.
    Copy,
    Acknowledge,
    /// Time passes, and what need not be remembered is forgotten.
    Clear,
    /// Freeze; send the rest; relinquish; activate.
    CutoverStep,
    /// The power fails and leaves that image.
    Crash(u64),
}

enum Io {
    Write(RequestId, u64),
    Read(RequestId),
    SyncImage,
    SyncMeta,
    Save(SaveTicket, Extent),
}

struct Guest {
    op: volume::Op,
    region: u64,
    stamp: u64,
    /// For a flush: what had completed when it arrived.
    covers: Vec<u64>,
}

enum Mover {
    Idle,
    Rotated(Arc<Snapshot>),
    Settled(Arc<Snapshot>),
    Copied(Epoch),
}

/// What is to happen when a control call has been answered, or the volume is drained.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Nothing,
    Seed,
    Given,
}

pub struct World {
    now: Nanos,
    vol: Volume,
    pub image: Image,
    meta: MetaDisk,
    other: Volume,
    other_meta: MetaDisk,
    pace: Option<usize>,
    io: VecDeque<Io>,
    guests: BTreeMap<u32, Guest>,
    stamp: u64,
    used: u64,
    /// By sector: the last write issued, completed, flushed.
    issued: Vec<u64>,
    completed: Vec<u64>,
    flushed: Vec<u64>,
    /// The replica's durable content, and the epoch that it is being sent.
    replica: Vec<u64>,
    staged: Vec<u64>,
    expect: Vec<u64>,
    mover: Mover,
    waits: Option<(Control, Then)>,
    cutover: u32,
    last: Option<Epoch>,
    /// The newest epoch that anybody outside heard of.
    heard: Epoch,
    is_frozen: bool,
}

fn config() -> Config {
    Config {
        size: SIZE,
        max_requests: 8,
        align: 512,
        read_only: false,
    }
}

fn replica() -> CursorName {
    CursorName::Replica("b".parse().unwrap())
}

fn sectors(region: u64) -> std::ops::Range<usize> {
    region as usize * WIDE..(region as usize + 1) * WIDE
}

fn open(meta: &[u8]) -> Volume {
    Volume::open(config(), None, meta)
        .unwrap_or_else(|e| panic!("[recovery] the volume does not open: {e}"))
}

impl World {
    /// After those operations, each gone as far as the pace lets it.
    pub fn replay(start: Start, pace: Option<usize>, history: &[Op]) -> World {
        let make = |role| {
            let identity = Identity {
                id: VolumeId([5; 16]),
                name: "v".parse().unwrap(),
                image: String::new(),
            };
            Volume::create(config(), identity, role).unwrap()
        };
        let n = REGIONS as usize * WIDE;
        let owner = Role::Owner {
            generation: Generation(1),
            since: Epoch(0),
        };
        let mut world = World {
            now: Nanos(1 << 40),
            vol: make(owner),
            image: Image::new(n),
            meta: MetaDisk::new(meta_bytes(SIZE)),
            other: make(Role::Standby),
            other_meta: MetaDisk::new(meta_bytes(SIZE)),
            pace: None,
            io: VecDeque::new(),
            guests: BTreeMap::new(),
            stamp: 0,
            used: 0,
            issued: vec![0; n],
            completed: vec![0; n],
            flushed: vec![0; n],
            replica: vec![0; n],
            staged: Vec::new(),
            expect: Vec::new(),
            mover: Mover::Idle,
            waits: None,
            cutover: 0,
            last: None,
            heard: Epoch(0),
            is_frozen: false,
        };
        world.drain();
        world.settle();
        if start == Start::Replicated {
            for op in [Op::Copy, Op::Flush, Op::Clear] {
                world.begin(op);
                world.settle();
            }
        }
        world.pace = pace;
        for op in history {
            world.begin(*op);
            match pace {
                None => world.settle(),
                Some(n) => (0..n).for_each(|_| {
                    world.step();
                }),
            }
        }
        world
    }

    fn owns(&self) -> bool {
        self.vol.role().is_owner()
    }

    fn cursor(&self) -> bool {
        self.vol.cursors().iter().any(|c| c.seeded)
    }

    /// The operations that make sense now; what a crash leaves is still to be chosen.
    pub fn possible(&mut self) -> Vec<Op> {
        let mut all = vec![Op::Crash(0)];
        if self.owns() && !self.is_frozen {
            if self.used < REGIONS {
                all.push(Op::Write);
            }
            all.extend((0..self.used).flat_map(|r| [Op::Overwrite(r), Op::Discard(r)]));
            all.extend([Op::Flush, Op::Clear]);
        }
        if !self.owns() {
            if self.cutover == 3 {
                all.push(Op::CutoverStep);
            }
            return all;
        }
        let quiet = self.waits.is_none();
        match &self.mover {
            Mover::Idle if self.cursor() && quiet => {
                all.push(Op::CutoverStep);
                if self.cutover == 0 {
                    all.push(Op::Rotate);
                }
            }
            Mover::Idle if quiet && self.vol.cursors().is_empty() => all.push(Op::Copy),
            Mover::Rotated(_) | Mover::Settled(_) if self.cutover == 0 => all.push(Op::Copy),
            Mover::Copied(_) if self.cutover == 0 => all.push(Op::Acknowledge),
            _ => {}
        }
        all
    }

    /// Begin an operation; what it needs of the disks is done by [`World::step`].
    pub fn begin(&mut self, op: Op) {
        self.now = self.now + Duration::from_millis(1);
        match op {
            Op::Write => {
                self.used += 1;
                self.submit(volume::Op::Write, self.used - 1);
            }
            Op::Overwrite(r) => self.submit(volume::Op::Write, r),
            Op::Discard(r) => self.submit(volume::Op::Trim, r),
            Op::Flush => self.submit(volume::Op::Flush, 0),
            Op::Rotate => self.rotate(),
            Op::Copy => self.copy(),
            Op::Acknowledge => self.acknowledge(),
            Op::Clear => {
                self.now = self.now + LATER;
                self.vol.tick(self.now);
            }
            Op::CutoverStep => self.cutover_step(),
            Op::Crash(kept) => self.crash(kept),
        }
        self.drain();
    }

    fn submit(&mut self, op: volume::Op, region: u64) {
        self.stamp += 1;
        let slot = (0..8).find(|s| !self.guests.contains_key(s)).unwrap();
        let len = match op {
            volume::Op::Write => WIDE as u64 * SECTOR_BYTES,
            _ => block::BLOCK_BYTES,
        };
        let guest = Guest {
            op,
            region,
            stamp: self.stamp,
            covers: self.completed.clone(),
        };
        self.guests.insert(slot, guest);
        let id = RequestId(slot);
        let span = Span::new(region * REGION, len);
        let fua = false;
        match self.vol.submit(self.now, Request { id, op, fua, span }) {
            Admission::Issue => self.issue(id),
            Admission::Held => {}
            Admission::Reply(outcome) => self.reply(id, outcome),
            Admission::Forward => panic!("[engine] nobody turned forwarding on"),
        }
    }

    fn issue(&mut self, id: RequestId) {
        let guest = &self.guests[&id.0];
        if !guest.op.is_write() {
            return self.io.push_back(Io::Read(id));
        }
        let content = if guest.op == volume::Op::Write {
            guest.stamp
        } else {
            // Zeroes: the newest, and told from the content that was there before.
            guest.stamp | 1 << 32
        };
        let overlaps = |io: &Io| matches!(io, Io::Write(other, _) if self.guests[&other.0].region == guest.region);
        assert!(
            !self.io.iter().any(overlaps),
            "[writes in order] two overlap in flight"
        );
        for s in sectors(guest.region) {
            self.image.begin(guest.stamp, s, content);
            self.issued[s] = content;
        }
        self.io.push_back(Io::Write(id, guest.stamp));
    }

    fn reply(&mut self, id: RequestId, outcome: Outcome) {
        let guest = self.guests.remove(&id.0).unwrap();
        assert_eq!(outcome, Ok(()), "[engine] a good disk and a bad answer");
        assert!(self.owns(), "[one owner] a node that gave up acknowledged");
        if guest.op == volume::Op::Flush {
            self.flushed = guest.covers;
        } else {
            for s in sectors(guest.region) {
                self.completed[s] = self.issued[s];
            }
        }
    }

    fn drain(&mut self) {
        while let Some(action) = self.vol.poll() {
            match action {
                Action::Issue(id) => self.issue(id),
                Action::Reply(id, outcome) => self.reply(id, outcome),
                Action::SyncImage => {
                    self.image.sync();
                    self.io.push_back(Io::SyncImage);
                }
                Action::WriteMeta { slot, bytes } => self.meta.write(slot, &bytes),
                Action::SyncMeta => {
                    self.meta.sync();
                    self.io.push_back(Io::SyncMeta);
                }
                Action::SaveOld { ticket, extent } => {
                    self.io.push_back(Io::Save(ticket, extent));
                }
                Action::Settled(s) => {
                    if matches!(&self.mover, Mover::Rotated(r) if Arc::ptr_eq(r, &s)) {
                        self.heard = self.heard.max(s.epoch());
                        self.mover = Mover::Settled(s);
                    }
                }
                Action::ControlDone(control, outcome) => self.answered(control, outcome),
                Action::Opened | Action::Drained => {}
                other => panic!("[engine] {other:?} was not expected"),
            }
        }
        self.drain_other();
    }

    fn drain_other(&mut self) {
        // Everything that the other node does is a matter of its metadata.
        while let Some(action) = self.other.poll() {
            match action {
                Action::WriteMeta { slot, bytes } => self.other_meta.write(slot, &bytes),
                Action::SyncMeta => self.other_meta.sync(),
                Action::ControlDone(..) | Action::Opened => {}
                other => panic!("[engine] {other:?} was not expected of the other node"),
            }
        }
    }

    fn answered(&mut self, control: Control, outcome: Outcome) {
        if self.waits.is_none_or(|(c, _)| c != control) {
            return;
        }
        assert_eq!(outcome, Ok(()));
        let Some((_, then)) = self.waits.take() else {
            return;
        };
        match then {
            Then::Nothing => {}
            Then::Seed => {
                // As found, while the guest writes.
                self.replica = self.image.cache.clone();
                let control = self.vol.seeded(&replica()).unwrap();
                self.waits = Some((control, Then::Nothing));
            }
            Then::Given => self.cutover = 3,
        }
    }

    /// One operation of a disk ends; false if none is under way.
    pub fn step(&mut self) -> bool {
        if self.other_meta.unsynced() > 0 {
            self.other_meta.synced();
            self.other.meta_synced(self.now, Ok(()));
            self.drain_other();
            return true;
        }
        let Some(io) = self.io.pop_front() else {
            return false;
        };
        match io {
            Io::Write(id, op) => {
                self.image.complete(op);
                self.complete(id);
            }
            Io::Read(id) => self.complete(id),
            Io::SyncImage => {
                self.image.synced();
                self.vol.image_synced(self.now, Ok(()));
            }
            Io::SyncMeta => {
                self.meta.synced();
                self.vol.meta_synced(self.now, Ok(()));
            }
            Io::Save(ticket, extent) => {
                let span = extent.span(SIZE);
                let mut buf = AlignedBuf::zeroed(span.len as usize);
                let region = span.offset / REGION;
                for (i, s) in sectors(region).enumerate() {
                    buf[i * 512..][..8].copy_from_slice(&self.image.cache[s].to_le_bytes());
                }
                self.vol.saved(ticket, Ok(buf));
            }
        }
        self.drain();
        true
    }

    fn complete(&mut self, id: RequestId) {
        match self.vol.complete(self.now, id, Ok(())) {
            Completion::Reply(outcome) => self.reply(id, outcome),
            Completion::Held => {}
        }
    }

    fn settle(&mut self) {
        while self.step() {}
    }

    fn rotate(&mut self) {
        self.drain();
        let snapshot = self.vol.rotate(&replica()).unwrap();
        self.expect = self.issued.clone();
        self.mover = Mover::Rotated(snapshot);
        self.drain();
    }

    fn copy(&mut self) {
        while matches!(self.mover, Mover::Rotated(_)) && self.step() {}
        match std::mem::replace(&mut self.mover, Mover::Idle) {
            Mover::Settled(snapshot) => {
                self.ship(&snapshot);
                self.mover = Mover::Copied(snapshot.epoch());
            }
            Mover::Idle => {
                let now = volume::Start::Now;
                let control = self.vol.add_cursor(replica(), now).unwrap();
                self.waits = Some((control, Then::Seed));
            }
            _ => panic!("[settles] a snapshot is never settled"),
        }
    }

    fn ship(&mut self, snapshot: &Snapshot) {
        self.staged = self.replica.clone();
        for region in 0..REGIONS {
            let block = Block(region * block::BLOCKS_PER_REGION);
            if !snapshot.is_pending(block) {
                continue;
            }
            let read: Vec<u64> = self.image.cache[sectors(region)].to_vec();
            // A guest is quick: between the read and the look.
            if self.pace.is_some() {
                self.step();
            }
            let old = snapshot.saved(block);
            for (i, s) in sectors(region).enumerate() {
                self.staged[s] = old.as_ref().map_or(read[i], |old| {
                    u64::from_le_bytes(old[i * 512..][..8].try_into().unwrap())
                });
            }
            snapshot.shipped(Extent::new(block.0, 1));
        }
        assert!(!snapshot.is_overrun(), "[engine] overrun by four writes");
    }

    fn acknowledge(&mut self) {
        let Mover::Copied(epoch) = std::mem::replace(&mut self.mover, Mover::Idle) else {
            panic!("[engine] nothing was copied");
        };
        assert_eq!(self.staged, self.expect, "[point in time] epoch {epoch}");
        // Durable there before it is answered.
        self.replica = self.staged.clone();
        self.last = Some(epoch);
        let control = self.vol.committed(&replica(), epoch).unwrap();
        self.waits = Some((control, Then::Nothing));
    }

    fn cutover_step(&mut self) {
        let to = "b".parse().unwrap();
        match self.cutover {
            0 => {
                self.vol.freeze();
                self.is_frozen = true;
                self.cutover = 1;
                self.settle();
            }
            1 => {
                self.settle();
                self.rotate();
                self.copy();
                self.acknowledge();
                self.cutover = 2;
            }
            2 => {
                self.settle();
                let epoch = self.last.unwrap();
                let given = self.vol.relinquish(&to, Generation(2), epoch).unwrap();
                self.waits = Some((given, Then::Given));
            }
            _ => {
                let epoch = self.last.unwrap();
                self.other.activate(Generation(2), epoch).unwrap();
                self.cutover = 4;
            }
        }
    }

    fn groups(&self) -> (usize, usize) {
        let image = self.image.unsynced();
        let room = BITS.saturating_sub(image).max(1);
        (
            image,
            (self.meta.unsynced() + self.other_meta.unsynced()).min(room),
        )
    }

    /// How many images a power cut may leave now.
    pub fn images(&self) -> u64 {
        let (image, meta) = self.groups();
        1 << (image + meta)
    }

    fn after(&self, kept: u64) -> (Image, MetaDisk, MetaDisk) {
        let (image, groups) = self.groups();
        let meta = kept >> image;
        (
            self.image.after(kept),
            self.meta.after(meta, groups),
            self.other_meta.after(meta, groups),
        )
    }

    fn crash(&mut self, kept: u64) {
        let (image, meta, other_meta) = self.after(kept);
        (self.image, self.meta, self.other_meta) = (image, meta, other_meta);
        self.vol = open(&self.meta.cache);
        self.other = open(&self.other_meta.cache);
        self.io.clear();
        self.guests.clear();
        self.mover = Mover::Idle;
        self.waits = None;
        self.is_frozen = false;
        self.cutover = match self.vol.role() {
            Role::Relinquished { .. } => 3,
            _ => 0,
        };
        if self.other.role().is_owner() {
            self.cutover = 4;
        }
        self.issued = self.image.cache.clone();
        self.completed = self.image.cache.clone();
        self.flushed = self.image.cache.clone();
    }

    /// Every image that a power cut may leave now: how many, and how many of recoveries.
    pub fn check_all(&self, history: &[Op]) -> (u64, u64) {
        let (bits, groups) = self.groups();
        let images: Vec<Image> = (0..1u64 << bits).map(|k| self.image.after(k)).collect();
        for (kept, image) in images.iter().enumerate() {
            self.check_content(history, kept, image);
        }
        let mut recoveries = 0;
        for kept in 0..1u64 << groups {
            let meta = self.meta.after(kept, groups);
            let mut vol = open(&meta.cache);
            let other = open(&self.other_meta.after(kept, groups).cache);
            let owners = u32::from(vol.role().is_owner()) + u32::from(other.role().is_owner());
            assert!(
                owners <= 1,
                "[one owner] two: {history:?}, metadata {kept:b}"
            );
            if other.role().is_owner() {
                assert_eq!(
                    self.replica, self.issued,
                    "[nothing is left behind] {history:?}"
                );
            }
            if matches!(vol.role(), Role::Relinquished { .. }) {
                let whole = |i: &Image| i.cache == self.issued;
                assert!(images.iter().all(whole), "[given away whole] {history:?}");
            }
            assert!(
                vol.open_epoch() > self.heard,
                "[an epoch is one point in time] {} is given out again: {history:?}, metadata {kept:b}",
                self.heard
            );
            if vol.role().is_owner() && vol.cursors().iter().any(|c| c.seeded) {
                let snapshot = vol.rotate(&replica()).unwrap();
                for image in &images {
                    self.check_no_false_clean(history, &snapshot, image);
                }
            }
            // Longer or overlapping histories leave no other kinds of metadata.
            if self.pace.is_none() && history.len() <= 2 {
                recoveries += self.check_recovery(history, &meta);
            }
        }
        (1 << (bits + groups), recoveries)
    }

    fn check_content(&self, history: &[Op], kept: usize, image: &Image) {
        let number = |content: u64| content & !(1 << 32);
        for (s, found) in image.cache.iter().enumerate() {
            let (found, least) = (number(*found), number(self.flushed[s]));
            let most = number(self.issued[s]);
            assert!(
                found >= least,
                "[flushed data reads back] sector {s} holds {found}, flushed was {least}: {history:?}, \
                 image {kept:b}"
            );
            assert!(
                found <= most,
                "[never older than its flush] {found} of {most}"
            );
        }
    }

    fn check_no_false_clean(&self, history: &[Op], snapshot: &Snapshot, image: &Image) {
        for region in 0..REGIONS {
            let pending = snapshot.is_pending(Block(region * block::BLOCKS_PER_REGION));
            let here = &image.cache[sectors(region)];
            let there = &self.replica[sectors(region)];
            assert!(
                here == there || pending,
                "[no false clean] region {region} holds {here:?} here and {there:?} there, and nothing \
                 says so: {history:?}"
            );
        }
    }

    /// Open, and at each step lose the power again: what is believed must stay.
    fn check_recovery(&self, history: &[Op], meta: &MetaDisk) -> u64 {
        let mut disk = meta.clone();
        let mut vol = open(&disk.cache);
        let known = |v: &Volume| (v.role(), v.cursors().to_vec(), v.seen());
        let first = known(&vol);
        // Without a cursor there is nobody to differ from.
        let mut intents: Vec<_> = vol.intents().unwrap().iter().collect();
        intents.retain(|_| !vol.cursors().is_empty());
        let mut images = 0;
        for round in 0.. {
            assert!(round < 20, "[recovery] it does not end: {history:?}");
            let mut busy = false;
            while let Some(action) = vol.poll() {
                match action {
                    Action::WriteMeta { slot, bytes } => disk.write(slot, &bytes),
                    Action::SyncMeta => {
                        disk.sync();
                        busy = true;
                    }
                    _ => {}
                }
            }
            let groups = disk.unsynced().min(4);
            for kept in 0..1u64 << groups {
                let again = open(&disk.after(kept, groups).cache);
                assert_eq!(known(&again), first, "[recovery] {history:?}, {kept:b}");
                assert!(
                    intents
                        .iter()
                        .all(|a| again.intents().unwrap().contains(*a)),
                    "[recovery] intents are forgotten: {history:?}, {kept:b}"
                );
                images += 1;
            }
            if !busy {
                return images;
            }
            disk.synced();
            vol.meta_synced(self.now, Ok(()));
        }
        images
    }
}
