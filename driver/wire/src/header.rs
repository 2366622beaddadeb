//! The fixed part of every frame.

use block::{Epoch, Error, ErrorKind, Generation, Result};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The version that this build prefers to speak.
pub const VERSION: u8 = 1;
/// The oldest version that this build still speaks: the one before [`VERSION`], so that two nodes
/// can be upgraded one after the other. Version 0 was never released.
pub const OLDEST_VERSION: u8 = 1;

const MAGIC: u32 = u32::from_le_bytes(*b"FRr\x01");
/// The checksum algorithm of both CRCs: CRC-32 as in IEEE 802.3.
const CHECKSUM_CRC32: u8 = 1;

/// Bytes of a header.
pub const HEADER_BYTES: usize = size_of::<Raw>();

/// Names one connection between a source and a receiver; drawn by the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct SessionId(pub u64);

/// The version both sides speak, given the peer's range; an error if the ranges do not meet.
pub fn negotiate(oldest: u8, newest: u8) -> Result<u8> {
    let version = newest.min(VERSION);
    if oldest > newest || version < oldest || version < OLDEST_VERSION {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the peer speaks replication versions {oldest} to {newest}, this node \
                 {OLDEST_VERSION} to {VERSION}: upgrade the older node first"
            ),
        ));
    }
    Ok(version)
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $value:literal),* $(,)?) => {
        /// What a frame says.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind { $($(#[$doc])* $name = $value),* }

        impl Kind {
            fn from_wire(value: u8) -> Option<Kind> {
                match value { $($value => Some(Kind::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    /// The source introduces itself.
    Hello = 1,
    /// The receiver says what it has.
    HelloAck = 2,
    /// Seeding begins or resumes.
    SeedBegin = 3,
    /// Content.
    Data = 4,
    /// Ranges that read as zeroes.
    Zero = 5,
    /// Digests of the source's content.
    Digests = 6,
    /// Which of them differ at the receiver.
    DigestDiff = 7,
    /// Everything before an offset was sent, or is durable.
    SeedWatermark = 8,
    /// An epoch's content follows.
    EpochBegin = 9,
    /// That was all of the epoch.
    EpochEnd = 10,
    /// The epoch is durable and applied.
    EpochAck = 11,
    /// A guest's write, as it happens.
    MirrorWrite = 12,
    /// A guest's trim or zero write.
    MirrorZero = 13,
    /// A guest's flush.
    MirrorFlush = 14,
    /// The answer to one of the three.
    MirrorAck = 15,
    /// Take the volume.
    Activate = 16,
    /// The volume is taken, durably.
    Activated = 17,
    /// How far the receiver is.
    Progress = 18,
    /// Are you there?
    Ping = 19,
    /// Yes.
    Pong = 20,
    /// The connection ends because of this.
    Error = 21,
}

/// A frame's header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version that the frame is written in.
    pub version: u8,
    /// What the body is.
    pub kind: Kind,
    /// The connection.
    pub session: SessionId,
    /// The generation that the sender of the frame has seen.
    pub generation: Generation,
    /// The epoch that the frame speaks of.
    pub epoch: Epoch,
    /// Position among the frames of this direction, from zero.
    pub sequence: u64,
    /// Bytes of the body.
    pub body_len: usize,
    /// CRC of the body; an epoch's digest is made of these.
    pub body_crc: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: U32,
    version: u8,
    kind: u8,
    checksum: u8,
    reserved: u8,
    session: U64,
    generation: U64,
    epoch: U64,
    sequence: U64,
    body_len: U32,
    body_crc: U32,
    header_crc: U32,
}

/// The header's CRC covers everything before it.
const CRC_AT: usize = HEADER_BYTES - 4;

impl Header {
    /// The header as it travels.
    #[must_use]
    pub fn to_wire(&self) -> [u8; HEADER_BYTES] {
        let mut raw = Raw {
            magic: U32::new(MAGIC),
            version: self.version,
            kind: self.kind as u8,
            checksum: CHECKSUM_CRC32,
            reserved: 0,
            session: U64::new(self.session.0),
            generation: U64::new(self.generation.0),
            epoch: U64::new(self.epoch.0),
            sequence: U64::new(self.sequence),
            body_len: U32::new(u32::try_from(self.body_len).unwrap_or(u32::MAX)),
            body_crc: U32::new(self.body_crc),
            header_crc: U32::new(0),
        };
        raw.header_crc = U32::new(crc32fast::hash(&raw.as_bytes()[..CRC_AT]));
        zerocopy::transmute!(raw)
    }

    /// Check and read a header.
    pub fn from_wire(bytes: &[u8; HEADER_BYTES]) -> Result<Header> {
        let bad = |kind, what: String| Err(Error::new(kind, format!("replication frame: {what}")));
        let raw: &Raw = zerocopy::transmute_ref!(bytes);
        if raw.magic.get() != MAGIC {
            return bad(
                ErrorKind::Protocol,
                "bad magic: the peer speaks something else".into(),
            );
        }
        if raw.checksum != CHECKSUM_CRC32 {
            return bad(
                ErrorKind::Unsupported,
                format!("checksum algorithm {}", raw.checksum),
            );
        }
        if crc32fast::hash(&bytes[..CRC_AT]) != raw.header_crc.get() {
            return bad(ErrorKind::Corrupt, "header checksum does not match".into());
        }
        if !(OLDEST_VERSION..=VERSION).contains(&raw.version) {
            return bad(ErrorKind::Unsupported, format!("version {}", raw.version));
        }
        let Some(kind) = Kind::from_wire(raw.kind) else {
            return bad(ErrorKind::Protocol, format!("unknown kind {}", raw.kind));
        };
        let body_len = raw.body_len.get() as usize;
        if body_len > crate::MAX_BODY {
            return bad(
                ErrorKind::Protocol,
                format!(
                    "body of {body_len} bytes exceeds the limit of {}",
                    crate::MAX_BODY
                ),
            );
        }
        Ok(Header {
            version: raw.version,
            kind,
            session: SessionId(raw.session.get()),
            generation: Generation(raw.generation.get()),
            epoch: Epoch(raw.epoch.get()),
            sequence: raw.sequence.get(),
            body_len,
            body_crc: raw.body_crc.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_peer_is_met_at_our_version_and_an_unknown_one_is_refused() {
        assert_eq!(negotiate(VERSION, VERSION + 1).unwrap(), VERSION);
        assert_eq!(negotiate(0, VERSION).unwrap(), VERSION);
        for (oldest, newest) in [(VERSION + 1, VERSION + 2), (0, OLDEST_VERSION - 1), (3, 2)] {
            let e = negotiate(oldest, newest).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Unsupported);
        }
    }
}
