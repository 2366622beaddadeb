//! The request header.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::CommandFlags;

/// Bytes of a request header.
pub const REQUEST_BYTES: usize = 28;

const MAGIC: u32 = 0x2560_9513;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Wire {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    len: U32,
}

const _: () = assert!(size_of::<Wire>() == REQUEST_BYTES);

/// The client's name for a request, echoed in its reply and never interpreted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cookie(pub u64);

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Read data.
    Read,
    /// Write the payload that follows the header.
    Write,
    /// End the session: no reply.
    Disconnect,
    /// Make every answered write durable.
    Flush,
    /// The content is no longer needed.
    Trim,
    /// Prefetch.
    Cache,
    /// Write zeroes without sending them.
    WriteZeroes,
    /// Report extents of the negotiated meta contexts.
    BlockStatus,
    /// A number that we do not know.
    Unknown(u16),
}

impl Command {
    /// The command with this number.
    #[must_use]
    pub const fn from_wire(number: u16) -> Command {
        match number {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            5 => Command::Cache,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            n => Command::Unknown(n),
        }
    }

    /// Its number on the wire.
    #[must_use]
    pub const fn wire(self) -> u16 {
        match self {
            Command::Read => 0,
            Command::Write => 1,
            Command::Disconnect => 2,
            Command::Flush => 3,
            Command::Trim => 4,
            Command::Cache => 5,
            Command::WriteZeroes => 6,
            Command::BlockStatus => 7,
            Command::Unknown(n) => n,
        }
    }
}

/// The header does not begin with the request magic: the stream is out of step and cannot be
/// brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMagic(pub u32);

/// A request header as it stands on the wire, unchecked but for its magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Flags.
    pub flags: CommandFlags,
    /// What to do.
    pub command: Command,
    /// The client's name for it.
    pub cookie: Cookie,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

impl RequestHeader {
    /// Read a header.
    #[inline]
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<RequestHeader, BadMagic> {
        let wire: &Wire = zerocopy::transmute_ref!(bytes);
        if wire.magic.get() != MAGIC {
            return Err(BadMagic(wire.magic.get()));
        }
        Ok(RequestHeader {
            flags: CommandFlags(wire.flags.get()),
            command: Command::from_wire(wire.command.get()),
            cookie: Cookie(wire.cookie.get()),
            offset: wire.offset.get(),
            len: wire.len.get(),
        })
    }

    /// The header's bytes.
    #[inline]
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        zerocopy::transmute!(Wire {
            magic: U32::new(MAGIC),
            flags: U16::new(self.flags.0),
            command: U16::new(self.command.wire()),
            cookie: U64::new(self.cookie.0),
            offset: U64::new(self.offset),
            len: U32::new(self.len),
        })
    }
}
