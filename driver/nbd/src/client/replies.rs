//! A server's bytes in, checked replies out.
//!
//! ```text
//! expect(header)  before it is sent
//! next(input) ─► NeedMore                    receive, go on
//!             ─► Data { cookie, at, len }    its place in the read's buffer …
//!             ─► Bulk { missing }            take_bulk(input, place) or bulk_landed(n)
//!             ─► Zeroes { cookie, at, len }  clear that part of the read's buffer
//!             ─► Extent { … }                one extent of a block status
//!             ─► Done { cookie, result }     nothing more comes for this request
//!             ─► Broken                      close; what is out may or may not have happened
//! ```

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::codec::{
    BLOCK_DESCRIPTOR_BYTES, CHUNK_HEADER_BYTES, Chunk, ChunkHeader, ChunkKind, Command, Cookie,
    NbdError, RequestHeader, SIMPLE_REPLY_BYTES, SimpleReply,
};

/// Requests that may be out at once on one connection. The server takes no more at a time; beyond
/// it they would only wait in the socket.
pub const OUTSTANDING_MAX: usize = crate::session::WINDOW_REQUESTS as usize;

/// Separate pieces of one read that are kept apart. Servers send chunks in order, which makes one
/// piece; one that scatters them by more than this is broken.
const PIECES_MAX: usize = 256;

/// A part of the stream, understood and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// All input is consumed.
    NeedMore,
    /// Data of a read comes next, for bytes `at..at + len` of its buffer.
    Data {
        /// The read.
        cookie: Cookie,
        /// Offset in the read's buffer.
        at: u32,
        /// Bytes.
        len: u32,
    },
    /// Data is due.
    Bulk {
        /// Bytes still to come. At least one.
        missing: u32,
    },
    /// Bytes `at..at + len` of the read's buffer are zero.
    Zeroes {
        /// The read.
        cookie: Cookie,
        /// Offset in the read's buffer.
        at: u32,
        /// Bytes.
        len: u32,
    },
    /// One extent of a block status, after those before it in the same context.
    Extent {
        /// The block status request.
        cookie: Cookie,
        /// The context's id.
        context: u32,
        /// Bytes.
        len: u32,
        /// Flags.
        flags: u32,
    },
    /// The request is over.
    Done {
        /// Which.
        cookie: Cookie,
        /// How it ended.
        result: Result<(), NbdError>,
    },
    /// The server broke the protocol.
    Broken(Breach),
}

/// What a server did that no server may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breach {
    /// Not the magic of a reply.
    Magic(u32),
    /// A structured reply that was not agreed, or a simple one to a read that should be structured.
    Form(Cookie),
    /// A reply to no request that is out.
    NoSuchRequest(Cookie),
    /// A chunk that this request cannot get, or whose parts contradict each other.
    Chunk(Cookie),
    /// Data outside the read, or twice for the same bytes.
    Misplaced(Cookie),
    /// Success without all of the data.
    Incomplete(Cookie),
}

impl std::fmt::Display for Breach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Breach::Magic(m) => write!(f, "a reply begins with {m:#010x}, which is no NBD magic"),
            Breach::Form(c) => write!(f, "the reply to request {} has the wrong form", c.0),
            Breach::NoSuchRequest(c) => write!(f, "a reply to request {}, which is not out", c.0),
            Breach::Chunk(c) => write!(f, "a malformed chunk for request {}", c.0),
            Breach::Misplaced(c) => write!(f, "data out of place for read {}", c.0),
            Breach::Incomplete(c) => write!(f, "read {} ended without all of its data", c.0),
        }
    }
}

