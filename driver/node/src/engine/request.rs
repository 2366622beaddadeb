//! Requests of a volume: a slab whose indices are the volume's request ids.

use super::message::ConnectionIndex;
use block::Nanos;
use nbd::codec::Cookie;
use nbd::session::{Op, Request};
use storage::{Io, Work};

/// One request from its first byte to its reply.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) connection: ConnectionIndex,
    pub(super) request: Request,
    pub(super) io: Io,
    pub(super) began: Nanos,
}

/// All requests of one volume. Slots are made once; the free list is a stack, so the ones used
/// last, still warm in the cache, are used next.
#[derive(Debug)]
pub(super) struct Requests {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Requests {
    pub(super) fn new(max: u32) -> Requests {
        let slot = || Slot {
            connection: 0,
            request: Request {
                cookie: Cookie(0),
                op: Op::Flush,
                fua: false,
                offset: 0,
                len: 0,
            },
            io: Io::default(),
            began: Nanos::ZERO,
        };
        Requests {
            slots: (0..max).map(|_| slot()).collect(),
            free: (0..max).rev().collect(),
        }
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    pub(super) fn give(&mut self, id: u32) {
        debug_assert!(!self.free.contains(&id), "request {id} is free already");
        self.free.push(id);
    }

    pub(super) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn get(&mut self, id: u32) -> &mut Slot {
        &mut self.slots[id as usize]
    }
}

/// What a request asks of the image. A flush asks nothing of it by itself.
pub(super) fn work_of(op: Op) -> Work {
    match op {
        Op::Read { .. } => Work::Read,
        Op::Write => Work::Write,
        Op::Zero { no_hole, fast } => Work::Zero { no_hole, fast },
        Op::Trim => Work::Trim,
        Op::Cache | Op::Flush | Op::BlockStatus { .. } => Work::Cache,
    }
}

/// What a request asks of the gate.
pub(super) fn gate_op(op: Op) -> volume::Op {
    match op {
        Op::Read { .. } | Op::BlockStatus { .. } => volume::Op::Read,
        Op::Write => volume::Op::Write,
        Op::Zero { no_hole, fast } => volume::Op::Zero { no_hole, fast },
        Op::Trim => volume::Op::Trim,
        Op::Flush => volume::Op::Flush,
        Op::Cache => volume::Op::Cache,
    }
}
