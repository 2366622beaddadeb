//! A tiny world around one volume: a disk that loses and tears what was not synced, guests, and
//! replicas with their movers. Content is a stamp a sector (the number of the write that made it),
//! and only a few *hot* sectors exist.

pub mod disk;
pub mod mover;

use block::{AlignedBuf, Nanos, SECTOR_BYTES, Span, VolumeId};
use disk::{Image, MetaDisk};
use mover::Mover;
use std::collections::BTreeMap;
use std::time::Duration;
use volume::{
    Action, Admission, Completion, Config, Identity, Op, Outcome, Request, RequestId, Role,
    SaveTicket, Volume, meta_bytes,
};

pub const AREA: u64 = block::AREA_BYTES;
/// Four areas; the last block is not whole.
pub const SIZE: u64 = 4 * AREA - 2560;
const SLOTS: u32 = 12;

/// xorshift64*: small, and the same everywhere.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

struct Guest {
    op: Op,
    fua: bool,
    span: Span,
    stamp: u64,
    /// For a flush: what was completed when it arrived.
    covers: Vec<u64>,
}

/// An image I/O under way. What it will write is fixed when it begins: a write that is not aligned
/// writes back its neighbours as it found them.
struct Io {
    id: RequestId,
    writes: Vec<(usize, u64)>,
}

