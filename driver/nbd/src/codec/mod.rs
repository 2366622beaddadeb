//! The transmission phase on the wire: request headers, simple replies and structured reply
//! chunks. No allocation; encoders write into the caller's buffer. All numbers are big-endian.
//!
//! ```text
//! request     magic:4 flags:2 command:2 cookie:8 offset:8 length:4            28 bytes
//! simple      magic:4 error:4 cookie:8                                        16 bytes
//! chunk       magic:4 flags:2 type:2 cookie:8 length:4 [payload: length]      20 bytes
//!   data        offset:8 bytes…
//!   hole        offset:8 length:4
//!   status      context:4 (length:4 flags:4)…
//!   error       error:4 message_length:2 message… [offset:8]
//! ```

mod errno;
mod flags;
mod reply;
mod request;

pub use errno::NbdError;
pub use flags::{CommandFlags, TransmissionFlags};
pub use reply::{
    BLOCK_DESCRIPTOR_BYTES, CHUNK_HEADER_BYTES, Chunk, ChunkHeader, ChunkKind, ERROR_MESSAGE_MAX,
    REPLY_HEAD_MAX, Reply, SIMPLE_REPLY_BYTES, SimpleReply, put_descriptor,
};
pub use request::{BadMagic, Command, Cookie, REQUEST_BYTES, RequestHeader};

/// Largest payload of one request or reply that we announce and accept: 32 MiB, what the
/// specification lets every client assume.
pub const PAYLOAD_MAX: u32 = 32 << 20;

#[cfg(test)]
mod tests;
