//! The way to a node: a TCP proxy that counts what passes and does to it what networks do.
//!
//! ```text
//!   who connects ══ forth ══► link ══ forth ══► node
//!                ◄══ back ══       ◄══ back ══
//! ```
//!
//! A link of replication knows its frames: one can be held back, to stop the world exactly between two
//! steps, or spoiled. Any link can be cut, stalled in one direction or both, slowed, or left half open,
//! as when a firewall forgets a connection. What is stalled arrives late, after [`Link::heal`].

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use wire::{HEADER_BYTES, Header, Kind};

/// Bytes that pass at once where frames are not known.
const PIECE: usize = 64 << 10;

/// Which frame to hold back, of the connections that begin from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The end of an epoch: the cutover converges.
    Epoch,
    /// The end of the epoch that is sent while the guest is frozen, which a ping precedes.
    LastEpoch,
    /// The order to take the volume: it is relinquished, and nobody owns it.
    Activate,
    /// The answer to that: the target owns the volume, and the source has not heard of it.
    Activated,
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Forth,
    Back,
}

/// What may happen to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoil {
    /// A bit flips in its last byte.
    Flip,
    /// It arrives twice.
    Twice,
    /// The frame after it arrives first.
    Swap,
    /// Half of it arrives, and then the connection ends.
    Half,
}

/// How slow.
#[derive(Clone, Copy, Debug)]
pub struct Slow {
    /// Before each frame or piece.
    pub delay: Duration,
    pub bytes_per_second: u64,
}

struct Open {
    number: usize,
    ends: [TcpStream; 2],
    /// The node's end is gone, and who connected is not told.
    half: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    hold: Option<(Hold, usize)>,
    held: bool,
    connections: usize,
    open: Vec<Open>,
    seen: HashMap<Kind, u64>,
    /// Bytes of content in the largest seeding over one connection.
    seeded: u64,
    stalled: [bool; 2],
    down: bool,
    slow: Option<Slow>,
    /// The frame so many frames from now.
    spoil: Option<(Way, Option<Kind>, u32, Spoil)>,
    spoiled: u64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    sent: AtomicU64,
    frames: bool,
}

pub struct Link(Arc<Shared>);

impl Link {
    /// For replication: listens on the port of `to` at `ip`.
    pub fn of_frames(ip: Ipv4Addr, to: SocketAddr) -> Link {
        Link::open(ip, to, true)
    }

    /// For anything else.
    pub fn of_bytes(ip: Ipv4Addr, to: SocketAddr) -> Link {
        Link::open(ip, to, false)
    }

