//! Replies: what the server puts in front of data, and what a client reads back.
//!
//! [`Reply`] is a whole reply but for the bulk that follows it (the data of a read, the
//! descriptors of a block status), so that the bulk is never copied. [`ChunkHeader`], [`Chunk`] and
//! [`SimpleReply`] are the client's side.

use super::{Cookie, NbdError};

/// Bytes of a simple reply.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of a chunk's header.
pub const CHUNK_HEADER_BYTES: usize = 20;
/// Bytes of one extent of a block status chunk.
pub const BLOCK_DESCRIPTOR_BYTES: usize = 8;
/// Longest error message that we send, and all that we keep of a peer's.
pub const ERROR_MESSAGE_MAX: usize = 128;
/// Room that any [`Reply`] needs.
pub const REPLY_HEAD_MAX: usize = CHUNK_HEADER_BYTES + 4 + 2 + ERROR_MESSAGE_MAX + 8;

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;
const DONE: u16 = 1;

/// The type of a structured reply chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkKind {
    /// No payload: success.
    None,
    /// Data of a read.
    Data,
    /// A run of zeroes of a read.
    Hole,
    /// Extents of one meta context.
    BlockStatus,
    /// The request failed.
    Error,
    /// The request failed at an offset.
    ErrorAt,
    /// A type that we do not know. With the top bit set it is an error all the same.
    Unknown(u16),
}

impl ChunkKind {
    const fn from_wire(n: u16) -> ChunkKind {
        match n {
            0 => ChunkKind::None,
            1 => ChunkKind::Data,
            2 => ChunkKind::Hole,
            5 => ChunkKind::BlockStatus,
            0x8001 => ChunkKind::Error,
            0x8002 => ChunkKind::ErrorAt,
            n => ChunkKind::Unknown(n),
        }
    }

    const fn wire(self) -> u16 {
        match self {
            ChunkKind::None => 0,
            ChunkKind::Data => 1,
            ChunkKind::Hole => 2,
            ChunkKind::BlockStatus => 5,
            ChunkKind::Error => 0x8001,
            ChunkKind::ErrorAt => 0x8002,
            ChunkKind::Unknown(n) => n,
        }
    }
}

/// A reply without its bulk. `done` marks the last chunk of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// Simple: success or an error; the data of a successful read follows.
    Simple {
        /// The error, if any.
        error: Option<NbdError>,
    },
    /// Success with nothing to say: always the last chunk.
    None,
    /// `len` bytes of data follow.
    Data {
        /// Last chunk.
        done: bool,
        /// Where in the export.
        offset: u64,
        /// Bytes that follow.
        len: u32,
    },
    /// A run of zeroes.
    Hole {
        /// Last chunk.
        done: bool,
        /// Where in the export.
        offset: u64,
        /// How long.
        len: u32,
    },
    /// `count` descriptors follow, see [`put_descriptor`].
    BlockStatus {
        /// Last chunk.
        done: bool,
        /// The id given to the context in negotiation.
        context: u32,
        /// Descriptors that follow. At least one.
        count: u32,
    },
    /// The request failed.
    Error {
        /// Last chunk.
        done: bool,
        /// Why.
        error: NbdError,
        /// For a person; clipped to [`ERROR_MESSAGE_MAX`] bytes.
        message: &'a str,
    },
    /// The request failed at `offset`.
    ErrorAt {
        /// Last chunk.
        done: bool,
        /// Why.
        error: NbdError,
        /// For a person; clipped.
        message: &'a str,
        /// The first byte that failed.
        offset: u64,
    },
}

