//! The content that verifying clients write: every sector says which volume and place it was
//! written for, and by which write. Read back, it can tell right from stale, torn, misdirected and
//! foreign without a copy of the disk to compare with.
//!
//! ```text
//! magic:8 volume:16 lba:8 sequence:8 filler:468 crc32:4        512 bytes, numbers little-endian
//! ```
//!
//! The filler is pseudo-random in (volume, lba, sequence), so that a sector neither compresses nor
//! equals another, as guest data does not.

use crate::name::VolumeId;
use crate::unit::SECTOR_BYTES;

/// Bytes of a sector, as an array length.
const BYTES: usize = SECTOR_BYTES as usize;
const MAGIC: u64 = u64::from_le_bytes(*b"fore-sec");
const FILLER: usize = 40;
const CRC: usize = BYTES - 4;

/// A sector of a verifying client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The volume it was written to.
    pub volume: VolumeId,
    /// The sector's index in the volume.
    pub lba: u64,
    /// The number of the write; a client counts its writes from 1.
    pub sequence: u64,
}

/// What a sector read back holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing but zeroes.
    Zero,
    /// A whole stamp, of whatever volume and place.
    Stamp(Stamp),
    /// The beginning of a stamp and a checksum that does not match: parts of two writes, or rot.
    Torn,
    /// Nothing that a verifying client wrote.
    Foreign,
}

/// What a read of a sector may return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// The last write that was acknowledged; 0 if none was.
    pub acknowledged: u64,
    /// The last write that was submitted.
    pub submitted: u64,
    /// Zeroes are right: nothing was ever acknowledged, or a zeroing was or may have been last.
    pub zero: bool,
}

/// A sector's content judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As acknowledged, or as submitted later.
    Right,
    /// An older write, or zeroes where there was data: an acknowledged write is lost.
    Stale {
        /// The sequence found; 0 for zeroes.
        found: u64,
    },
    /// A write that the client has not made: another client's, or one from the future.
    Unknown {
        /// The sequence found.
        found: u64,
    },
    /// Written for another place of this volume.
    Misdirected {
        /// The place.
        lba: u64,
    },
    /// Of another volume, or nothing that a verifying client wrote.
    Foreign,
    /// Parts of two writes, or rot.
    Torn,
}

impl Stamp {
    /// Fill a sector.
    pub fn encode(&self, sector: &mut [u8; BYTES]) {
        sector[..8].copy_from_slice(&MAGIC.to_le_bytes());
        sector[8..24].copy_from_slice(&self.volume.0);
        sector[24..32].copy_from_slice(&self.lba.to_le_bytes());
        sector[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        let mut state = mix(mix(self.lba) ^ self.sequence) ^ u64::from(self.volume.0[0]);
        for word in sector[FILLER..CRC].chunks_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            word.copy_from_slice(&mix(state).to_le_bytes()[..word.len()]);
        }
        let crc = crc32fast::hash(&sector[..CRC]);
        sector[CRC..].copy_from_slice(&crc.to_le_bytes());
    }

    /// Fill a buffer of whole sectors, this stamp's `lba` being that of the first.
    pub fn encode_run(&self, bytes: &mut [u8]) {
        let (sectors, rest) = bytes.as_chunks_mut::<BYTES>();
        assert!(rest.is_empty(), "verifying clients write whole sectors");
        for (lba, sector) in (self.lba..).zip(sectors) {
            Stamp { lba, ..*self }.encode(sector);
        }
    }
}

impl Seen {
    /// What a sector holds.
    #[must_use]
    pub fn in_sector(sector: &[u8; BYTES]) -> Seen {
        let word = |at: usize| {
            let mut w = [0; 8];
            w.copy_from_slice(&sector[at..at + 8]);
            u64::from_le_bytes(w)
        };
        if word(0) != MAGIC {
            return if sector.iter().all(|b| *b == 0) {
                Seen::Zero
            } else {
                Seen::Foreign
            };
        }
        if crc32fast::hash(&sector[..CRC]).to_le_bytes() != sector[CRC..] {
            return Seen::Torn;
        }
        let mut volume = VolumeId([0; 16]);
        volume.0.copy_from_slice(&sector[8..24]);
        Seen::Stamp(Stamp {
            volume,
            lba: word(24),
            sequence: word(32),
        })
    }

