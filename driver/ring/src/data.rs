//! What an operation owns while the kernel works on it.

use block::AlignedBuf;
use std::ops::Range;

/// Bytes of headers one [`Gather`] holds: a whole window of 128 replies, each as long as an error
/// with its longest message.
pub const GATHER_HEAD_BYTES: usize = 32 << 10;
/// Parts of one [`Gather`]; the kernel takes at most 1024 (`UIO_MAXIOV`), and 256 parts of 4 KiB
/// already fill a megabyte of socket buffer.
pub const GATHER_PARTS: usize = 256;

/// The memory of one operation.
#[derive(Debug, Default)]
pub enum Data {
    /// The operation has no memory (fsync, fallocate, shutdown).
    #[default]
    None,
    /// One aligned buffer.
    Buf(AlignedBuf),
    /// Headers and payloads to be sent in one go.
    Gather(Gather),
}

impl Data {
    /// The buffer, if the operation had one.
    #[must_use]
    pub fn into_buf(self) -> Option<AlignedBuf> {
        match self {
            Data::Buf(buf) => Some(buf),
            Data::None | Data::Gather(_) => None,
        }
    }
}

enum Part {
    Head(Range<usize>),
    Payload(AlignedBuf, Range<usize>),
}

/// Bytes for one send: small headers are copied into an arena, payloads are taken by ownership and
/// leave without being copied. Reused from send to send, so a reply allocates nothing.
pub struct Gather {
    inner: Box<Inner>,
}

struct Inner {
    heads: Vec<u8>,
    parts: Vec<Part>,
    bytes: usize,
    // What the kernel reads. Rebuilt for every submission, never looked at by us.
    iovecs: Vec<libc::iovec>,
    message: libc::msghdr,
}

impl Gather {
    /// An empty gather with its arena.
    #[must_use]
    pub fn new() -> Gather {
        Gather {
            inner: Box::new(Inner {
                heads: Vec::with_capacity(GATHER_HEAD_BYTES),
                parts: Vec::with_capacity(GATHER_PARTS),
                bytes: 0,
                iovecs: Vec::with_capacity(GATHER_PARTS),
                // SAFETY: msghdr is a C struct of integers and pointers; all zero means "nothing".
                message: unsafe { std::mem::zeroed() },
            }),
        }
    }

    /// Bytes gathered.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.inner.bytes
    }

    /// Whether nothing is gathered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.bytes == 0
    }

    /// Whether `head` more bytes of headers and one payload still fit.
    #[must_use]
    pub fn has_room(&self, head: usize) -> bool {
        self.inner.heads.len() + head <= GATHER_HEAD_BYTES
            && self.inner.parts.len() + 2 <= GATHER_PARTS
    }

    /// Append a copy of `head`. The caller has asked [`Gather::has_room`].
    pub fn push_head(&mut self, head: &[u8]) {
        let inner = &mut *self.inner;
        let start = inner.heads.len();
        assert!(
            start + head.len() <= GATHER_HEAD_BYTES,
            "gather: the arena is full"
        );
        inner.heads.extend_from_slice(head);
        inner.bytes += head.len();
        if let Some(Part::Head(last)) = inner.parts.last_mut()
            && last.end == start
        {
            last.end += head.len();
            return;
        }
        inner.parts.push(Part::Head(start..start + head.len()));
    }

    /// Append `range` of `buf`, without copying it. The caller has asked [`Gather::has_room`].
    pub fn push_payload(&mut self, buf: AlignedBuf, range: Range<usize>) {
        assert!(range.end <= buf.len(), "gather: range outside the buffer");
        assert!(
            self.inner.parts.len() < GATHER_PARTS,
            "gather: no part left"
        );
        self.inner.bytes += range.len();
        self.inner.parts.push(Part::Payload(buf, range));
    }

    /// Empty it, handing every payload back.
    pub fn clear(&mut self, mut give: impl FnMut(AlignedBuf)) {
        for part in self.inner.parts.drain(..) {
            if let Part::Payload(buf, _) = part {
                give(buf);
            }
        }
        self.inner.heads.clear();
        self.inner.bytes = 0;
    }

    /// The message that sends everything after the first `skip` bytes. The pointers inside stay
    /// valid while this gather is neither changed nor dropped: its memory is boxed.
    pub(crate) fn message(&mut self, skip: usize) -> &mut libc::msghdr {
        let inner = &mut *self.inner;
        inner.iovecs.clear();
        let mut skip = skip;
        for part in &mut inner.parts {
            let bytes: &mut [u8] = match part {
                Part::Head(range) => &mut inner.heads[range.clone()],
                Part::Payload(buf, range) => &mut buf[range.clone()],
            };
            if skip >= bytes.len() {
                skip -= bytes.len();
                continue;
            }
            inner.iovecs.push(libc::iovec {
                iov_base: bytes[skip..].as_mut_ptr().cast(),
                iov_len: bytes.len() - skip,
            });
            skip = 0;
        }
        inner.message.msg_iov = inner.iovecs.as_mut_ptr();
        inner.message.msg_iovlen = inner.iovecs.len();
        &mut inner.message
    }
}

impl Default for Gather {
    fn default() -> Gather {
        Gather::new()
    }
}

impl std::fmt::Debug for Gather {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gather({} bytes)", self.inner.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_follow_each_other_share_a_part_and_a_skip_cuts_the_front() {
        let mut g = Gather::new();
        g.push_head(b"ab");
        g.push_head(b"cd");
        g.push_payload(AlignedBuf::copy_of(b"0123456789"), 2..8);
        g.push_head(b"e");
        assert_eq!(g.bytes(), 11);
        assert_eq!(g.message(0).msg_iovlen, 3);
        assert_eq!(g.message(5).msg_iovlen, 2);
        let mut back = 0;
        g.clear(|buf| back += buf.len());
        assert_eq!((back, g.bytes(), g.is_empty()), (10, 0, true));
    }
}