    fn open(ip: Ipv4Addr, to: SocketAddr, frames: bool) -> Link {
        let shared = Arc::new(Shared {
            frames,
            ..Shared::default()
        });
        let here = Arc::clone(&shared);
        let listener = TcpListener::bind((ip, to.port())).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let down = here.state.lock().unwrap().down;
                // A node that is down refuses; so does the way to it.
                if let (false, Ok(there)) = (down, TcpStream::connect(to)) {
                    here.connect([stream.unwrap(), there]);
                }
            }
        });
        Link(shared)
    }

    /// Hold a frame, once there is one.
    pub fn hold(&self, what: Hold) {
        let mut state = self.0.state.lock().unwrap();
        state.hold = Some((what, state.connections + 1));
        state.held = false;
    }

    /// Waits until the frame is held.
    pub fn wait_held(&self) {
        let state = self.0.state.lock().unwrap();
        let waiting = |s: &mut State| !s.held;
        let (state, late) = self
            .0
            .changed
            .wait_timeout_while(state, Duration::from_secs(30), waiting)
            .unwrap();
        assert!(!late.timed_out(), "no frame to hold: {:?}", state.hold);
    }

    pub fn release(&self) {
        self.0.state.lock().unwrap().hold = None;
        self.0.changed.notify_all();
    }

    /// Bytes that have passed towards the node.
    pub fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Relaxed)
    }

    /// Frames of a kind that have come by, in either direction.
    pub fn seen(&self, kind: Kind) -> u64 {
        let state = self.0.state.lock().unwrap();
        state.seen.get(&kind).copied().unwrap_or(0)
    }

    /// Bytes of content that one connection has carried in a seeding, at most, since last asked.
    pub fn largest_seeding(&self) -> u64 {
        std::mem::take(&mut self.0.state.lock().unwrap().seeded)
    }

    /// All connections end, at both ends.
    pub fn cut(&self) {
        for open in &self.0.state.lock().unwrap().open {
            open.end();
        }
    }

    /// All connections end, and new ones are refused until it heals.
    pub fn go_down(&self) {
        self.0.state.lock().unwrap().down = true;
        self.cut();
    }

    /// Nothing arrives in this direction until it heals.
    pub fn stall(&self, way: Way) {
        self.0.state.lock().unwrap().stalled[way as usize] = true;
    }

    /// The node's end of all connections is gone, the other is not told and goes on sending. New ones
    /// are as good as ever.
    pub fn half_open(&self) {
        for open in &self.0.state.lock().unwrap().open {
            open.half.store(true, Ordering::Release);
            let _ = open.ends[1].shutdown(Shutdown::Both); // it may have ended
        }
    }

    pub fn slow_down(&self, slow: Slow) {
        self.0.state.lock().unwrap().slow = Some(slow);
    }

    /// Spoils the next frame of a kind.
    pub fn spoil(&self, kind: Kind, spoil: Spoil) {
        let way = match kind {
            Kind::HelloAck | Kind::EpochAck | Kind::Activated | Kind::DigestDiff => Way::Back,
            _ => Way::Forth,
        };
        self.0.state.lock().unwrap().spoil = Some((way, Some(kind), 0, spoil));
    }

    /// Spoils the `nth` frame from now on in a direction.
    pub fn spoil_nth(&self, way: Way, nth: u32, spoil: Spoil) {
        self.0.state.lock().unwrap().spoil = Some((way, None, nth, spoil));
    }

    /// Frames that were spoiled.
    pub fn spoiled(&self) -> u64 {
        self.0.state.lock().unwrap().spoiled
    }

    /// Everything passes again.
    pub fn heal(&self) {
        let mut state = self.0.state.lock().unwrap();
        (state.stalled, state.down) = ([false; 2], false);
        (state.slow, state.spoil) = (None, None);
        drop(state);
        self.0.changed.notify_all();
    }
}

impl Open {
    fn end(&self) {
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Both); // it may have ended
        }
    }
}

/// One direction of one connection.
struct Lane {
    from: TcpStream,
    to: TcpStream,
    way: Way,
    connection: usize,
    half: Arc<AtomicBool>,
    pinged: bool,
    /// Bytes of the seeding that is under way.
    seeding: Option<u64>,
    /// A frame that its successor overtakes.
    kept: Option<Vec<u8>>,
}

impl Shared {
    fn connect(self: &Arc<Shared>, ends: [TcpStream; 2]) {
        let half = Arc::new(AtomicBool::new(false));
        let mut state = self.state.lock().unwrap();
        state.connections += 1;
        let connection = state.connections;
        for way in [Way::Forth, Way::Back] {
            let end = |i: usize| ends[i].try_clone().unwrap();
            let (from, to) = match way {
                Way::Forth => (end(0), end(1)),
                Way::Back => (end(1), end(0)),
            };
            to.set_nodelay(true).unwrap();
            let lane = Lane {
                from,
                to,
                way,
                connection,
                half: Arc::clone(&half),
                pinged: false,
                seeding: None,
                kept: None,
            };
            let shared = Arc::clone(self);
            std::thread::spawn(move || shared.carry(lane));
        }
        state.open.push(Open {
            number: connection,
            ends,
            half,
        });
    }

    fn carry(&self, mut lane: Lane) {
        let mut unit = Vec::new();
        while self.pass(&mut lane, &mut unit).is_ok() {}
        let state = self.state.lock().unwrap();
        // An end is not heard of either while nothing passes.
        let mut state = self
            .changed
            .wait_while(state, |s| s.stalled[lane.way as usize])
            .unwrap();
        if lane.way == Way::Back && lane.half.load(Ordering::Acquire) {
            return;
        }
        let ended = |open: &mut Open| open.number == lane.connection;
        for open in state.open.extract_if(.., ended) {
            open.end();
        }
    }

