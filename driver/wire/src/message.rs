//! What a frame says.

use crate::spans::Spans;
use block::{Error, ErrorKind, Generation, Span, VolumeId};

/// The first 16 bytes of a digest: a guest that finds a collision after 2^64 attempts spoils its
/// own replica only.
pub type Digest = [u8; 16];

/// How a digest was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestAlgorithm {
    /// BLAKE3, cut to 16 bytes.
    Blake3 = 1,
}

/// How the content of a data frame is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As it is.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
}

/// The source introduces itself. The header has its generation and its newest epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Oldest version spoken.
    pub oldest: u8,
    /// Newest version spoken.
    pub newest: u8,
    /// The volume.
    pub volume: VolumeId,
    /// Its size in bytes.
    pub size: u64,
}

/// What the receiver's copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaState {
    /// Nothing to build on: no copy, or one of unknown origin.
    Empty,
    /// A seeding that began at the source's epoch `seed` is durable up to `watermark`.
    Seeding {
        /// The epoch at which the source began to track for it.
        seed: u64,
        /// Everything before this offset is durable.
        watermark: u64,
    },
    /// A point in time: the header's epoch.
    Consistent,
    /// The receiver owns the volume.
    Owner,
}

/// What the receiver has. The header has the highest generation that it has seen and its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloAck {
    /// The version both will speak.
    pub version: u8,
    /// What the copy is.
    pub state: ReplicaState,
    /// Whether the image holds any data: what is not consistent must then be compared or zeroed.
    pub has_data: bool,
}

/// How far the receiver is with an epoch or a seeding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of content taken in since the begin frame.
    pub bytes: u64,
}

/// Why a connection ends, in a form that both sides can branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// A lower generation than the highest seen.
    Fenced = 1,
    /// The volume is not here.
    NotFound = 2,
    /// Another size or another volume.
    Invalid = 3,
    /// No space for image or staging.
    NoSpace = 4,
    /// An I/O error of the receiver's disk.
    Io = 5,
    /// Content or count did not match.
    Corrupt = 6,
    /// The frame was not expected here.
    Protocol = 7,
    /// No version in common.
    Unsupported = 8,
    /// Another connection is being served.
    Busy = 9,
    /// An earlier fsync failed.
    Poisoned = 10,
    /// A bug.
    Broken = 11,
}

impl FailureKind {
    pub(crate) fn from_wire(value: u8) -> Option<FailureKind> {
        use FailureKind as K;
        [
            K::Fenced,
            K::NotFound,
            K::Invalid,
            K::NoSpace,
            K::Io,
            K::Corrupt,
            K::Protocol,
            K::Unsupported,
            K::Busy,
            K::Poisoned,
            K::Broken,
        ]
        .into_iter()
        .find(|k| *k as u8 == value)
    }

    /// The nearest kind for an error of ours.
    #[must_use]
    pub fn of(error: &Error) -> FailureKind {
        use FailureKind as K;
        match error.kind() {
            ErrorKind::Fenced | ErrorKind::NotOwner => K::Fenced,
            ErrorKind::NotFound => K::NotFound,
            ErrorKind::Invalid | ErrorKind::Exists | ErrorKind::Denied => K::Invalid,
            ErrorKind::NoSpace => K::NoSpace,
            ErrorKind::Corrupt => K::Corrupt,
            ErrorKind::Unsupported => K::Unsupported,
            ErrorKind::Busy => K::Busy,
            ErrorKind::Poisoned => K::Poisoned,
            ErrorKind::Broken => K::Broken,
            ErrorKind::Io => K::Io,
            _ => K::Protocol,
        }
    }

    /// The kind of the error that the other side sees.
    #[must_use]
    pub fn error_kind(self) -> ErrorKind {
        use FailureKind as K;
        match self {
            K::Fenced => ErrorKind::Fenced,
            K::NotFound => ErrorKind::NotFound,
            K::Invalid => ErrorKind::Invalid,
            K::NoSpace => ErrorKind::NoSpace,
            K::Io => ErrorKind::Io,
            K::Corrupt => ErrorKind::Corrupt,
            K::Protocol => ErrorKind::Protocol,
            K::Unsupported => ErrorKind::Unsupported,
            K::Busy => ErrorKind::Busy,
            K::Poisoned => ErrorKind::Poisoned,
            K::Broken => ErrorKind::Broken,
        }
    }
}

/// The body of a frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Message<'a> {
    /// See [`Hello`].
    Hello(Hello),
    /// See [`HelloAck`].
    HelloAck(HelloAck),
    /// Seeding goes on from `from`; the header's epoch is the seed's.
    SeedBegin {
        /// First byte that will be sent.
        from: u64,
    },
    /// Content of `spans`, one after the other.
    Data {
        /// Where it goes.
        spans: Spans<'a>,
        /// How it is encoded.
        encoding: Encoding,
        /// The content.
        payload: &'a [u8],
    },
    /// `spans` read as zeroes.
    Zero {
        /// Where.
        spans: Spans<'a>,
    },
    /// Digests of the source's content of `span`, one for each `unit` bytes of it.
    Digests {
        /// What is compared.
        span: Span,
        /// Bytes that one digest covers.
        unit: u32,
        /// How they were made.
        algorithm: DigestAlgorithm,
        /// The digests.
        digests: &'a [Digest],
    },
    /// Which units of `span` differ at the receiver: bit n of byte n/8, lowest first.
    DigestDiff {
        /// What was compared.
        span: Span,
        /// One bit a unit.
        differs: &'a [u8],
    },
    /// Everything before `offset` was sent (source) or is durable (receiver).
    SeedWatermark {
        /// The offset.
        offset: u64,
    },
    /// The content of the header's epoch follows.
    EpochBegin {
        /// The epoch that the content is relative to.
        base: u64,
    },
    /// The header's epoch is complete.
    EpochEnd {
        /// Data and zero frames in it.
        frames: u64,
        /// Bytes that their spans cover.
        bytes: u64,
        /// Digest over the body CRCs of these frames, in order.
        digest: Digest,
    },
    /// The header's epoch is durable and applied.
    EpochAck,
    /// A guest's write in the header's epoch.
    MirrorWrite {
        /// Names the request in the answer.
        id: u32,
        /// Where.
        span: Span,
        /// The content.
        payload: &'a [u8],
    },
    /// A guest's trim or zero write in the header's epoch.
    MirrorZero {
        /// Names the request in the answer.
        id: u32,
        /// Where.
        span: Span,
    },
    /// A guest's flush: what was mirrored before it must be durable before the answer.
    MirrorFlush {
        /// Names the request in the answer.
        id: u32,
    },
    /// The answer to a mirrored request: a positive errno, or zero.
    MirrorAck {
        /// The request.
        id: u32,
        /// Zero or a positive errno.
        errno: i32,
    },
    /// Take the volume at `generation`; the header's epoch is the last one.
    Activate {
        /// The new owner's generation.
        generation: Generation,
    },
    /// The volume is taken, durably.
    Activated {
        /// The new owner's generation.
        generation: Generation,
    },
    /// See [`Progress`].
    Progress(Progress),
    /// Are you there?
    Ping,
    /// Yes.
    Pong,
    /// The connection ends.
    Error {
        /// To branch on.
        kind: FailureKind,
        /// To read.
        sentence: &'a str,
    },
}
