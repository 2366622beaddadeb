//! In which order a baseline is copied. The order is a hint: whatever it says, every byte is copied
//! exactly once, because a block that a seeding passed over would differ for ever.

use block::Span;

/// An order of all of a volume's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    spans: Vec<Span>,
}

impl Order {
    /// From one end to the other.
    pub(super) fn linear(from: u64, size: u64) -> Order {
        let left = size.saturating_sub(from);
        Order {
            spans: vec![Span::new(from, left)],
        }
    }

    /// From runs of extents of `extent_bytes`: first extent and number of extents, in turn. What the
    /// runs do not name comes first; what they name again or that is not there is passed over.
    #[must_use]
    pub fn of_runs(size: u64, extent_bytes: u64, runs: &[u32]) -> Order {
        if extent_bytes == 0 {
            return Order::linear(0, size);
        }
        let count = size.div_ceil(extent_bytes);
        // a hint as fine as this is none: it would take more memory than it saves time
        const EXTENTS_MAX: u64 = 1 << 20;
        if count > EXTENTS_MAX {
            return Order::linear(0, size);
        }
        let mut named = vec![false; count as usize];
        let mut hinted = Vec::new();
        for run in runs.chunks_exact(2) {
            let (first, last) = (u64::from(run[0]), u64::from(run[0]) + u64::from(run[1]));
            for extent in first..last.min(count) {
                if !std::mem::replace(&mut named[extent as usize], true) {
                    hinted.push(extent);
                }
            }
        }
        let rest = (0..count).filter(|e| !named[*e as usize]);
        let mut spans: Vec<Span> = Vec::new();
        for extent in rest.chain(hinted) {
            let offset = extent * extent_bytes;
            let len = extent_bytes.min(size - offset);
            match spans.last_mut() {
                Some(last) if last.end() == offset => last.len += len,
                _ => spans.push(Span::new(offset, len)),
            }
        }
        Order { spans }
    }

    /// Whether it is more than one run: a watermark says nothing then.
    pub(super) fn is_scattered(&self) -> bool {
        self.spans.len() > 1
    }

    pub(super) fn into_spans(self) -> std::vec::IntoIter<Span> {
        self.spans.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_named_comes_last_in_its_order() {
        let order = Order::of_runs(1000, 100, &[7, 1, 2, 2]);
        let spans: Vec<_> = order.into_spans().map(|s| (s.offset, s.len)).collect();
        assert_eq!(
            spans,
            [(0, 200), (400, 300), (800, 200), (700, 100), (200, 200)]
        );
        assert!(!Order::of_runs(1000, 100, &[]).is_scattered());
        assert!(!Order::of_runs(1000, 0, &[1, 1]).is_scattered());
    }

    proptest! {
        #[test]
        fn every_byte_is_there_once_whatever_the_hint(
            size in 1u64..5000, extent in 0u64..700, runs in prop::collection::vec(0u32..40, 0..20),
        ) {
            let mut seen = vec![0u8; size as usize];
            for span in Order::of_runs(size, extent, &runs).into_spans() {
                for byte in span.offset..span.end() {
                    seen[byte as usize] += 1;
                }
            }
            prop_assert!(seen.iter().all(|n| *n == 1));
        }
    }
}