/// What is known of a request that is out.
#[derive(Debug)]
struct Out {
    command: Command,
    offset: u64,
    len: u32,
    error: Option<NbdError>,
    /// Parts of a read that have come, as sorted `start..end` that do not touch.
    pieces: Vec<(u32, u32)>,
    /// A block status has described something.
    described: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Start,
    Head(ChunkHeader),
    Bulk {
        missing: u32,
        then: Option<Cookie>,
    },
    Extents {
        cookie: Cookie,
        context: u32,
        left: u32,
        done: bool,
    },
    Broken(Breach),
}

/// The replies of one connection.
#[derive(Debug)]
pub struct Replies {
    structured: bool,
    state: State,
    part: Vec<u8>,
    out: HashMap<Cookie, Out>,
}

impl Replies {
    /// For a connection on which structured replies were agreed or not.
    #[must_use]
    pub fn new(structured: bool) -> Replies {
        Replies {
            structured,
            state: State::Start,
            part: Vec::with_capacity(CHUNK_HEADER_BYTES),
            out: HashMap::with_capacity(OUTSTANDING_MAX),
        }
    }

    /// Take note of a request that is about to be sent. False, and nothing may be sent, if its
    /// cookie is out already or too many are.
    #[must_use]
    pub fn expect(&mut self, header: &RequestHeader) -> bool {
        if self.out.len() >= OUTSTANDING_MAX {
            return false;
        }
        match self.out.entry(header.cookie) {
            Entry::Occupied(_) => false,
            Entry::Vacant(slot) => {
                slot.insert(Out {
                    command: header.command,
                    offset: header.offset,
                    len: header.len,
                    error: None,
                    pieces: Vec::new(),
                    described: false,
                });
                true
            }
        }
    }

