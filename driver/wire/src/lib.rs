//! Replication frames: a pure codec.
//!
//! One TCP connection carries one replica's traffic. The source opens it and speaks first.
//!
//! ```text
//!  source                                      receiver
//!    Hello(volume, size, versions)        ──►
//!                                         ◄──  HelloAck(version, what the receiver has)
//!
//!    SeedBegin(seed, from)                ──►                          seeding
//!    Digests ──► ◄── DigestDiff           (only where an old copy may already match)
//!    Data / Zero ...                      ──►  straight into the image
//!    SeedWatermark(offset)                ──►  sync image, store offset
//!                                         ◄──  SeedWatermark(offset)
//!
//!    EpochBegin(base)                     ──►                          increment
//!    Digests ──► ◄── DigestDiff           (suspect areas only)
//!    Data / Zero ...                      ──►  staged
//!    EpochEnd(frames, bytes, digest)      ──►  sync, commit, sync, apply, sync
//!                                         ◄──  EpochAck(epoch)
//!
//!    MirrorWrite / MirrorZero / MirrorFlush ─► staged for the open epoch
//!                                         ◄──  MirrorAck(id, errno)
//!
//!    Activate(next generation)            ──►                          cutover
//!                                         ◄──  Activated
//! ```
//!
//! Every frame is a fixed [`Header`] and a body of bounded length. The header names the session,
//! the sender's generation, the epoch that the frame speaks of and a sequence number that counts
//! the frames of its direction, so that a frame that is lost, doubled, reordered or of another
//! connection is noticed before its content is believed; both parts carry a CRC, whose algorithm
//! travels with them. A [`Decoder`] takes the stream in pieces of any size, holds one frame at most
//! beyond what it was fed, and answers garbage with an error, never with a panic.

mod compress;
mod decode;
mod encode;
mod header;
mod message;
mod spans;

pub use compress::{Compressor, Decompressor};
pub use decode::{Decoder, Frame};
pub use encode::Encoder;
pub use header::{HEADER_BYTES, Header, Kind, OLDEST_VERSION, SessionId, VERSION, negotiate};
pub use message::{
    Digest, DigestAlgorithm, Encoding, FailureKind, Hello, HelloAck, Message, Progress,
    ReplicaState,
};
pub use spans::{SpanList, Spans};

/// Bytes of image content in one frame, at most. Large enough that the cost of a frame vanishes,
/// small enough that a frame in each direction of every replica is no memory to speak of.
pub const MAX_CONTENT: usize = 1 << 20;

/// Spans in one frame, at most: as many 4 KiB blocks as fill [`MAX_CONTENT`].
pub const MAX_SPANS: usize = MAX_CONTENT / block::BLOCK_BYTES as usize;

/// Digests in one frame, at most: one for each block of an area.
pub const MAX_DIGESTS: usize = block::BLOCKS_PER_AREA as usize;

/// Bytes of a frame's body, at most: content, its spans, and room for the fixed part.
pub const MAX_BODY: usize = MAX_CONTENT + MAX_SPANS * 16 + 256;

/// Bytes of a sentence in an error frame, at most.
pub const MAX_SENTENCE: usize = 1024;
