//! What guests do to a volume: totals, and which extents they wrote since somebody asked last.
//!
//! The shard counts, others read. Extents are coarse, so that all of a volume's fit into a few
//! kilobytes whatever its size: they tell what is hot, and nothing that must be right rests on them.

use nbd::session::{Op, Request};
use proto::v1::{IoCounters, WriteTrail};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bits kept for a volume, 8 KiB.
const EXTENTS_MAX: u64 = 1 << 16;
/// Extents are not smaller than this.
const EXTENT_BYTES_MIN: u64 = 1 << 20;
const WORD: u64 = 64;

/// A volume's totals and trail.
#[derive(Debug)]
pub struct Activity {
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    errors: AtomicU64,
    extent_bytes: u64,
    trail: Box<[AtomicU64]>,
}

/// One writer: no read-modify-write needed.
fn add(to: &AtomicU64, n: u64) {
    to.store(
        to.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
}

impl Activity {
    /// Of a volume of this size. What it grows by counts as its last extent.
    #[must_use]
    pub fn new(size: u64) -> Activity {
        let extent_bytes = size
            .div_ceil(EXTENTS_MAX)
            .next_power_of_two()
            .max(EXTENT_BYTES_MIN);
        let words = size.div_ceil(extent_bytes).div_ceil(WORD).max(1);
        Activity {
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            extent_bytes,
            trail: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Count one request. Only the home shard calls this.
    pub(super) fn record(&self, request: &Request, failed: bool) {
        if failed {
            return add(&self.errors, 1);
        }
        let len = u64::from(request.len);
        match request.op {
            Op::Read { .. } => {
                add(&self.reads, 1);
                add(&self.read_bytes, len);
            }
            Op::Write | Op::Zero { .. } | Op::Trim => {
                add(&self.writes, 1);
                if request.op == Op::Write {
                    add(&self.written_bytes, len);
                }
                self.mark(request.offset, len);
            }
            Op::Flush => add(&self.flushes, 1),
            Op::Cache | Op::BlockStatus { .. } => {}
        }
    }

    fn mark(&self, offset: u64, len: u64) {
        let last_bit = self.trail.len() as u64 * WORD - 1;
        let first = (offset / self.extent_bytes).min(last_bit);
        let last = (offset.saturating_add(len.max(1)) - 1) / self.extent_bytes;
        for bit in first..=last.min(last_bit) {
            let word = &self.trail[(bit / WORD) as usize];
            let mask = 1 << (bit % WORD);
            // a hot extent is marked already, and looking costs less than marking
            if word.load(Ordering::Relaxed) & mask == 0 {
                word.fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    /// Totals so far.
    #[must_use]
    pub fn counters(&self) -> IoCounters {
        let read = |a: &AtomicU64| a.load(Ordering::Relaxed);
        IoCounters {
            reads: read(&self.reads),
            writes: read(&self.writes),
            flushes: read(&self.flushes),
            read_bytes: read(&self.read_bytes),
            written_bytes: read(&self.written_bytes),
            errors: read(&self.errors),
            connections: 0,
        }
    }

    /// The extents written since this was called last, as lengths of runs: not written, written, not
    /// written, and so on. `None` if there are none.
    #[must_use]
    pub fn take_trail(&self, volume: &str) -> Option<WriteTrail> {
        let mut runs = Vec::new();
        let (mut run, mut is_written) = (0u32, false);
        for word in &self.trail {
            let bits = word.swap(0, Ordering::Relaxed);
            for i in 0..WORD {
                let now = bits >> i & 1 == 1;
                if now != is_written {
                    runs.push(run);
                    (run, is_written) = (0, now);
                }
                run += 1;
            }
        }
        if is_written {
            runs.push(run);
        }
        (!runs.is_empty()).then(|| WriteTrail {
            volume: volume.to_owned(),
            extent_bytes: self.extent_bytes,
            runs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbd::codec::Cookie;

    fn request(op: Op, offset: u64, len: u32) -> Request {
        Request {
            cookie: Cookie(0),
            op,
            fua: false,
            offset,
            len,
        }
    }

    #[test]
    fn a_trail_says_which_extents_were_written_and_begins_anew() {
        const MIB: u64 = 1 << 20;
        let a = Activity::new(200 * MIB);
        assert_eq!(a.take_trail("v"), None);
        a.record(&request(Op::Write, 3 * MIB, 4096), false);
        a.record(&request(Op::Write, 5 * MIB - 1, 2), false);
        a.record(&request(Op::Read { df: false }, 9 * MIB, 4096), false);
        a.record(&request(Op::Write, 20 * MIB, 1), true);
        a.record(&request(Op::Trim, 300 * MIB, 1), false); // grown since: its last extent
        let trail = a.take_trail("v").unwrap();
        assert_eq!(trail.extent_bytes, MIB);
        assert_eq!(trail.runs, [3, 3, 249, 1]);
        assert_eq!(a.take_trail("v"), None);
        let c = a.counters();
        assert_eq!((c.reads, c.writes, c.errors), (1, 3, 1));
        assert_eq!((c.read_bytes, c.written_bytes), (4096, 4098));
    }

    #[test]
    fn a_large_volume_has_larger_extents_and_not_more() {
        let a = Activity::new(10 << 40);
        assert_eq!(a.extent_bytes, 256 << 20);
        assert!(a.trail.len() as u64 * WORD <= EXTENTS_MAX);
    }
}
