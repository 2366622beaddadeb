//! Forwarding: a node that gave a volume away stays the server of the connections it has, and is
//! itself a client of the new owner.
//!
//! ```text
//!  guest ─► slot ─► waiting ──send──► out ──reply──► guest
//!                      ▲               │
//!                      └── link lost ──┘   in order, before anything newer
//! ```
//!
//! A request and its payload are kept until the owner has answered. When the link is lost nobody
//! knows what of it was done, so it is all sent again, in the order in which it arrived; the owner
//! drains the old link before it serves the new one (see [`super::fence`]). Requests whose guest is
//! gone are not: it may have sent them elsewhere.
//!
//! When the volume moves on, its forwarder is switched to the next owner; when it comes back here, the
//! forwarder is retired and what had no answer goes through the gate. Both are safe because an owner
//! drops everything of its links before it gives the volume away. When the volume was taken over
//! without its owner's consent the forwarder is retired as well, and its guests' connections are closed.

use super::actions::Token;
use super::connection::{Connection, Life};
use super::message::{ConnectionIndex, VolumeIndex};
use super::shard::EngineShard;
use block::{AlignedBuf, Span};
use nbd::client::{Agreed, Arrival, OUTSTANDING_MAX, Replies, Uri};
use nbd::codec::{Command, CommandFlags, Cookie, REQUEST_BYTES, RequestHeader, TransmissionFlags};
use nbd::session::{Op, Request};
use ring::{FileId, Gather, Ring};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use tokio::sync::mpsc;
use volume::{Admission, Outcome, RequestId};

/// One receive of replies.
const RECV_BYTES: usize = 256 << 10;

/// A negotiated connection to the owner.
pub(super) struct NewLink {
    pub(super) socket: OwnedFd,
    pub(super) agreed: Agreed,
    /// That of the forwarder for which it was dialled.
    pub(super) round: u64,
}

/// What a volume that forwards has.
pub(super) struct Forwarder {
    /// Not yet sent, in order.
    waiting: VecDeque<u32>,
    /// Sent and not answered, in order.
    out: VecDeque<u32>,
    /// Answers of the owner so far.
    answers: u64,
    link: Option<Link>,
    /// A link that waits for the one before it to end.
    next: Option<NewLink>,
    /// As it was asked for.
    owner: Uri,
    /// Grows with every switch of owners.
    round: u64,
    /// Asks for a new link. Whoever listens ends when the forwarder is dropped.
    lost: mpsc::Sender<()>,
}

struct Link {
    socket: FileId,
    flags: TransmissionFlags,
    replies: Replies,
    receiving: bool,
    /// The gather, unless the ring has it, and then the slots whose payloads are in it.
    gather: Option<Gather>,
    lent: VecDeque<u32>,
    /// Answered while their payload was still lent.
    early: Vec<(u32, Outcome)>,
    /// The read whose data is arriving, and where it goes.
    placing: Option<(u32, std::ops::Range<usize>)>,
    broken: bool,
    round: u64,
}

impl Forwarder {
    pub(super) fn new(owner: Uri, lost: mpsc::Sender<()>) -> Forwarder {
        Forwarder {
            waiting: VecDeque::new(),
            out: VecDeque::new(),
            answers: 0,
            link: None,
            next: None,
            owner,
            round: 0,
            lost,
        }
    }

    pub(super) fn round(&self) -> u64 {
        self.round
    }

    /// How many answers the owner owes, and how many it has given.
    pub(super) fn pulse(&self) -> (usize, u64) {
        (self.out.len(), self.answers)
    }

    /// Forward to `owner` from now on. `None` if that is so already, else the round of its links.
    pub(super) fn switch(&mut self, owner: &Uri, lost: mpsc::Sender<()>) -> Option<u64> {
        if self.owner == *owner {
            return None;
        }
        self.owner = owner.clone();
        self.lost = lost;
        self.next = None;
        self.round += 1;
        Some(self.round)
    }
}

impl EngineShard {
    /// Another node owns the volume: the request belongs there.
    pub(super) fn forward(&mut self, ring: &mut Ring, v: VolumeIndex, slot: u32) {
        match &mut self.volumes[v as usize].forwarder {
            Some(forwarder) => {
                forwarder.waiting.push_back(slot);
                self.touch(v);
            }
            // The volume forwards only after it was given a forwarder.
            None => self.ended(ring, v, slot, Err(libc::ESHUTDOWN)),
        }
    }

