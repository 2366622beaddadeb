//! From the gate to the image, and from there to the connection's socket.
//!
//! ```text
//! gate ─► issue_now ─► (image) ─► ended ─► gate ─► reply ─► gathered
//!                                                             │  much of it: at once
//!                                                             ▼  else: when the turn ends
//!                  its window opens, more is understood ◄── send ──► the rest, if the socket is full:
//!                                                                    the ring's, ends in `sent`
//! ```

use super::actions::Token;
use super::connection::Life;
use super::message::{ConnectionIndex, VolumeIndex};
use super::shard::EngineShard;
use nbd::codec::REPLY_HEAD_MAX;
use nbd::session::{Answer, Charge, Op};
use ring::{Done, Gather, Ring};
use storage::Progress;
use volume::{Completion, Outcome, RequestId};

/// Replies are sent together when the turn ends; from this much on they do not wait for it. The client
/// takes them while the next read is under way, and that finds its buffer still in the cache.
const SEND_EARLY_BYTES: usize = 256 << 10;

impl EngineShard {
    /// Do a request's image I/O.
    pub(super) fn issue_now(&mut self, ring: &mut Ring, v: VolumeIndex, slot: u32) {
        let cell = &mut self.volumes[v as usize];
        let io = &mut cell.requests.get(slot).io;
        let token = Token::Io { volume: v, slot }.encode();
        if let Progress::Ended(outcome) = cell.image.start(ring, io, token) {
            // The shard did it itself, and that took time.
            ring.look_at_clock();
            self.ended(ring, v, slot, outcome);
        }
    }

    pub(super) fn moved(&mut self, ring: &mut Ring, v: VolumeIndex, slot: u32, done: Done) {
        let cell = &mut self.volumes[v as usize];
        let io = &mut cell.requests.get(slot).io;
        match cell.image.completed(ring, io, done) {
            Progress::Ended(outcome) => self.ended(ring, v, slot, outcome),
            // What came short may wait for its turn again, with nothing under way that would touch the volume.
            Progress::More => self.touch(v),
        }
    }

    pub(super) fn ended(&mut self, ring: &mut Ring, v: VolumeIndex, slot: u32, outcome: Outcome) {
        self.touch(v);
        let cell = &mut self.volumes[v as usize];
        match cell.volume.complete(ring.now(), RequestId(slot), outcome) {
            Completion::Reply(outcome) => self.reply(ring, v, slot, outcome),
            Completion::Held => {}
        }
    }

    /// Answer the guest and free the slot.
    pub(super) fn reply(&mut self, ring: &mut Ring, v: VolumeIndex, slot: u32, outcome: Outcome) {
        let cell = &mut self.volumes[v as usize];
        let place = cell.requests.get(slot);
        let (c, request) = (place.connection, place.request);
        let (buf, payload) = (place.io.take_buffer(), place.io.payload());
        cell.latency
            .record(ring.now(), ring.now().since(place.began));
        cell.activity.record(&request, outcome.is_err());
        cell.requests.give(slot);
        self.relief = true;

        let connection = &mut self.connections[c as usize];
        connection.open_requests -= 1;
        if connection.life == Life::Gone {
            if let Some(buf) = buf {
                connection.held_bytes -= buf.len();
                self.pool.give(buf);
            }
            return self.reap(ring, c);
        }
        let mut head = [0; REPLY_HEAD_MAX];
        match (request.op, outcome, buf) {
            (Op::Read { .. }, Ok(()), Some(buf)) => {
                let n = connection.session.read_head(&request, &mut head);
                connection.out.push_head(&head[..n]);
                connection.out.push_payload(buf, payload);
            }
            (_, outcome, buf) => {
                let n = connection.session.outcome(&request, outcome, &mut head);
                connection.out.push_head(&head[..n]);
                if let Some(buf) = buf {
                    connection.held_bytes -= buf.len();
                    self.pool.give(buf);
                }
            }
        }
        self.promise(c, request.charge());
        if self.connections[c as usize].out.bytes() >= SEND_EARLY_BYTES {
            self.send(ring, c);
        }
    }

    pub(super) fn answer(&mut self, c: ConnectionIndex, answer: &Answer) {
        let connection = &mut self.connections[c as usize];
        let mut head = [0; REPLY_HEAD_MAX];
        let n = connection.session.answer(answer, &mut head);
        connection.out.push_head(&head[..n]);
        self.promise(c, Answer::CHARGE);
    }

    /// A reply is gathered: it goes out at the end of the turn.
    pub(super) fn promise(&mut self, c: ConnectionIndex, charge: Charge) {
        let connection = &mut self.connections[c as usize];
        connection.out_charges.push(charge);
        if !connection.is_ready {
            connection.is_ready = true;
            self.ready.push(c);
        }
    }

    /// The turn is over for a connection that has replies: they go out, and it may go on.
    pub(super) fn answer_client(&mut self, ring: &mut Ring, c: ConnectionIndex) {
        let Some(connection) = self.connections.get_mut(c as usize) else {
            return;
        };
        connection.is_ready = false;
        self.send(ring, c);
        let connection = &mut self.connections[c as usize];
        if connection.sending || connection.life == Life::Gone {
            return;
        }
        connection.open_window();
        self.pump(ring, c);
        self.reap(ring, c);
    }

    /// Send what is gathered, unless a send is under way.
    fn send(&mut self, ring: &mut Ring, c: ConnectionIndex) {
        let connection = &mut self.connections[c as usize];
        if connection.sending || connection.out.is_empty() || connection.life == Life::Gone {
            return;
        }
        let Some(next) = connection.spare.take() else {
            return;
        };
        let gather = std::mem::replace(&mut connection.out, next);
        connection.sent_charges.append(&mut connection.out_charges);
        let token = Token::Send(c).encode();
        match ring.send_now(connection.socket, gather, token) {
            Some(gather) => self.take_back(c, gather),
            None => {
                connection.sending = true;
                connection.sending_since = ring.now();
            }
        }
    }

    /// What was gathered has been sent: its buffers are free.
    fn take_back(&mut self, c: ConnectionIndex, mut gather: Gather) {
        let connection = &mut self.connections[c as usize];
        gather.clear(|buf| {
            connection.held_bytes -= buf.len();
            self.pool.give(buf);
        });
        connection.spare = Some(gather);
        self.relief = true;
    }

    /// The ring's part of a send has ended.
    pub(super) fn sent(
        &mut self,
        ring: &mut Ring,
        c: ConnectionIndex,
        result: Result<usize, i32>,
        gather: Gather,
    ) {
        self.take_back(c, gather);
        let connection = &mut self.connections[c as usize];
        connection.sending = false;
        connection.open_window();
        if result.is_err() {
            self.lose(ring, c);
        } else if !connection.out.is_empty() && !connection.is_ready {
            connection.is_ready = true;
            self.ready.push(c);
        }
        self.pump(ring, c);
        self.reap(ring, c);
    }
}
