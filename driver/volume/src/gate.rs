//! The guest's side of the volume: from a request to its answer.
//!
//! ```text
//!  submit ─► open? ─► pace ─► order ─► intent ─► save old ─► mark ─► issue ─► complete ─► FUA ─► reply
//!              │        │       │         │          │               └► mirror ► mirrored ┘   (flush
//!            held     paced  earlier    commit    copy before                                  group)
//!          (frozen,          overlapping  of the   write, for a
//!         not owner)         writes     metadata   live snapshot
//! ```
//!
//! A write is marked dirty and counted into its epoch when it is issued, not when it arrives: what
//! still waits at a rotation belongs to the next epoch, and nobody has had an answer to it.

use crate::errno::{EINVAL, EIO, ENOSPC, EPERM};
use crate::fifo::Fifo;
use crate::request::{Action, Admission, Completion, Op, Outcome, Request, RequestId};
use crate::volume::Volume;
use block::{BLOCK_BYTES, Epoch, Nanos, Span};

/// Where a request is. It is the token that makes a second answer impossible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The engine may use the id.
    Free,
    /// Held before admission.
    Gate,
    /// Held before admission by pacing.
    Paced,
    /// Waits for earlier writes that it overlaps.
    Order,
    /// Waits for its areas' intents to be durable.
    Intent,
    /// Waits for the old content of its blocks to be saved.
    Save,
    /// The image I/O is under way, or the mirror's answer is outstanding.
    Issued,
    /// Waits for a round of the flush group.
    Flush,
    /// At the other node.
    Forwarded,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) span: Span,
    pub(crate) op: Op,
    pub(crate) fua: bool,
    pub(crate) stage: Stage,
    /// The image's part is outstanding.
    pub(crate) image: bool,
    /// The mirror's part is outstanding.
    pub(crate) mirror: bool,
    result: Outcome,
    epoch: Epoch,
}

impl Slot {
    pub(crate) const FREE: Slot = Slot {
        span: Span::new(0, 0),
        op: Op::Read,
        fua: false,
        stage: Stage::Free,
        image: false,
        mirror: false,
        result: Ok(()),
        epoch: Epoch(0),
    };

    /// What pacing charges: bytes that must go over a link.
    fn cost(&self) -> u64 {
        match self.op {
            Op::Write => self.span.len,
            _ => BLOCK_BYTES,
        }
    }
}

impl Volume {
    /// A guest's request. The id must be free.
    pub fn submit(&mut self, now: Nanos, req: Request) -> Admission {
        let slot = &mut self.slots[req.id.index()];
        assert_eq!(slot.stage, Stage::Free, "request {} is in use", req.id.0);
        if self.poisoned {
            return Admission::Reply(Err(EIO));
        }
        if let Err(errno) = self.config.check(&req) {
            return Admission::Reply(Err(errno));
        }
        *slot = Slot {
            span: req.span,
            op: req.op,
            fua: req.fua && req.op.is_write(),
            ..Slot::FREE
        };
        if self.open {
            return self.enter(now, req.id);
        }
        if self.forwarding {
            self.slots[req.id.index()].stage = Stage::Forwarded;
            return Admission::Forward;
        }
        self.slots[req.id.index()].stage = Stage::Gate;
        self.held.push(&mut self.links, req.id);
        Admission::Held
    }

    /// A request's image I/O (or, if it was forwarded, its request to the other node) has ended.
    pub fn complete(&mut self, now: Nanos, id: RequestId, result: Outcome) -> Completion {
        let slot = &mut self.slots[id.index()];
        match slot.stage {
            Stage::Forwarded => {
                *slot = Slot::FREE;
                return Completion::Reply(result);
            }
            Stage::Issued if slot.image => slot.image = false,
            stage => panic!("request {} completed while {stage:?}", id.0),
        }
        if !slot.op.is_write() {
            return self.answer(now, id, result);
        }
        slot.result = slot.result.and(result);
        if slot.mirror && !self.poisoned {
            return Completion::Held;
        }
        self.wrote(now, id)
    }

