//! The mirror's side of the shard: what the guest writes is copied and queued for the mover, in the
//! gate's order.
//!
//! While a mirror is on, a write's image I/O begins only after its [`volume::Action::Mirror`] was
//! carried out: the ring takes the buffer away. Actions are carried out at once after a submit and
//! before a control call, so the open epoch is the write's own.

use super::message::VolumeIndex;
use super::request::gate_op;
use super::shard::EngineShard;
use block::{Epoch, Span};
use replica::{MirrorItem, MirrorOp};
use ring::Ring;
use tokio::sync::mpsc;
use volume::{Op, RequestId};

/// The id of a flush in a [`MirrorItem`]; requests have ids below it.
pub(super) const FLUSH: u32 = u32::MAX;

/// The queue to the mover.
pub(super) struct MirrorQueue {
    /// Room for every request of the volume and a flush, each unanswered at most once: never full.
    pub(super) queue: mpsc::Sender<MirrorItem>,
    /// Tells the answers of this mirror from those of one before.
    pub(super) session: u64,
    /// Requests to be issued once the actions are carried out.
    deferred: Vec<u32>,
}

impl MirrorQueue {
    pub(super) fn new(queue: mpsc::Sender<MirrorItem>, session: u64) -> MirrorQueue {
        MirrorQueue {
            queue,
            session,
            deferred: Vec::new(),
        }
    }

    fn push(&self, id: u32, epoch: Epoch, op: MirrorOp) -> Result<(), i32> {
        let item = MirrorItem { id, epoch, op };
        self.queue.try_send(item).map_err(|_| libc::ENOTCONN)
    }
}

impl EngineShard {
    /// Begin a request's image I/O: now, or once a mirror has its copy.
    pub(super) fn issue(&mut self, ring: &mut Ring, v: VolumeIndex, slot: u32) {
        match &mut self.volumes[v as usize].mirror {
            None => self.issue_now(ring, v, slot),
            Some(mirror) => mirror.deferred.push(slot),
        }
    }

    /// Issue what waited for its copy.
    pub(super) fn issue_deferred(&mut self, ring: &mut Ring, v: VolumeIndex) {
        while let Some(slot) = self
            .volumes
            .get_mut(v as usize)
            .and_then(|cell| cell.mirror.as_mut())
            .and_then(|mirror| mirror.deferred.pop())
        {
            self.issue_now(ring, v, slot);
        }
    }

    /// Queue a copy of a write for the mirror. One that cannot be queued turns the mirror off.
    pub(super) fn mirror(&mut self, ring: &Ring, v: VolumeIndex, id: RequestId) {
        let cell = &mut self.volumes[v as usize];
        let epoch = cell.volume.open_epoch();
        let place = cell.requests.get(id.0);
        let span = Span::new(place.request.offset, u64::from(place.request.len));
        let payload = place.io.payload();
        let op = match (gate_op(place.request.op), place.io.buffer_mut()) {
            (Op::Write, Some(buf)) => Ok(MirrorOp::Write(span, buf[payload].to_vec())),
            (Op::Write, None) => Err(libc::EIO),
            _ => Ok(MirrorOp::Zero(span)),
        };
        let queued = match (&cell.mirror, op) {
            (Some(mirror), Ok(op)) => mirror.push(id.0, epoch, op),
            (None, _) => Err(libc::ENOTCONN),
            (_, Err(e)) => Err(e),
        };
        if queued.is_err() {
            cell.volume.mirrored(ring.now(), id, queued);
        }
    }

    pub(super) fn mirror_flush(&mut self, ring: &Ring, v: VolumeIndex) {
        let cell = &mut self.volumes[v as usize];
        let epoch = cell.volume.open_epoch();
        let queued = match &cell.mirror {
            Some(mirror) => mirror.push(FLUSH, epoch, MirrorOp::Flush),
            None => Err(libc::ENOTCONN),
        };
        if queued.is_err() {
            cell.volume.mirror_flushed(ring.now(), queued);
        }
    }

    /// The mirror is off: what waited for it goes on, and its queue ends.
    pub(super) fn mirror_ended(&mut self, ring: &mut Ring, v: VolumeIndex) {
        self.issue_deferred(ring, v);
        self.volumes[v as usize].mirror = None;
    }
}
