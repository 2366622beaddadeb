//! The sending side of one replica.
//!
//! A [`Sender`] lives as long as the replica does and remembers what was rotated and is not known to
//! be committed. A [`Session`] is one connection of it. [`Sender::connect`] opens one and runs the
//! caller's work beside the loops that read and write the socket:
//!
//! ```text
//!   connect ─ Hello/HelloAck ─► work: catch_up (seed if needed, one increment)
//!                                     increment, again and again
//!                                     cutover
//! ```
//!
//! A network that forgets a connection tells nobody, and a node that is stopped still has a kernel that
//! takes data in. So a receiver that owes an answer and is silent for too long is given up, and dialled
//! anew.
//!
//! Whether the epoch that was on its way when a connection broke has arrived is learned from the
//! next HelloAck: if so it is committed, if not its blocks go back to what the replica lacks.

mod chunk;
mod increment;
mod order;
mod seed;

pub use increment::Increment;
pub use order::Order;
pub use seed::Seeding;

use crate::content::Packer;
use crate::inbox::Inbox;
use crate::link::{self, Link};
use crate::pacer::Pacer;
use crate::seam::{Pending, Source};
use block::{
    AlignedBuf, Clock, Disk, Epoch, Error, ErrorKind, Generation, Result, Transport, VolumeId,
};
use futures_util::future::{Either, select};
use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::time::Duration;
use wire::{Decoder, Encoder, FailureKind, Hello, HelloAck, Message, ReplicaState, SessionId};

/// How long a sender tries to say why it ends a session.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long a receiver that owes an answer may be silent. It may have a large epoch to put onto a slow
/// disk; given up too early, it finishes all the same, and is asked again.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether anything was heard. Looks are counted and not time, so that neither a
/// clock that jumps nor a process that was stopped makes a link look silent.
const LOOK: Duration = Duration::from_millis(500);

/// How a sender goes about it.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Bytes a second, at most.
    pub rate: Option<u64>,
    /// Shrink with zstd what shrinks. Costs a core; pays on any link slower than zstd.
    pub compress: bool,
    /// Bytes between two durable watermarks of a seeding: what is sent again after a disconnect.
    pub watermark_every: u64,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            rate: None,
            compress: true,
            watermark_every: 64 << 20,
        }
    }
}

/// What a sender tells its observer as it goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// A seeding goes on.
    Seeding(Progress),
    /// An epoch is being sent.
    Increment(Epoch, Progress),
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Bytes of the volume dealt with.
    pub done: u64,
    /// Of so many.
    pub total: u64,
    /// Bytes put on the wire.
    pub sent: u64,
    /// Since it began or resumed.
    pub elapsed: Duration,
}

impl Progress {
    /// Bytes of the volume dealt with each second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Time left at this rate; `None` before there is one.
    #[must_use]
    pub fn eta(&self) -> Option<Duration> {
        let left = self.total.saturating_sub(self.done);
        (self.done > 0).then(|| Duration::from_secs_f64((left as f64 / self.rate()).min(1e9)))
    }
}

/// The sending side of one replica.
pub struct Sender<S: Source, D, C> {
    pub(crate) volume: VolumeId,
    pub(crate) size: u64,
    /// The volume.
    pub source: S,
    pub(crate) image: D,
    /// Time.
    pub clock: C,
    pub(crate) tuning: Tuning,
    pub(crate) order: Option<Order>,
    pub(crate) pacer: Pacer,
    pub(crate) packer: RefCell<Packer>,
    /// Rotated, and not known to be committed.
    pub(crate) held: RefCell<Option<S::Snapshot>>,
    /// Buffers to read into; as many as there are chunks in flight.
    pub(crate) spare: RefCell<Vec<AlignedBuf>>,
    observer: Box<dyn Fn(&Event)>,
}

impl<S: Source, D: Disk, C: Clock> Sender<S, D, C> {
    /// A sender that reads `image` of `volume`.
    pub fn new(
        volume: VolumeId,
        source: S,
        image: D,
        clock: C,
        tuning: Tuning,
        observer: impl Fn(&Event) + 'static,
    ) -> Result<Sender<S, D, C>> {
        Ok(Sender {
            volume,
            size: image.size(),
            source,
            image,
            clock,
            tuning,
            order: None,
            pacer: Pacer::new(tuning.rate),
            packer: RefCell::new(Packer::new(tuning.compress)?),
            held: RefCell::new(None),
            spare: RefCell::default(),
            observer: Box::new(observer),
        })
    }

    /// Copy baselines in this order. A seeding that was cut off begins anew then, and sends what the
    /// receiver does not have.
    #[must_use]
    pub fn in_order(mut self, order: Order) -> Sender<S, D, C> {
        self.order = Some(order).filter(Order::is_scattered);
        self
    }

