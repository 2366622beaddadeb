//! The transmission phase as a server sees it: received bytes in, checked requests out.
//!
//! [`Session`] owns no buffer and does no I/O. The caller receives into a buffer of its own and
//! feeds it; many requests may lie in one buffer, and one may be cut anywhere. A write's payload
//! goes where the caller says, so the larger part of a large one can be received straight into the
//! aligned buffer that is written to disk:
//!
//! ```text
//! next(input) ─► NeedMore          receive, go on
//!             ─► Full              too much in flight: finish something, go on
//!             ─► Request(read …)   submit it
//!             ─► Request(write)    take a buffer of request.len
//!             ─► Payload{missing}  take_payload(input, buffer), or receive into
//!                                  buffer[len - missing..] and payload_landed(n); submit at 0
//!             ─► Answer            send its reply: it is refused, or there is nothing to do
//!             ─► Disconnect        finish what is in flight, close
//!             ─► Broken            the stream is lost: close
//! ```
//!
//! Every request and every answer holds a place in the connection's window until its reply has
//! been sent and [`Session::release`] called. That bounds what a client that never reads its
//! replies can make us hold.

mod check;
mod reply;

use crate::codec::{
    BadMagic, Command, CommandFlags, Cookie, NbdError, REQUEST_BYTES, RequestHeader,
};
use crate::export::{MetaContext, Negotiated};

/// Requests in flight on one connection: the depth of nbd.ko's queue, the deepest of the common
/// clients (QEMU has 16, libnbd's tools 64). More wait in the socket.
pub const WINDOW_REQUESTS: u32 = 128;

/// Payload bytes in flight on one connection: two of the largest requests, so that one is received
/// while the other is on its way to disk. A request always gets in when nothing else is in flight.
pub const WINDOW_BYTES: u64 = 64 << 20;

/// Longest payload of a refused write that we read and throw away. Past it the client is not
/// mistaken but hostile or lost, and the connection is closed.
pub const SKIP_MAX: u32 = 64 << 20;

/// What a checked request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Read data; `df`: answer in one chunk.
    Read {
        /// Do not fragment.
        df: bool,
    },
    /// Write the payload.
    Write,
    /// Make every answered write durable.
    Flush,
    /// Forget the content: reads as zeroes afterwards, here and on every replica.
    Trim,
    /// Prefetch.
    Cache,
    /// Write zeroes.
    Zero {
        /// Keep the space allocated.
        no_hole: bool,
        /// Fail with ENOTSUP, before anything is changed, if this is not faster than writing.
        fast: bool,
    },
    /// Describe extents.
    BlockStatus {
        /// One extent only.
        one: bool,
    },
}

/// A checked request: it lies inside the export, and what it asks for was agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// The client's name for it.
    pub cookie: Cookie,
    /// What to do.
    pub op: Op,
    /// Answer when durable. Never set on a request that writes nothing.
    pub fua: bool,
    /// First byte.
    pub offset: u64,
    /// Bytes. Zero for a flush and for nothing else; above the payload maximum only for requests
    /// without one.
    pub len: u32,
}

impl Request {
    /// The same request for another server, under a cookie of ours.
    #[must_use]
    pub fn header(&self, cookie: Cookie) -> RequestHeader {
        use CommandFlags as F;
        let when = |on, flag| if on { flag } else { F::NONE };
        let (command, flags) = match self.op {
            Op::Read { df } => (Command::Read, when(df, F::DF)),
            Op::Write => (Command::Write, F::NONE),
            Op::Flush => (Command::Flush, F::NONE),
            Op::Trim => (Command::Trim, F::NONE),
            Op::Cache => (Command::Cache, F::NONE),
            Op::Zero { no_hole, fast } => (
                Command::WriteZeroes,
                when(no_hole, F::NO_HOLE) | when(fast, F::FAST_ZERO),
            ),
            Op::BlockStatus { one } => (Command::BlockStatus, when(one, F::REQ_ONE)),
        };
        RequestHeader {
            flags: flags | when(self.fua, F::FUA),
            command,
            cookie,
            offset: self.offset,
            len: self.len,
        }
    }

