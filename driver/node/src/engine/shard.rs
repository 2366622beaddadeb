//! The shard's state machine: connections in, replies out. What volumes ask for is in `actions`.

use super::actions::Token;
use super::connection::{Arrival, Connection, DIRECT_RECV_MIN, Life, RECV_BYTES};
use super::extents::{Extents, Question};
use super::message::{ConnectionIndex, Message, VolumeIndex};
use super::request::{gate_op, work_of};
use super::volume_cell::VolumeCell;
use super::{BUFFER_BYTES_MAX, BUFFER_BYTES_RESERVED, CONNECTIONS_MAX};
use block::{AlignedBuf, Nanos, Span};
use nbd::codec::{REPLY_HEAD_MAX, REQUEST_BYTES};
use nbd::session::{Answer, Charge, Op, Request, Step};
use ring::{Data, Done, Handler, Mailbox, Next, Pool, Ring};
use slab::Slab;
use std::collections::VecDeque;
use std::time::Duration;
use storage::Progress;
use volume::{Admission, Completion, Outcome, RequestId};

/// How long a stopping shard waits for clients to take their replies.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// A client that takes none of its replies for so long, while others wait for the buffers that
/// they hold, is cut off.
const SEND_PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct EngineShard {
    pub(super) connections: Slab<Connection>,
    pub(super) volumes: Slab<VolumeCell>,
    pub(super) pool: Pool,
    /// Connections that wait for buffers or slots, in order.
    starved: VecDeque<ConnectionIndex>,
    /// Something was given back since the starved were last looked at.
    pub(super) relief: bool,
    ready: Vec<ConnectionIndex>,
    pub(super) touched: Vec<VolumeIndex>,
    extents: Extents,
    mailbox: Mailbox<Message>,
    stopping: Option<Nanos>,
}

impl EngineShard {
    pub(super) fn new(extents: Extents, mailbox: Mailbox<Message>) -> EngineShard {
        EngineShard {
            connections: Slab::with_capacity(CONNECTIONS_MAX),
            volumes: Slab::new(),
            pool: Pool::new(BUFFER_BYTES_MAX),
            starved: VecDeque::new(),
            relief: false,
            ready: Vec::with_capacity(CONNECTIONS_MAX),
            touched: Vec::new(),
            extents,
            mailbox,
            stopping: None,
        }
    }

    fn connect(&mut self, ring: &mut Ring, arrival: Arrival) {
        let known = self.volumes.get(arrival.volume as usize);
        let welcome = known.is_some_and(|cell| !cell.is_leaving()) && self.stopping.is_none();
        if !welcome || self.connections.len() >= CONNECTIONS_MAX {
            tracing::warn!("a connection is refused: its volume is gone, or the shard is full");
            return;
        }
        if arrival
            .fence
            .as_ref()
            .is_some_and(|f| !self.admits(arrival.volume, f))
        {
            tracing::info!("a forwarding link is refused: the volume is not owned here");
            return;
        }
        let Arrival {
            volume,
            socket,
            session,
            surplus,
            fence,
            permit,
        } = arrival;
        let is_link = fence.is_some();
        let socket = ring.add_file(socket);
        let connection = Connection::new(volume, socket, session, &surplus, fence, permit);
        let c = self.connections.insert(connection) as ConnectionIndex;
        if is_link {
            self.volumes[volume as usize].links += 1;
            self.succeed(ring, c);
        }
        self.pump(ring, c);
        self.reap(ring, c);
    }

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