    pub(super) fn linked(&mut self, ring: &mut Ring, v: VolumeIndex, new: NewLink) {
        let cell = self.volumes.get_mut(v as usize);
        let Some(forwarder) = cell.and_then(|cell| cell.forwarder.as_mut()) else {
            return;
        };
        if new.round != forwarder.round {
            return;
        }
        if forwarder.link.is_some() {
            forwarder.next = Some(new);
            return;
        }
        let socket = ring.add_file(new.socket);
        let inbuf = AlignedBuf::zeroed(RECV_BYTES);
        ring.recv(
            socket,
            inbuf,
            0..RECV_BYTES,
            false,
            true,
            Token::LinkRecv(v).encode(),
        );
        forwarder.link = Some(Link {
            socket,
            flags: new.agreed.flags,
            replies: Replies::new(new.agreed.structured),
            receiving: true,
            gather: Some(Gather::new()),
            lent: VecDeque::new(),
            early: Vec::new(),
            placing: None,
            broken: false,
            round: new.round,
        });
        self.touch(v);
    }

    /// Send what waits. Called once a batch.
    pub(super) fn forward_on(&mut self, ring: &mut Ring, v: VolumeIndex) {
        let cell = &mut self.volumes[v as usize];
        let Some(forwarder) = &mut cell.forwarder else {
            return;
        };
        let Some(link) = forwarder.link.as_mut().filter(|l| !l.broken) else {
            return;
        };
        let Some(mut gather) = link.gather.take() else {
            return;
        };
        let mut local = Vec::new();
        while link.replies.outstanding() < OUTSTANDING_MAX && gather.has_room(REQUEST_BYTES) {
            let Some(slot) = forwarder.waiting.pop_front() else {
                break;
            };
            let place = cell.requests.get(slot);
            if self.connections[place.connection as usize].life == Life::Gone {
                local.push((slot, Err(libc::ECONNRESET)));
                continue;
            }
            let header = match translate(&place.request, slot, link.flags) {
                Ok(header) => header,
                Err(outcome) => {
                    local.push((slot, outcome));
                    continue;
                }
            };
            assert!(link.replies.expect(&header), "a slot is out once");
            gather.push_head(&header.encode());
            if header.command == Command::Write
                && let Some(buf) = place.io.take_buffer()
            {
                gather.push_payload(buf, place.io.payload());
                link.lent.push_back(slot);
            }
            forwarder.out.push_back(slot);
        }
        if gather.is_empty() {
            link.gather = Some(gather);
        } else {
            ring.send(link.socket, gather, Token::LinkSend(v).encode());
        }
        for (slot, outcome) in local {
            self.ended(ring, v, slot, outcome);
        }
    }

    pub(super) fn link_sent(
        &mut self,
        ring: &mut Ring,
        v: VolumeIndex,
        result: Result<usize, i32>,
        mut gather: Gather,
    ) {
        let cell = &mut self.volumes[v as usize];
        let Some(link) = cell.forwarder.as_mut().and_then(|f| f.link.as_mut()) else {
            return;
        };
        let requests = &mut cell.requests;
        gather.clear(|buf| {
            if let Some(slot) = link.lent.pop_front() {
                requests.get(slot).io.set_buffer(buf);
            }
        });
        link.gather = Some(gather);
        let early = std::mem::take(&mut link.early);
        for (slot, outcome) in early {
            self.answered(ring, v, slot, outcome);
        }
        if result.is_err() {
            self.link_broke(ring, v);
        }
        self.link_over(ring, v);
        self.touch(v);
    }

    pub(super) fn link_received(
        &mut self,
        ring: &mut Ring,
        v: VolumeIndex,
        result: Result<usize, i32>,
        buf: AlignedBuf,
    ) {
        let Some(link) = self.link(v) else { return };
        link.receiving = false;
        let n = match result {
            Ok(n @ 1..) => n,
            Err(libc::EINTR | libc::EAGAIN) => 0,
            Ok(_) | Err(_) => {
                self.link_broke(ring, v);
                return self.link_over(ring, v);
            }
        };
        let understood = self.take_replies(ring, v, &buf[..n]);
        let Some(link) = self.link(v) else { return };
        if understood && !link.broken {
            link.receiving = true;
            let poll_first = n < RECV_BYTES;
            let token = Token::LinkRecv(v).encode();
            ring.recv(link.socket, buf, 0..RECV_BYTES, false, poll_first, token);
        } else {
            self.link_broke(ring, v);
            self.link_over(ring, v);
        }
        self.touch(v);
    }

