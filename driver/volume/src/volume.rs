//! The volume: what the engine holds and feeds.

use crate::epoch::Epochs;
use crate::errno::EIO;
use crate::fifo::{Fifo, Links};
use crate::flush::FlushGroup;
use crate::gate::{Slot, Stage};
use crate::order::Order;
use crate::pace::Pace;
use crate::request::{Action, Outcome, RequestId};
use block::{Epoch, Nanos};
use std::collections::VecDeque;

/// What the engine decides about a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Size of the volume in bytes.
    pub size: u64,
    /// Most requests at a time: the sum of the windows of all connections. At most
    /// [`REQUESTS_MAX`].
    pub max_requests: u32,
    /// The image's unit of direct I/O in bytes, a power of two; 1 where any write goes through as it
    /// is. Writes that are not aligned to it are done by read, change, write back.
    pub align: u64,
    /// Refuse writes.
    pub read_only: bool,
}

/// Most requests that one volume may have in flight or held.
pub const REQUESTS_MAX: u32 = 16_384;

/// A volume, as one shard holds it. See the crate's description.
#[derive(Debug)]
pub struct Volume {
    pub(crate) config: Config,
    pub(crate) slots: Vec<Slot>,
    pub(crate) links: Links,
    /// Requests are let in.
    pub(crate) open: bool,
    /// Requests are sent on to another node.
    pub(crate) forwarding: bool,
    pub(crate) frozen: bool,
    /// Somebody waits to hear that nothing is in flight.
    draining: bool,
    pub(crate) poisoned: bool,
    /// Requests between admission and answer.
    pub(crate) admitted: u32,
    pub(crate) held: Fifo,
    pub(crate) paced: Fifo,
    pub(crate) pace: Option<Pace>,
    pub(crate) order: Order,
    /// Kept between calls so that releasing allocates nothing.
    pub(crate) freed: Vec<RequestId>,
    pub(crate) flush: FlushGroup,
    pub(crate) epochs: Epochs,
    pub(crate) mirror: Option<()>,
    pub(crate) actions: VecDeque<Action>,
}

impl Volume {
    /// A volume without metadata: one image served from one place. It can have no replica and no
    /// checkpoint, and after a crash there is nothing to recover.
    #[must_use]
    pub fn ephemeral(config: Config) -> Volume {
        assert!(
            config.max_requests <= REQUESTS_MAX,
            "more than REQUESTS_MAX"
        );
        let n = config.max_requests;
        Volume {
            slots: vec![Slot::FREE; n as usize],
            links: Links::new(n),
            open: true,
            forwarding: false,
            frozen: false,
            draining: false,
            poisoned: false,
            admitted: 0,
            held: Fifo::new(),
            paced: Fifo::new(),
            pace: None,
            order: Order::new(n, config.align),
            freed: Vec::with_capacity(n as usize),
            flush: FlushGroup::new(),
            epochs: Epochs::new(config.size, Epoch(1)),
            mirror: None,
            actions: VecDeque::with_capacity(2 * n as usize + 64),
            config,
        }
    }

    /// What the volume was made with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether an fdatasync failed, and the volume stopped for good.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// The next thing to do. Drain it after each batch of calls: a sync begins here, so that all
    /// flushes of a batch share it.
    pub fn poll(&mut self) -> Option<Action> {
        if self.actions.is_empty() && self.flush.is_due() && !self.poisoned {
            self.flush.begin(self.mirror.is_some());
            self.actions.push_back(Action::SyncImage);
            if self.mirror.is_some() {
                self.actions.push_back(Action::MirrorFlush);
            }
        }
        self.actions.pop_front()
    }

    /// When to call [`Volume::tick`], if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Nanos> {
        let pace = self.pace.as_ref()?;
        (self.open && !self.paced.is_empty()).then(|| pace.ready_at())
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Nanos) {
        self.release_paced(now);
    }

    /// The answer to [`Action::SyncImage`]. A failure poisons the volume.
    pub fn image_synced(&mut self, now: Nanos, result: Outcome) {
        if self.poisoned {
            return;
        }
        if result.is_err() {
            return self.poison();
        }
        if let Some(done) = self.flush.image_synced() {
            self.flushed(now, done.requests);
        }
    }

    /// Hold new requests; [`Action::Drained`] comes when nothing is in flight.
    pub fn freeze(&mut self) {
        self.frozen = true;
        self.open = false;
        self.draining = true;
        self.notice_drained();
    }

    /// Let requests in again, those that were held first.
    pub fn thaw(&mut self, now: Nanos) {
        self.frozen = false;
        self.draining = false;
        self.reopen(now);
    }

    /// Let the guest write at most this many bytes a second, or as many as it likes.
    pub fn pace(&mut self, now: Nanos, bytes_per_second: Option<u64>) {
        match (bytes_per_second, &mut self.pace) {
            (None, pace) => *pace = None,
            (Some(rate), Some(pace)) => pace.set_rate(rate),
            (Some(rate), pace) => *pace = Some(Pace::new(rate)),
        }
        self.release_paced(now);
    }

    /// Open the gate if nothing speaks against it.
    pub(crate) fn reopen(&mut self, now: Nanos) {
        self.open = !self.frozen && !self.poisoned && !self.forwarding;
        self.release(now);
    }

    pub(crate) fn notice_drained(&mut self) {
        if self.draining && self.admitted == 0 && !self.poisoned {
            self.draining = false;
            self.actions.push_back(Action::Drained);
        }
    }

    pub(crate) fn flushed(&mut self, now: Nanos, mut requests: Fifo) {
        while let Some(id) = requests.pop(&mut self.links) {
            self.answer_later(now, id, Ok(()));
        }
    }

    /// Nothing is known about durability any more: answer everybody EIO, now and for good.
    pub(crate) fn poison(&mut self) {
        self.poisoned = true;
        self.open = false;
        self.forwarding = false;
        self.flush.abandon();
        self.held.take();
        self.paced.take();
        self.links = Links::new(self.config.max_requests);
        for (i, slot) in self.slots.iter_mut().enumerate() {
            if matches!(
                slot.stage,
                Stage::Gate | Stage::Paced | Stage::Order | Stage::Flush
            ) {
                if matches!(slot.stage, Stage::Order | Stage::Flush) {
                    self.admitted -= 1;
                }
                *slot = Slot::FREE;
                let id = RequestId(i as u32);
                self.actions.push_back(Action::Reply(id, Err(EIO)));
            }
        }
        self.actions.push_back(Action::Poisoned);
    }
}
