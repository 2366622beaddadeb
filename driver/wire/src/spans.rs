//! Lists of byte ranges inside a frame.

use block::{Error, ErrorKind, Result, Span};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSpan {
    offset: U64,
    len: U64,
}

/// Bytes of one span as it travels.
pub(crate) const SPAN_BYTES: usize = size_of::<RawSpan>();

/// The spans of a received frame, checked: not empty, each of at least one byte, ascending and
/// disjoint, none past the end of the address space.
#[derive(Clone, Copy)]
pub struct Spans<'a>(&'a [RawSpan]);

impl<'a> Spans<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Spans<'a>> {
        let bad = |what| {
            Err(Error::new(
                ErrorKind::Protocol,
                format!("span list: {what}"),
            ))
        };
        let Ok(raw) = <[RawSpan]>::ref_from_bytes(bytes) else {
            return bad("cut short");
        };
        if raw.is_empty() || raw.len() > crate::MAX_SPANS {
            return bad("empty or too long");
        }
        let mut end = 0;
        for s in raw {
            let (offset, len) = (s.offset.get(), s.len.get());
            match offset.checked_add(len) {
                Some(e) if len > 0 && offset >= end => end = e,
                _ => return bad("not ascending and disjoint"),
            }
        }
        Ok(Spans(raw))
    }

    /// The spans in order.
    pub fn iter(self) -> impl Iterator<Item = Span> + 'a {
        self.0
            .iter()
            .map(|s| Span::new(s.offset.get(), s.len.get()))
    }

    /// Number of spans, at least one.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(self) -> usize {
        self.0.len()
    }

    /// Bytes of all spans together.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.iter().map(|s| s.len).sum()
    }

    /// Whether every span lies inside a volume of `size` bytes.
    #[must_use]
    pub fn fit(self, size: u64) -> bool {
        self.iter().all(|s| s.fits(size))
    }
}

impl std::fmt::Debug for Spans<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for Spans<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes() == other.0.as_bytes()
    }
}

/// Spans on their way into a frame; neighbours are joined as they are pushed.
#[derive(Default)]
pub struct SpanList(Vec<RawSpan>);

impl SpanList {
    /// Append a span that begins at or after the end of the last one.
    ///
    /// # Panics
    /// If it does not, or if it is empty: the list would be refused by every receiver.
    pub fn push(&mut self, span: Span) {
        assert!(span.len > 0, "empty span {span}");
        if let Some(last) = self.0.last_mut() {
            let end = last.offset.get() + last.len.get();
            assert!(span.offset >= end, "span {span} begins before {end}");
            if span.offset == end {
                last.len += span.len;
                return;
            }
        }
        self.0.push(RawSpan {
            offset: U64::new(span.offset),
            len: U64::new(span.len),
        });
    }

    /// Number of spans.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was pushed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forget all spans and keep the memory.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The list as a frame holds it.
    #[must_use]
    pub fn as_spans(&self) -> Spans<'_> {
        Spans(&self.0)
    }

    pub(crate) fn bytes_of<'a>(spans: &Spans<'a>) -> &'a [u8] {
        spans.0.as_bytes()
    }
}