    /// Consume a batch of replies. `false`: the owner broke the protocol.
    fn take_replies(&mut self, ring: &mut Ring, v: VolumeIndex, mut input: &[u8]) -> bool {
        loop {
            let cell = &mut self.volumes[v as usize];
            let Some(link) = cell.forwarder.as_mut().and_then(|f| f.link.as_mut()) else {
                return false;
            };
            let slot_of = |cookie: Cookie| cookie.0 as u32;
            match link.replies.next(&mut input) {
                Arrival::NeedMore => return true,
                Arrival::Data { cookie, at, len } => {
                    let start = cell.requests.get(slot_of(cookie)).io.payload().start + at as usize;
                    link.placing = Some((slot_of(cookie), start..start + len as usize));
                }
                Arrival::Bulk { .. } if input.is_empty() => return true,
                Arrival::Bulk { .. } => {
                    let Some((slot, place)) = &link.placing else {
                        return false;
                    };
                    let Some(buf) = cell.requests.get(*slot).io.buffer_mut() else {
                        return false;
                    };
                    link.replies.take_bulk(&mut input, &mut buf[place.clone()]);
                }
                Arrival::Zeroes { cookie, at, len } => {
                    let io = &mut cell.requests.get(slot_of(cookie)).io;
                    let start = io.payload().start + at as usize;
                    if let Some(buf) = io.buffer_mut() {
                        buf[start..start + len as usize].fill(0);
                    }
                }
                // Block status is never asked of the owner.
                Arrival::Extent { .. } => return false,
                Arrival::Done { cookie, result } => {
                    let slot = slot_of(cookie);
                    let outcome = result.map_err(|e| e.errno());
                    if link.lent.contains(&slot) {
                        link.early.push((slot, outcome));
                    } else {
                        self.answered(ring, v, slot, outcome);
                    }
                }
                Arrival::Broken(breach) => {
                    tracing::error!("the volume's owner broke the protocol: {breach}");
                    return false;
                }
            }
        }
    }

    fn answered(&mut self, ring: &mut Ring, v: VolumeIndex, slot: u32, outcome: Outcome) {
        if let Some(forwarder) = &mut self.volumes[v as usize].forwarder {
            forwarder.out.retain(|other| *other != slot);
            forwarder.answers += 1;
        }
        self.ended(ring, v, slot, outcome);
    }

    fn link(&mut self, v: VolumeIndex) -> Option<&mut Link> {
        self.volumes
            .get_mut(v as usize)?
            .forwarder
            .as_mut()?
            .link
            .as_mut()
    }

    fn link_broke(&mut self, ring: &mut Ring, v: VolumeIndex) {
        if let Some(link) = self.link(v)
            && !link.broken
        {
            link.broken = true;
            if link.receiving || link.gather.is_none() {
                ring.cancel(link.socket);
            }
        }
    }

    /// Once a broken link has nothing in flight: all that was out waits again, and a new link is
    /// asked for.
    fn link_over(&mut self, ring: &mut Ring, v: VolumeIndex) {
        let Some(forwarder) = self.volumes[v as usize].forwarder.as_mut() else {
            return;
        };
        let over = |l: &mut Link| l.broken && !l.receiving && l.gather.is_some();
        let Some(link) = forwarder.link.take_if(over) else {
            return;
        };
        ring.remove_file(link.socket);
        self.touch(v);
        if self.volumes[v as usize].is_leaving() {
            return self.forsake(ring, v);
        }
        let Some(forwarder) = &mut self.volumes[v as usize].forwarder else {
            return;
        };
        while let Some(slot) = forwarder.out.pop_back() {
            forwarder.waiting.push_front(slot);
        }
        if link.round != forwarder.round {
            if let Some(next) = forwarder.next.take() {
                self.linked(ring, v, next);
            }
            return;
        }
        tracing::warn!(
            "the link to the volume's owner is lost: {} requests wait for a new one",
            forwarder.waiting.len()
        );
        // Full means that it was asked for already.
        let _ = forwarder.lost.try_send(());
    }

    /// End a link to a former owner; if the owner is here again, end the forwarder.
    pub(super) fn tend_forwarder(&mut self, ring: &mut Ring, v: VolumeIndex) {
        let cell = &mut self.volumes[v as usize];
        let Some(forwarder) = &mut cell.forwarder else {
            return;
        };
        let ended = cell.volume.owned().is_some() || cell.volume.is_replaced();
        let retired = ended && !cell.volume.is_forwarding();
        let link = forwarder.link.as_ref();
        if link.is_some_and(|l| retired || l.round != forwarder.round) {
            self.link_broke(ring, v);
            self.link_over(ring, v);
        }
        if retired {
            self.retire(ring, v);
        }
    }

