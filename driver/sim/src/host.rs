//! A node's engine around one volume: it carries out what [`Volume`] asks for, on simulated disks,
//! exactly as the shard does in production, and tells the ledger what the guests were promised.
//!
//! Calls only mark the volume as touched; a task of its own drains the actions, so that calls which
//! happen to come together share a batch, as they do in a turn of the shard.

use crate::disk::SimDisk;
use crate::hits::Hit;
use crate::ledger::Ledger;
use crate::node::seen;
use crate::world::{Process, SimClock, World};
use block::{AlignedBuf, Clock, Disk, Epoch, Error, Generation, Nanos, Result, Span};
use futures_util::future::select;
use replica::{MirrorItem, MirrorOp};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{Notify, oneshot};
use volume::{
    Action, Admission, AreaSet, Completion, Control, CursorName, META_PAGE_BYTES, Op, Outcome,
    Request, RequestId, Role, SaveTicket, Snapshot, Volume,
};

const EIO: i32 = 5;
/// Names a flush among mirrored requests; no slot has this number.
const FLUSH: u32 = u32::MAX;

/// What a guest is told.
#[derive(Debug)]
pub enum Answer {
    /// Done, or an errno; the content of a read.
    Done(Outcome, AlignedBuf),
    /// Another node owns the volume: nothing was done here.
    Moved,
}

/// A guest's request.
#[derive(Clone, Debug)]
pub struct Wish {
    /// What to do.
    pub op: Op,
    /// Where.
    pub span: Span,
    /// Durably.
    pub fua: bool,
    /// A write's number in the ledger.
    pub write: u64,
}

struct Guest {
    wish: Wish,
    /// `None` once the connection has ended.
    tell: Option<oneshot::Sender<Answer>>,
}

struct Inner {
    clock: SimClock,
    node: u32,
    ledger: Ledger,
    volume: RefCell<Volume>,
    image: SimDisk,
    meta: SimDisk,
    align: u64,
    guests: RefCell<BTreeMap<u32, Guest>>,
    controls: RefCell<BTreeMap<Control, oneshot::Sender<Outcome>>>,
    settled: RefCell<Vec<(Arc<Snapshot>, oneshot::Sender<()>)>>,
    drained: RefCell<Vec<oneshot::Sender<()>>>,
    is_open: Cell<bool>,
    /// Guests may come.
    is_offered: Cell<bool>,
    owned: Cell<Option<Generation>>,
    is_forwarding: Cell<bool>,
    touched: Notify,
    /// The ticker is to look at the deadline again.
    retimed: Notify,
    mirror: RefCell<VecDeque<MirrorItem>>,
    is_mirroring: Cell<bool>,
    /// Opened, poisoned, or something for the mirror.
    changed: Notify,
}

/// A volume on a node. Cheap to clone.
#[derive(Clone)]
pub struct Host(Rc<Inner>);

impl Host {
    /// Give a volume its engine.
    #[must_use]
    pub fn start(
        world: &World,
        process: Process,
        node: u32,
        ledger: &Ledger,
        volume: Volume,
        (image, meta): (SimDisk, SimDisk),
    ) -> Host {
        let align = volume.config().align;
        let host = Host(Rc::new(Inner {
            clock: SimClock {
                world: world.clone(),
                process,
            },
            node,
            ledger: ledger.clone(),
            volume: RefCell::new(volume),
            image,
            meta,
            align,
            guests: RefCell::default(),
            controls: RefCell::default(),
            settled: RefCell::default(),
            drained: RefCell::default(),
            is_open: Cell::new(false),
            is_offered: Cell::new(false),
            owned: Cell::new(None),
            is_forwarding: Cell::new(false),
            touched: Notify::new(),
            retimed: Notify::new(),
            mirror: RefCell::default(),
            is_mirroring: Cell::new(false),
            changed: Notify::new(),
        }));
        let turning = host.clone();
        world.spawn(process, async move {
            loop {
                turning.drain();
                turning.0.touched.notified().await;
            }
        });
        let ticking = host.clone();
        world.spawn(process, async move { ticking.tick().await });
        host
    }

