//! Buffers aligned for O_DIRECT, without `unsafe`: a vector of page-aligned pages seen as bytes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const PAGE: usize = 4096;

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// An owned buffer whose address is a multiple of 4096. Its capacity is a whole number of pages,
/// its length any number of bytes up to that.
#[derive(Clone, Default)]
pub struct AlignedBuf {
    pages: Vec<Page>,
    len: usize,
}

impl AlignedBuf {
    /// `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> AlignedBuf {
        AlignedBuf {
            pages: vec![Page([0; PAGE]); len.div_ceil(PAGE)],
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
        self.pages.len() * PAGE
    }

    /// Change the length. Bytes added keep whatever the buffer held there; a buffer that must grow
    /// past its capacity gets zero pages.
    pub fn resize(&mut self, len: usize) {
        if len > self.capacity() {
            self.pages.resize(len.div_ceil(PAGE), Page([0; PAGE]));
        }
        self.len = len;
    }

    /// Whether every byte is zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        is_zero(self)
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
        &self.pages.as_slice().as_bytes()[..self.len]
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_slice().as_mut_bytes()[..self.len]
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
}