    /// Spare the guest no more, or again: somebody waits for what is being sent. The cap stands.
    pub fn hurry(&self, hurried: bool) {
        self.pacer.hurry(hurried);
    }

    pub(crate) fn tell(&self, event: Event) {
        (self.observer)(&event);
    }

    /// Open a session over a fresh connection, do `work` in it, and end it. `id` names the session
    /// and must not repeat.
    pub async fn connect<T: Transport, R>(
        &self,
        transport: T,
        id: SessionId,
        work: impl AsyncFnOnce(&Session<'_, S, D, C, T>) -> Result<R>,
    ) -> Result<R> {
        let generation = self.source.generation();
        let link = Link::new(transport, Encoder::new(id), generation);
        let mut decoder = Decoder::new();
        let hello = Message::Hello(Hello {
            oldest: wire::OLDEST_VERSION,
            newest: wire::VERSION,
            volume: self.volume,
            size: self.size,
        });
        link.send(self.source.epoch(), &hello).await?;
        link.flush().await?;
        let header = {
            let answer = pin!(link.next(&mut decoder));
            let late = pin!(self.clock.sleep(PATIENCE));
            match select(answer, late).await {
                Either::Left((header, _)) => header,
                Either::Right(_) => Err(silent(PATIENCE)),
            }
        };
        let header = header.inspect_err(|_| link.end())?;
        let ack = match decoder.message(&header)? {
            Message::HelloAck(ack) => ack,
            Message::Error { kind, sentence } => {
                if kind == FailureKind::Fenced && header.generation > generation {
                    self.source.replaced(header.generation).await?;
                }
                let e = format!("the receiver refused the connection: {sentence}");
                return Err(Error::new(kind.error_kind(), e));
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::Protocol,
                    "the receiver said no hello",
                ));
            }
        };
        if ack.state == ReplicaState::Owner && header.generation > generation {
            self.source.replaced(header.generation).await?;
        }
        link.set_version(wire::negotiate(ack.version, ack.version)?);
        let session = Session {
            sender: self,
            link,
            inbox: Inbox::default(),
            peer: Cell::new(Peer {
                generation: header.generation,
                epoch: header.epoch,
                state: ack.state,
            }),
            hello: ack,
            mirrored: RefCell::default(),
            patience: Cell::new(PATIENCE),
        };
        let result = {
            let work = pin!(async {
                session.reconcile().await?;
                work(&session).await
            });
            let pump = pin!(session.pump(&mut decoder));
            match select(pump, work).await {
                Either::Left((error, _)) => Err(error),
                Either::Right((result, _)) => result,
            }
        };
        match &result {
            Ok(_) => session.link.flush().await.unwrap_or(()),
            Err(e) if e.kind() == ErrorKind::Disconnected => {}
            // One that does not listen need not be told.
            Err(e) if e.kind() == ErrorKind::Timeout => {}
            Err(e) => {
                // One that has failed itself may not read any more, and the socket be full.
                let told = pin!(link::tell(&session.link, Epoch(0), e));
                select(told, pin!(self.clock.sleep(FAREWELL))).await;
            }
        }
        session.link.end();
        result
    }
}

/// What is known of the receiver's copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) generation: Generation,
    pub(crate) epoch: Epoch,
    pub(crate) state: ReplicaState,
}

/// One connection of a [`Sender`].
pub struct Session<'a, S: Source, D, C, T> {
    pub(crate) sender: &'a Sender<S, D, C>,
    pub(crate) link: Link<T>,
    pub(crate) inbox: Inbox,
    pub(crate) peer: Cell<Peer>,
    pub(crate) hello: HelloAck,
    pub(crate) mirrored: RefCell<crate::mirror::Mirrored>,
    /// How long the receiver may owe an answer.
    pub(crate) patience: Cell<Duration>,
}

fn silent(patience: Duration) -> Error {
    Error::new(
        ErrorKind::Timeout,
        format!(
            "the receiver owes an answer and was silent for {patience:?}: it is stopped, or the \
             network has lost the connection"
        ),
    )
}

