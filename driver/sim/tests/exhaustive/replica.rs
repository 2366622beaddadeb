//! The receiving side: the real [`Receiver`] on disks that lose power, and the plainest source that
//! speaks the wire's frames.
//!
//! ```text
//!   write, overwrite, discard    change the source's volume
//!   copy          send what differs: a seeding, then epochs   ─► image, or staging
//!   acknowledge   send the epoch's end                        ─► commit, apply, answer
//!   cutover step  give the volume away                        ─► the record hands the image over
//!   cut           the connection ends; another is made
//!   crash         the receiver loses power; recovery; another connection is made
//! ```

use crate::store::{Content, Disks, One};
use block::{Epoch, Error, ErrorKind, Generation, Result, Span, Transport, VolumeId};
use replica::{Files, Receiver, State, Target, greet, staging_bytes};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use wire::{Decoder, Encoder, Encoding, Hello, Message, ReplicaState, SessionId, SpanList};

const REGIONS: usize = 4;
const REGION: u64 = 4096;
const SIZE: u64 = REGIONS as u64 * REGION;
/// Bytes that a write covers: two sectors, so that it can be torn.
const WIDE: u64 = 1024;
/// Bits of a crash image, at most.
const BITS: usize = 10;
const VOLUME: VolumeId = VolumeId([5; 16]);
/// The source's generation.
const GENERATION: Generation = Generation(2);
const NEXT: Generation = Generation(3);

/// What each region holds: the number of a write, or zero.
type Regions = [u64; REGIONS];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing is there.
    Empty,
    /// A copy that has everything.
    Consistent,
    /// The image of the owner before, who gave it away; its record is empty.
    Adopted,
}

impl Start {
    pub const ALL: [Start; 3] = [Start::Empty, Start::Consistent, Start::Adopted];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Write,
    Overwrite(usize),
    Discard(usize),
    Copy,
    Acknowledge,
    CutoverStep,
    Cut,
    Crash(u64),
}

#[derive(Default)]
struct Pipe {
    to: Vec<u8>,
    from: Vec<u8>,
    is_cut: bool,
    waker: Option<Waker>,
}

/// The receiver's end of the connection.
#[derive(Clone, Default)]
struct End(Rc<RefCell<Pipe>>);

impl Transport for End {
    async fn send(&self, buf: Vec<u8>) -> (Result<()>, Vec<u8>) {
        self.0.borrow_mut().from.extend_from_slice(&buf);
        (Ok(()), buf)
    }

    async fn recv(&self, mut buf: Vec<u8>) -> (Result<()>, Vec<u8>) {
        let result = poll_fn(|cx| {
            let mut pipe = self.0.borrow_mut();
            if pipe.is_cut {
                return Poll::Ready(Err(Error::new(ErrorKind::Disconnected, "cut")));
            }
            if pipe.to.is_empty() {
                pipe.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let n = pipe.to.len().min(buf.capacity() - buf.len());
            buf.extend(pipe.to.drain(..n));
            Poll::Ready(Ok(()))
        });
        let result = result.await;
        (result, buf)
    }
}

/// The volume of the receiving node, whose own records are durable at once.
#[derive(Clone, Default)]
struct Standby {
    seen: Rc<Cell<Generation>>,
    owned: Rc<Cell<Option<Generation>>>,
    gave_up: Rc<Cell<Option<(Generation, Epoch)>>>,
}

impl Target for Standby {
    async fn observe(&self, generation: Generation) -> Result<()> {
        assert!(generation >= self.seen.get(), "[engine] a former owner");
        self.seen.set(generation);
        Ok(())
    }
    async fn last_owned(&self) -> Result<Generation> {
        Ok(self.seen.get())
    }
    async fn seen(&self) -> Result<Generation> {
        Ok(self.seen.get())
    }
    async fn activate(&self, generation: Generation, _: Epoch) -> Result<()> {
        self.owned.set(Some(generation));
        self.seen.set(generation);
        Ok(())
    }
    async fn owned(&self) -> Result<Option<Generation>> {
        Ok(self.owned.get())
    }
    async fn gave_up(&self) -> Result<Option<(Generation, Epoch)>> {
        Ok(self.gave_up.get())
    }
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Flag>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A future that is polled when it was woken.
struct Task<R> {
    future: Pin<Box<dyn Future<Output = R>>>,
    flag: Arc<Flag>,
}

impl<R> Task<R> {
    fn new(future: impl Future<Output = R> + 'static) -> Task<R> {
        Task {
            future: Box::pin(future),
            flag: Arc::new(Flag(AtomicBool::new(true))),
        }
    }