    /// What to give back to [`Session::release`] once the reply has been sent.
    #[must_use]
    pub const fn charge(&self) -> Charge {
        match self.op {
            Op::Read { .. } | Op::Write => Charge(self.len),
            _ => Charge(0),
        }
    }
}

/// A place in the window: one request and its payload bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge(u32);

/// A request that the session answers itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The client's name for it.
    pub cookie: Cookie,
    /// What it was: a read is answered in another form than a write.
    pub command: Command,
    /// The refusal; `None` for a request of no bytes, which succeeds by doing nothing.
    pub error: Option<NbdError>,
    /// Why, for a person.
    pub why: &'static str,
}

impl Answer {
    /// What to give back to [`Session::release`] once the reply has been sent.
    pub const CHARGE: Charge = Charge(0);
}

/// Why a connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breach {
    /// The stream is out of step: this is not a request.
    Magic(u32),
    /// A refused write claims a payload too long to throw away.
    PayloadTooLong(u32),
}

impl std::fmt::Display for Breach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Breach::Magic(m) => write!(f, "request begins with {m:#010x}, which is no NBD magic"),
            Breach::PayloadTooLong(n) => {
                write!(f, "a write claims {n} bytes, more than {SKIP_MAX}")
            }
        }
    }
}

/// What the session wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// All input is consumed.
    NeedMore,
    /// The window is full: nothing is consumed until a release.
    Full,
    /// Do this. A write's payload comes next.
    Request(Request),
    /// Send this answer.
    Answer(Answer),
    /// Payload of the last request is due.
    Payload {
        /// Bytes still to come. At least one.
        missing: u32,
    },
    /// The client said goodbye: finish what is in flight, then close.
    Disconnect,
    /// The client broke the protocol: close.
    Broken(Breach),
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Collecting a header of which `have` bytes lie in the stash.
    Header { have: usize },
    /// A header that waits for room in the window.
    Held(RequestHeader),
    /// The caller must place these many bytes more.
    Payload { missing: u32 },
    /// Throwing away the payload of a refused write; libnbd dies of a reply that overtakes it.
    Skip { left: u32, answer: Answer },
    /// Nothing more is read.
    Ended(Step),
}

/// Server state of one connection in the transmission phase.
#[derive(Debug)]
pub struct Session {
    rules: check::Rules,
    contexts: Vec<MetaContext>,
    state: State,
    stash: [u8; REQUEST_BYTES],
    requests: u32,
    bytes: u64,
}

impl Session {
    /// A session on what was agreed.
    #[must_use]
    pub fn new(agreed: &Negotiated) -> Session {
        Session {
            rules: check::Rules::new(agreed),
            contexts: agreed.contexts.clone(),
            state: State::Header { have: 0 },
            stash: [0; REQUEST_BYTES],
            requests: 0,
            bytes: 0,
        }
    }

    /// The contexts that a block status must describe, in the order of their ids.
    #[must_use]
    pub fn contexts(&self) -> &[MetaContext] {
        &self.contexts
    }

