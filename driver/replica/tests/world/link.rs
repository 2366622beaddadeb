//! A duplex link that can be cut or corrupted at any byte.

use super::Dice;
use block::{Error, ErrorKind, Result, Transport};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Bytes that one direction holds: less than a frame, so that both sides feel each other's pace.
const PIPE_BYTES: usize = 100_000;

/// What goes wrong with one direction.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    None,
    /// The link breaks, in both directions, after so many bytes.
    Cut(u64),
    /// A bit of this byte flips.
    Flip(u64),
    /// Nothing arrives after so many bytes, and nobody is told.
    Silent(u64),
}

struct Pipe {
    bytes: RefCell<VecDeque<u8>>,
    passed: Cell<u64>,
    fault: Fault,
    wakers: RefCell<Vec<Waker>>,
}

struct Shared {
    open: Cell<bool>,
    pipes: [Pipe; 2],
    dice: Dice,
}

pub struct End {
    shared: Rc<Shared>,
    out: usize,
}

pub fn pair(dice: &Dice, forth: Fault, back: Fault) -> (End, End) {
    let pipe = |fault| Pipe {
        bytes: RefCell::default(),
        passed: Cell::new(0),
        fault,
        wakers: RefCell::default(),
    };
    let shared = Rc::new(Shared {
        open: Cell::new(true),
        pipes: [pipe(forth), pipe(back)],
        dice: dice.clone(),
    });
    let end = |out| End {
        shared: shared.clone(),
        out,
    };
    (end(0), end(1))
}

impl End {
    /// Bytes sent from this end so far.
    pub fn passed(&self) -> u64 {
        self.shared.pipes[self.out].passed.get()
    }
}

impl Shared {
    fn wake(&self) {
        for pipe in &self.pipes {
            pipe.wakers.borrow_mut().drain(..).for_each(Waker::wake);
        }
    }
    fn close(&self) {
        self.open.set(false);
        self.wake();
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.shared.close();
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Disconnected, "the link was cut")
}

impl Transport for End {
    async fn send(&self, buf: Vec<u8>) -> (Result<()>, Vec<u8>) {
        let pipe = &self.shared.pipes[self.out];
        let mut rest = &buf[..];
        while !rest.is_empty() {
            let ready = poll_fn(|cx| {
                if !self.shared.open.get() {
                    return Poll::Ready(Err(gone()));
                }
                let room = PIPE_BYTES - pipe.bytes.borrow().len();
                if room > 0 {
                    return Poll::Ready(Ok(room));
                }
                self.shared.wake();
                pipe.wakers.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            });
            let room = match ready.await {
                Ok(room) => room.min(rest.len()),
                Err(e) => return (Err(e), buf),
            };
            let before = pipe.passed.get();
            let room = match pipe.fault {
                Fault::Cut(at) if at <= before => {
                    self.shared.close();
                    return (Err(gone()), buf);
                }
                Fault::Silent(at) if at <= before => return (Ok(()), buf),
                Fault::Cut(at) | Fault::Silent(at) => room.min((at - before) as usize),
                _ => room,
            };
            let (now, later) = rest.split_at(room);
            rest = later;
            pipe.passed.set(before + room as u64);
            let mut bytes = pipe.bytes.borrow_mut();
            bytes.extend(now);
            if let Fault::Flip(at) = pipe.fault
                && (before..before + room as u64).contains(&at)
            {
                let back = (before + room as u64 - at) as usize;
                let n = bytes.len();
                bytes[n - back] ^= 0x10;
            }
        }
        self.shared.wake();
        (Ok(()), buf)
    }

    async fn recv(&self, mut buf: Vec<u8>) -> (Result<()>, Vec<u8>) {
        let pipe = &self.shared.pipes[1 - self.out];
        let room = buf.capacity() - buf.len();
        assert!(room > 0, "a receive must have room");
        let result = poll_fn(|cx| {
            let mut bytes = pipe.bytes.borrow_mut();
            if bytes.is_empty() {
                if !self.shared.open.get() {
                    return Poll::Ready(Err(gone()));
                }
                pipe.wakers.borrow_mut().push(cx.waker().clone());
                return Poll::Pending;
            }
            let n = bytes
                .len()
                .min(room)
                .min(1 + self.shared.dice.roll(60_000) as usize);
            buf.extend(bytes.drain(..n));
            Poll::Ready(Ok(()))
        })
        .await;
        self.shared.wake();
        (result, buf)
    }
}
