//! One NBD connection in the transmission phase: what was received and not yet understood, what is
//! to be sent, and how it ends.
//!
//! ```text
//!  Open ──► Draining (goodbye, or the shard stops: no more requests, replies still go out) ──► closed
//!    └────► Gone     (peer lost, or broke the protocol: replies go nowhere) ─────────────────► closed
//! ```
//! A connection leaves the slab only when nothing in flight names it, so an index is never reused
//! under an operation.

use super::fence::Fence;
use super::message::VolumeIndex;
use block::{AlignedBuf, Nanos};
use nbd::session::{Charge, Request, Session, WINDOW_REQUESTS};
use ring::{FileId, Gather};
use std::ops::Range;
use std::os::fd::OwnedFd;

/// One receive takes up to this much: a window of 4 KiB writes with room to spare.
pub(super) const RECV_BYTES: usize = 256 << 10;
/// A payload of which this much is missing is received straight into its aligned buffer.
pub(super) const DIRECT_RECV_MIN: u32 = 16 << 10;

/// A negotiated connection on its way to its shard.
pub(super) struct Arrival {
    pub(super) volume: VolumeIndex,
    pub(super) socket: OwnedFd,
    pub(super) session: Session,
    pub(super) surplus: Vec<u8>,
    /// Set on a link by which a former owner forwards.
    pub(super) fence: Option<Fence>,
    /// Held as long as the connection is: counts against the cap of its listener.
    pub(super) permit: Box<dyn std::any::Any + Send>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Open,
    Draining,
    Gone,
}

pub(super) struct Connection {
    pub(super) volume: VolumeIndex,
    pub(super) socket: FileId,
    pub(super) session: Session,
    pub(super) life: Life,
    /// Set on a link by which a former owner forwards.
    pub(super) fence: Option<Fence>,
    /// Not served until the link that it replaces has come to rest.
    pub(super) parked: bool,
    /// Receive buffer, unless the ring has it.
    pub(super) inbuf: Option<AlignedBuf>,
    /// What of it is received and not yet consumed.
    pub(super) input: Range<usize>,
    pub(super) receiving: bool,
    /// The ring has the buffer of the write that is being received, not the receive buffer.
    pub(super) receiving_payload: bool,
    /// The last request was a large write: receive the next header alone, so that its payload can
    /// go straight where it belongs.
    pub(super) after_large: bool,
    /// The last receive filled its buffer: there is probably more.
    pub(super) likely_more: bool,
    /// The write whose payload is being received.
    pub(super) filling: Option<u32>,
    /// A request that waits for a buffer or a slot.
    pub(super) waiting: Option<Request>,
    pub(super) is_starved: bool,
    /// Bytes of buffers that it holds.
    pub(super) held_bytes: usize,
    /// Requests in slots, and questions to the extents thread.
    pub(super) open_requests: u32,
    /// Replies being gathered, and those on their way. Of those that are gone the charges stay here
    /// until the turn ends.
    pub(super) out: Gather,
    pub(super) spare: Option<Gather>,
    pub(super) out_charges: Vec<Charge>,
    pub(super) sent_charges: Vec<Charge>,
    pub(super) sending: bool,
    pub(super) sending_since: Nanos,
    pub(super) is_ready: bool,
    _permit: Box<dyn std::any::Any + Send>,
}

impl Connection {
    pub(super) fn new(
        volume: VolumeIndex,
        socket: FileId,
        session: Session,
        surplus: &[u8],
        fence: Option<Fence>,
        permit: Box<dyn std::any::Any + Send>,
    ) -> Connection {
        let mut inbuf = AlignedBuf::zeroed(RECV_BYTES);
        inbuf[..surplus.len()].copy_from_slice(surplus);
        Connection {
            volume,
            socket,
            session,
            life: Life::Open,
            fence,
            parked: false,
            inbuf: Some(inbuf),
            input: 0..surplus.len(),
            receiving: false,
            receiving_payload: false,
            after_large: false,
            likely_more: false,
            filling: None,
            waiting: None,
            is_starved: false,
            held_bytes: 0,
            open_requests: 0,
            out: Gather::new(),
            spare: Some(Gather::new()),
            out_charges: Vec::with_capacity(WINDOW_REQUESTS as usize),
            sent_charges: Vec::with_capacity(WINDOW_REQUESTS as usize),
            sending: false,
            sending_since: Nanos::ZERO,
            is_ready: false,
            _permit: permit,
        }
    }

    /// The replies that are gone have left their places in the window.
    pub(super) fn open_window(&mut self) {
        debug_assert!(!self.sending, "replies are still on their way");
        for charge in self.sent_charges.drain(..) {
            self.session.release(charge);
        }
    }

    /// Whether nothing names it any more.
    pub(super) fn is_over(&self) -> bool {
        let idle = !self.receiving && !self.sending && self.open_requests == 0 && !self.is_starved;
        match self.life {
            Life::Open => false,
            Life::Draining => idle && self.out.is_empty(),
            Life::Gone => idle,
        }
    }
}