    /// The volume, to look at or to call.
    pub fn call<R>(&self, f: impl FnOnce(&mut Volume, Nanos) -> R) -> R {
        let r = f(&mut self.0.volume.borrow_mut(), self.now());
        self.0.touched.notify_one();
        r
    }

    fn now(&self) -> Nanos {
        self.0.clock.now()
    }

    /// A control call; returns when it is durable.
    pub async fn control(
        &self,
        f: impl FnOnce(&mut Volume, Nanos) -> Result<Control>,
    ) -> Result<()> {
        let control = self.call(f)?;
        let (tell, told) = oneshot::channel();
        self.0.controls.borrow_mut().insert(control, tell);
        let outcome = told.await.unwrap_or(Err(EIO));
        outcome.map_err(|e| Error::errno("make the volume's record durable", e))
    }

    /// Close an epoch; returns when it may be read.
    pub async fn rotate(
        &self,
        f: impl FnOnce(&mut Volume) -> Result<Arc<Snapshot>>,
    ) -> Result<Arc<Snapshot>> {
        // What was issued before belongs to the epoch that ends here.
        self.drain();
        let snapshot = self.call(|v, _| f(v))?;
        self.rotated(&snapshot);
        self.settled(snapshot).await
    }

    /// Close an epoch of several volumes at one point in time.
    pub(crate) fn rotate_together(
        hosts: &[&Host],
        name: &CursorName,
    ) -> Result<Vec<Arc<Snapshot>>> {
        hosts.iter().for_each(|h| h.drain());
        let mut volumes: Vec<_> = hosts.iter().map(|h| h.0.volume.borrow_mut()).collect();
        let mut group: Vec<_> = volumes.iter_mut().map(|v| (&mut **v, name)).collect();
        let snapshots = volume::rotate_together(&mut group)?;
        drop(volumes);
        for (host, snapshot) in hosts.iter().zip(&snapshots) {
            host.rotated(snapshot);
            host.0.touched.notify_one();
        }
        Ok(snapshots)
    }

    fn rotated(&self, snapshot: &Snapshot) {
        let owned = self.0.volume.borrow().owned().unwrap_or(Generation(0));
        self.0.ledger.rotated(owned, snapshot.epoch());
    }

    pub(crate) fn volume_id(&self) -> block::VolumeId {
        self.0.ledger.volume
    }

    pub(crate) async fn sleep(&self, d: std::time::Duration) {
        self.0.clock.sleep(d).await;
    }

    /// Wait until a snapshot may be read.
    pub(crate) async fn settled(&self, snapshot: Arc<Snapshot>) -> Result<Arc<Snapshot>> {
        let (tell, told) = oneshot::channel();
        self.0.settled.borrow_mut().push((snapshot.clone(), tell));
        self.drain();
        match told.await {
            Ok(()) => Ok(snapshot),
            Err(_) => Err(Error::errno("rotate", EIO)),
        }
    }

    /// Hold requests; returns when none is in flight.
    pub async fn freeze(&self) -> Result<()> {
        let (tell, told) = oneshot::channel();
        self.0.drained.borrow_mut().push(tell);
        self.call(|v, _| v.freeze());
        told.await.map_err(|_| Error::errno("freeze", EIO))
    }

