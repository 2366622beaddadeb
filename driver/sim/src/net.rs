//! A network of ordered byte streams that are slow, cut, corrupted, doubled, swapped or stuck.
//!
//! A stream promises order and nothing about content: what a broken switch or a confused proxy does
//! to TCP (bits flipped, a piece twice, two pieces swapped) happens to whole pieces of a stream, and
//! the frames' own checksums and numbers must notice. A partition holds one direction's bytes back
//! until it heals or the stream is cut.

use crate::hits::Hit;
use crate::world::World;
use block::{Error, ErrorKind, Nanos, Result, Transport};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// Bytes that one direction holds: less than a frame, so that both sides feel each other's pace.
const PIPE_BYTES: usize = 100_000;
/// Bytes that travel together, at most.
const PIECE_BYTES: u64 = 60_000;

/// What may go wrong, each once in so many pieces; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The stream ends in the middle of a piece.
    pub cut: u64,
    /// A bit flips.
    pub flip: u64,
    /// A piece arrives twice.
    pub twice: u64,
    /// A piece overtakes the one before it.
    pub swap: u64,
    /// Nanoseconds a KiB needs.
    pub slow: u64,
}

#[derive(Default)]
struct Pipe {
    pieces: RefCell<VecDeque<(Nanos, Vec<u8>)>>,
    changed: Notify,
}

impl Pipe {
    fn bytes(&self) -> usize {
        self.pieces.borrow().iter().map(|(_, p)| p.len()).sum()
    }
}

struct Stream {
    net: Network,
    /// Who dialled, who answered.
    ends: [u32; 2],
    open: Cell<bool>,
    pipes: [Pipe; 2],
}

impl Stream {
    fn close(&self) {
        if self.open.replace(false) {
            for pipe in &self.pipes {
                // What was sent may still arrive, or not.
                if self.net.0.world.dice().one_in(2) {
                    pipe.pieces.borrow_mut().clear();
                }
                pipe.changed.notify_waiters();
            }
        }
    }
}

struct Inner {
    world: World,
    faults: Cell<Faults>,
    /// Directions that carry nothing: from, to.
    blocked: RefCell<BTreeSet<(u32, u32)>>,
    streams: RefCell<Vec<Weak<Stream>>>,
}

/// The network. Cheap to clone.
#[derive(Clone)]
pub struct Network(Rc<Inner>);

/// One end of a stream. Dropping it ends the stream.
pub struct End {
    stream: Rc<Stream>,
    out: usize,
}

/// Ends a stream from outside.
pub struct Scissors(Weak<Stream>);

impl Scissors {
    /// Cut.
    pub fn cut(&self) {
        if let Some(stream) = self.0.upgrade() {
            stream.close();
        }
    }
}

impl Network {
    /// A network without faults.
    #[must_use]
    pub fn new(world: &World) -> Network {
        Network(Rc::new(Inner {
            world: world.clone(),
            faults: Cell::default(),
            blocked: RefCell::default(),
            streams: RefCell::default(),
        }))
    }

    /// Choose what may go wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.faults.set(faults);
    }

    /// Nothing passes from one node to the other.
    pub fn block(&self, from: u32, to: u32) {
        self.0.blocked.borrow_mut().insert((from, to));
    }

    /// Every direction passes again.
    pub fn heal(&self) {
        self.0.blocked.borrow_mut().clear();
        self.each(|s| s.pipes.iter().for_each(|p| p.changed.notify_waiters()));
    }

    /// Every stream ends.
    pub fn cut_all(&self) {
        self.each(|s| {
            if s.open.get() {
                self.0.world.hit(Hit::Cut);
            }
            s.close();
        });
    }

    /// The open streams, for a run that does not come to rest.
    #[must_use]
    pub fn describe(&self) -> String {
        let out = RefCell::new(String::new());
        self.each(|s| {
            let bytes = [s.pipes[0].bytes(), s.pipes[1].bytes()];
            let line = format!("\n  {:?} open {} holds {bytes:?}", s.ends, s.open.get());
            out.borrow_mut().push_str(&line);
        });
        out.into_inner()
    }

    fn each(&self, f: impl Fn(&Stream)) {
        let all: Vec<_> = self
            .0
            .streams
            .borrow()
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        all.iter().for_each(|s| f(s));
        self.0.streams.borrow_mut().retain(|s| s.strong_count() > 0);
    }

    fn is_blocked(&self, from: u32, to: u32) -> bool {
        self.0.blocked.borrow().contains(&(from, to))
    }

    /// Open a stream; fails after a while if a direction carries nothing.
    pub async fn dial(&self, from: u32, to: u32) -> Result<(End, End)> {
        self.0.world.wait_up_to(500).await;
        if self.is_blocked(from, to) || self.is_blocked(to, from) {
            self.0.world.sleep(Duration::from_millis(200)).await;
            return Err(Error::new(ErrorKind::Timeout, "the peer does not answer"));
        }
        let stream = Rc::new(Stream {
            net: self.clone(),
            ends: [from, to],
            open: Cell::new(true),
            pipes: Default::default(),
        });
        self.0.streams.borrow_mut().push(Rc::downgrade(&stream));
        let end = |out| End {
            stream: stream.clone(),
            out,
        };
        Ok((end(0), end(1)))
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Disconnected, "the stream was cut")
}

