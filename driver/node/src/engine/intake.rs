//! From a connection's socket to the gate: what was received is understood, every request gets a slot
//! and a buffer, and what finds none waits in line.
//!
//! ```text
//! recv ─► received ─► pump ─► consume ─► begin ─► (payload) ─► submit ─► gate
//!                       ▲                  └ no slot, no buffer: starved ─┐
//!                       └────────── relieve, when something came back ◄───┘
//! ```

use super::BUFFER_BYTES_RESERVED;
use super::actions::Token;
use super::connection::{Connection, DIRECT_RECV_MIN, Life, RECV_BYTES};
use super::extents::Question;
use super::message::{ConnectionIndex, VolumeIndex};
use super::request::{gate_op, work_of};
use super::shard::EngineShard;
use block::{AlignedBuf, Span};
use nbd::codec::REQUEST_BYTES;
use nbd::session::{Op, Request, Step};
use ring::Ring;
use std::time::Duration;
use volume::{Admission, RequestId};

/// A client that takes none of its replies for so long, while others wait for the buffers that
/// they hold, is cut off.
const SEND_PATIENCE: Duration = Duration::from_secs(30);

impl EngineShard {
    /// Understand what was received, start what it asks for, and receive more.
    pub(super) fn pump(&mut self, ring: &mut Ring, c: ConnectionIndex) {
        let connection = &mut self.connections[c as usize];
        if connection.receiving || connection.parked {
            return;
        }
        let Some(inbuf) = connection.inbuf.take() else {
            return;
        };
        let mut input = &inbuf[connection.input.clone()];
        let wants_more = self.consume(ring, c, &mut input);
        let left = input.len();

        let connection = &mut self.connections[c as usize];
        connection.input = connection.input.end - left..connection.input.end;
        match (wants_more, connection.filling) {
            (false, _) => connection.inbuf = Some(inbuf),
            (true, Some(slot)) if self.receive_payload(ring, c, slot) => {
                self.connections[c as usize].inbuf = Some(inbuf);
            }
            (true, _) => {
                debug_assert_eq!(left, 0, "input is left but more is wanted");
                let connection = &mut self.connections[c as usize];
                let most = if connection.after_large {
                    REQUEST_BYTES
                } else {
                    RECV_BYTES
                };
                connection.after_large = false;
                connection.receiving = true;
                let poll_first = !connection.likely_more;
                let token = Token::Recv(c).encode();
                ring.recv(connection.socket, inbuf, 0..most, false, poll_first, token);
            }
        }
    }

    /// Consume input up to its end (`true`: receive more) or to where the connection must wait.
    fn consume(&mut self, ring: &mut Ring, c: ConnectionIndex, input: &mut &[u8]) -> bool {
        loop {
            let connection = &mut self.connections[c as usize];
            if connection.life != Life::Open || connection.is_starved {
                return false;
            }
            if let Some(request) = connection.waiting.take() {
                if !self.begin(ring, c, request) {
                    self.starve(c, request);
                    return false;
                }
                continue;
            }
            match connection.session.next(input) {
                Step::NeedMore => return true,
                Step::Full => return false,
                Step::Request(request) => connection.waiting = Some(request),
                Step::Payload { .. } if input.is_empty() => return true,
                Step::Payload { .. } => {
                    let Some(slot) = connection.filling else {
                        return false;
                    };
                    let volume = connection.volume;
                    let io = &mut self.volumes[volume as usize].requests.get(slot).io;
                    let place = io.payload();
                    let Some(buf) = io.buffer_mut() else {
                        return false;
                    };
                    if connection.session.take_payload(input, &mut buf[place]) == 0 {
                        connection.filling = None;
                        self.submit(ring, volume, slot);
                    }
                }
                Step::Answer(answer) => self.answer(c, &answer),
                Step::Disconnect => {
                    connection.life = Life::Draining;
                    return false;
                }
                Step::Broken(breach) => {
                    tracing::warn!("a client broke the protocol: {breach}; closing it");
                    self.lose(ring, c);
                    return false;
                }
            }
        }
    }

    /// Receive the rest of a large payload straight into its place.
    fn receive_payload(&mut self, ring: &mut Ring, c: ConnectionIndex, slot: u32) -> bool {
        let connection = &mut self.connections[c as usize];
        let Step::Payload { missing } = connection.session.next(&mut &[][..]) else {
            return false;
        };
        if missing < DIRECT_RECV_MIN {
            return false;
        }
        let io = &mut self.volumes[connection.volume as usize]
            .requests
            .get(slot)
            .io;
        let place = io.payload();
        let Some(buf) = io.take_buffer() else {
            return false;
        };
        connection.receiving = true;
        connection.receiving_payload = true;
        connection.after_large = true;
        let rest = place.end - missing as usize..place.end;
        let token = Token::Recv(c).encode();
        ring.recv(connection.socket, buf, rest, true, false, token);
        true
    }