    /// Wait until the volume's record is believed, or the volume is stopped.
    pub async fn opened(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.0.is_open.get() || self.is_poisoned() {
                return;
            }
            changed.await;
        }
    }

    /// Wait until a sync has failed.
    pub async fn poisoned(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.is_poisoned() {
                return;
            }
            changed.await;
        }
    }

    /// Whether a sync has failed.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.0.volume.borrow().is_poisoned()
    }

    /// The generation in which this node durably owns the volume.
    #[must_use]
    pub fn owned(&self) -> Option<Generation> {
        match self.0.volume.borrow().role() {
            Role::Owner { generation, .. } => self.0.owned.get().filter(|g| *g == generation),
            _ => None,
        }
    }

    /// What the record says is durable: if it names this node the owner, it is.
    pub fn took_over(&self) {
        if let Role::Owner { generation, .. } = self.0.volume.borrow().role() {
            self.0.owned.set(Some(generation));
            self.0.ledger.held_by(self.0.node, generation);
        }
        self.0.is_open.set(true);
        self.0.changed.notify_waiters();
    }

    /// Let guests come.
    pub(crate) fn offer(&self) {
        self.0.is_offered.set(true);
    }

    /// Nobody is to come any more.
    pub(crate) fn step_aside(&self) {
        self.0.is_offered.set(false);
    }

    /// The copy here, which was received in generation `of`, takes the place of an owner that is gone.
    pub(crate) fn takes_over(&self, generation: Generation, of: (Generation, Epoch)) {
        let disk = |s| seen(&self.0.image, s);
        let lost = self.0.ledger.taken_over(self.0.node, generation, of, disk);
        if lost > 0 {
            self.0.clock.world.hit(Hit::TailLost);
        }
    }

    /// Send requests to the new owner from now on.
    pub fn redirect(&self) -> Result<()> {
        self.0.is_forwarding.set(true);
        self.call(|v, now| v.forward(now, true))
    }

    /// Whether guests may ask here.
    #[must_use]
    pub fn serves(&self) -> bool {
        let owner = self.0.volume.borrow().role().is_owner();
        let offered = self.0.is_offered.get();
        self.0.is_open.get() && (owner && offered || self.0.is_forwarding.get())
    }

    /// A guest asks. The answer never comes if the node dies first.
    pub fn submit(&self, wish: Wish) -> Option<oneshot::Receiver<Answer>> {
        let max = self.0.volume.borrow().config().max_requests;
        let slot = (0..max).find(|s| !self.0.guests.borrow().contains_key(s))?;
        let (tell, told) = oneshot::channel();
        let (id, req) = (
            RequestId(slot),
            Request {
                id: RequestId(slot),
                op: wish.op,
                fua: wish.fua,
                span: wish.span,
            },
        );
        self.0.guests.borrow_mut().insert(
            slot,
            Guest {
                wish,
                tell: Some(tell),
            },
        );
        match self.call(|v, now| v.submit(now, req)) {
            Admission::Issue => self.issue(id),
            Admission::Held => {}
            Admission::Reply(outcome) => self.answer(id, outcome, AlignedBuf::default()),
            Admission::Forward => self.forward(id),
        }
        self.0.retimed.notify_one();
        Some(told)
    }

    /// Carry out everything that the volume asks for.
    pub fn drain(&self) {
        loop {
            let action = self.0.volume.borrow_mut().poll();
            let Some(action) = action else { break };
            self.act(action);
        }
        self.hang_up();
        self.0.retimed.notify_one();
    }

    /// Another node has taken the volume over: those whom this one served are disconnected, and what is held
    /// of theirs is forgotten.
    fn hang_up(&self) {
        let volume = &mut *self.0.volume.borrow_mut();
        if volume.is_replaced() {
            self.0.guests.borrow_mut().retain(|slot, guest| {
                guest.tell = None;
                !volume.withdraw(RequestId(*slot))
            });
        }
    }

    fn act(&self, action: Action) {
        match action {
            Action::Issue(id) => self.issue(id),
            Action::Reply(id, outcome) => self.answer(id, outcome, AlignedBuf::default()),
            Action::Forward(id) => self.forward(id),
            Action::Mirror(id) => self.mirror(id),
            Action::MirrorFlush => self.queue(FLUSH, MirrorOp::Flush),
            Action::MirrorOff => self.mirror_ended(),
            Action::SyncImage => self.work(|host| async move {
                let result = outcome(host.0.image.sync().await);
                let intents = |v: &Volume| v.intents().map_or(0, AreaSet::len);
                let fewer = host.call(|v, now| {
                    let before = intents(v);
                    v.image_synced(now, result);
                    intents(v) < before
                });
                if fewer {
                    host.0.clock.world.hit(Hit::Cleared);
                }
            }),
            Action::WriteMeta { slot, bytes } => {
                let at = u64::from(slot) * META_PAGE_BYTES as u64;
                self.0.meta.store(at, &bytes[..]);
            }
            Action::SyncMeta => self.work(|host| async move {
                let result = outcome(host.0.meta.sync().await);
                host.call(|v, now| v.meta_synced(now, result));
            }),
            Action::SaveOld { ticket, extent } => {
                let span = extent.span(self.0.image.size());
                self.work(move |host| async move { host.save(ticket, span).await });
            }
            Action::Settled(snapshot) => {
                let mut waiting = self.0.settled.borrow_mut();
                let its = waiting.extract_if(.., |(s, _)| Arc::ptr_eq(s, &snapshot));
                for (_, tell) in its {
                    // Who asked may have gone.
                    let _ = tell.send(());
                }
            }
            Action::Opened => self.took_over(),
            Action::Drained => {
                let waiting = std::mem::take(&mut *self.0.drained.borrow_mut());
                for tell in waiting {
                    let _ = tell.send(());
                }
            }
            Action::ControlDone(control, outcome) => {
                if let Some(tell) = self.0.controls.borrow_mut().remove(&control) {
                    let _ = tell.send(outcome);
                }
            }
            Action::Poisoned => {
                self.mirror_ended();
                self.0.drained.borrow_mut().clear();
                self.0.settled.borrow_mut().clear();
                self.0.changed.notify_waiters();
            }
        }
    }

    fn work<F: Future<Output = ()> + 'static>(&self, f: impl FnOnce(Host) -> F) {
        let SimClock { world, process } = &self.0.clock;
        world.spawn(*process, f(self.clone()));
    }

    fn issue(&self, id: RequestId) {
        let wish = self.0.guests.borrow()[&id.0].wish.clone();
        if let Some(generation) = self.0.volume.borrow().owned() {
            self.0.ledger.held_by(self.0.node, generation);
            if wish.op.is_write() {
                let zero = wish.op != Op::Write;
                let ledger = &self.0.ledger;
                ledger.issued(generation, wish.span, wish.write, zero);
            }
        }
        self.work(move |host| async move {
            let (result, content) = host.image_io(&wish).await;
            let outcome = outcome(result);
            match host.call(|v, now| v.complete(now, id, outcome)) {
                Completion::Reply(outcome) => host.answer(id, outcome, content),
                Completion::Held => {}
            }
        });
    }

    /// As the storage crate does it: whole units directly, the rest by read, change, write back.
    async fn image_io(&self, wish: &Wish) -> (Result<()>, AlignedBuf) {
        let (image, span) = (&self.0.image, wish.span);
        let payload = || match wish.op {
            Op::Write => self.0.ledger.payload(span, wish.write),
            _ => vec![0; span.len as usize],
        };
        match wish.op {
            Op::Flush | Op::Cache => (Ok(()), AlignedBuf::default()),
            Op::Read => {
                let buf = AlignedBuf::zeroed(span.len as usize);
                image.read(span.offset, buf).await
            }
            Op::Zero { .. } | Op::Trim if span.is_aligned(self.0.align) => (
                image.zero(span.offset, span.len).await,
                AlignedBuf::default(),
            ),
            Op::Write if span.is_aligned(self.0.align) => {
                image
                    .write(span.offset, AlignedBuf::copy_of(&payload()))
                    .await
            }
            Op::Write | Op::Zero { .. } | Op::Trim => {
                let start = span.offset / self.0.align * self.0.align;
                let end = span.end().next_multiple_of(self.0.align).min(image.size());
                let buf = AlignedBuf::zeroed((end - start) as usize);
                let (result, mut buf) = image.read(start, buf).await;
                if result.is_err() {
                    return (result, buf);
                }
                let at = (span.offset - start) as usize;
                buf[at..at + span.len as usize].copy_from_slice(&payload());
                image.write(start, buf).await
            }
        }
    }

    async fn save(&self, ticket: SaveTicket, span: Span) {
        let buf = AlignedBuf::zeroed(span.len as usize);
        let (result, buf) = self.0.image.read(span.offset, buf).await;
        let content = result.map(|()| buf).map_err(|_| EIO);
        if content.is_ok() {
            self.0.clock.world.hit(Hit::Saved);
        }
        self.call(|v, _| v.saved(ticket, content));
    }

    fn forward(&self, id: RequestId) {
        let guest = self.0.guests.borrow_mut().remove(&id.0);
        let done = self.call(|v, now| v.complete(now, id, Err(EIO)));
        assert!(matches!(done, Completion::Reply(_)));
        if let Some(tell) = guest.and_then(|g| g.tell) {
            let _ = tell.send(Answer::Moved);
        }
    }

    fn answer(&self, id: RequestId, outcome: Outcome, content: AlignedBuf) {
        let Some(guest) = self.0.guests.borrow_mut().remove(&id.0) else {
            panic!("[answered once] request {} was answered before", id.0);
        };
        if outcome.is_ok() {
            let volume = self.0.volume.borrow();
            assert!(
                !volume.is_poisoned(),
                "[poison] a stopped volume acknowledged"
            );
            let Role::Owner { generation, .. } = volume.role() else {
                panic!(
                    "[one owner] node {} acknowledged as {}",
                    self.0.node,
                    volume.role()
                );
            };
            if self.0.ledger.answered_by(self.0.node, generation) {
                self.0.clock.world.hit(Hit::Unaware);
            }
        }
        if let Some(tell) = guest.tell {
            let _ = tell.send(Answer::Done(outcome, content));
        }
    }

    fn mirror(&self, id: RequestId) {
        let guests = self.0.guests.borrow();
        let wish = &guests[&id.0].wish;
        let op = match wish.op {
            Op::Write => MirrorOp::Write(wish.span, self.0.ledger.payload(wish.span, wish.write)),
            _ => MirrorOp::Zero(wish.span),
        };
        drop(guests);
        self.queue(id.0, op);
    }

    fn queue(&self, id: u32, op: MirrorOp) {
        let epoch = self.0.volume.borrow().open_epoch();
        self.0
            .mirror
            .borrow_mut()
            .push_back(MirrorItem { id, epoch, op });
        self.0.is_mirroring.set(true);
        self.0.changed.notify_waiters();
    }

    /// The mirror was turned on.
    pub fn mirror_began(&self) {
        self.0.is_mirroring.set(true);
    }

    fn mirror_ended(&self) {
        self.0.is_mirroring.set(false);
        self.0.mirror.borrow_mut().clear();
        self.0.changed.notify_waiters();
    }

    /// The next request for the mirror; `None` when it is off.
    pub async fn mirror_next(&self) -> Option<MirrorItem> {
        loop {
            let changed = self.0.changed.notified();
            if let Some(item) = self.0.mirror.borrow_mut().pop_front() {
                return Some(item);
            }
            if !self.0.is_mirroring.get() {
                return None;
            }
            changed.await;
        }
    }

    /// The mirror answered.
    pub fn mirrored(&self, id: u32, result: Outcome) {
        self.call(|v, now| match id {
            FLUSH => v.mirror_flushed(now, result),
            id => v.mirrored(now, RequestId(id), result),
        });
    }

    async fn tick(&self) {
        loop {
            let deadline = self.0.volume.borrow().deadline();
            let retimed = pin!(self.0.retimed.notified());
            match deadline {
                None => retimed.await,
                Some(at) if at <= self.now() => self.call(Volume::tick),
                Some(at) => {
                    let wait = at.since(self.now());
                    select(pin!(self.0.clock.sleep(wait)), retimed).await;
                }
            }
            self.0.clock.world.wait_up_to(20).await;
        }
    }

    /// Writes that guests wait for here.
    #[must_use]
    pub fn writes(&self) -> BTreeSet<u64> {
        self.0
            .guests
            .borrow()
            .values()
            .map(|g| g.wish.write)
            .collect()
    }

    /// What is waited for, for a run that does not come to rest.
    #[must_use]
    pub fn waits(&self) -> String {
        let guests = self.0.guests.borrow();
        let wishes: Vec<_> = guests.values().map(|g| (g.wish.op, g.wish.span)).collect();
        format!(
            "open {}, forwarding {}, poisoned {}, controls {}, snapshots {}, drains {}, mirror {} {}, \
             guests {wishes:?}",
            self.0.is_open.get(),
            self.0.is_forwarding.get(),
            self.is_poisoned(),
            self.0.controls.borrow().len(),
            self.0.settled.borrow().len(),
            self.0.drained.borrow().len(),
            self.0.is_mirroring.get(),
            self.0.mirror.borrow().len(),
        )
    }
}

fn outcome(result: Result<()>) -> Outcome {
    result.map_err(|e| e.raw_os_error().unwrap_or(EIO))
}