impl End {
    /// Something to end the stream by.
    #[must_use]
    pub fn scissors(&self) -> Scissors {
        Scissors(Rc::downgrade(&self.stream))
    }

    /// Put a piece on its way; false if that was its end.
    fn launch(&self, mut piece: Vec<u8>) -> bool {
        let net = &self.stream.net.0;
        let (dice, faults) = (net.world.dice(), net.faults.get());
        let pipe = &self.stream.pipes[self.out];
        let cut = dice.one_in(faults.cut);
        if cut {
            net.world.hit(Hit::Cut);
            piece.truncate(dice.below(piece.len() as u64) as usize);
        }
        if dice.one_in(faults.flip) && !piece.is_empty() {
            net.world.hit(Hit::Flip);
            let at = dice.below(piece.len() as u64) as usize;
            piece[at] ^= 1 << dice.below(8);
        }
        let took = Duration::from_nanos(piece.len() as u64 * faults.slow / 1024);
        if took >= Duration::from_millis(10) {
            net.world.hit(Hit::Slow);
        }
        let mut pieces = pipe.pieces.borrow_mut();
        let before = pieces.back().map_or(Nanos::ZERO, |(at, _)| *at);
        let sent = before.max(net.world.now());
        let at = sent + took + Duration::from_nanos(dice.below(200_000));
        if dice.one_in(faults.twice) && !piece.is_empty() {
            net.world.hit(Hit::Twice);
            pieces.push_back((at, piece.clone()));
        }
        if !piece.is_empty() {
            pieces.push_back((at, piece));
        }
        let n = pieces.len();
        if dice.one_in(faults.swap) && n > 1 {
            net.world.hit(Hit::Swap);
            let (a, b) = (pieces[n - 2].1.clone(), pieces[n - 1].1.clone());
            pieces[n - 2].1 = b;
            pieces[n - 1].1 = a;
        }
        !cut
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.stream.close();
    }
}

impl Transport for End {
    async fn send(&self, buf: Vec<u8>) -> (Result<()>, Vec<u8>) {
        let pipe = &self.stream.pipes[self.out];
        let mut rest = &buf[..];
        while !rest.is_empty() {
            let changed = pipe.changed.notified();
            if !self.stream.open.get() {
                return (Err(gone()), buf);
            }
            if pipe.bytes() >= PIPE_BYTES {
                changed.await;
                continue;
            }
            let n = 1 + self.stream.net.0.world.dice().below(PIECE_BYTES) as usize;
            let (now, later) = rest.split_at(n.min(rest.len()));
            rest = later;
            if !self.launch(now.to_vec()) {
                self.stream.close();
                return (Err(gone()), buf);
            }
            pipe.changed.notify_waiters();
        }
        (Ok(()), buf)
    }

    async fn recv(&self, mut buf: Vec<u8>) -> (Result<()>, Vec<u8>) {
        let pipe = &self.stream.pipes[1 - self.out];
        let [dialler, answerer] = self.stream.ends;
        let (from, to) = if self.out == 0 {
            (answerer, dialler)
        } else {
            (dialler, answerer)
        };
        let room = buf.capacity() - buf.len();
        assert!(room > 0, "a receive must have room");
        let net = &self.stream.net;
        loop {
            let changed = pipe.changed.notified();
            let head = pipe.pieces.borrow().front().map(|(at, _)| *at);
            match head {
                None if !self.stream.open.get() => return (Err(gone()), buf),
                // A partition outlives neither its healing nor its stream.
                Some(_) if net.is_blocked(from, to) && !self.stream.open.get() => {
                    return (Err(gone()), buf);
                }
                None => changed.await,
                Some(_) if net.is_blocked(from, to) => {
                    if !net.is_blocked(to, from) {
                        net.0.world.hit(Hit::OneWay);
                    }
                    changed.await;
                }
                Some(at) if at > net.0.world.now() => net.0.world.sleep_until(at).await,
                Some(_) => break,
            }
        }
        let mut pieces = pipe.pieces.borrow_mut();
        if let Some((at, mut piece)) = pieces.pop_front() {
            if piece.len() > room {
                let rest = piece.split_off(room);
                pieces.push_front((at, rest));
            }
            buf.extend_from_slice(&piece);
        }
        drop(pieces);
        pipe.changed.notify_waiters();
        (Ok(()), buf)
    }
}