    /// Whether this is what a read of sector `lba` of `volume` may return.
    #[must_use]
    pub fn judge(self, volume: VolumeId, lba: u64, allowed: Allowed) -> Verdict {
        match self {
            Seen::Zero if allowed.zero => Verdict::Right,
            Seen::Zero => Verdict::Stale { found: 0 },
            Seen::Torn => Verdict::Torn,
            Seen::Foreign => Verdict::Foreign,
            Seen::Stamp(s) if s.volume != volume => Verdict::Foreign,
            Seen::Stamp(s) if s.lba != lba => Verdict::Misdirected { lba: s.lba },
            Seen::Stamp(s) if s.sequence < allowed.acknowledged => {
                Verdict::Stale { found: s.sequence }
            }
            Seen::Stamp(s) if s.sequence > allowed.submitted => {
                Verdict::Unknown { found: s.sequence }
            }
            Seen::Stamp(_) => Verdict::Right,
        }
    }
}

/// A bijection of 64 bits whose output looks random (the finaliser of splitmix64).
const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId([7; 16]);
    const ALLOWED: Allowed = Allowed {
        acknowledged: 5,
        submitted: 7,
        zero: false,
    };

    fn sector(volume: VolumeId, lba: u64, sequence: u64) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let stamp = Stamp {
            volume,
            lba,
            sequence,
        };
        stamp.encode(&mut bytes);
        bytes
    }

    fn judge(bytes: &[u8; BYTES]) -> Verdict {
        Seen::in_sector(bytes).judge(VOLUME, 100, ALLOWED)
    }

    #[test]
    fn what_was_acknowledged_or_came_later_is_right() {
        for sequence in 5..=7 {
            assert_eq!(judge(&sector(VOLUME, 100, sequence)), Verdict::Right);
        }
    }

    #[test]
    fn every_kind_of_wrong_has_its_name() {
        assert_eq!(judge(&sector(VOLUME, 100, 4)), Verdict::Stale { found: 4 });
        assert_eq!(
            judge(&sector(VOLUME, 100, 8)),
            Verdict::Unknown { found: 8 }
        );
        assert_eq!(
            judge(&sector(VOLUME, 101, 5)),
            Verdict::Misdirected { lba: 101 }
        );
        assert_eq!(judge(&sector(VolumeId([8; 16]), 100, 5)), Verdict::Foreign);
        assert_eq!(judge(&[1; BYTES]), Verdict::Foreign);
        assert_eq!(judge(&[0; BYTES]), Verdict::Stale { found: 0 });
        let zero = Allowed {
            zero: true,
            ..ALLOWED
        };
        assert_eq!(Seen::Zero.judge(VOLUME, 100, zero), Verdict::Right);
    }

    #[test]
    fn two_writes_spliced_anywhere_are_torn() {
        let (old, new) = (sector(VOLUME, 100, 5), sector(VOLUME, 100, 6));
        // the sequence's low byte is at 32: before it and after the checksum a splice is one of
        // the two whole
        for cut in 33..BYTES {
            let mut spliced = new;
            spliced[cut..].copy_from_slice(&old[cut..]);
            assert_eq!(judge(&spliced), Verdict::Torn, "cut at {cut}");
        }
    }

    #[test]
    fn a_run_stamps_each_sector_with_its_own_place() {
        let mut bytes = vec![0; 3 * BYTES];
        let stamp = Stamp {
            volume: VOLUME,
            lba: 40,
            sequence: 1,
        };
        stamp.encode_run(&mut bytes);
        for (lba, sector) in (40..).zip(bytes.as_chunks::<BYTES>().0) {
            assert_eq!(Seen::in_sector(sector), Seen::Stamp(Stamp { lba, ..stamp }));
        }
    }
}
