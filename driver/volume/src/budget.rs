//! The memory that all dirty maps of one volume may hold together.
//!
//! Every page of bits is charged here and credited when its last map drops it, whichever thread that
//! is. Where the budget ends a map does not fail: it forgets which blocks of a region are dirty and
//! remembers the region's areas as suspect, which is safe (more is dirty, never less) and costs the
//! mover a comparison by digest.

use crate::sync::{Arc, AtomicUsize, Ordering};

/// Bytes of dirty map for one region, whatever the number of replicas and retained maps: 32 MiB for
/// a TiB.
const BYTES_PER_REGION: usize = 4096;
/// What even a small volume may use, so that a few maps of it fit without coarsening.
const BYTES_AT_LEAST: usize = 4 << 20;

/// Shared by the maps of one volume.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    /// The budget of a volume of `regions` regions.
    #[must_use]
    pub fn new(regions: u64) -> Arc<Budget> {
        Budget::with_limit((regions as usize * BYTES_PER_REGION).max(BYTES_AT_LEAST))
    }

    /// A budget of `limit` bytes.
    #[must_use]
    pub fn with_limit(limit: usize) -> Arc<Budget> {
        Arc::new(Budget {
            used: AtomicUsize::new(0),
            limit,
        })
    }

    /// Bytes charged now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The most that may be charged.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Charge `bytes` if that leaves `spare` bytes free.
    pub(crate) fn charge(self: &Arc<Budget>, bytes: usize, spare: usize) -> Option<Charge> {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                let after = used.checked_add(bytes)?;
                (after.checked_add(spare)? <= self.limit).then_some(after)
            })
            .ok()?;
        Some(Charge {
            budget: self.clone(),
            bytes,
        })
    }
}

/// A charged amount, credited when dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