    /// Once the link is over, take all requests back to the gate.
    fn retire(&mut self, ring: &mut Ring, v: VolumeIndex) {
        let cell = &mut self.volumes[v as usize];
        let linked = |f: &mut Forwarder| f.link.is_none();
        let Some(forwarder) = cell.forwarder.take_if(linked) else {
            return;
        };
        debug_assert!(forwarder.out.is_empty());
        for slot in forwarder.waiting {
            let cell = &mut self.volumes[v as usize];
            let c = cell.requests.get(slot).connection;
            if self.connections[c as usize].life == Life::Gone {
                self.ended(ring, v, slot, Err(libc::ECONNRESET));
                continue;
            }
            match cell.volume.recall(ring.now(), RequestId(slot)) {
                Admission::Issue => self.issue(ring, v, slot),
                Admission::Reply(outcome) => self.reply(ring, v, slot, outcome),
                Admission::Held | Admission::Forward => {}
            }
        }
        self.touch(v);
    }

    /// Let go of the link of a volume that leaves and has no requests any more.
    pub(super) fn unlink(&mut self, ring: &mut Ring, v: VolumeIndex) {
        let Some(forwarder) = self.volumes[v as usize].forwarder.as_ref() else {
            return;
        };
        debug_assert!(forwarder.out.is_empty() && forwarder.waiting.is_empty());
        if forwarder.link.is_none() {
            self.volumes[v as usize].forwarder = None;
            self.touch(v);
        } else {
            self.link_broke(ring, v);
            self.link_over(ring, v);
        }
    }

    /// A volume leaves that another node owns, and there is no link to that one: what its guests wait for
    /// will not be answered here. Their connections are closed, as if the node had died, and no error is
    /// told: they come again, here or elsewhere.
    pub(super) fn forsake(&mut self, ring: &mut Ring, v: VolumeIndex) {
        let cell = &mut self.volumes[v as usize];
        let linked = cell.forwarder.as_ref().is_some_and(|f| f.link.is_some());
        if linked || cell.volume.owned().is_some() {
            return;
        }
        let forwarder = cell.forwarder.take();
        let own = |c: &Connection| c.volume == v && c.life != Life::Gone;
        let own = self.connections.iter().filter(|(_, c)| own(c));
        let own: Vec<_> = own.map(|(c, _)| c as ConnectionIndex).collect();
        for c in own {
            self.lose(ring, c);
            self.reap(ring, c);
        }
        for slot in forwarder
            .into_iter()
            .flat_map(|f| f.out.into_iter().chain(f.waiting))
        {
            self.ended(ring, v, slot, Err(libc::ECONNRESET));
        }
    }
}

/// A guest's request as the owner is asked, or its outcome where the owner need not be asked.
fn translate(
    request: &Request,
    slot: u32,
    offers: TransmissionFlags,
) -> Result<RequestHeader, Outcome> {
    use CommandFlags as F;
    use TransmissionFlags as T;
    let (command, mut flags) = match request.op {
        Op::Read { .. } => (Command::Read, F::NONE),
        Op::Write => (Command::Write, F::NONE),
        Op::Flush => (Command::Flush, F::NONE),
        Op::Trim if offers.has(T::SEND_TRIM) => (Command::Trim, F::NONE),
        Op::Trim => (Command::WriteZeroes, F::NONE),
        Op::Zero { fast: true, .. } if !offers.has(T::SEND_FAST_ZERO) => {
            return Err(Err(libc::EOPNOTSUPP));
        }
        Op::Zero { no_hole, fast } => {
            let keep = if no_hole { F::NO_HOLE } else { F::NONE };
            let fast = if fast { F::FAST_ZERO } else { F::NONE };
            (Command::WriteZeroes, keep | fast)
        }
        Op::Cache if offers.has(T::SEND_CACHE) => (Command::Cache, F::NONE),
        Op::Cache | Op::BlockStatus { .. } => return Err(Ok(())),
    };
    if request.fua {
        flags = flags | F::FUA;
    }
    let span = Span::new(request.offset, u64::from(request.len));
    Ok(RequestHeader {
        flags,
        command,
        cookie: Cookie(u64::from(slot)),
        offset: span.offset,
        len: request.len,
    })
}