    fn pass(&self, lane: &mut Lane, unit: &mut Vec<u8>) -> io::Result<()> {
        let kind = self.take(&mut lane.from, unit)?;
        let spoil = self.fate(lane, kind, unit.len());
        if lane.half.load(Ordering::Acquire) {
            return Ok(()); // sent into nothing
        }
        match spoil {
            Some(Spoil::Flip) => *unit.last_mut().unwrap() ^= 1,
            Some(Spoil::Twice) => lane.to.write_all(unit)?,
            Some(Spoil::Swap) => {
                lane.kept = Some(std::mem::take(unit));
                return Ok(());
            }
            Some(Spoil::Half) => {
                lane.to.write_all(&unit[..unit.len() / 2])?;
                return Err(ErrorKind::ConnectionReset.into());
            }
            None => {}
        }
        if lane.way == Way::Forth {
            self.sent.fetch_add(unit.len() as u64, Ordering::Relaxed);
        }
        let passed = lane.to.write_all(unit);
        if let Some(kept) = lane.kept.take() {
            lane.to.write_all(&kept)?;
        }
        // A connection that became half open under the write goes on into nothing.
        passed.or_else(|e| match lane.half.load(Ordering::Acquire) {
            true => Ok(()),
            false => Err(e),
        })
    }

    fn take(&self, from: &mut TcpStream, unit: &mut Vec<u8>) -> io::Result<Option<Kind>> {
        if self.frames {
            unit.resize(HEADER_BYTES, 0);
            from.read_exact(unit)?;
            let header = Header::from_wire(unit.first_chunk().unwrap()).unwrap();
            unit.resize(HEADER_BYTES + header.body_len, 0);
            from.read_exact(&mut unit[HEADER_BYTES..])?;
            return Ok(Some(header.kind));
        }
        unit.resize(PIECE, 0);
        let n = from.read(unit)?;
        unit.truncate(n);
        if n == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(None)
    }

    /// Waits for as long as this frame or piece must wait; says what becomes of it.
    fn fate(&self, lane: &mut Lane, kind: Option<Kind>, bytes: usize) -> Option<Spoil> {
        let mut state = self.state.lock().unwrap();
        if let Some(slow) = state.slow {
            drop(state);
            let carried = Duration::from_secs_f64(bytes as f64 / slow.bytes_per_second as f64);
            std::thread::sleep(slow.delay + carried);
            state = self.state.lock().unwrap();
        }
        if let Some(kind) = kind {
            *state.seen.entry(kind).or_default() += 1;
            lane.pinged |= kind == Kind::Ping;
            match (kind, &mut lane.seeding) {
                (Kind::SeedBegin, seeding) => *seeding = Some(0),
                (Kind::EpochBegin, seeding) => *seeding = None,
                (Kind::Data, Some(seeded)) => {
                    *seeded += bytes as u64;
                    state.seeded = state.seeded.max(*seeded);
                }
                _ => {}
            }
            if state.holds(kind, lane) {
                state.held = true;
                self.changed.notify_all();
                state = self
                    .changed
                    .wait_while(state, |s| s.hold.is_some())
                    .unwrap();
            }
        }
        let mut state = self
            .changed
            .wait_while(state, |s| s.stalled[lane.way as usize])
            .unwrap();
        match &mut state.spoil {
            Some((way, wanted, nth, spoil)) if *way == lane.way && kind.is_some() => {
                if *nth > 0 {
                    *nth -= 1;
                } else if wanted.is_none() || *wanted == kind {
                    let spoil = *spoil;
                    state.spoil = None;
                    state.spoiled += 1;
                    return Some(spoil);
                }
                None
            }
            _ => None,
        }
    }
}

impl State {
    fn holds(&self, kind: Kind, lane: &Lane) -> bool {
        self.hold.is_some_and(|(hold, first)| {
            lane.connection >= first
                && match hold {
                    Hold::Epoch => kind == Kind::EpochEnd,
                    Hold::LastEpoch => kind == Kind::EpochEnd && lane.pinged,
                    Hold::Activate => kind == Kind::Activate,
                    Hold::Activated => kind == Kind::Activated,
                }
        })
    }
}