    /// Whoever asked is gone: forget a request that is held before admission. `false` if it is not:
    /// then it is free already, or must be carried out.
    pub fn withdraw(&mut self, id: RequestId) -> bool {
        let slot = &mut self.slots[id.index()];
        let queue = match slot.stage {
            Stage::Gate => &mut self.held,
            Stage::Paced => &mut self.paced,
            _ => return false,
        };
        *slot = Slot::FREE;
        queue.remove(&mut self.links, id);
        true
    }

    /// This node owns the volume again: a forwarded request, of which the caller knows that the other
    /// node will not carry it out any more, comes back to the gate.
    pub fn recall(&mut self, now: Nanos, id: RequestId) -> Admission {
        let slot = &mut self.slots[id.index()];
        assert_eq!(slot.stage, Stage::Forwarded, "recall of request {}", id.0);
        if self.poisoned {
            *slot = Slot::FREE;
            return Admission::Reply(Err(EIO));
        }
        if self.open {
            return self.enter(now, id);
        }
        slot.stage = Stage::Gate;
        self.held.push(&mut self.links, id);
        Admission::Held
    }

    /// Admit a request at an open gate.
    fn enter(&mut self, now: Nanos, id: RequestId) -> Admission {
        let slot = &mut self.slots[id.index()];
        match slot.op {
            Op::Read | Op::Cache => {
                self.admitted += 1;
                slot.stage = Stage::Issued;
                slot.image = true;
                Admission::Issue
            }
            Op::Flush if self.flush.is_clean() => {
                *slot = Slot::FREE;
                Admission::Reply(Ok(()))
            }
            Op::Flush => {
                self.admitted += 1;
                slot.stage = Stage::Flush;
                self.flush.join(&mut self.links, id);
                Admission::Held
            }
            Op::Write | Op::Zero { .. } | Op::Trim => {
                if let Some(pace) = &mut self.pace
                    && (!self.paced.is_empty() || !pace.take(now, slot.cost()))
                {
                    slot.stage = Stage::Paced;
                    self.paced.push(&mut self.links, id);
                    return Admission::Held;
                }
                if self.begin(id) {
                    Admission::Issue
                } else {
                    Admission::Held
                }
            }
        }
    }

    /// Admit a write; true if it is to be issued now.
    fn begin(&mut self, id: RequestId) -> bool {
        self.admitted += 1;
        let slot = &mut self.slots[id.index()];
        if !self.order.enter(id, slot.span) {
            slot.stage = Stage::Order;
            return false;
        }
        self.advance(id)
    }

    /// Take a write as far as it can go; true if it is to be issued now.
    pub(crate) fn advance(&mut self, id: RequestId) -> bool {
        let slot = &mut self.slots[id.index()];
        let blocks = slot.span.blocks();
        if !self.epochs.cursors.is_empty()
            && let Some(meta) = &mut self.meta
            && !meta.intents.cover(blocks)
        {
            slot.stage = Stage::Intent;
            self.unintended.push(&mut self.links, id);
            return false;
        }
        if !self.epochs.live.is_empty() {
            let wait = self
                .saves
                .must_wait(&self.epochs.live, blocks, &mut self.actions);
            self.forget_overrun();
            if wait {
                self.slots[id.index()].stage = Stage::Save;
                self.unsaved.push(&mut self.links, id);
                return false;
            }
        }
        let slot = &mut self.slots[id.index()];
        slot.epoch = self.epochs.issue(blocks);
        slot.stage = Stage::Issued;
        slot.image = true;
        slot.mirror = self.mirror.is_some();
        if slot.mirror {
            self.actions.push_back(Action::Mirror(id));
        }
        true
    }

    /// Both parts of a write have ended.
    pub(crate) fn wrote(&mut self, now: Nanos, id: RequestId) -> Completion {
        let slot = self.slots[id.index()];
        if self.poisoned {
            return self.answer(now, id, Err(EIO));
        }
        self.flush.wrote();
        let settled = self.epochs.complete(slot.epoch);
        let mut freed = std::mem::take(&mut self.freed);
        self.order.leave(id, &mut freed);
        for next in freed.drain(..) {
            if self.advance(next) {
                self.actions.push_back(Action::Issue(next));
            }
        }
        self.freed = freed;
        if settled {
            self.announce();
            self.wake_saves();
        }
        if slot.fua && slot.result.is_ok() {
            self.slots[id.index()].stage = Stage::Flush;
            self.flush.join(&mut self.links, id);
            return Completion::Held;
        }
        self.answer(now, id, slot.result)
    }