impl Reply<'_> {
    /// Write the reply to `out` and say how many bytes that took. `out` must have room, which
    /// [`REPLY_HEAD_MAX`] always is.
    #[inline]
    pub fn encode(&self, cookie: Cookie, out: &mut [u8]) -> usize {
        let mut w = Writer { out, at: 0 };
        match *self {
            Reply::Simple { error } => {
                w.u32(SIMPLE_MAGIC);
                w.u32(error.map_or(0, NbdError::wire));
                w.u64(cookie.0);
            }
            Reply::None => w.chunk(cookie, true, ChunkKind::None, 0),
            Reply::Data { done, offset, len } => {
                w.chunk(cookie, done, ChunkKind::Data, 8 + len);
                w.u64(offset);
            }
            Reply::Hole { done, offset, len } => {
                w.chunk(cookie, done, ChunkKind::Hole, 12);
                w.u64(offset);
                w.u32(len);
            }
            Reply::BlockStatus {
                done,
                context,
                count,
            } => {
                let bytes = 4 + count * BLOCK_DESCRIPTOR_BYTES as u32;
                w.chunk(cookie, done, ChunkKind::BlockStatus, bytes);
                w.u32(context);
            }
            Reply::Error {
                done,
                error,
                message,
            } => {
                let message = clip(message);
                w.chunk(cookie, done, ChunkKind::Error, 6 + message.len() as u32);
                w.error(error, message);
            }
            Reply::ErrorAt {
                done,
                error,
                message,
                offset,
            } => {
                let message = clip(message);
                w.chunk(cookie, done, ChunkKind::ErrorAt, 14 + message.len() as u32);
                w.error(error, message);
                w.u64(offset);
            }
        }
        w.at
    }
}

/// Write one extent of a block status chunk: `len` bytes of the export have `flags`.
#[inline]
pub fn put_descriptor(len: u32, flags: u32, out: &mut [u8; BLOCK_DESCRIPTOR_BYTES]) {
    out[..4].copy_from_slice(&len.to_be_bytes());
    out[4..].copy_from_slice(&flags.to_be_bytes());
}

fn clip(message: &str) -> &str {
    &message[..message.floor_char_boundary(ERROR_MESSAGE_MAX)]
}

struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
    fn u16(&mut self, v: u16) {
        self.bytes(&v.to_be_bytes());
    }
    fn u32(&mut self, v: u32) {
        self.bytes(&v.to_be_bytes());
    }
    fn u64(&mut self, v: u64) {
        self.bytes(&v.to_be_bytes());
    }
    fn chunk(&mut self, cookie: Cookie, done: bool, kind: ChunkKind, len: u32) {
        self.u32(CHUNK_MAGIC);
        self.u16(if done { DONE } else { 0 });
        self.u16(kind.wire());
        self.u64(cookie.0);
        self.u32(len);
    }
    fn error(&mut self, error: NbdError, message: &str) {
        self.u32(error.wire());
        self.u16(message.len() as u16);
        self.bytes(message.as_bytes());
    }
}

/// A simple reply as a client reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// Which request.
    pub cookie: Cookie,
    /// The error, if any.
    pub error: Option<NbdError>,
}

impl SimpleReply {
    /// Read a simple reply; `None` if the magic is another's.
    #[inline]
    #[must_use]
    pub fn parse(b: &[u8; SIMPLE_REPLY_BYTES]) -> Option<SimpleReply> {
        (be32(b, 0)? == SIMPLE_MAGIC).then_some(SimpleReply {
            error: NbdError::from_wire(be32(b, 4)?),
            cookie: Cookie(be64(b, 8)?),
        })
    }

    /// Whether a reply that begins with these bytes is a simple one.
    #[must_use]
    pub fn begins(b: [u8; 4]) -> bool {
        u32::from_be_bytes(b) == SIMPLE_MAGIC
    }
}

/// The header of a structured reply chunk as a client reads it. Its payload is not yet believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Last chunk of the request.
    pub done: bool,
    /// What the payload is.
    pub kind: ChunkKind,
    /// Which request.
    pub cookie: Cookie,
    /// Bytes of payload.
    pub len: u32,
}

impl ChunkHeader {
    /// What every chunk begins with.
    pub const MAGIC: [u8; 4] = CHUNK_MAGIC.to_be_bytes();