    /// `Some` when it has ended.
    fn poll(&mut self) -> Option<R> {
        let waker = Waker::from(self.flag.clone());
        let mut cx = Context::from_waker(&waker);
        while self.flag.0.swap(false, Ordering::Relaxed) {
            if let Poll::Ready(r) = self.future.as_mut().poll(&mut cx) {
                return Some(r);
            }
        }
        None
    }
}

type Replica = Receiver<One, Standby>;

fn opening(disks: &Disks, target: &Standby) -> Task<Result<Replica>> {
    let files = Files {
        image: disks.disk(0, SIZE),
        staging: disks.disk(1, staging_bytes(SIZE)),
        replica: disks.disk(2, 8192),
    };
    Task::new(Receiver::open(VOLUME, SIZE, files, target.clone()))
}

/// Open a replica; `looked` sees its disks after each of their operations.
fn open(disks: &Disks, target: &Standby, mut looked: impl FnMut(&Disks)) -> Replica {
    let mut task = opening(disks, target);
    loop {
        match task.poll() {
            Some(Ok(receiver)) => return receiver,
            Some(Err(e)) => panic!("[recovery] the replica does not open: {e}"),
            None => assert!(disks.step(), "[recovery] it does not end"),
        }
        looked(disks);
    }
}

fn regions(image: &Content) -> [[u64; 2]; REGIONS] {
    std::array::from_fn(|r| {
        std::array::from_fn(|i| {
            let sector = image.get(&(r as u64 * REGION / 512 + i as u64));
            sector.map_or(0, |s| u64::from_le_bytes(s[..8].try_into().unwrap()))
        })
    })
}

fn holds(image: &Content, content: &Regions) -> bool {
    regions(image) == content.map(|stamp| [stamp; 2])
}

/// An epoch on its way.
#[derive(Clone)]
struct Pending {
    epoch: Epoch,
    content: Regions,
    frames: u64,
    bytes: u64,
    digest: blake3::Hasher,
    is_ended: bool,
}

pub struct World {
    disks: Disks,
    target: Standby,
    pipe: End,
    task: Option<Task<Error>>,
    encoder: Encoder,
    decoder: Decoder,
    sessions: u64,
    stamp: u64,
    used: usize,
    content: Regions,
    next_epoch: Epoch,
    /// What the replica was seeded with, on this connection.
    found: Option<(Epoch, Regions)>,
    /// What it was seeded with is durable there.
    is_seeded: bool,
    pending: Option<Pending>,
    /// What was acknowledged last.
    acked: Option<(Epoch, Regions)>,
    /// The content of every epoch whose end was sent.
    points: BTreeMap<Epoch, Regions>,
    is_given_away: bool,
}

impl World {
    pub fn replay(start: Start, pace: Option<usize>, history: &[Op]) -> World {
        let mut world = World {
            disks: Disks::default(),
            target: Standby::default(),
            pipe: End::default(),
            task: None,
            encoder: Encoder::new(SessionId(0)),
            decoder: Decoder::new(),
            sessions: 0,
            stamp: 0,
            used: 0,
            content: [0; REGIONS],
            next_epoch: Epoch(8),
            found: None,
            is_seeded: false,
            pending: None,
            acked: None,
            points: BTreeMap::new(),
            is_given_away: false,
        };
        if start == Start::Adopted {
            world.adopt();
        }
        world.connect();
        if start == Start::Consistent {
            for op in [Op::Write, Op::Copy, Op::Copy, Op::Acknowledge] {
                world.begin(op);
                world.settle();
            }
        }
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

    /// The receiving node was the owner before, and gave everything away with epoch 7.
    fn adopt(&mut self) {
        self.stamp = 1;
        self.used = 1;
        self.content[0] = 1;
        let mut image = Content::new();
        for sector in 0..WIDE / 512 {
            let mut content = [0; 512];
            content[..8].copy_from_slice(&1u64.to_le_bytes());
            image.insert(sector, content);
        }
        self.disks = Disks::holding([image, Content::new(), Content::new()]);
        self.target.gave_up.set(Some((GENERATION, Epoch(7))));
        self.target.seen.set(GENERATION);
        self.acked = Some((Epoch(7), self.content));
        self.points.insert(Epoch(7), self.content);
    }

    /// Open the replica, and speak to it until it has said what it is.
    fn connect(&mut self) {
        let receiver = open(&self.disks, &self.target, |_| {});
        self.greet(Rc::new(receiver));
    }

    fn greet(&mut self, receiver: Rc<Replica>) {
        self.sessions += 1;
        self.pipe = End::default();
        self.encoder = Encoder::new(SessionId(self.sessions));
        self.decoder = Decoder::new();
        let pipe = self.pipe.clone();
        self.task = Some(Task::new(async move {
            match greet(pipe).await {
                Ok(incoming) => receiver.serve(incoming).await,
                Err(e) => e,
            }
        }));
        self.found = None;
        self.is_seeded = false;
        let hello = Message::Hello(Hello {
            oldest: wire::OLDEST_VERSION,
            newest: wire::VERSION,
            volume: VOLUME,
            size: SIZE,
        });
        self.say(Epoch(0), &hello);
        self.settle();
    }

    fn say(&mut self, epoch: Epoch, message: &Message<'_>) -> u32 {
        let mut pipe = self.pipe.0.borrow_mut();
        let crc = self
            .encoder
            .encode(GENERATION, epoch, message, &mut pipe.to);
        if let Some(waker) = pipe.waker.take() {
            waker.wake();
        }
        crc
    }

    pub fn possible(&self) -> Vec<Op> {
        let mut all = vec![Op::Crash(0), Op::Cut];
        if self.is_given_away {
            if self.target.owned.get().is_none() {
                all.push(Op::CutoverStep);
            }
            return all;
        }
        if self.used < REGIONS {
            all.push(Op::Write);
        }
        all.extend((0..self.used).flat_map(|r| [Op::Overwrite(r), Op::Discard(r)]));
        match &self.pending {
            Some(p) if !p.is_ended => all.push(Op::Acknowledge),
            Some(_) => {}
            None if self.acked.is_some() || self.found.is_none() || self.is_seeded => {
                all.push(Op::Copy);
                if self.acked.is_some_and(|(_, c)| c == self.content) {
                    all.push(Op::CutoverStep);
                }
            }
            None => {}
        }
        all
    }

    pub fn begin(&mut self, op: Op) {
        match op {
            Op::Write => {
                self.used += 1;
                self.write(self.used - 1);
            }
            Op::Overwrite(r) => self.write(r),
            Op::Discard(r) => self.content[r] = 0,
            Op::Copy => match (&self.acked, &self.found) {
                (None, None) => self.seed(),
                _ => self.send_epoch(),
            },
            Op::Acknowledge => self.end_epoch(),
            Op::CutoverStep => {
                self.is_given_away = true;
                let (epoch, _) = self.acked.unwrap();
                self.say(epoch, &Message::Activate { generation: NEXT });
            }
            Op::Cut => self.cut(),
            Op::Crash(kept) => self.crash(kept),
        }
        self.pump();
    }

    fn write(&mut self, region: usize) {
        self.stamp += 1;
        self.content[region] = self.stamp;
    }

    /// The whole volume, as it is.
    fn seed(&mut self) {
        let seed = self.next_epoch;
        self.next_epoch = seed.next();
        self.say(seed, &Message::SeedBegin { from: 0 });
        for region in 0..REGIONS {
            self.send(seed, region);
        }
        self.say(seed, &Message::SeedWatermark { offset: SIZE });
        self.found = Some((seed, self.content));
    }

    /// What differs from what the replica has, as it is now.
    fn send_epoch(&mut self) {
        let epoch = self.next_epoch;
        self.next_epoch = epoch.next();
        let (base, before) = match self.acked {
            Some((base, before)) => (base, before),
            None => (Epoch(0), self.found.unwrap().1),
        };
        self.say(epoch, &Message::EpochBegin { base: base.0 });
        let mut pending = Pending {
            epoch,
            content: self.content,
            frames: 0,
            bytes: 0,
            digest: blake3::Hasher::new(),
            is_ended: false,
        };
        let now = self.content;
        for region in (0..REGIONS).filter(|r| before[*r] != now[*r]) {
            let crc = self.send(epoch, region);
            pending.frames += 1;
            pending.bytes += WIDE;
            pending.digest.update(&crc.to_le_bytes());
        }
        self.pending = Some(pending);
    }

    fn send(&mut self, epoch: Epoch, region: usize) -> u32 {
        let mut spans = SpanList::default();
        spans.push(Span::new(region as u64 * REGION, WIDE));
        let spans = spans.as_spans();
        let stamp = self.content[region];
        if stamp == 0 {
            return self.say(epoch, &Message::Zero { spans });
        }
        let mut payload = [0; WIDE as usize];
        for sector in payload.chunks_mut(512) {
            sector[..8].copy_from_slice(&stamp.to_le_bytes());
        }
        let content = Message::Data {
            spans,
            encoding: Encoding::Raw,
            payload: &payload,
        };
        self.say(epoch, &content)
    }

    fn end_epoch(&mut self) {
        let pending = self.pending.as_mut().unwrap();
        pending.is_ended = true;
        let mut digest = wire::Digest::default();
        let whole = pending.digest.finalize();
        digest.copy_from_slice(&whole.as_bytes()[..size_of::<wire::Digest>()]);
        let end = Message::EpochEnd {
            frames: pending.frames,
            bytes: pending.bytes,
            digest,
        };
        let epoch = pending.epoch;
        self.points.insert(epoch, pending.content);
        self.say(epoch, &end);
    }

    /// The connection ends. What the disks were given is awaited; a new one comes after it.
    fn cut(&mut self) {
        {
            let mut pipe = self.pipe.0.borrow_mut();
            pipe.is_cut = true;
            if let Some(waker) = pipe.waker.take() {
                waker.wake();
            }
        }
        self.settle();
        assert!(self.task.is_none(), "[engine] a cut connection goes on");
        self.connect();
    }

    fn crash(&mut self, kept: u64) {
        let groups = self.disks.groups(BITS);
        self.task = None;
        self.disks = Disks::holding(self.disks.after(kept, groups));
        self.connect();
    }

    /// What the receiver has to say.
    fn pump(&mut self) {
        let Some(task) = &mut self.task else { return };
        if let Some(e) = task.poll() {
            assert_eq!(e.kind(), ErrorKind::Disconnected, "[engine] {e}");
            self.task = None;
        }
        let said = std::mem::take(&mut self.pipe.0.borrow_mut().from);
        let mut buf = self.decoder.take_buffer();
        buf.extend_from_slice(&said);
        self.decoder.give_buffer(buf);
        while let Some(header) = self.decoder.advance().unwrap() {
            let said = match self.decoder.message(&header).unwrap() {
                Message::HelloAck(ack) => Some(ack.state),
                Message::SeedWatermark { offset } => {
                    assert_eq!(offset, SIZE);
                    self.is_seeded = true;
                    None
                }
                Message::EpochAck => {
                    let pending = self.pending.take().unwrap();
                    assert_eq!((pending.epoch, pending.is_ended), (header.epoch, true));
                    self.acked = Some((pending.epoch, pending.content));
                    None
                }
                Message::Activated { generation } => {
                    assert_eq!(generation, NEXT);
                    None
                }
                other => panic!("[engine] {other:?} was not expected"),
            };
            if let Some(state) = said {
                self.reconcile(state, header.epoch);
            }
        }
    }

    /// A new connection: what the replica says that it is.
    fn reconcile(&mut self, state: ReplicaState, epoch: Epoch) {
        let pending = self.pending.take();
        match state {
            ReplicaState::Owner => assert!(self.is_given_away, "[one owner] nobody gave it away"),
            ReplicaState::Consistent => {
                let is_new = pending.is_some_and(|p| p.is_ended && p.epoch == epoch);
                let is_known = self.acked.is_some_and(|(e, _)| e == epoch);
                assert!(
                    is_new || is_known,
                    "[an acknowledged epoch stays] it has {epoch}, not {:?}",
                    self.acked
                );
                self.acked = Some((epoch, self.points[&epoch]));
            }
            ReplicaState::Empty | ReplicaState::Seeding { .. } => {
                assert_eq!(self.acked, None, "[an acknowledged epoch stays] {state:?}");
            }
        }
    }

    /// One operation of a disk ends; false if none is under way.
    pub fn step(&mut self) -> bool {
        let stepped = self.disks.step();
        self.pump();
        stepped
    }

    fn settle(&mut self) {
        self.pump();
        while self.step() {}
    }

    pub fn images(&self) -> u64 {
        1 << self.disks.groups(BITS)
    }

    /// Every image that a power cut may leave now: how many, and how many of recoveries.
    pub fn check_all(&self, history: &[Op]) -> (u64, u64) {
        let groups = self.disks.groups(BITS);
        let mut recoveries = 0;
        for kept in 0..1u64 << groups {
            let disks = Disks::holding(self.disks.after(kept, groups));
            let receiver = open(&disks, &self.target, |disks| {
                // What a recovery that loses power leaves is recovered to the same.
                let groups = disks.groups(BITS);
                for kept in 0..1u64 << groups {
                    let again = Disks::holding(disks.after(kept, groups));
                    let receiver = open(&again, &self.target, |_| {});
                    self.judge(history, &receiver, &again.cache(0));
                    recoveries += 1;
                }
            });
            self.judge(history, &receiver, &disks.cache(0));
        }
        (1 << groups, recoveries)
    }

    fn judge(&self, history: &[Op], receiver: &Replica, image: &Content) {
        let record = receiver.record();
        let found = regions(image);
        if self.target.owned.get().is_some() {
            let (_, given) = self.acked.unwrap();
            assert!(
                holds(image, &given),
                "[nothing is left behind] {found:?}, not {given:?}: {history:?}"
            );
        }
        let least = self.acked.map(|(e, _)| e);
        match record.state {
            State::Consistent => {
                let point = self.points.get(&record.epoch);
                assert!(
                    point.is_some_and(|p| holds(image, p)),
                    "[point in time] epoch {} holds {found:?}, not {point:?}: {history:?}",
                    record.epoch
                );
                assert!(
                    Some(record.epoch) >= least,
                    "[an acknowledged epoch stays] {record:?}: {history:?}"
                );
            }
            State::HandedOver { next } => {
                let (epoch, given) = self.acked.unwrap();
                assert!(
                    self.is_given_away && next == NEXT && record.epoch == epoch,
                    "[given away whole] {record:?}: {history:?}"
                );
                assert!(
                    holds(image, &given),
                    "[given away whole] {found:?}, not {given:?}: {history:?}"
                );
            }
            State::Committed { .. } => panic!("[recovery] {record:?}: {history:?}"),
            // The image proves what it is by the volume's own record, until somebody speaks.
            State::Empty if self.target.gave_up.get().is_some() => {
                let (_, given) = self.acked.unwrap();
                assert!(holds(image, &given), "[point in time] {history:?}");
            }
            State::Empty | State::Seeding { .. } => {
                assert_eq!(least, None, "[an acknowledged epoch stays] {history:?}");
                let State::Seeding { seed, watermark } = record.state else {
                    return;
                };
                let is_this = |(number, _): &(Epoch, Regions)| *number == seed && watermark == SIZE;
                let Some((_, seed)) = self.found.filter(is_this) else {
                    return;
                };
                for (r, sectors) in found.iter().enumerate() {
                    let newer = self.pending.as_ref().map(|p| p.content[r]);
                    let fine = |s: &u64| *s == seed[r] || Some(*s) == newer;
                    assert!(
                        sectors.iter().all(fine),
                        "[all below a watermark is durable] region {r} holds {sectors:?}, seeded was \
                         {seed:?}: {history:?}"
                    );
                }
            }
        }
    }
}
