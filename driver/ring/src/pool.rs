//! Aligned buffers, reused, under one cap on the bytes that exist.
//!
//! Buffers come in powers of two from 4 KiB. A buffer that is taken counts against the cap until
//! it is given back; when the cap is reached `take` answers `None` and the request waits: memory
//! does not grow with the load. Idle buffers of other classes are freed before a take is refused.
//!
//! From 2 MiB on they ask for huge pages. A request of more than a quarter of that gets all of it and
//! pays for all of it: in pages of 4 KiB it could be more segments than a disk takes at once.

use block::{AlignedBuf, HUGE_PAGE_BYTES};

const CLASS_MIN_SHIFT: u32 = 12;
const CLASSES: usize = 15; // 4 KiB to 64 MiB
/// Longer requests get whole huge pages.
const SMALL_MAX: usize = HUGE_PAGE_BYTES / 4;

/// A bounded pool of aligned buffers. One thread's own; there is no lock.
pub struct Pool {
    free: [Vec<AlignedBuf>; CLASSES],
    cap: usize,
    taken: usize,
    idle: usize,
}

impl Pool {
    /// A pool that never has more than `cap` bytes in existence.
    #[must_use]
    pub fn new(cap: usize) -> Pool {
        Pool {
            free: std::array::from_fn(|_| Vec::new()),
            cap,
            taken: 0,
            idle: 0,
        }
    }

    fn class(len: usize) -> usize {
        let len = if len > SMALL_MAX {
            len.max(HUGE_PAGE_BYTES)
        } else {
            len
        };
        let shift = len.max(1).next_power_of_two().trailing_zeros();
        (shift.max(CLASS_MIN_SHIFT) - CLASS_MIN_SHIFT) as usize
    }

    fn class_bytes(class: usize) -> usize {
        1 << (class as u32 + CLASS_MIN_SHIFT)
    }

    /// A buffer of `len` bytes with arbitrary content of our own, `None` if that would pass the cap.
    /// A `reserved` take is not refused: its caller bounds it by a reservation of its own.
    #[must_use]
    pub fn take(&mut self, len: usize, reserved: bool) -> Option<AlignedBuf> {
        let class = Pool::class(len);
        let bytes = Pool::class_bytes(class);
        if class >= CLASSES || (!reserved && self.taken + bytes > self.cap) {
            return None;
        }
        self.taken += bytes;
        if let Some(mut buf) = self.free[class].pop() {
            self.idle -= bytes;
            buf.resize(len);
            return Some(buf);
        }
        while self.idle > 0 && self.taken + self.idle > self.cap {
            self.free_one();
        }
        let mut buf = if bytes < HUGE_PAGE_BYTES {
            AlignedBuf::zeroed(bytes)
        } else {
            AlignedBuf::huge(bytes, ask_for_huge_pages)
        };
        buf.resize(len);
        Some(buf)
    }

    /// Give a buffer back. One that did not come from a pool is simply freed.
    pub fn give(&mut self, buf: AlignedBuf) {
        let bytes = buf.capacity();
        let class = Pool::class(bytes);
        if bytes == 0 || class >= CLASSES || bytes != Pool::class_bytes(class) {
            return;
        }
        self.taken = self.taken.saturating_sub(bytes);
        if self.taken + self.idle + bytes <= self.cap {
            self.idle += bytes;
            self.free[class].push(buf);
        }
    }

    /// Bytes that are taken now.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// Free one idle buffer, of the largest class that has one.
    fn free_one(&mut self) {
        for class in (0..CLASSES).rev() {
            if self.free[class].pop().is_some() {
                self.idle -= Pool::class_bytes(class);
                return;
            }
        }
        self.idle = 0;
    }
}

/// Ask the kernel for huge pages behind memory that nobody has touched. It may have none: then it is
/// pages of 4 KiB, as everywhere.
fn ask_for_huge_pages(at: *const u8, bytes: usize) {
    if cfg!(miri) {
        return;
    }
    // SAFETY: the advice changes no content, only what pages it lies in, and the range is one allocation.
    unsafe { libc::madvise(at.cast_mut().cast(), bytes, libc::MADV_HUGEPAGE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_pool_refuses_and_goes_on_when_a_buffer_comes_back() {
        let mut pool = Pool::new(64 << 10);
        let a = pool.take(33 << 10, false).unwrap();
        assert_eq!(pool.taken(), 64 << 10);
        assert!(pool.take(1, false).is_none());
        let more = pool.take(1, true).unwrap();
        pool.give(more);
        pool.give(a);
        assert_eq!(pool.taken(), 0);
        assert_eq!(pool.take(512, false).unwrap().capacity(), 4096);
    }

    #[test]
    fn a_megabyte_is_charged_as_the_huge_page_that_it_gets() {
        let mut pool = Pool::new(5 << 20);
        let a = pool.take(1 << 20, false).unwrap();
        assert_eq!(
            (a.len(), a.capacity(), pool.taken()),
            (1 << 20, 2 << 20, 2 << 20)
        );
        assert_eq!(a.as_ptr() as usize % (2 << 20), 0);
        let b = pool.take((512 << 10) + 4096, false).unwrap();
        assert!(pool.take(1 << 20, false).is_none());
        pool.give(a);
        pool.give(b);
        assert_eq!((pool.taken(), pool.idle), (0, 4 << 20));
    }

    #[test]
    fn idle_buffers_of_one_size_make_way_for_another() {
        let mut pool = Pool::new(64 << 10);
        let small: Vec<_> = (0..16).map(|_| pool.take(4096, false).unwrap()).collect();
        small.into_iter().for_each(|b| pool.give(b));
        assert!(pool.take(64 << 10, false).is_some());
        assert_eq!(pool.idle, 0);
    }

    #[test]
    fn a_buffer_from_elsewhere_does_not_upset_the_count() {
        let mut pool = Pool::new(1 << 20);
        pool.give(AlignedBuf::zeroed(12 << 10));
        pool.give(AlignedBuf::default());
        assert_eq!(pool.taken(), 0);
    }
}
