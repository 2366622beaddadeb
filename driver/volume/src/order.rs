//! Order of writes that overlap.
//!
//! Two overlapping writes in flight have no order on the disk, and another order on each replica: in
//! silence the copies diverge. So a write waits until every earlier write that it overlaps has
//! completed. Each waiting write counts those it waits for; as only earlier ones count, nobody
//! overtakes and nobody waits in a circle.
//!
//! A write that is not aligned to the image's unit of direct I/O is done by reading the unit,
//! changing it and writing it back. Its range is widened to whole units, so that it is ordered with
//! everything else that touches them.

use crate::request::RequestId;
use block::Span;

/// Spans are counted in chunks of 64 KiB to tell quickly that nothing overlaps.
const CHUNK_SHIFT: u32 = 16;
/// Chunk counters, a power of two: with 64 writes in flight one in sixteen new writes looks closer.
const CHUNKS: usize = 1024;
/// A longer span is not counted by chunk; while one is in flight every new write looks closer.
const CHUNKS_COUNTED_MAX: u64 = 32;

#[derive(Clone, Copy, Debug)]
struct Entry {
    range: Span,
    seq: u64,
    id: RequestId,
}

#[derive(Debug)]
pub(crate) struct Order {
    align: u64,
    seq: u64,
    /// Every write between `enter` and `leave`, in no order.
    entries: Vec<Entry>,
    /// Where in `entries` a request is.
    at: Vec<u32>,
    /// How many earlier writes a request waits for.
    blockers: Vec<u32>,
    /// Requests that wait, in order of arrival.
    waiting: Vec<RequestId>,
    chunks: Vec<u16>,
    long: u32,
}

impl Order {
    /// For at most `requests` writes at a time on an image with this alignment, a power of two.
    pub(crate) fn new(requests: u32, align: u64) -> Order {
        assert!(align.is_power_of_two());
        let n = requests as usize;
        Order {
            align,
            seq: 0,
            entries: Vec::with_capacity(n),
            at: vec![0; n],
            blockers: vec![0; n],
            waiting: Vec::with_capacity(n),
            chunks: vec![0; CHUNKS],
            long: 0,
        }
    }

    /// Admit a write; true if it may go at once.
    pub(crate) fn enter(&mut self, id: RequestId, span: Span) -> bool {
        let range = self.widen(span);
        let blockers = if self.is_alone(range) {
            0
        } else {
            let overlaps = |e: &&Entry| e.range.overlaps(range);
            self.entries.iter().filter(overlaps).count() as u32
        };
        self.count(range, 1);
        self.at[id.index()] = self.entries.len() as u32;
        self.blockers[id.index()] = blockers;
        self.seq += 1;
        self.entries.push(Entry {
            range,
            seq: self.seq,
            id,
        });
        if blockers > 0 {
            self.waiting.push(id);
        }
        blockers == 0
    }

    /// A write has completed. Writes that may go now are added to `free` in order.
    pub(crate) fn leave(&mut self, id: RequestId, free: &mut Vec<RequestId>) {
        let at = self.at[id.index()] as usize;
        let gone = self.entries.swap_remove(at);
        assert_eq!(gone.id, id, "a write leaves once, after it entered");
        assert_eq!(self.blockers[id.index()], 0, "a waiting write cannot leave");
        if let Some(moved) = self.entries.get(at) {
            self.at[moved.id.index()] = at as u32;
        }
        self.count(gone.range, -1);
        if self.waiting.is_empty() {
            return;
        }
        let (entries, at, blockers) = (&self.entries, &self.at, &mut self.blockers);
        self.waiting.retain(|w| {
            let entry = entries[at[w.index()] as usize];
            if entry.seq < gone.seq || !entry.range.overlaps(gone.range) {
                return true;
            }
            let left = &mut blockers[w.index()];
            *left -= 1;
            if *left == 0 {
                free.push(*w);
            }
            *left > 0
        });
    }

