//! The seams between Forerun's logic and the world. Production puts tokio-uring behind them, the
//! simulator its own disk, network and clock; the code in between is the same.
//!
//! All three are driven by one thread: futures need not be `Send`. An operation owns its buffer
//! until it completes and hands it back, so a cancelled future never frees memory that the kernel
//! still writes to: implementations must keep the buffer alive until the operation's completion.

use crate::buffer::AlignedBuf;
use crate::error::Result;
use crate::time::Nanos;
use std::time::Duration;

/// A file or block device of fixed size that holds an image, a staging area or metadata.
#[allow(async_fn_in_trait)] // one thread drives these futures: no Send bound is wanted
pub trait Disk {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Fill `buf` from `offset`. Short reads are continued inside; reading past the end is an
    /// error. The buffer comes back in every case.
    async fn read(&self, offset: u64, buf: AlignedBuf) -> (Result<()>, AlignedBuf);

    /// Write all of `buf` at `offset`. Durable only after [`Disk::sync`].
    async fn write(&self, offset: u64, buf: AlignedBuf) -> (Result<()>, AlignedBuf);

    /// Make a range read as zeroes, freeing its space where the file can.
    async fn zero(&self, offset: u64, len: u64) -> Result<()>;

    /// fdatasync: every write that completed before the call survives power loss. After an error
    /// nothing is known about any earlier write; the caller must not retry it into a success.
    async fn sync(&self) -> Result<()>;

    /// The next run of data at or after `offset` as `(start, end)`, `None` if only holes follow.
    /// A disk that cannot tell answers `(offset, size)`.
    async fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>>;
}

/// An ordered, reliable, authenticated-or-local byte stream to a peer. Framing is the codec's.
#[allow(async_fn_in_trait)] // as above
pub trait Transport {
    /// Send all of `buf` and hand it back for reuse.
    async fn send(&self, buf: Vec<u8>) -> (Result<()>, Vec<u8>);

    /// Append at least one byte to `buf`, at most up to its spare capacity; an orderly end of the
    /// stream is [`crate::ErrorKind::Disconnected`].
    async fn recv(&self, buf: Vec<u8>) -> (Result<()>, Vec<u8>);

    /// End the connection, also under a receive that was given up: a kernel that still has the buffer
    /// has the connection too. Where dropping ends it there is nothing to do.
    fn end(&self) {}
}

/// Time and waiting.
#[allow(async_fn_in_trait)] // as above
pub trait Clock {
    /// Monotonic now.
    fn now(&self) -> Nanos;

    /// Return after `d`.
    async fn sleep(&self, d: Duration);
}
