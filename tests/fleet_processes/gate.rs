//! The way of the replication, with a gate: it counts what passes, and holds one frame back.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use wire::{HEADER_BYTES, Header, Kind};

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

#[derive(Default)]
struct State {
    hold: Option<(Hold, usize)>,
    held: bool,
    connections: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    sent: AtomicU64,
}

pub struct Gate(Arc<Shared>);

impl Gate {
    /// Listens on the port of `to` at `ip`.
    pub fn open(ip: Ipv4Addr, to: SocketAddr) -> Gate {
        let shared = Arc::new(Shared::default());
        let here = Arc::clone(&shared);
        accept(ip, to, move |source, target| {
            let connection = {
                let mut state = here.state.lock().unwrap();
                state.connections += 1;
                state.connections
            };
            for (from, to, forth) in [(&source, &target, true), (&target, &source, false)] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let shared = Arc::clone(&here);
                std::thread::spawn(move || shared.frames(from, to, connection, forth));
            }
        });
        Gate(shared)
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

    /// Bytes that the source has sent.
    pub fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn frames(&self, mut from: TcpStream, mut to: TcpStream, connection: usize, forth: bool) {
        let mut pinged = false;
        let mut header = [0; HEADER_BYTES];
        let mut body = Vec::new();
        let mut pass = || -> std::io::Result<()> {
            from.read_exact(&mut header)?;
            let frame = Header::from_wire(&header).unwrap();
            body.resize(frame.body_len, 0);
            from.read_exact(&mut body)?;
            pinged |= frame.kind == Kind::Ping;
            self.halt(frame.kind, pinged, connection);
            if forth {
                let bytes = header.len() + body.len();
                self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            to.write_all(&header)?;
            to.write_all(&body)
        };
        while pass().is_ok() {}
        for stream in [from, to] {
            let _ = stream.shutdown(Shutdown::Both); // the other direction may have done it
        }
    }

    fn halt(&self, kind: Kind, pinged: bool, connection: usize) {
        let mut state = self.state.lock().unwrap();
        let Some((hold, first)) = state.hold else {
            return;
        };
        let meant = match hold {
            Hold::Epoch => kind == Kind::EpochEnd,
            Hold::LastEpoch => kind == Kind::EpochEnd && pinged,
            Hold::Activate => kind == Kind::Activate,
            Hold::Activated => kind == Kind::Activated,
        };
        if meant && connection >= first {
            state.held = true;
            self.changed.notify_all();
            let _open = self
                .changed
                .wait_while(state, |s| s.hold.is_some())
                .unwrap();
        }
    }
}

/// A way without a gate.
pub fn pass(ip: Ipv4Addr, to: SocketAddr) {
    accept(ip, to, |one, other| {
        for (from, to) in [(&one, &other), (&other, &one)] {
            let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to); // either way it is over
                for stream in [from, to] {
                    let _ = stream.shutdown(Shutdown::Both);
                }
            });
        }
    });
}

fn accept(ip: Ipv4Addr, to: SocketAddr, each: impl Fn(TcpStream, TcpStream) + Send + 'static) {
    let listener = TcpListener::bind((ip, to.port())).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            // A node that is down refuses; so does the way to it.
            if let Ok(there) = TcpStream::connect(to) {
                for s in [&stream, &there] {
                    s.set_nodelay(true).unwrap();
                }
                each(stream, there);
            }
        }
    });
}