    /// Every write between `enter` and `leave`.
    pub(crate) fn iter(&self) -> impl Iterator<Item = RequestId> + '_ {
        self.entries.iter().map(|e| e.id)
    }

    fn widen(&self, span: Span) -> Span {
        if span.is_aligned(self.align) {
            return span;
        }
        let offset = span.offset & !(self.align - 1);
        Span::new(offset, span.end().next_multiple_of(self.align) - offset)
    }

    fn chunks_of(range: Span) -> std::ops::RangeInclusive<u64> {
        range.offset >> CHUNK_SHIFT..=(range.end() - 1) >> CHUNK_SHIFT
    }

    fn is_alone(&self, range: Span) -> bool {
        let chunks = Order::chunks_of(range);
        self.entries.is_empty()
            || self.long == 0
                && chunks.end() - chunks.start() < CHUNKS_COUNTED_MAX
                && chunks
                    .into_iter()
                    .all(|c| self.chunks[c as usize % CHUNKS] == 0)
    }

    fn count(&mut self, range: Span, by: i16) {
        let chunks = Order::chunks_of(range);
        if chunks.end() - chunks.start() >= CHUNKS_COUNTED_MAX {
            self.long = self.long.wrapping_add_signed(i32::from(by));
            return;
        }
        for c in chunks {
            let n = &mut self.chunks[c as usize % CHUNKS];
            *n = n.wrapping_add_signed(by);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sub_block_writes_of_one_unit_are_ordered_in_direct_mode() {
        let mut order = Order::new(4, 4096);
        let mut free = Vec::new();
        assert!(order.enter(RequestId(0), Span::new(0, 512)));
        assert!(!order.enter(RequestId(1), Span::new(512, 512)));
        assert!(!order.enter(RequestId(2), Span::new(0, 4096)));
        assert!(order.enter(RequestId(3), Span::new(4096, 4096)));
        order.leave(RequestId(0), &mut free);
        assert_eq!(free, [RequestId(1)]);
        order.leave(RequestId(1), &mut free);
        assert_eq!(free, [RequestId(1), RequestId(2)]);
    }

    #[test]
    fn aligned_neighbours_do_not_wait_for_each_other() {
        let mut order = Order::new(2, 512);
        assert!(order.enter(RequestId(0), Span::new(0, 512)));
        assert!(order.enter(RequestId(1), Span::new(512, 512)));
    }

    proptest! {
        /// Against the plainest model: a write may go when no earlier one overlaps it.
        #[test]
        fn writes_go_in_order_where_they_overlap_and_at_once_where_not(
            steps in prop::collection::vec((any::<bool>(), 0u64..300, 1u64..40, 0usize..8), 1..200),
            coarse in any::<bool>(),
        ) {
            let scale = if coarse { 100_000 } else { 512 };
            let mut order = Order::new(16, 512);
            let mut model: Vec<(RequestId, Span, bool)> = Vec::new(); // in order; true: going
            let mut slots: Vec<u32> = (0..16).collect();
            for (enter, offset, len, pick) in steps {
                let mut free = Vec::new();
                if enter && !slots.is_empty() {
                    let id = RequestId(slots.remove(0));
                    let span = Span::new(offset * scale / 512 * 512, len * scale / 512 * 512);
                    let goes = model.iter().all(|(_, s, _)| !s.overlaps(span));
                    prop_assert_eq!(order.enter(id, span), goes);
                    model.push((id, span, goes));
                } else {
                    let going: Vec<_> = model.iter().filter(|m| m.2).map(|m| m.0).collect();
                    let Some(id) = going.get(pick % going.len().max(1)).copied() else { continue };
                    order.leave(id, &mut free);
                    slots.push(id.0);
                    model.retain(|m| m.0 != id);
                }
                let mut expect = Vec::new();
                for i in 0..model.len() {
                    let (earlier, rest) = model.split_at_mut(i);
                    let (id, span, going) = &mut rest[0];
                    if !*going && earlier.iter().all(|(_, s, _)| !s.overlaps(*span)) {
                        *going = true;
                        expect.push(*id);
                    }
                }
                if !enter || !expect.is_empty() {
                    prop_assert_eq!(free, expect);
                }
            }
        }
    }
}
