//! Aligned buffers, reused, under one cap on the bytes that exist.
//!
//! Buffers come in powers of two from 4 KiB. A buffer that is taken counts against the cap until
//! it is given back; when the cap is reached `take` answers `None` and the request waits: memory
//! does not grow with the load. Idle buffers of other classes are freed before a take is refused.

use block::AlignedBuf;

const CLASS_MIN_SHIFT: u32 = 12;
const CLASSES: usize = 15; // 4 KiB to 64 MiB

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
        let mut buf = AlignedBuf::zeroed(bytes);
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
