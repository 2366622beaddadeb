//! The shard's state machine, one turn after the other. From the socket to the gate is in `intake`,
//! from the gate to the image and back to the socket in `outlet`, how connections end in `closing`,
//! what volumes ask for in `actions`.
//!
//! What one connection gets done in a turn is bounded by its window, whose places come back only at
//! the end of the turn, when its replies go out. So a client that sends and takes as fast as it can
//! still gives way to the others after every window.

use super::BUFFER_BYTES_MAX;
use super::CONNECTIONS_MAX;
use super::actions::Token;
use super::closing::STOP_PATIENCE;
use super::connection::{Arrival, Connection};
use super::extents::Extents;
use super::message::{ConnectionIndex, Message, VolumeIndex};
use super::volume_cell::VolumeCell;
use block::Nanos;
use ring::{Data, Done, Handler, Mailbox, Next, Pool, Ring};
use slab::Slab;
use std::collections::VecDeque;

pub(super) struct EngineShard {
    pub(super) connections: Slab<Connection>,
    pub(super) volumes: Slab<VolumeCell>,
    pub(super) pool: Pool,
    /// Connections that wait for buffers or slots, in order.
    pub(super) starved: VecDeque<ConnectionIndex>,
    /// Something was given back since the starved were last looked at.
    pub(super) relief: bool,
    /// Connections with replies to be sent, or with places in their window to be given back.
    pub(super) ready: Vec<ConnectionIndex>,
    /// The same, while this turn deals with them: what they make ready is for the next turn.
    replying: Vec<ConnectionIndex>,
    pub(super) touched: Vec<VolumeIndex>,
    /// Reads of all volumes that most likely end together.
    pub(super) ending: usize,
    pub(super) extents: Extents,
    pub(super) mailbox: Mailbox<Message>,
    pub(super) stopping: Option<Nanos>,
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
            replying: Vec::with_capacity(CONNECTIONS_MAX),
            touched: Vec::new(),
            ending: 0,
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
        }
        if self.volumes[volume as usize].links > 0 {
            self.succeed(ring, c);
        }
        self.pump(ring, c);
        self.reap(ring, c);
    }

    pub(super) fn touch(&mut self, v: VolumeIndex) {
        let cell = &mut self.volumes[v as usize];
        if !cell.is_touched {
            cell.is_touched = true;
            self.touched.push(v);
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
        std::mem::swap(&mut self.ready, &mut self.replying);
        while let Some(c) = self.replying.pop() {
            self.answer_client(ring, c);
        }
        ring.await_together(self.ending);
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
        let relief = self.relief && !self.starved.is_empty();
        if relief || !self.ready.is_empty() || !self.touched.is_empty() {
            return Some(Nanos::ZERO);
        }
        let volumes = self.volumes.iter().filter_map(|(_, cell)| cell.deadline());
        volumes.chain(self.stopping).min()
    }
}
