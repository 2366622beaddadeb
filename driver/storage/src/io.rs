//! One request to an image, with its memory, from the first system call to the last.

use block::{AlignedBuf, Span};
use std::ops::Range;

/// What to do to the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Fill the buffer.
    Read,
    /// Write the buffer.
    Write,
    /// Make the span read as zeroes.
    Zero {
        /// Keep the space allocated.
        no_hole: bool,
        /// Fail with ENOTSUP, before anything is touched, where it would be a slow write.
        fast: bool,
    },
    /// Make the span read as zeroes and give its space back.
    Trim,
    /// Read ahead into the page cache.
    Cache,
}

/// Where an [`Io`] stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Idle,
    /// Reading the unit that holds the first byte of an unaligned write.
    Head,
    /// Reading the unit that holds the last byte.
    Tail,
    /// The transfer itself.
    Body,
    /// fallocate, or read-ahead.
    Range,
}

/// A piece of a zeroing: by fallocate or by writing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) span: Span,
    pub(crate) write: bool,
}

/// One request in the hands of an [`crate::Image`].
#[derive(Debug)]
pub struct Io {
    pub(crate) work: Work,
    /// What the guest asked for, or the piece of it being written now.
    pub(crate) span: Span,
    /// The span rounded out to the image's unit: what the buffer covers.
    pub(crate) wide: Span,
    pub(crate) buf: Option<AlignedBuf>,
    pub(crate) stage: Stage,
    /// Bytes of the buffer that are transferred.
    pub(crate) moved: usize,
    pub(crate) has_company: bool,
    /// A worker copies it from the page cache.
    pub(crate) is_copied: bool,
    /// Pieces of a zeroing still to do, last first; at most head, body, tail.
    pub(crate) pieces: [Option<Piece>; 3],
    pub(crate) punched: bool,
}

impl Default for Io {
    fn default() -> Io {
        Io {
            work: Work::Cache,
            span: Span::default(),
            wide: Span::default(),
            buf: None,
            stage: Stage::Idle,
            moved: 0,
            has_company: false,
            is_copied: false,
            pieces: [None; 3],
            punched: false,
        }
    }
}

impl Io {
    /// The caller has other work than this request: a long copy is better made by another thread.
    pub fn set_company(&mut self) {
        self.has_company = true;
    }

    /// Where the guest's bytes lie in the buffer.
    #[must_use]
    pub fn payload(&self) -> Range<usize> {
        let from = (self.span.offset - self.wide.offset) as usize;
        from..from + self.span.len as usize
    }

    /// Bytes that the buffer of a read or write must have.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.wide.len as usize
    }

    /// The buffer, once the request is done (or not yet begun).
    pub fn take_buffer(&mut self) -> Option<AlignedBuf> {
        self.buf.take()
    }

    /// Give the request its buffer, as long as its wide span.
    pub fn set_buffer(&mut self, buf: AlignedBuf) {
        assert_eq!(buf.len() as u64, self.wide.len, "a buffer of the wide span");
        self.buf = Some(buf);
    }

    /// The buffer, while it is ours.
    pub fn buffer_mut(&mut self) -> Option<&mut AlignedBuf> {
        self.buf.as_mut()
    }
}