    /// Requests and answers whose replies have not been released.
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        self.requests
    }

    /// Consume from the front of `input` up to the next event.
    #[inline]
    pub fn next(&mut self, input: &mut &[u8]) -> Step {
        let header = match self.state {
            State::Header { have } => match self.collect(have, input) {
                None => return Step::NeedMore,
                Some(Ok(header)) => header,
                Some(Err(BadMagic(magic))) => {
                    return self.end(Step::Broken(Breach::Magic(magic)));
                }
            },
            State::Held(header) => header,
            State::Payload { missing } => return Step::Payload { missing },
            State::Skip { left, answer } => return self.skip(left, answer, input),
            State::Ended(step) => return step,
        };
        self.judge(header, input)
    }

    /// Copy what `input` has of the payload to its place in `buffer`, which is as long as the
    /// request. Returns what is still missing: at zero the request is complete.
    pub fn take_payload(&mut self, input: &mut &[u8], buffer: &mut [u8]) -> u32 {
        let State::Payload { missing } = self.state else {
            return 0;
        };
        let n = input.len().min(missing as usize);
        let at = buffer.len() - missing as usize;
        let (now, later) = input.split_at(n);
        buffer[at..at + n].copy_from_slice(now);
        *input = later;
        self.payload_landed(n as u32)
    }

    /// `n` bytes of the payload were received into their place by the caller. Returns what is
    /// still missing.
    pub fn payload_landed(&mut self, n: u32) -> u32 {
        let State::Payload { missing } = self.state else {
            debug_assert_eq!(n, 0, "no payload was due");
            return 0;
        };
        assert!(n <= missing, "more payload than the request has");
        self.state = match missing - n {
            0 => State::Header { have: 0 },
            missing => State::Payload { missing },
        };
        missing - n
    }

    /// The reply has been sent, or the connection is gone: its place in the window is free.
    pub fn release(&mut self, charge: Charge) {
        assert!(self.requests > 0, "released more than was in flight");
        self.requests -= 1;
        self.bytes -= u64::from(charge.0);
    }

    /// A whole header from the stash and the front of `input`, once there is one.
    #[inline]
    fn collect(
        &mut self,
        have: usize,
        input: &mut &[u8],
    ) -> Option<Result<RequestHeader, BadMagic>> {
        if have == 0
            && let Some((header, rest)) = input.split_first_chunk::<REQUEST_BYTES>()
        {
            *input = rest;
            return Some(RequestHeader::parse(header));
        }
        let n = input.len().min(REQUEST_BYTES - have);
        let (now, later) = input.split_at(n);
        self.stash[have..have + n].copy_from_slice(now);
        *input = later;
        if have + n < REQUEST_BYTES {
            self.state = State::Header { have: have + n };
            return None;
        }
        self.state = State::Header { have: 0 };
        Some(RequestHeader::parse(&self.stash))
    }

    #[inline]
    fn judge(&mut self, header: RequestHeader, input: &mut &[u8]) -> Step {
        let verdict = self.rules.check(&header);
        let charge = verdict.as_ref().map_or(Charge(0), Request::charge);
        if self.requests >= WINDOW_REQUESTS
            || (self.requests > 0 && self.bytes + u64::from(charge.0) > WINDOW_BYTES)
        {
            self.state = State::Held(header);
            return Step::Full;
        }
        self.state = State::Header { have: 0 };
        match verdict {
            Ok(request) => {
                self.requests += 1;
                self.bytes += u64::from(charge.0);
                if request.op == Op::Write {
                    self.state = State::Payload {
                        missing: request.len,
                    };
                }
                Step::Request(request)
            }
            Err(check::Refusal::Goodbye) => self.end(Step::Disconnect),
            Err(check::Refusal::Answer(answer)) => {
                if header.command != Command::Write || header.len == 0 {
                    self.requests += 1;
                    return Step::Answer(answer);
                }
                if header.len > SKIP_MAX {
                    return self.end(Step::Broken(Breach::PayloadTooLong(header.len)));
                }
                self.skip(header.len, answer, input)
            }
        }
    }

    fn skip(&mut self, left: u32, answer: Answer, input: &mut &[u8]) -> Step {
        let n = input.len().min(left as usize);
        *input = &input[n..];
        let left = left - n as u32;
        if left > 0 {
            self.state = State::Skip { left, answer };
            return Step::NeedMore;
        }
        self.state = State::Header { have: 0 };
        self.requests += 1;
        Step::Answer(answer)
    }

    fn end(&mut self, step: Step) -> Step {
        self.state = State::Ended(step);
        step
    }
}

#[cfg(test)]
mod tests;