    /// The last step of an admitted request.
    pub(crate) fn answer(&mut self, now: Nanos, id: RequestId, result: Outcome) -> Completion {
        self.admitted -= 1;
        let slot = &mut self.slots[id.index()];
        let stepped_down = self
            .meta
            .as_ref()
            .is_some_and(|m| !m.superblock.role.is_owner());
        let completion = if self.poisoned {
            *slot = Slot::FREE;
            Completion::Reply(Err(EIO))
        } else if stepped_down {
            // Another node owns the volume since: only it can say what this request finds there.
            slot.stage = Stage::Gate;
            self.held.push(&mut self.links, id);
            Completion::Held
        } else {
            *slot = Slot::FREE;
            Completion::Reply(result)
        };
        self.notice_drained();
        if stepped_down {
            self.answer_controls();
            self.release(now);
        }
        completion
    }

    /// A commit of the metadata has ended: let writes go whose intents are durable.
    pub(crate) fn wake_intents(&mut self) {
        let waiting = self.unintended.take();
        self.wake(waiting);
    }

    /// Old content was saved, or is not needed any more.
    pub(crate) fn wake_saves(&mut self) {
        let waiting = self.unsaved.take();
        self.wake(waiting);
    }

    fn wake(&mut self, mut waiting: Fifo) {
        while let Some(id) = waiting.pop(&mut self.links) {
            if self.advance(id) {
                self.actions.push_back(Action::Issue(id));
            }
        }
    }

    /// As [`Volume::answer`], for a request whose completion nobody is waiting to be told.
    pub(crate) fn answer_later(&mut self, now: Nanos, id: RequestId, result: Outcome) {
        if let Completion::Reply(result) = self.answer(now, id, result) {
            self.actions.push_back(Action::Reply(id, result));
        }
    }

    /// Let in what was held, if the gate is open now; send it on, if it is elsewhere now.
    pub(crate) fn release(&mut self, now: Nanos) {
        if self.open {
            self.release_paced(now);
            let mut held = self.held.take();
            while let Some(id) = held.pop(&mut self.links) {
                match self.enter(now, id) {
                    Admission::Issue => self.actions.push_back(Action::Issue(id)),
                    Admission::Reply(result) => self.actions.push_back(Action::Reply(id, result)),
                    Admission::Held | Admission::Forward => {}
                }
            }
        } else if self.forwarding {
            // Paced ones arrived before those held.
            for mut queue in [self.paced.take(), self.held.take()] {
                while let Some(id) = queue.pop(&mut self.links) {
                    self.slots[id.index()].stage = Stage::Forwarded;
                    self.actions.push_back(Action::Forward(id));
                }
            }
        }
    }

    /// Let in paced writes whose time has come.
    pub(crate) fn release_paced(&mut self, now: Nanos) {
        while self.open
            && let Some(id) = self.paced.peek()
        {
            let cost = self.slots[id.index()].cost();
            if let Some(pace) = &mut self.pace
                && !pace.take(now, cost)
            {
                return;
            }
            self.paced.pop(&mut self.links);
            if self.begin(id) {
                self.actions.push_back(Action::Issue(id));
            }
        }
    }
}

impl crate::Config {
    /// Refuse what cannot be done, before it is held.
    fn check(&self, req: &Request) -> Outcome {
        if req.op == Op::Flush {
            return Ok(());
        }
        if req.op.is_write() && self.read_only {
            return Err(EPERM);
        }
        if req.span.len == 0 {
            return Err(EINVAL);
        }
        match req.span.fits(self.size) {
            true => Ok(()),
            false if req.op.is_write() => Err(ENOSPC),
            false => Err(EINVAL),
        }
    }
}
