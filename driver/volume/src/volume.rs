//! The volume: what the engine holds and feeds.

use crate::epoch::Epochs;
use crate::errno::EIO;
use crate::fifo::{Fifo, Links};
use crate::flush::FlushGroup;
use crate::gate::{Slot, Stage};
use crate::order::Order;
use crate::own::{AfterSync, Meta};
use crate::pace::Pace;
use crate::request::{Action, Control, Outcome, RequestId, SaveTicket};
use crate::save::Saves;
use crate::track::Mirror;
use block::{AlignedBuf, Epoch, Nanos};
use std::collections::VecDeque;
use std::time::Duration;

/// How long maps and intents that all replicas have passed may wait for a guest's flush before the
/// volume syncs the image itself in order to forget them.
const LINGER: Duration = Duration::from_secs(5);
/// Least time between two clearings of intents. A hot area costs one metadata commit after each.
pub(crate) const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Areas that a sweep passes after one sync of the image: some 0.2 ms when every one is set. What is
/// left waits for the next sync.
pub(crate) const SWEEP_AREAS: usize = 4096;
/// Most requests that one volume may have in flight or held.
pub const REQUESTS_MAX: u32 = 16_384;

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
    /// Closed in order; shut for good.
    pub(crate) closed: bool,
    pub(crate) poisoned: bool,
    /// Requests between admission and answer.
    pub(crate) admitted: u32,
    pub(crate) held: Fifo,
    pub(crate) paced: Fifo,
    /// Writes that wait for an intent.
    pub(crate) unintended: Fifo,
    /// Writes that wait for old content to be saved.
    pub(crate) unsaved: Fifo,
    pub(crate) pace: Option<Pace>,
    pub(crate) order: Order,
    /// Kept between calls so that releasing allocates nothing.
    pub(crate) freed: Vec<RequestId>,
    pub(crate) flush: FlushGroup,
    pub(crate) epochs: Epochs,
    pub(crate) saves: Saves,
    pub(crate) mirror: Option<Mirror>,
    pub(crate) meta: Option<Meta>,
    /// What to record when that round of the flush group has ended.
    pub(crate) after_sync: Option<(u64, AfterSync, Control)>,
    /// The epoch that all cursors had durably passed when the running round began.
    round_safe: Option<Epoch>,
    /// The same for the last round that ended.
    safe: Option<Epoch>,
    /// Since when there is something to forget that waits for a round.
    passed_at: Option<Nanos>,
    pub(crate) actions: VecDeque<Action>,
}

impl Volume {
    /// A volume without metadata: one image served from one place. It can have no replica and no
    /// checkpoint, and after a crash there is nothing to recover.
    #[must_use]
    pub fn ephemeral(config: Config) -> Volume {
        let epochs = Epochs::new(config.size, Epoch(1));
        Volume::new(config, epochs, None)
    }

