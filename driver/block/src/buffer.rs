//! Buffers aligned for O_DIRECT, without `unsafe`: a vector of aligned pages seen as bytes.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

const PAGE: usize = 4096;
/// Bytes of a huge page, and the boundary that a buffer from [`AlignedBuf::huge`] begins on.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(2097152))]
struct HugePage([u8; HUGE_PAGE_BYTES]);

#[derive(Clone)]
enum Memory {
    Pages(Vec<Page>),
    Huge(Vec<HugePage>),
}

/// An owned buffer whose address is a multiple of 4096. Its capacity is a whole number of pages,
/// its length any number of bytes up to that.
#[derive(Clone)]
pub struct AlignedBuf {
    memory: Memory,
    len: usize,
}

impl Default for AlignedBuf {
    fn default() -> AlignedBuf {
        AlignedBuf {
            memory: Memory::Pages(Vec::new()),
            len: 0,
        }
    }
}

impl AlignedBuf {
    /// `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> AlignedBuf {
        AlignedBuf {
            memory: Memory::Pages(vec![Page([0; PAGE]); len.div_ceil(PAGE)]),
            len,
        }
    }

    /// `len` zero bytes on a boundary of, and rounded up to, [`HUGE_PAGE_BYTES`]. `advise` is told where
    /// they are before they are touched: that is when the kernel decides about its pages.
    #[must_use]
    pub fn huge(len: usize, advise: impl FnOnce(*const u8, usize)) -> AlignedBuf {
        let count = len.div_ceil(HUGE_PAGE_BYTES);
        let mut pages = Vec::<HugePage>::with_capacity(count);
        advise(pages.as_ptr().cast(), count * HUGE_PAGE_BYTES);
        grow(&mut pages, count);
        AlignedBuf {
            memory: Memory::Huge(pages),
            len,
        }
    }

    /// A copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> AlignedBuf {
        let mut buf = AlignedBuf::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// Bytes that the buffer can be grown to without moving.
    #[must_use]
    pub fn capacity(&self) -> usize {
        match &self.memory {
            Memory::Pages(pages) => pages.len() * PAGE,
            Memory::Huge(pages) => pages.len() * HUGE_PAGE_BYTES,
        }
    }

    /// Change the length. Bytes added keep whatever the buffer held there; a buffer that must grow
    /// past its capacity gets zero pages.
    pub fn resize(&mut self, len: usize) {
        if len > self.capacity() {
            match &mut self.memory {
                Memory::Pages(pages) => grow(pages, len.div_ceil(PAGE)),
                Memory::Huge(pages) => grow(pages, len.div_ceil(HUGE_PAGE_BYTES)),
            }
        }
        self.len = len;
    }

    /// Whether every byte is zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        is_zero(self)
    }
}

/// Grow to `count` pages, the new ones zero. Not by way of a page on the stack, where none of 2 MiB fits.
fn grow<P: FromZeros>(pages: &mut Vec<P>, count: usize) {
    let more = count.saturating_sub(pages.len());
    if P::extend_vec_zeroed(pages, more).is_err() {
        panic!("no memory for a buffer of {count} pages");
    }
}

/// Whether every byte is zero, a word at a time.
fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<32>();
    words.iter().all(|w| w == &[0; 32]) && rest.iter().all(|b| *b == 0)
}

impl std::ops::Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let bytes = match &self.memory {
            Memory::Pages(pages) => pages.as_slice().as_bytes(),
            Memory::Huge(pages) => pages.as_slice().as_bytes(),
        };
        &bytes[..self.len]
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        let bytes = match &mut self.memory {
            Memory::Pages(pages) => pages.as_mut_slice().as_mut_bytes(),
            Memory::Huge(pages) => pages.as_mut_slice().as_mut_bytes(),
        };
        &mut bytes[..self.len]
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_as_long_as_asked() {
        let mut buf = AlignedBuf::zeroed(5000);
        assert_eq!(buf.len(), 5000);
        assert_eq!(buf.as_ptr() as usize % PAGE, 0);
        assert_eq!(buf.capacity(), 8192);
        buf.resize(10);
        assert_eq!(buf.len(), 10);
        assert!(buf.is_zero());
        buf[9] = 1;
        assert!(!buf.is_zero());
    }

    #[test]
    fn huge_buffers_begin_on_a_huge_page_and_end_with_one() {
        let mut advised = None;
        let mut buf = AlignedBuf::huge(1 << 20, |at, bytes| advised = Some((at, bytes)));
        assert_eq!(advised, Some((buf.as_ptr(), HUGE_PAGE_BYTES)));
        assert_eq!(buf.as_ptr() as usize % HUGE_PAGE_BYTES, 0);
        assert_eq!(buf.len(), 1 << 20);
        assert_eq!(buf.capacity(), HUGE_PAGE_BYTES);
        buf[0] = 1;
        let copy = buf.clone();
        buf.resize(HUGE_PAGE_BYTES + 1);
        assert_eq!(buf.capacity(), 2 * HUGE_PAGE_BYTES);
        assert_eq!((buf[0], buf[HUGE_PAGE_BYTES], copy[0]), (1, 0, 1));
    }
}