    fn received(
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

    /// Do a request's image I/O.
    pub(super) fn issue_now(&mut self, ring: &mut Ring, v: VolumeIndex, slot: u32) {
        let cell = &mut self.volumes[v as usize];
        let io = &mut cell.requests.get(slot).io;
        let token = Token::Io { volume: v, slot }.encode();
        if let Progress::Ended(outcome) = cell.image.start(ring, io, token) {
            self.ended(ring, v, slot, outcome);
        }
    }

    fn moved(&mut self, ring: &mut Ring, v: VolumeIndex, slot: u32, done: Done) {
        let cell = &mut self.volumes[v as usize];
        let io = &mut cell.requests.get(slot).io;
        if let Progress::Ended(outcome) = cell.image.completed(ring, io, done) {
            self.ended(ring, v, slot, outcome);
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
    }

    fn answer(&mut self, c: ConnectionIndex, answer: &Answer) {
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

    fn send(&mut self, ring: &mut Ring, c: ConnectionIndex) {
        let Some(connection) = self.connections.get_mut(c as usize) else {
            return;
        };
        connection.is_ready = false;
        if connection.sending || connection.out.is_empty() || connection.life == Life::Gone {
            return;
        }
        let Some(next) = connection.spare.take() else {
            return;
        };
        let gather = std::mem::replace(&mut connection.out, next);
        std::mem::swap(&mut connection.out_charges, &mut connection.sent_charges);
        connection.sending = true;
        connection.sending_since = ring.now();
        ring.send(connection.socket, gather, Token::Send(c).encode());
    }

    fn sent(
        &mut self,
        ring: &mut Ring,
        c: ConnectionIndex,
        result: Result<usize, i32>,
        mut gather: ring::Gather,
    ) {
        let connection = &mut self.connections[c as usize];
        connection.sending = false;
        gather.clear(|buf| {
            connection.held_bytes -= buf.len();
            self.pool.give(buf);
        });
        self.relief = true;
        connection.spare = Some(gather);
        for charge in connection.sent_charges.drain(..) {
            connection.session.release(charge);
        }
        if result.is_err() {
            self.lose(ring, c);
        } else if !connection.out.is_empty() && !connection.is_ready {
            connection.is_ready = true;
            self.ready.push(c);
        }
        self.pump(ring, c);
        self.reap(ring, c);
    }

    /// The peer is gone, or is to be: nothing more is sent to it or taken from it.
    pub(super) fn lose(&mut self, ring: &mut Ring, c: ConnectionIndex) {
        let connection = &mut self.connections[c as usize];
        if connection.life == Life::Gone {
            return;
        }
        connection.life = Life::Gone;
        if connection.receiving || connection.sending {
            ring.cancel(connection.socket);
        }
        let pool = &mut self.pool;
        let held = &mut connection.held_bytes;
        connection.out.clear(|buf| {
            *held -= buf.len();
            pool.give(buf);
        });
        connection.out_charges.clear();
        self.relief = true;
        self.withdraw(c);
    }

    /// Take a connection that is over out of the slab.
    pub(super) fn reap(&mut self, ring: &mut Ring, c: ConnectionIndex) {
        let Some(connection) = self.connections.get_mut(c as usize) else {
            return;
        };
        // A write whose payload never came whole was never submitted: it just goes.
        if connection.life != Life::Open
            && !connection.receiving
            && let Some(slot) = connection.filling.take()
        {
            let requests = &mut self.volumes[connection.volume as usize].requests;
            if let Some(buf) = requests.get(slot).io.take_buffer() {
                connection.held_bytes -= buf.len();
                self.pool.give(buf);
            }
            requests.give(slot);
            connection.open_requests -= 1;
            self.relief = true;
        }
        if !connection.is_over() {
            return;
        }
        debug_assert_eq!(connection.held_bytes, 0, "a connection kept buffers");
        let connection = self.connections.remove(c as usize);
        ring.remove_file(connection.socket);
        self.touch(connection.volume);
        self.succeeded(ring, &connection);
    }

    /// Take no more requests from a connection; its replies still go out.
    pub(super) fn drain(&mut self, ring: &mut Ring, c: ConnectionIndex) {
        let connection = &mut self.connections[c as usize];
        if connection.life == Life::Open {
            connection.life = Life::Draining;
            if connection.receiving {
                ring.cancel(connection.socket);
            }
        }
        self.reap(ring, c);
    }

    pub(super) fn touch(&mut self, v: VolumeIndex) {
        let cell = &mut self.volumes[v as usize];
        if !cell.is_touched {
            cell.is_touched = true;
            self.touched.push(v);
        }
    }

    /// Let those go on that waited for what has been given back.
    fn relieve(&mut self, ring: &mut Ring) {
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

    fn stop(&mut self, ring: &mut Ring) {
        self.stopping = Some(ring.now() + STOP_PATIENCE);
        let volumes: Vec<_> = self.volumes.iter().map(|(v, _)| v as VolumeIndex).collect();
        for v in volumes {
            self.leave(ring, v, None);
        }
    }
}

impl Handler for EngineShard {
    type Message = Message;

    fn completed(&mut self, ring: &mut Ring, done: Done) {
        match (Token::decode(done.token), done.data) {
            (Token::Io { volume, slot }, data) => {
                let done = Done { data, ..done };
                self.moved(ring, volume, slot, done);
            }
            (Token::Recv(c), Data::Buf(buf)) => self.received(ring, c, done.result, buf),
            (Token::Send(c), Data::Gather(gather)) => self.sent(ring, c, done.result, gather),
            (Token::LinkRecv(v), Data::Buf(buf)) => self.link_received(ring, v, done.result, buf),
            (Token::LinkSend(v), Data::Gather(gather)) => {
                self.link_sent(ring, v, done.result, gather)
            }
            (token, data) => self.action_done(ring, token, Done { data, ..done }),
        }
    }

    fn message(&mut self, ring: &mut Ring, message: Message) {
        match message {
            Message::Connect(arrival) => self.connect(ring, *arrival),
            Message::Call(v, call) => {
                self.act(ring, v);
                if let Some(cell) = self.volumes.get_mut(v as usize) {
                    call(cell, ring.now());
                    self.touch(v);
                }
            }
            Message::Extents {
                connection,
                request,
                runs,
            } => self.extents_found(ring, connection, request, runs),
            Message::AddVolume(files, answer) => self.add_volume(ring, *files, answer),
            Message::RemoveVolume(v, answer) => self.leave(ring, v, Some(answer)),
            Message::Link(v, link) => self.linked(ring, v, *link),
            Message::Stop => self.stop(ring),
        }
    }

    fn turn(&mut self, ring: &mut Ring) -> Next {
        let now = ring.now();
        for (v, cell) in &mut self.volumes {
            if cell.deadline().is_some_and(|at| at <= now) {
                cell.volume.tick(now);
                if !cell.is_touched {
                    cell.is_touched = true;
                    self.touched.push(v as VolumeIndex);
                }
            }
        }
        // What was given back may let the starved go on, and that touches volumes again.
        loop {
            while let Some(v) = self.touched.pop() {
                self.act(ring, v);
            }
            if !std::mem::take(&mut self.relief) || self.starved.is_empty() {
                break;
            }
            self.relieve(ring);
        }
        while let Some(c) = self.ready.pop() {
            self.send(ring, c);
        }
        match self.stopping {
            Some(_) if self.volumes.is_empty() => Next::Stop,
            Some(at) if now >= at => {
                self.stopping = Some(now + STOP_PATIENCE);
                let all: Vec<_> = self.connections.iter().map(|(c, _)| c).collect();
                for c in all {
                    self.lose(ring, c as ConnectionIndex);
                    self.reap(ring, c as ConnectionIndex);
                }
                Next::Go
            }
            _ => Next::Go,
        }
    }

    fn deadline(&self) -> Option<Nanos> {
        let volumes = self.volumes.iter().filter_map(|(_, cell)| cell.deadline());
        volumes.chain(self.stopping).min()
    }
}