pub struct World {
    pub rng: Rng,
    pub now: Nanos,
    pub config: Config,
    pub vol: Volume,
    pub hot: Vec<u64>,
    pub image: Image,
    pub meta: MetaDisk,
    guests: BTreeMap<u32, Guest>,
    ios: Vec<Io>,
    saves: Vec<(SaveTicket, block::Extent, Option<Vec<u64>>)>,
    mirror_out: Vec<RequestId>,
    mirror_flush: bool,
    stamp: u64,
    /// Per sector: the last write issued, completed, flushed.
    pub issued: Vec<u64>,
    completed: Vec<u64>,
    pub flushed: Vec<u64>,
    pub movers: Vec<Mover>,
    frozen: bool,
    /// Guests write near here for a while, so that other areas come to rest and lose their intents.
    focus: (usize, usize),
    pub replies: u64,
    pub crashes: u64,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let blocks_per_area = AREA / 4096;
        let mut hot = Vec::new();
        for area in 0..4 {
            for b in 0..4 {
                let first = (area * blocks_per_area + b * 3) * 8;
                hot.extend(first..first + 8);
            }
        }
        let last_block = SIZE / 4096 * 8;
        hot.extend(last_block..SIZE / SECTOR_BYTES);
        let config = Config {
            size: SIZE,
            max_requests: SLOTS,
            align: [1, 512, 4096][rng.below(3) as usize],
            read_only: false,
        };
        let identity = Identity {
            id: VolumeId::from_random([3; 16]),
            name: "v".parse().unwrap(),
            image: "image".into(),
        };
        let role = Role::Owner {
            generation: block::Generation(1),
            since: block::Epoch(0),
        };
        let n = hot.len();
        let mut world = World {
            rng,
            now: Nanos(1 << 30),
            vol: Volume::create(config.clone(), identity, role).unwrap(),
            config,
            hot,
            image: Image::new(n),
            meta: MetaDisk::new(meta_bytes(SIZE) as usize),
            guests: BTreeMap::new(),
            ios: Vec::new(),
            saves: Vec::new(),
            mirror_out: Vec::new(),
            mirror_flush: false,
            stamp: 0,
            issued: vec![0; n],
            completed: vec![0; n],
            flushed: vec![0; n],
            movers: vec![Mover::new("n2", n), Mover::new("n3", n)],
            frozen: false,
            focus: (0, n),
            replies: 0,
            crashes: 0,
        };
        world.settle_down();
        world
    }

    /// Indices of the hot sectors in a span.
    pub fn within(&self, span: Span) -> std::ops::Range<usize> {
        let first = span.offset / SECTOR_BYTES;
        let end = span.end().div_ceil(SECTOR_BYTES);
        self.hot.partition_point(|s| *s < first)..self.hot.partition_point(|s| *s < end)
    }

    /// One random thing happens.
    pub fn step(&mut self) {
        self.now = self.now + Duration::from_micros(self.rng.below(1_500_000));
        if self.rng.one_in(60) {
            let n = self.hot.len() as u64;
            let first = self.rng.below(n);
            self.focus = match self.rng.below(4) {
                0 => (0, self.hot.len()),
                _ => (
                    first as usize,
                    (first + 1 + self.rng.below(24)).min(n) as usize,
                ),
            };
        }
        match self.rng.below(20) {
            0..=5 => self.submit(),
            6..=10 => self.finish_io(),
            11 => self.finish_image_sync(),
            12 | 13 => self.finish_meta_sync(),
            14 => self.finish_save(),
            15 => self.finish_mirror(),
            16 => {
                let i = self.rng.below(self.movers.len() as u64) as usize;
                mover::disturb(self, i);
            }
            17 => match self.rng.below(6) {
                0 if !self.frozen => {
                    self.frozen = true;
                    self.vol.freeze();
                }
                1 => {
                    let rate = 1 << (14 + self.rng.below(12));
                    self.vol.pace(self.now, Some(rate));
                }
                2 => self.vol.pace(self.now, None),
                _ if self.frozen => {
                    self.frozen = false;
                    self.vol.thaw(self.now);
                }
                _ => {}
            },
            _ => {
                let i = self.rng.below(self.movers.len() as u64) as usize;
                mover::step(self, i);
            }
        }
        if self.vol.deadline().is_some_and(|d| d <= self.now) {
            self.vol.tick(self.now);
        }
        self.drain();
    }

    /// One random thing happens that is not a mover's.
    pub fn step_guest(&mut self) {
        match self.rng.below(8) {
            0..=2 => self.submit(),
            3 | 4 => self.finish_io(),
            5 => self.finish_meta_sync(),
            6 => self.finish_image_sync(),
            _ => self.finish_save(),
        }
        self.drain();
    }

    fn submit(&mut self) {
        let Some(slot) = (0..SLOTS).find(|s| !self.guests.contains_key(s)) else {
            return;
        };
        let op = match self.rng.below(10) {
            0 | 1 => Op::Flush,
            2 => Op::Trim,
            3 => Op::Zero {
                no_hole: self.rng.one_in(2),
                fast: false,
            },
            4 => Op::Read,
            _ => Op::Write,
        };
        let (from, to) = self.focus;
        let first = self.hot[from + self.rng.below((to - from) as u64) as usize];
        let sectors = match self.rng.below(60) {
            0 => AREA / SECTOR_BYTES, // over an area's border
            1..=12 => 1 + self.rng.below(40),
            _ => 1 + self.rng.below(8),
        };
        let offset = first * SECTOR_BYTES;
        let span = Span::new(offset, (sectors * SECTOR_BYTES).min(SIZE - offset));
        self.stamp += 1;
        let fua = self.rng.one_in(6);
        let covers = match op {
            Op::Flush => self.completed.clone(),
            _ => Vec::new(),
        };
        let guest = Guest {
            op,
            fua,
            span,
            stamp: self.stamp,
            covers,
        };
        self.guests.insert(slot, guest);
        let id = RequestId(slot);
        let req = Request { id, op, fua, span };
        match self.vol.submit(self.now, req) {
            Admission::Issue => self.issue(id),
            Admission::Held => {}
            Admission::Reply(result) => self.reply(id, result),
            Admission::Forward => panic!("nobody turned forwarding on"),
        }
    }

    fn issue(&mut self, id: RequestId) {
        let guest = &self.guests[&id.0];
        let mut writes = Vec::new();
        if guest.op.is_write() {
            let inside = self.within(guest.span);
            let mut range = inside.clone();
            if !guest.span.is_aligned(self.config.align) {
                let unit = self.config.align;
                let start = guest.span.offset / unit * unit;
                let end = guest.span.end().next_multiple_of(unit);
                range = self.within(Span::new(start, end - start));
            }
            for i in range {
                let stamp = if inside.contains(&i) {
                    assert!(self.issued[i] < guest.stamp, "overlapping writes overtook");
                    guest.stamp
                } else {
                    self.image.cache[i]
                };
                writes.push((i, stamp));
            }
            for i in inside {
                self.issued[i] = guest.stamp;
            }
        }
        // A disk may do part of a write at once.
        let mut left = Vec::new();
        for (i, stamp) in writes {
            if self.rng.one_in(3) {
                self.image.write(i, stamp);
            } else {
                left.push((i, stamp));
            }
        }
        self.ios.push(Io { id, writes: left });
    }

    fn finish_io(&mut self) {
        if self.ios.is_empty() {
            return;
        }
        let io = self
            .ios
            .remove(self.rng.below(self.ios.len() as u64) as usize);
        for (i, stamp) in io.writes {
            self.image.write(i, stamp);
        }
        match self.vol.complete(self.now, io.id, Ok(())) {
            Completion::Reply(result) => self.reply(io.id, result),
            Completion::Held => {}
        }
    }

    fn reply(&mut self, id: RequestId, result: Outcome) {
        let guest = self.guests.remove(&id.0).unwrap();
        self.replies += 1;
        if self.vol.is_poisoned() {
            assert!(result.is_err(), "a poisoned volume answers nothing well");
            return;
        }
        assert_eq!(result, Ok(()));
        if guest.op == Op::Flush {
            for (f, c) in self.flushed.iter_mut().zip(&guest.covers) {
                *f = (*f).max(*c);
            }
        } else if guest.op.is_write() {
            for i in self.within(guest.span) {
                self.completed[i] = self.completed[i].max(guest.stamp);
                if guest.fua {
                    self.flushed[i] = self.flushed[i].max(guest.stamp);
                }
            }
        }
    }

    fn finish_image_sync(&mut self) {
        if !self.image.is_syncing() {
            return;
        }
        if self.rng.one_in(150) {
            self.image.sync_failed();
            self.vol.image_synced(self.now, Err(5));
        } else {
            self.image.synced();
            self.vol.image_synced(self.now, Ok(()));
        }
    }

    fn finish_meta_sync(&mut self) {
        if !self.meta.is_syncing() {
            return;
        }
        if self.rng.one_in(300) {
            self.meta.sync_failed();
            self.vol.meta_synced(self.now, Err(5));
        } else {
            self.meta.synced();
            self.vol.meta_synced(self.now, Ok(()));
        }
    }

    /// A read of old content sees the image some time before it is answered.
    fn finish_save(&mut self) {
        if self.saves.is_empty() {
            return;
        }
        let at = self.rng.below(self.saves.len() as u64) as usize;
        let span = self.saves[at].1.span(SIZE);
        let range = self.within(span);
        if self.saves[at].2.is_none() {
            self.saves[at].2 = Some(self.image.cache[range].to_vec());
            return;
        }
        let (ticket, _, content) = self.saves.remove(at);
        if self.rng.one_in(40) {
            return self.vol.saved(ticket, Err(5));
        }
        let mut buf = AlignedBuf::zeroed(span.len as usize);
        for (i, stamp) in range.zip(content.unwrap_or_default()) {
            let at = (self.hot[i] * SECTOR_BYTES - span.offset) as usize;
            buf[at..at + 8].copy_from_slice(&stamp.to_le_bytes());
        }
        self.vol.saved(ticket, Ok(buf));
    }

    fn finish_mirror(&mut self) {
        if self.rng.one_in(60) && (self.mirror_flush || !self.mirror_out.is_empty()) {
            return self.vol.mirror_off(self.now);
        }
        if !self.mirror_out.is_empty() {
            let at = self.rng.below(self.mirror_out.len() as u64) as usize;
            let id = self.mirror_out.remove(at);
            let stamp = self.guests[&id.0].stamp;
            self.movers.iter_mut().for_each(|m| m.confirmed(stamp));
            self.vol.mirrored(self.now, id, Ok(()));
        } else if std::mem::take(&mut self.mirror_flush) {
            self.vol.mirror_flushed(self.now, Ok(()));
        }
    }

    /// Carry out what the volume asks for.
    pub fn drain(&mut self) {
        while let Some(action) = self.vol.poll() {
            match action {
                Action::Issue(id) => self.issue(id),
                Action::Reply(id, result) => self.reply(id, result),
                Action::SyncImage => self.image.sync(),
                Action::WriteMeta { slot, bytes } => self.meta.write(slot, &bytes[..]),
                Action::SyncMeta => self.meta.sync(),
                Action::SaveOld { ticket, extent } => self.saves.push((ticket, extent, None)),
                Action::Mirror(id) => {
                    let guest = &self.guests[&id.0];
                    let sent = (self.within(guest.span), guest.stamp);
                    self.movers.iter_mut().for_each(|m| m.mirror(&sent));
                    self.mirror_out.push(id);
                }
                Action::MirrorFlush => self.mirror_flush = true,
                Action::MirrorOff => {
                    self.mirror_out.clear();
                    self.mirror_flush = false;
                    self.movers.iter_mut().for_each(Mover::mirror_broke);
                }
                Action::Settled(snapshot) => mover::settled(self, &snapshot),
                Action::ControlDone(control, result) => mover::done(self, control, result),
                Action::Drained => assert!(self.ios.is_empty(), "drained with I/O in flight"),
                Action::Opened => {}
                Action::Poisoned => {
                    self.movers.iter_mut().for_each(Mover::cut);
                    self.mirror_out.clear();
                }
                Action::Forward(_) => panic!("nobody turned forwarding on"),
            }
        }
    }

    /// Let everything under way end.
    pub fn settle_down(&mut self) {
        for _ in 0..2000 {
            if self.frozen {
                self.frozen = false;
                self.vol.thaw(self.now);
            }
            self.vol.pace(self.now, None);
            self.drain();
            let idle = self.guests.is_empty()
                && self.ios.is_empty()
                && !self.image.is_syncing()
                && !self.meta.is_syncing();
            if idle {
                return;
            }
            self.finish_io();
            if self.image.is_syncing() {
                self.image.synced();
                self.vol.image_synced(self.now, Ok(()));
            }
            if self.meta.is_syncing() {
                self.meta.synced();
                self.vol.meta_synced(self.now, Ok(()));
            }
            self.finish_save();
            self.finish_mirror();
        }
        panic!("requests are never answered: {:?}", self.guests.keys());
    }

    /// The process dies, and with `power` also everything that was not synced, in any subset.
    pub fn crash(&mut self, power: bool) {
        self.crashes += 1;
        self.image.crash(power, &mut self.rng);
        self.meta.crash(power, &mut self.rng);
        self.guests.clear();
        self.ios.clear();
        self.saves.clear();
        self.mirror_out.clear();
        self.mirror_flush = false;
        self.frozen = false;
        self.movers.iter_mut().for_each(Mover::cut);
        self.vol = Volume::open(self.config.clone(), None, &self.meta.cache).unwrap();
        let content = self.image.cache.clone();
        for (i, stamp) in content.iter().enumerate() {
            assert!(
                (self.flushed[i]..=self.stamp).contains(stamp),
                "sector {}: flushed {} but holds {stamp}",
                self.hot[i],
                self.flushed[i]
            );
        }
        self.issued = content.clone();
        self.completed = content;
        for i in 0..self.movers.len() {
            mover::check_no_false_clean(self, i);
        }
        self.drain();
    }
}