    pub(crate) fn new(config: Config, epochs: Epochs, meta: Option<Meta>) -> Volume {
        let n = config.max_requests;
        assert!(n <= REQUESTS_MAX, "more than REQUESTS_MAX");
        Volume {
            slots: vec![Slot::FREE; n as usize],
            links: Links::new(n),
            open: meta.is_none(),
            forwarding: false,
            frozen: false,
            draining: false,
            closed: false,
            poisoned: false,
            admitted: 0,
            held: Fifo::new(),
            paced: Fifo::new(),
            unintended: Fifo::new(),
            unsaved: Fifo::new(),
            pace: None,
            order: Order::new(n, config.align),
            freed: Vec::with_capacity(n as usize),
            flush: FlushGroup::new(),
            epochs,
            saves: Saves::default(),
            mirror: None,
            meta,
            after_sync: None,
            round_safe: None,
            safe: None,
            passed_at: None,
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
        if self.actions.is_empty() && !self.poisoned {
            if self.flush.is_due() {
                self.round_safe = self.oldest_cursor();
                self.flush.begin(self.mirror.is_some());
                self.actions.push_back(Action::SyncImage);
                if self.mirror.is_some() {
                    self.actions.push_back(Action::MirrorFlush);
                }
            }
            if let Some(meta) = &mut self.meta {
                let (superblock, intents) = (&meta.superblock, &mut meta.intents);
                meta.store.begin(superblock, intents, &mut self.actions);
            }
        }
        self.actions.pop_front()
    }

    /// When to call [`Volume::tick`], if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Nanos> {
        let paced = self.open && !self.paced.is_empty();
        let pace = self.pace.as_ref().filter(|_| paced).map(Pace::ready_at);
        let linger = self.passed_at.map(|at| at + LINGER);
        pace.into_iter().chain(linger).min()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Nanos) {
        self.release_paced(now);
        if self.passed_at.is_some_and(|at| now >= at + LINGER) {
            self.passed_at = None;
            self.flush.want();
        }
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
            self.flushed(now, done);
        }
    }

    /// The answer to [`Action::SaveOld`]: the blocks' content, or why it cannot be read.
    pub fn saved(&mut self, ticket: SaveTicket, content: Result<AlignedBuf, i32>) {
        if self.poisoned {
            return;
        }
        self.saves.saved(ticket, content);
        self.forget_overrun();
        self.wake_saves();
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
        let owner = |m: &Meta| m.is_believed() && m.superblock.role.is_owner();
        self.open = self.meta.as_ref().is_none_or(owner)
            && self.after_sync.is_none()
            && !(self.frozen || self.poisoned || self.forwarding || self.closed);
        self.release(now);
    }

    pub(crate) fn notice_drained(&mut self) {
        if self.draining && self.admitted == 0 && !self.poisoned {
            self.draining = false;
            self.actions.push_back(Action::Drained);
        }
    }

    /// A round of the flush group has ended.
    pub(crate) fn flushed(&mut self, now: Nanos, mut requests: Fifo) {
        while let Some(id) = requests.pop(&mut self.links) {
            self.answer_later(now, id, Ok(()));
        }
        self.safe = self.round_safe;
        self.forget_passed(now, self.safe);
        if self.safe >= self.oldest_cursor() {
            self.passed_at = None;
        }
        let finished = self.flush.finished();
        if let Some((_, record, control)) = self.after_sync.take_if(|(n, ..)| *n <= finished) {
            self.record(now, record, control);
        }
        self.answer_controls();
    }

    /// The metadata was committed: begin to wait for a guest's flush if cursors moved.
    pub(crate) fn notice_passed(&mut self, now: Nanos) {
        if self.oldest_cursor() > self.safe && self.passed_at.is_none() {
            self.passed_at = Some(now);
        }
    }

    /// The oldest cursor that the disk may know.
    pub(crate) fn oldest_cursor(&self) -> Option<Epoch> {
        self.meta.as_ref().and_then(|m| m.store.oldest_cursor())
    }

    /// Nothing is known about durability any more: answer everybody EIO, now and for good.
    pub(crate) fn poison(&mut self) {
        self.poisoned = true;
        self.open = false;
        self.forwarding = false;
        self.mirror = None;
        self.passed_at = None;
        for queue in [
            &mut self.held,
            &mut self.paced,
            &mut self.unintended,
            &mut self.unsaved,
        ] {
            queue.take();
        }
        self.flush = FlushGroup::new();
        self.links = Links::new(self.config.max_requests);
        for (i, slot) in self.slots.iter_mut().enumerate() {
            let admitted = match slot.stage {
                Stage::Gate | Stage::Paced => false,
                Stage::Order | Stage::Intent | Stage::Save | Stage::Flush => true,
                // The image's part has ended and the mirror's answer does not matter any more.
                Stage::Issued if !slot.image => true,
                Stage::Free | Stage::Issued | Stage::Forwarded => continue,
            };
            self.admitted -= u32::from(admitted);
            *slot = Slot::FREE;
            let id = RequestId(i as u32);
            self.actions.push_back(Action::Reply(id, Err(EIO)));
        }
        self.fail_controls();
        self.actions.push_back(Action::Poisoned);
    }
}
