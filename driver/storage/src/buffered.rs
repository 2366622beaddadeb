//! What the shard copies to and from the page cache itself, and what kernel workers copy for it.
//!
//! ext4 has no asynchronous buffered write: io_uring hands each one to a kernel worker, which
//! costs several times the copy itself. A write into the page cache does not sleep in the normal
//! case, so the shard does it itself, as long as it is safe to expect that:
//!
//! - the write covers whole pages, so nothing must be read first;
//! - little is dirty machine-wide, so the kernel will not throttle writers;
//! - no worker holds the inode's lock for a write or a fallocate of ours;
//! - the last such write was quick. One that was not sends everything to the workers for a while.
//!
//! A read that the page cache has is copied by the shard too. While a long one is, nothing else of the
//! shard goes on; so when others wait on the same connection a worker copies it, and the shard sends
//! meanwhile.

use block::Nanos;
use std::time::Duration;

/// Longest write that is copied by the shard, and longest read with others beside it: some 30 µs.
const INLINE_MAX: u64 = 256 << 10;
/// Reads of an image that workers copy at a time: one while the shard sends, and one that is ready when it
/// has sent. More would only take the processor from the clients.
const COPIED_MAX: u32 = 2;
/// A copy that took longer has slept; normal is a few microseconds.
const SLOW: Duration = Duration::from_millis(2);
/// How long everything goes to worker threads after a slow one.
const PENANCE: Duration = Duration::from_secs(1);
/// How old the knowledge about dirty pages may be, in time and in bytes of our own. Throttling
/// begins halfway between the background threshold and the hard one; on a machine with 1 GiB to
/// spare that is 50 MiB above what counts as calm here.
const FRESH: Duration = Duration::from_millis(50);
const FRESH_BYTES: u64 = 16 << 20;

/// Decides, write by write, whether the shard may copy.
#[derive(Debug, Default)]
pub(crate) struct Inline {
    looked: Option<Nanos>,
    written: u64,
    calm: bool,
    penance_until: Nanos,
    /// Operations that may hold the inode's lock.
    pub(crate) workers: u32,
    /// Reads that workers copy.
    copied: u32,
}

impl Inline {
    pub(crate) fn allows(&mut self, now: Nanos, offset: u64, len: u64) -> bool {
        if self.workers > 0
            || len > INLINE_MAX
            || (offset | len) & 4095 != 0
            || now < self.penance_until
        {
            return false;
        }
        self.written += len;
        if self.written > FRESH_BYTES || self.looked.is_none_or(|at| now.since(at) >= FRESH) {
            self.looked = Some(now);
            self.written = 0;
            self.calm = std::fs::read_to_string("/proc/vmstat").is_ok_and(|s| is_calm(&s));
        }
        self.calm
    }

    /// Whether a worker is to copy a read that the page cache probably has. If so, [`Inline::copied`] follows.
    pub(crate) fn leaves(&mut self, len: u64, has_company: bool) -> bool {
        let leaves = has_company && len > INLINE_MAX && self.copied < COPIED_MAX;
        self.copied += u32::from(leaves);
        leaves
    }

    pub(crate) fn copied(&mut self) {
        self.copied -= 1;
    }

    pub(crate) fn took(&mut self, now: Nanos, duration: Duration) {
        if duration > SLOW {
            self.penance_until = now + duration + PENANCE;
        }
    }
}

/// Whether fewer pages are dirty than what starts background writeback.
fn is_calm(vmstat: &str) -> bool {
    let field = |name: &str| {
        vmstat.lines().find_map(|line| {
            let (key, value) = line.split_once(' ')?;
            (key == name).then(|| value.parse::<u64>().ok())?
        })
    };
    match (
        field("nr_dirty"),
        field("nr_writeback"),
        field("nr_dirty_background_threshold"),
    ) {
        (Some(dirty), Some(writeback), Some(background)) => dirty + writeback < background,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calm_is_below_the_threshold_and_unknown_is_not_calm() {
        let s = "nr_dirty 10\nnr_writeback 5\nnr_dirty_background_threshold 100\n";
        assert!(is_calm(s));
        assert!(!is_calm(&s.replace("nr_dirty 10", "nr_dirty 96")));
        assert!(!is_calm("nr_dirty 1\n"));
    }

    #[test]
    fn two_long_reads_that_are_not_alone_are_copied_by_workers() {
        let mut inline = Inline::default();
        assert!(
            !inline.leaves(1 << 20, false),
            "nothing else would go on meanwhile"
        );
        assert!(
            !inline.leaves(INLINE_MAX, true),
            "a short copy is made at once"
        );
        assert!(inline.leaves(1 << 20, true) && inline.leaves(1 << 20, true));
        assert!(!inline.leaves(1 << 20, true), "two are enough");
        inline.copied();
        assert!(inline.leaves(1 << 20, true));
    }

    #[test]
    fn a_slow_write_sends_the_next_second_to_the_workers() {
        let mut inline = Inline {
            looked: Some(Nanos(0)),
            calm: true,
            ..Inline::default()
        };
        let now = Nanos(1_000_000);
        assert!(inline.allows(now, 4096, 4096));
        assert!(
            !inline.allows(now, 512, 4096),
            "part of a page must be read first"
        );
        inline.took(now, Duration::from_millis(3));
        assert!(!inline.allows(now, 4096, 4096));
        inline.looked = Some(Nanos(2_000_000_000));
        assert!(inline.allows(Nanos(2_000_000_000), 4096, 4096));
        inline.workers = 1;
        assert!(!inline.allows(Nanos(2_000_000_000), 4096, 4096));
    }
}