impl<S: Source, D: Disk, C: Clock, T: Transport> Session<'_, S, D, C, T> {
    /// The generation in which the receiver owns the volume, if it does.
    pub fn owner(&self) -> Option<Generation> {
        let peer = self.peer.get();
        (peer.state == ReplicaState::Owner).then_some(peer.generation)
    }

    /// Bytes put on the wire in this session.
    pub fn sent(&self) -> u64 {
        self.link.sent()
    }

    /// Read and write the socket until that fails.
    async fn pump(&self, decoder: &mut Decoder) -> Error {
        let reads = pin!(async {
            loop {
                let header = self.link.next(decoder).await?;
                let message = decoder.message(&header)?;
                self.inbox.take(header.epoch, &message, |id, errno| {
                    let result = if errno == 0 { Ok(()) } else { Err(errno) };
                    self.sender.source.mirrored(id, result);
                })?;
            }
        });
        let reads: std::pin::Pin<&mut dyn Future<Output = Result<()>>> = reads;
        let writes = pin!(self.link.write_loop());
        let moving = select(reads, writes);
        match select(moving, pin!(self.watch())).await {
            Either::Left((Either::Left((r, _)) | Either::Right((r, _)), _)) => r.err(),
            Either::Right((e, _)) => Some(e),
        }
        .unwrap_or_else(|| Error::new(ErrorKind::Broken, "the link's loop ended by itself"))
    }

    /// Ends when the receiver owes something and nothing moves any more.
    async fn watch(&self) -> Error {
        let mut looks = 0;
        let mut before = (0, 0);
        loop {
            self.sender.clock.sleep(LOOK).await;
            let ((owed, heard), (writing, written)) = (self.inbox.owed(), self.link.writes());
            if !(owed || writing) || (heard, written) != before {
                (looks, before) = (0, (heard, written));
                continue;
            }
            looks += 1;
            if LOOK * looks >= self.patience.get() {
                return silent(self.patience.get());
            }
        }
    }

    /// Settle the epoch that was on its way when the last connection broke.
    async fn reconcile(&self) -> Result<()> {
        let peer = self.peer.get();
        let source = &self.sender.source;
        let held = self.sender.held.borrow().as_ref().map(Pending::epoch);
        let Some(epoch) = held else { return Ok(()) };
        if peer.state == ReplicaState::Consistent && peer.epoch >= epoch {
            self.committed(epoch).await?;
        } else {
            source.abandon(epoch).await?;
            *self.sender.held.borrow_mut() = None;
        }
        Ok(())
    }

    /// The receiver has a snapshot's epoch. False if the volume had given the snapshot up by then:
    /// all of it still counts as dirty, and nothing of it is to be remembered.
    pub(crate) async fn committed(&self, epoch: Epoch) -> Result<bool> {
        let result = self.sender.source.committed(epoch).await;
        let known = match result {
            Err(e) if e.kind() == ErrorKind::NotFound => false,
            result => result.map(|()| true)?,
        };
        *self.sender.held.borrow_mut() = None;
        Ok(known)
    }

    /// Whether the receiver's copy can be built on with increments.
    fn needs_seeding(&self) -> bool {
        let peer = self.peer.get();
        match (peer.state, self.sender.source.cursor()) {
            (ReplicaState::Consistent, Some(cursor)) => peer.epoch < cursor,
            (ReplicaState::Seeding { seed, watermark }, Some(cursor)) => {
                seed != cursor.0 || watermark < self.sender.size
            }
            _ => true,
        }
    }

    /// Bring the receiver to a point in time of now: seed if it must be, then one increment.
    pub async fn catch_up(&self) -> Result<(Option<Seeding>, Increment)> {
        if let Some(generation) = self.owner() {
            return Err(Error::new(
                ErrorKind::NotOwner,
                format!("the receiver owns the volume in generation {generation}"),
            ));
        }
        let peer = self.peer.get();
        if peer.state == ReplicaState::Consistent
            && peer.generation == self.sender.source.generation()
            && self.sender.source.cursor().is_none()
        {
            // The former owner: its copy is as of the epoch that this node took the volume over at.
            self.sender.source.resume_at(peer.epoch).await?;
        }
        let seeding = if self.needs_seeding() {
            Some(self.seed().await?)
        } else {
            if matches!(self.peer.get().state, ReplicaState::Seeding { .. }) {
                // It ended, but the connection or this node did before the volume heard of it.
                self.sender.source.seeded().await?;
            }
            None
        };
        Ok((seeding, self.increment().await?))
    }

    /// Send an increment every `interval` until something fails.
    pub async fn follow(&self, interval: Duration, done: impl Fn(&Increment)) -> Result<()> {
        loop {
            let began = self.sender.clock.now();
            done(&self.increment().await?);
            let spent = self.sender.clock.now().since(began);
            self.sender
                .clock
                .sleep(interval.saturating_sub(spent))
                .await;
        }
    }

    /// Ask the receiver whether it is there, and how long the question takes.
    pub async fn ping(&self) -> Result<Duration> {
        let began = self.sender.clock.now();
        let pongs = self.inbox.pongs.get();
        self.link.send(Epoch(0), &Message::Ping).await?;
        self.inbox
            .wait(|i| (i.pongs.get() > pongs).then_some(()))
            .await;
        Ok(self.sender.clock.now().since(began))
    }
}
