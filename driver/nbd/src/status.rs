//! Block status: extents of a meta context as descriptors on the wire.
//!
//! Whoever knows the extents hands them over as `(length, flags)` in order; they are cut to the
//! request, equal neighbours are merged, and they stop where the reply is full. A client that gets
//! less than it asked for asks again from there.

use crate::codec::{BLOCK_DESCRIPTOR_BYTES, Cookie, REPLY_HEAD_MAX, Reply, put_descriptor};
use crate::session::{Op, Request};

/// `base:allocation`: no space is allocated.
pub const HOLE: u32 = 1;
/// `base:allocation`: reads as zeroes.
pub const ZERO: u32 = 2;
/// `qemu:dirty-bitmap:`: changed since the checkpoint.
pub const DIRTY: u32 = 1;

/// Most descriptors of one chunk: 8 KiB on the wire, and an answer that a shard gives in a moment
/// however fragmented the image is.
pub const DESCRIPTORS_MAX: usize = 1024;

/// Room that [`describe`] needs.
pub const STATUS_BYTES_MAX: usize = REPLY_HEAD_MAX + DESCRIPTORS_MAX * BLOCK_DESCRIPTOR_BYTES;

/// Write the chunk that describes `request` in the context with id `context`; `done` if it is the
/// last. The extents begin at the request's offset; where they end early, flags of zero, which
/// claim nothing, fill the request. Returns the bytes used of `out`, which needs
/// [`STATUS_BYTES_MAX`].
pub fn describe(
    request: &Request,
    context: u32,
    done: bool,
    extents: impl IntoIterator<Item = (u64, u32)>,
    out: &mut [u8],
) -> usize {
    debug_assert!(request.len > 0, "the session refuses a status of nothing");
    let max = match request.op {
        Op::BlockStatus { one: true } => 1,
        _ => DESCRIPTORS_MAX,
    };
    // the head's length is known beforehand, its count is not
    let head = |count, out: &mut [u8]| status_head(request.cookie, context, done, count, out);
    let start = head(0, out);
    let (slots, _) = out[start..].as_chunks_mut::<BLOCK_DESCRIPTOR_BYTES>();
    let mut slots = slots.iter_mut().take(max);
    let mut count = 0;
    let mut left = u64::from(request.len);
    let mut run: Option<(u64, u32)> = None;
    let rest = std::iter::once((u64::MAX, 0));
    for (len, flags) in extents.into_iter().chain(rest) {
        let len = len.min(left);
        left -= len;
        match &mut run {
            _ if len == 0 => {}
            Some(run) if run.1 == flags => run.0 += len,
            Some(run) => {
                let Some(slot) = slots.next() else { break };
                put_descriptor(run.0 as u32, run.1, slot);
                count += 1;
                *run = (len, flags);
                if count as usize == max {
                    break;
                }
            }
            None => run = Some((len, flags)),
        }
        if left == 0 {
            break;
        }
    }
    if let (Some((len, flags)), Some(slot)) = (run, slots.next()) {
        put_descriptor(len as u32, flags, slot);
        count += 1;
    }
    head(count, out);
    start + count as usize * BLOCK_DESCRIPTOR_BYTES
}

fn status_head(cookie: Cookie, context: u32, done: bool, count: u32, out: &mut [u8]) -> usize {
    let reply = Reply::BlockStatus {
        done,
        context,
        count,
    };
    reply.encode(cookie, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{CHUNK_HEADER_BYTES, Chunk, ChunkHeader};
    use proptest::prelude::*;

    fn status(len: u32, one: bool, extents: &[(u64, u32)]) -> Vec<(u32, u32)> {
        let request = Request {
            cookie: Cookie(9),
            op: Op::BlockStatus { one },
            fua: false,
            offset: 4096,
            len,
        };
        let mut out = vec![0; STATUS_BYTES_MAX];
        let n = describe(&request, 3, true, extents.iter().copied(), &mut out);
        let header = ChunkHeader::parse(out.first_chunk().unwrap()).unwrap();
        assert_eq!(CHUNK_HEADER_BYTES + header.len as usize, n);
        let body = &out[CHUNK_HEADER_BYTES..n];
        let Some(Chunk::BlockStatus { context: 3, count }) = Chunk::parse(&header, &body[..4])
        else {
            panic!("{header:?}");
        };
        let word = |b: &[u8]| u32::from_be_bytes(b.try_into().unwrap());
        let all: Vec<_> = body[4..]
            .chunks(8)
            .map(|d| (word(&d[..4]), word(&d[4..])))
            .collect();
        assert_eq!(all.len(), count as usize);
        all
    }

    #[test]
    fn equal_neighbours_merge_and_the_end_is_the_requests() {
        let extents = [(4096, 0), (4096, 0), (8192, 3), (0, 1), (1 << 40, 3)];
        assert_eq!(status(65536, false, &extents), [(8192, 0), (57344, 3)]);
    }

    #[test]
    fn one_extent_is_one_whole_extent() {
        let extents = [(4096, 3), (4096, 3), (4096, 0)];
        assert_eq!(status(65536, true, &extents), [(8192, 3)]);
    }

    #[test]
    fn what_nobody_described_claims_nothing() {
        assert_eq!(status(8192, false, &[]), [(8192, 0)]);
        assert_eq!(status(8192, false, &[(4096, 1)]), [(4096, 1), (4096, 0)]);
    }

    /// A dirty bitmap of every other block of a terabyte is not worth one gigantic reply.
    #[test]
    fn a_fragmented_export_is_described_up_to_the_cap() {
        let all = status(
            u32::MAX,
            false,
            &[(512, 0), (512, 1)].repeat(DESCRIPTORS_MAX),
        );
        assert_eq!(all.len(), DESCRIPTORS_MAX);
        assert_eq!(all[DESCRIPTORS_MAX - 1], (512, 1));
    }

    proptest! {
        #[test]
        fn descriptors_say_of_every_byte_what_the_extents_said(
            extents in proptest::collection::vec((0u64..5000, 0u32..3), 0..50),
            len in 1u32..100_000,
            one: bool,
        ) {
            let flags_at = |list: &[(u64, u32)], byte: u64| {
                let mut at = 0;
                list.iter().find(|(n, _)| { at += n; byte < at }).map_or(0, |e| e.1)
            };
            let got = status(len, one, &extents);
            let wide: Vec<_> = got.iter().map(|(n, f)| (u64::from(*n), *f)).collect();
            let total: u64 = wide.iter().map(|e| e.0).sum();
            prop_assert!(total <= u64::from(len) && !got.is_empty());
            prop_assert!(one || total == u64::from(len));
            prop_assert!(got.iter().all(|d| d.0 > 0));
            prop_assert!(got.windows(2).all(|w| w[0].1 != w[1].1));
            for byte in (0..total).step_by(97) {
                prop_assert_eq!(flags_at(&wide, byte), flags_at(&extents, byte));
            }
        }
    }
}
