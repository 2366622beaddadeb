//! A buffer that the ring's operations own while they run, as tokio-uring wants it.

use block::AlignedBuf;
use tokio_uring::buf::{IoBuf, IoBufMut};

/// An aligned buffer on loan to the ring.
pub(super) struct Loan(pub(super) AlignedBuf);

// SAFETY: the bytes of an `AlignedBuf` are on the heap, so their address does not change when the
// value moves; nothing resizes it while it is a `Loan`; and all of them are always initialised.
unsafe impl IoBuf for Loan {
    fn stable_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.0.len()
    }
    fn bytes_total(&self) -> usize {
        self.0.len()
    }
}

// SAFETY: as above; and the pointer comes from a unique borrow of the bytes.
unsafe impl IoBufMut for Loan {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }
    unsafe fn set_init(&mut self, _pos: usize) {
        // Every byte is initialised from the start.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does: it was given a pointer, the loan moves on with its operation, and then the
    /// bytes come.
    #[test]
    fn bytes_that_come_late_are_in_the_buffer_that_comes_back() {
        let mut loan = Loan(AlignedBuf::zeroed(8192));
        let (start, len) = (loan.stable_mut_ptr(), loan.bytes_total());
        let operation = Box::new((7, loan));
        for i in 0..len {
            // SAFETY: inside the buffer, which the operation owns.
            unsafe { *start.add(i) = i as u8 };
        }
        let (_, Loan(buf)) = *operation;
        assert!(buf.iter().enumerate().all(|(i, b)| *b == i as u8));
        let loan = Loan(buf);
        // SAFETY: as above, and nobody writes.
        let sent = unsafe { std::slice::from_raw_parts(loan.stable_ptr(), loan.bytes_init()) };
        assert!(sent == &*loan.0);
    }
}