    /// Requests that are out.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.out.len()
    }

    /// Consume from the front of `input` up to the next arrival.
    pub fn next(&mut self, input: &mut &[u8]) -> Arrival {
        loop {
            let step = match self.state {
                State::Broken(breach) => return Arrival::Broken(breach),
                State::Bulk { missing: 0, then } => {
                    self.state = State::Start;
                    match then {
                        Some(cookie) => self.finish(cookie).map(Some),
                        None => Ok(None),
                    }
                }
                State::Bulk { missing, .. } => return Arrival::Bulk { missing },
                State::Start => match self.start(input) {
                    Some(step) => step,
                    None => return Arrival::NeedMore,
                },
                State::Head(header) => {
                    let need = header.head_len().unwrap_or(0);
                    if !self.fill(need, input) {
                        return Arrival::NeedMore;
                    }
                    let head = std::mem::take(&mut self.part);
                    let step = self.chunk(&header, &head);
                    self.part = head;
                    self.part.clear();
                    step
                }
                State::Extents {
                    cookie,
                    left: 0,
                    done,
                    ..
                } => {
                    self.state = State::Start;
                    if done {
                        self.finish(cookie).map(Some)
                    } else {
                        Ok(None)
                    }
                }
                State::Extents { .. } => match self.extent(input) {
                    Some(step) => step,
                    None => return Arrival::NeedMore,
                },
            };
            match step {
                Ok(Some(arrival)) => return arrival,
                Ok(None) => {}
                Err(breach) => self.state = State::Broken(breach),
            }
        }
    }

    /// Copy what `input` has of the data that is due to the end of `place`, which is as long as
    /// the [`Arrival::Data`] said. Returns what is still missing.
    pub fn take_bulk(&mut self, input: &mut &[u8], place: &mut [u8]) -> u32 {
        let State::Bulk { missing, .. } = self.state else {
            return 0;
        };
        let n = input.len().min(missing as usize);
        let at = place.len() - missing as usize;
        let (now, later) = input.split_at(n);
        place[at..at + n].copy_from_slice(now);
        *input = later;
        self.bulk_landed(n as u32)
    }

    /// `n` bytes of the data were received into their place by the caller. Returns what is still
    /// missing.
    pub fn bulk_landed(&mut self, n: u32) -> u32 {
        let State::Bulk { missing, then } = self.state else {
            return 0;
        };
        assert!(n <= missing, "more data than was announced");
        let missing = missing - n;
        self.state = State::Bulk { missing, then };
        missing
    }

    /// Move input to `part` until it has `len` bytes.
    fn fill(&mut self, len: usize, input: &mut &[u8]) -> bool {
        let n = len.saturating_sub(self.part.len()).min(input.len());
        let (now, later) = input.split_at(n);
        self.part.extend_from_slice(now);
        *input = later;
        self.part.len() >= len
    }

    /// The beginning of a reply: simple or a chunk. `None` if there is not enough of it.
    fn start(&mut self, input: &mut &[u8]) -> Option<Result<Option<Arrival>, Breach>> {
        if !self.fill(4, input) {
            return None;
        }
        let magic: [u8; 4] = *self.part.first_chunk()?;
        let simple = SimpleReply::begins(magic);
        let len = if simple {
            SIMPLE_REPLY_BYTES
        } else {
            CHUNK_HEADER_BYTES
        };
        // a wrong magic is told at once, not when the rest of a header has come
        if !simple && magic != ChunkHeader::MAGIC {
            return Some(Err(Breach::Magic(u32::from_be_bytes(magic))));
        }
        if !self.fill(len, input) {
            return None;
        }
        let reply = self.part.first_chunk().and_then(SimpleReply::parse);
        let chunk = self.part.first_chunk().and_then(ChunkHeader::parse);
        self.part.clear();
        Some(match (reply, chunk) {
            (Some(reply), _) => self.simple(reply),
            (None, Some(header)) => self.header(header),
            (None, None) => Err(Breach::Magic(u32::from_be_bytes(magic))),
        })
    }

    fn simple(&mut self, reply: SimpleReply) -> Result<Option<Arrival>, Breach> {
        let cookie = reply.cookie;
        let out = self
            .out
            .get_mut(&cookie)
            .ok_or(Breach::NoSuchRequest(cookie))?;
        let data = out.command == Command::Read;
        let status = out.command == Command::BlockStatus && reply.error.is_none();
        if (data && self.structured) || status {
            return Err(Breach::Form(cookie));
        }
        // an error chunk and then a simple success would be no success
        out.error = out.error.or(reply.error);
        if data && reply.error.is_none() && out.len > 0 {
            let len = out.len;
            out.place(0, len).ok_or(Breach::Misplaced(cookie))?;
            self.state = State::Bulk {
                missing: len,
                then: Some(cookie),
            };
            return Ok(Some(Arrival::Data { cookie, at: 0, len }));
        }
        self.finish(cookie).map(Some)
    }

    fn header(&mut self, header: ChunkHeader) -> Result<Option<Arrival>, Breach> {
        let cookie = header.cookie;
        if !self.structured {
            return Err(Breach::Form(cookie));
        }
        let out = self.out.get(&cookie).ok_or(Breach::NoSuchRequest(cookie))?;
        let fits = match header.kind {
            ChunkKind::Data | ChunkKind::Hole => out.command == Command::Read,
            ChunkKind::BlockStatus => out.command == Command::BlockStatus,
            ChunkKind::None => header.done,
            ChunkKind::Error | ChunkKind::ErrorAt | ChunkKind::Unknown(_) => true,
        };
        if !fits || header.head_len().is_none() {
            return Err(Breach::Chunk(cookie));
        }
        self.state = State::Head(header);
        Ok(None)
    }

    fn chunk(&mut self, header: &ChunkHeader, head: &[u8]) -> Result<Option<Arrival>, Breach> {
        let cookie = header.cookie;
        let chunk = Chunk::parse(header, head).ok_or(Breach::Chunk(cookie))?;
        let out = self
            .out
            .get_mut(&cookie)
            .ok_or(Breach::NoSuchRequest(cookie))?;
        self.state = State::Start;
        match chunk {
            Chunk::None => {}
            Chunk::Data { offset, len } => {
                let at = out.locate(offset, len).ok_or(Breach::Misplaced(cookie))?;
                self.state = State::Bulk {
                    missing: len,
                    then: header.done.then_some(cookie),
                };
                return Ok(Some(Arrival::Data { cookie, at, len }));
            }
            Chunk::Hole { offset, len } => {
                let at = out.locate(offset, len).ok_or(Breach::Misplaced(cookie))?;
                // an end of no bytes of data follows, if this was the last chunk
                self.state = State::Bulk {
                    missing: 0,
                    then: header.done.then_some(cookie),
                };
                return Ok(Some(Arrival::Zeroes { cookie, at, len }));
            }
            Chunk::BlockStatus { context, count } => {
                out.described = true;
                self.state = State::Extents {
                    cookie,
                    context,
                    left: count,
                    done: header.done,
                };
                return Ok(None);
            }
            Chunk::Error { error, .. } => {
                out.error.get_or_insert(error);
            }
        }
        if header.done {
            return self.finish(cookie).map(Some);
        }
        Ok(None)
    }

    fn extent(&mut self, input: &mut &[u8]) -> Option<Result<Option<Arrival>, Breach>> {
        let State::Extents {
            cookie,
            context,
            left,
            done,
        } = self.state
        else {
            return Some(Ok(None));
        };
        if !self.fill(BLOCK_DESCRIPTOR_BYTES, input) {
            return None;
        }
        let bytes: [u8; BLOCK_DESCRIPTOR_BYTES] = *self.part.first_chunk()?;
        self.part.clear();
        let word = u64::from_be_bytes(bytes);
        let (len, flags) = ((word >> 32) as u32, word as u32);
        if len == 0 {
            return Some(Err(Breach::Chunk(cookie)));
        }
        let left = left - 1;
        self.state = State::Extents {
            cookie,
            context,
            left,
            done,
        };
        Some(Ok(Some(Arrival::Extent {
            cookie,
            context,
            len,
            flags,
        })))
    }

    /// The last of a request has come: was it all?
    fn finish(&mut self, cookie: Cookie) -> Result<Arrival, Breach> {
        let out = self
            .out
            .remove(&cookie)
            .ok_or(Breach::NoSuchRequest(cookie))?;
        self.state = State::Start;
        let whole = match out.command {
            Command::Read => out.len == 0 || out.pieces == [(0, out.len)],
            Command::BlockStatus => out.described,
            _ => true,
        };
        let result = match out.error {
            Some(error) => Err(error),
            None if whole => Ok(()),
            None => return Err(Breach::Incomplete(cookie)),
        };
        Ok(Arrival::Done { cookie, result })
    }
}

impl Out {
    /// Where in the read's buffer data for `offset` belongs, if that part has not come before.
    fn locate(&mut self, offset: u64, len: u32) -> Option<u32> {
        let at = u32::try_from(offset.checked_sub(self.offset)?).ok()?;
        self.place(at, len)
    }

    fn place(&mut self, at: u32, len: u32) -> Option<u32> {
        let end = at.checked_add(len)?;
        if len == 0 || end > self.len {
            return None;
        }
        let i = self.pieces.partition_point(|p| p.1 <= at);
        if self.pieces.get(i).is_some_and(|p| p.0 < end) {
            return None;
        }
        let joins_left = i > 0 && self.pieces[i - 1].1 == at;
        let joins_right = self.pieces.get(i).is_some_and(|p| p.0 == end);
        match (joins_left, joins_right) {
            (true, true) => {
                self.pieces[i - 1].1 = self.pieces[i].1;
                self.pieces.remove(i);
            }
            (true, false) => self.pieces[i - 1].1 = end,
            (false, true) => self.pieces[i].0 = at,
            (false, false) if self.pieces.len() >= PIECES_MAX => return None,
            (false, false) => self.pieces.insert(i, (at, end)),
        }
        Some(at)
    }
}