    /// Read a chunk header; `None` if the magic is another's.
    #[inline]
    #[must_use]
    pub fn parse(b: &[u8; CHUNK_HEADER_BYTES]) -> Option<ChunkHeader> {
        (be32(b, 0)? == CHUNK_MAGIC).then_some(ChunkHeader {
            done: be16(b, 4)? & DONE != 0,
            kind: ChunkKind::from_wire(be16(b, 6)?),
            cookie: Cookie(be64(b, 8)?),
            len: be32(b, 16)?,
        })
    }

    /// Bytes of the payload that [`Chunk::parse`] must see: all of it but for the bulk.
    /// `None` if no valid chunk of this kind is so long.
    #[must_use]
    pub fn head_len(&self) -> Option<usize> {
        let len = self.len as usize;
        match self.kind {
            ChunkKind::None => (len == 0).then_some(0),
            ChunkKind::Data => (len > 8).then_some(8),
            ChunkKind::Hole => (len == 12).then_some(12),
            ChunkKind::BlockStatus => {
                (len >= 12 && (len - 4).is_multiple_of(BLOCK_DESCRIPTOR_BYTES)).then_some(4)
            }
            // an unknown error chunk also begins with number and message, by the specification
            ChunkKind::Error | ChunkKind::ErrorAt | ChunkKind::Unknown(_) => {
                (self.kind.is_error() && (6..=6 + 8 + 4096).contains(&len)).then_some(len)
            }
        }
    }
}

impl ChunkKind {
    /// Whether the chunk reports a failure, known or not.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.wire() & 0x8000 != 0
    }
}

/// A chunk's payload but for the bulk, checked against its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Success.
    None,
    /// `len` bytes of data at `offset` follow.
    Data {
        /// Where in the export.
        offset: u64,
        /// Bytes that follow.
        len: u32,
    },
    /// Zeroes.
    Hole {
        /// Where in the export.
        offset: u64,
        /// How long.
        len: u32,
    },
    /// Descriptors follow.
    BlockStatus {
        /// The context's id.
        context: u32,
        /// How many descriptors follow.
        count: u32,
    },
    /// The request failed.
    Error {
        /// Why.
        error: NbdError,
        /// The byte that failed, if the server said.
        offset: Option<u64>,
    },
}

impl Chunk {
    /// Read the first [`ChunkHeader::head_len`] bytes of a payload; `None` if they contradict the
    /// header. An error chunk that carries the number zero counts as EINVAL: it is no success.
    #[inline]
    #[must_use]
    pub fn parse(header: &ChunkHeader, head: &[u8]) -> Option<Chunk> {
        if header.head_len()? != head.len() {
            return None;
        }
        Some(match header.kind {
            ChunkKind::None => Chunk::None,
            ChunkKind::Data => Chunk::Data {
                offset: be64(head, 0)?,
                len: header.len - 8,
            },
            ChunkKind::Hole => Chunk::Hole {
                offset: be64(head, 0)?,
                len: be32(head, 8)?,
            },
            ChunkKind::BlockStatus => Chunk::BlockStatus {
                context: be32(head, 0)?,
                count: (header.len - 4) / BLOCK_DESCRIPTOR_BYTES as u32,
            },
            ChunkKind::Error | ChunkKind::ErrorAt | ChunkKind::Unknown(_) => {
                let message = be16(head, 4)? as usize;
                let offset = match header.kind {
                    ChunkKind::ErrorAt => Some(be64(head, 6 + message)?),
                    _ => None,
                };
                if 6 + message > head.len() {
                    return None;
                }
                Chunk::Error {
                    error: NbdError::from_wire(be32(head, 0)?).unwrap_or(NbdError::Inval),
                    offset,
                }
            }
        })
    }
}

fn be16(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*b.get(at..)?.first_chunk()?))
}
fn be32(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*b.get(at..)?.first_chunk()?))
}
fn be64(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*b.get(at..)?.first_chunk()?))
}