    pub(super) fn received(
        &mut self,
        ring: &mut Ring,
        c: ConnectionIndex,
        result: Result<usize, i32>,
        buf: AlignedBuf,
    ) {
        let connection = &mut self.connections[c as usize];
        connection.receiving = false;
        if std::mem::take(&mut connection.receiving_payload) {
            let Some(slot) = connection.filling else {
                return;
            };
            let volume = connection.volume;
            self.volumes[volume as usize]
                .requests
                .get(slot)
                .io
                .set_buffer(buf);
            if let Ok(n @ 1..) = result
                && connection.session.payload_landed(n as u32) == 0
            {
                connection.filling = None;
                connection.likely_more = false;
                self.submit(ring, volume, slot);
            }
        } else {
            connection.inbuf = Some(buf);
            let n = *result.as_ref().unwrap_or(&0);
            connection.input = 0..n;
            connection.likely_more = n == RECV_BYTES;
        }
        match result {
            Ok(1..) | Err(libc::EINTR | libc::EAGAIN) => self.pump(ring, c),
            Err(libc::ECANCELED) if self.connections[c as usize].life == Life::Draining => {}
            Ok(0) | Err(_) => self.lose(ring, c),
        }
        self.reap(ring, c);
    }

    /// Give a request its slot and its buffer. `false`: there is none, it must wait.
    fn begin(&mut self, ring: &mut Ring, c: ConnectionIndex, request: Request) -> bool {
        if let Op::BlockStatus { .. } = request.op {
            return self.ask_extents(c, request);
        }
        let connection = &mut self.connections[c as usize];
        let volume = connection.volume;
        let cell = &mut self.volumes[volume as usize];
        let Some(slot) = cell.requests.take() else {
            return false;
        };
        let work = work_of(request.op);
        let mut io = cell
            .image
            .prepare(work, Span::new(request.offset, u64::from(request.len)));
        if matches!(request.op, Op::Read { .. } | Op::Write) {
            let bytes = io.buffer_bytes();
            let reserved = connection.held_bytes + bytes <= BUFFER_BYTES_RESERVED;
            let Some(buf) = self.pool.take(bytes, reserved) else {
                cell.requests.give(slot);
                return false;
            };
            connection.held_bytes += bytes;
            io.set_buffer(buf);
            if connection.session.in_flight() > 1 {
                io.set_company();
            }
        }
        let place = cell.requests.get(slot);
        place.connection = c;
        place.request = request;
        place.io = io;
        place.began = ring.now();
        connection.open_requests += 1;
        if request.op == Op::Write {
            connection.filling = Some(slot);
        } else {
            self.submit(ring, volume, slot);
        }
        true
    }

    fn ask_extents(&mut self, c: ConnectionIndex, request: Request) -> bool {
        let connection = &mut self.connections[c as usize];
        let cell = &self.volumes[connection.volume as usize];
        let question = Question {
            file: cell.extents_file.clone(),
            connection: c,
            request,
            answer_to: self.mailbox.clone(),
        };
        let asked = self.extents.ask(question);
        connection.open_requests += u32::from(asked);
        asked
    }

    fn starve(&mut self, c: ConnectionIndex, request: Request) {
        let connection = &mut self.connections[c as usize];
        connection.waiting = Some(request);
        connection.is_starved = true;
        self.starved.push_back(c);
    }

    /// Let those go on that waited for what has been given back.
    pub(super) fn relieve(&mut self, ring: &mut Ring) {
        for _ in 0..self.starved.len() {
            let Some(c) = self.starved.pop_front() else {
                return;
            };
            self.connections[c as usize].is_starved = false;
            self.pump(ring, c);
            self.reap(ring, c);
        }
        if self.starved.is_empty() {
            return;
        }
        let now = ring.now();
        let stuck = |c: &Connection| c.sending && now.since(c.sending_since) > SEND_PATIENCE;
        let stuck: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, c)| stuck(c))
            .map(|(i, _)| i)
            .collect();
        for c in stuck {
            tracing::warn!("a client takes no replies while others wait for memory: closing it");
            self.lose(ring, c as ConnectionIndex);
        }
    }

    /// Ask the gate.
    fn submit(&mut self, ring: &mut Ring, v: VolumeIndex, slot: u32) {
        self.touch(v);
        let cell = &mut self.volumes[v as usize];
        let request = cell.requests.get(slot).request;
        let admission = cell.volume.submit(
            ring.now(),
            volume::Request {
                id: RequestId(slot),
                op: gate_op(request.op),
                fua: request.fua,
                span: Span::new(request.offset, u64::from(request.len)),
            },
        );
        match admission {
            Admission::Issue => self.issue(ring, v, slot),
            Admission::Held => {}
            Admission::Reply(outcome) => self.reply(ring, v, slot, outcome),
            Admission::Forward => self.forward(ring, v, slot),
        }
        if self.volumes[v as usize].mirror.is_some() {
            self.act(ring, v);
        }
    }
}
