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
    // What the kernel reads. Rebuilt for every submission, never looked at by us. One message, in memory
    // of its own: moving a box claims all that is in it, and the kernel's pointer with it.
    iovecs: Vec<libc::iovec>,
    message: Vec<libc::msghdr>,
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
                message: vec![unsafe { std::mem::zeroed() }],
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

    /// The message that sends everything after the first `skip` bytes. It and the pointers inside stay
    /// valid while this gather is neither changed nor dropped, wherever it moves.
    pub(crate) fn message(&mut self, skip: usize) -> *const libc::msghdr {
        let inner = &mut *self.inner;
        inner.iovecs.clear();
        let mut skip = skip;
        // One pointer for all headers: each borrow of the arena would end the pointers before it.
        let heads = inner.heads.as_mut_ptr();
        for part in &mut inner.parts {
            let (start, len) = match part {
                Part::Head(range) => (heads.wrapping_add(range.start), range.len()),
                Part::Payload(buf, range) => (buf[range.clone()].as_mut_ptr(), range.len()),
            };
            if skip >= len {
                skip -= len;
                continue;
            }
            inner.iovecs.push(libc::iovec {
                iov_base: start.wrapping_add(skip).cast(),
                iov_len: len - skip,
            });
            skip = 0;
        }
        let message = &mut inner.message[0];
        message.msg_iov = inner.iovecs.as_mut_ptr();
        message.msg_iovlen = inner.iovecs.len();
        message
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

    fn as_the_kernel_reads(message: *const libc::msghdr) -> Vec<String> {
        // SAFETY: the gather that made the message is alive and was not changed since.
        let parts =
            unsafe { std::slice::from_raw_parts((*message).msg_iov, (*message).msg_iovlen) };
        let bytes = parts.iter().map(|part| {
            // SAFETY: as above; the part leads into the arena or into a payload.
            unsafe { std::slice::from_raw_parts(part.iov_base.cast::<u8>(), part.iov_len) }
        });
        bytes
            .map(|b| String::from_utf8_lossy(b).into_owned())
            .collect()
    }

    /// Miri said of the first version that the kernel reads through pointers that are dead: the message
    /// lay in the gather's box, which moves with its operation, and each header's pointer was ended by
    /// the next borrow of the arena. The compiler may assume that nobody uses such a pointer.
    #[test]
    fn the_kernel_finds_every_byte_wherever_the_operation_moves() {
        let mut g = Gather::new();
        g.push_head(b"head");
        g.push_payload(AlignedBuf::copy_of(b"payload"), 0..7);
        g.push_head(b"tail");
        g.push_payload(AlignedBuf::copy_of(b"more"), 0..4);
        let message = g.message(2);
        let mut slots = Vec::new();
        for data in [Data::None, Data::Gather(g), Data::None] {
            slots.push(Some(data));
        }
        let read = as_the_kernel_reads(message);
        assert_eq!(read, ["ad", "payload", "tail", "more"]);
        drop(slots);
    }

    #[test]
    fn headers_that_follow_each_other_share_a_part_and_a_skip_cuts_the_front() {
        let mut g = Gather::new();
        g.push_head(b"ab");
        g.push_head(b"cd");
        g.push_payload(AlignedBuf::copy_of(b"0123456789"), 2..8);
        g.push_head(b"e");
        assert_eq!(g.bytes(), 11);
        assert_eq!(as_the_kernel_reads(g.message(0)), ["abcd", "234567", "e"]);
        assert_eq!(as_the_kernel_reads(g.message(5)), ["34567", "e"]);
        let mut back = 0;
        g.clear(|buf| back += buf.len());
        assert_eq!((back, g.bytes(), g.is_empty()), (10, 0, true));
    }
}
