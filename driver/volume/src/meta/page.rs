//! One 4 KiB page of metadata in one of its two slots.
//!
//! ```text
//!   8 sectors of 512 bytes, each: payload 496 | sequence 8 | magic 4 | crc32 4
//! ```
//!
//! A disk tears pages between sectors, never within one; so each sector carries its own checksum
//! (over the volume's UUID, the page's number, the sector's, and all before it). A slot whose
//! sectors are all good but of different sequences was torn by a power cut in a write that nobody was
//! told about, and its sibling holds what counts. A sector that fails its checksum has rotted, and
//! then nobody knows which of the two slots was the newer.

use crate::request::META_PAGE_BYTES;
use block::VolumeId;

const SECTORS: usize = 8;
const SECTOR: usize = META_PAGE_BYTES / SECTORS;
const SECTOR_PAYLOAD: usize = 496;
/// Bytes of payload in a page.
pub(crate) const PAYLOAD: usize = SECTORS * SECTOR_PAYLOAD;
/// "FRv1": changes with the format.
const MAGIC: u32 = 0x4652_7631;

/// What a slot holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    Good {
        seq: u64,
        payload: Vec<u8>,
    },
    /// A write that did not finish; the highest sequence in it.
    Torn {
        seq: u64,
    },
    /// Not readable; the highest sequence in the sectors that are.
    Rotten {
        seq: u64,
    },
}

impl Slot {
    /// The highest sequence seen. A later write must use a higher one: if it were torn over sectors of
    /// its own sequence, the mixture would look whole.
    pub(crate) fn seq(&self) -> u64 {
        match self {
            Slot::Good { seq, .. } | Slot::Torn { seq } | Slot::Rotten { seq } => *seq,
        }
    }
}

/// Make a page. `payload` may be shorter than [`PAYLOAD`].
pub(crate) fn encode(
    id: VolumeId,
    page: u32,
    seq: u64,
    payload: &[u8],
) -> Box<[u8; META_PAGE_BYTES]> {
    assert!(payload.len() <= PAYLOAD, "the payload fits a page");
    let mut bytes = Box::new([0; META_PAGE_BYTES]);
    let mut chunks = payload.chunks(SECTOR_PAYLOAD);
    for (i, sector) in bytes.chunks_mut(SECTOR).enumerate() {
        if let Some(chunk) = chunks.next() {
            sector[..chunk.len()].copy_from_slice(chunk);
        }
        sector[496..504].copy_from_slice(&seq.to_le_bytes());
        sector[504..508].copy_from_slice(&MAGIC.to_le_bytes());
        let crc = checksum(id, page, i, &sector[..508]);
        sector[508..].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

/// Read a slot.
pub(crate) fn decode(id: VolumeId, page: u32, bytes: &[u8]) -> Slot {
    let mut payload = Vec::with_capacity(PAYLOAD);
    let (mut lowest, mut highest) = (u64::MAX, 0);
    let mut sectors = 0;
    for (i, sector) in bytes.chunks_exact(SECTOR).take(SECTORS).enumerate() {
        let crc = checksum(id, page, i, &sector[..508]);
        if sector[508..] != crc.to_le_bytes() || sector[504..508] != MAGIC.to_le_bytes() {
            continue;
        }
        let mut seq = [0; 8];
        seq.copy_from_slice(&sector[496..504]);
        let seq = u64::from_le_bytes(seq);
        (lowest, highest) = (lowest.min(seq), highest.max(seq));
        payload.extend_from_slice(&sector[..SECTOR_PAYLOAD]);
        sectors += 1;
    }
    match sectors {
        SECTORS if lowest == highest => Slot::Good {
            seq: highest,
            payload,
        },
        SECTORS => Slot::Torn { seq: highest },
        _ => Slot::Rotten { seq: highest },
    }
}

fn checksum(id: VolumeId, page: u32, sector: usize, bytes: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&id.0);
    crc.update(&page.to_le_bytes());
    crc.update(&[sector as u8]);
    crc.update(bytes);
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: VolumeId = VolumeId([7; 16]);

    proptest! {
        #[test]
        fn a_page_reads_back_and_any_damage_is_seen(
            payload in prop::collection::vec(any::<u8>(), 0..=PAYLOAD),
            seq in 1u64..u64::MAX,
            flip in 0..META_PAGE_BYTES * 8,
        ) {
            let mut bytes = encode(ID, 3, seq, &payload);
            let Slot::Good { seq: got, payload: read } = decode(ID, 3, &*bytes) else {
                return Err(TestCaseError::fail("a whole page must read back"));
            };
            prop_assert_eq!(got, seq);
            prop_assert_eq!(&read[..payload.len()], &payload[..]);
            let unreadable = Slot::Rotten { seq: 0 };
            prop_assert_eq!(decode(ID, 2, &*bytes), unreadable, "another page's content");
            let other = decode(VolumeId([8; 16]), 3, &*bytes);
            prop_assert_eq!(other, Slot::Rotten { seq: 0 }, "another volume's");
            bytes[flip / 8] ^= 1 << (flip % 8);
            prop_assert_eq!(decode(ID, 3, &*bytes), Slot::Rotten { seq });
        }

        #[test]
        fn a_torn_page_is_told_from_a_rotten_one(sectors in 1u8..255) {
            let old = encode(ID, 1, 4, b"old");
            let mut bytes = encode(ID, 1, 6, b"new");
            for i in (0..SECTORS).filter(|i| sectors & (1 << i) != 0) {
                let range = i * SECTOR..(i + 1) * SECTOR;
                bytes[range.clone()].copy_from_slice(&old[range]);
            }
            prop_assert_eq!(decode(ID, 1, &*bytes), Slot::Torn { seq: 6 });
        }
    }

    #[test]
    fn a_page_never_written_is_not_a_page() {
        let empty = Slot::Rotten { seq: 0 };
        assert_eq!(decode(ID, 0, &[0; META_PAGE_BYTES]), empty);
        assert_eq!(decode(ID, 0, &[]), empty);
    }
}
