//! The receiver's durable record: what its copy of the volume is.
//!
//! Two 4 KiB pages, written in turn, each with the volume's UUID, a sequence number and a CRC. The
//! page with the highest sequence that checks is the record. It lies in one sector, so a power cut
//! leaves the old or the new one; a page that holds something else has rotted, and may have said that
//! the image was being changed. Then the copy counts as empty: the source compares it by digest.

use block::{AlignedBuf, Disk, Epoch, Error, ErrorKind, Generation, Result, VolumeId};
use std::cell::Cell;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const PAGE: usize = 4096;
const MAGIC: [u8; 8] = *b"FRreplic";
const VERSION: u8 = 1;

/// What the copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing to build on.
    Empty,
    /// Seeding number `seed` is durable up to `watermark`.
    Seeding {
        /// The source's name for the seeding.
        seed: Epoch,
        /// Everything before is durable.
        watermark: u64,
    },
    /// The point in time of the record's epoch.
    Consistent,
    /// Consistent, and `next` is staged and committed up to `end` of its log, perhaps partly applied.
    Committed {
        /// The epoch that is being applied.
        next: Epoch,
        /// Bytes of its log.
        end: u64,
    },
    /// The copy was consistent, and was given to this node's volume to own in generation `next`.
    HandedOver {
        /// The generation in which this node owns, or is about to own, the volume.
        next: Generation,
    },
}

/// The record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The highest generation of a source that was obeyed.
    pub generation: Generation,
    /// The epoch of a consistent copy.
    pub epoch: Epoch,
    /// What the copy is.
    pub state: State,
}

impl Record {
    /// What the copy is, if its volume was given up for a generation as of an epoch: the record of the
    /// ownership that ended proves it.
    #[must_use]
    pub fn proven(self, gave_up: Option<(Generation, Epoch)>) -> Record {
        match gave_up {
            Some((next, epoch)) if self.generation < next => Record {
                generation: next,
                epoch,
                state: State::Consistent,
            },
            _ => self,
        }
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: u8,
    state: u8,
    reserved: [u8; 2],
    crc: U32,
    volume: [u8; 16],
    size: U64,
    sequence: U64,
    generation: U64,
    epoch: U64,
    a: U64,
    b: U64,
}

const EMPTY: Record = Record {
    generation: Generation(0),
    epoch: Epoch(0),
    state: State::Empty,
};

impl Raw {
    fn sum(&self) -> u32 {
        let bytes = self.as_bytes();
        let mut crc = crc32fast::Hasher::new();
        crc.update(&bytes[..12]);
        crc.update(&bytes[16..]);
        crc.finalize()
    }

    fn record(&self) -> Option<Record> {
        let (a, b) = (self.a.get(), self.b.get());
        let state = match self.state {
            0 => State::Empty,
            1 => State::Seeding {
                seed: Epoch(a),
                watermark: b,
            },
            2 => State::Consistent,
            3 => State::Committed {
                next: Epoch(a),
                end: b,
            },
            4 => State::HandedOver {
                next: Generation(a),
            },
            _ => return None,
        };
        Some(Record {
            generation: Generation(self.generation.get()),
            epoch: Epoch(self.epoch.get()),
            state,
        })
    }
}

/// The record and the disk that holds it.
pub(crate) struct Store<D> {
    disk: D,
    volume: VolumeId,
    size: u64,
    /// The size of which the record was, if the volume has grown since.
    before: u64,
    sequence: Cell<u64>,
    record: Cell<Record>,
}

impl<D: Disk> Store<D> {
    /// Read the record of `volume`'s copy; a disk without one gives [`State::Empty`]. It may be from before
    /// the volume grew.
    pub(crate) async fn open(disk: D, volume: VolumeId, size: u64) -> Result<Store<D>> {
        // A process that died before the sync of what it wrote left a record that is there to be read and
        // not yet durable. What is done because of a record must not outlive it.
        sync(&disk).await?;
        let mut newest: Option<(u64, Record)> = None;
        let mut before = size;
        let mut rotten = false;
        for slot in 0..2 {
            let (result, page) = disk
                .read(slot * PAGE as u64, AlignedBuf::zeroed(PAGE))
                .await;
            result.map_err(|e| e.within(format!("read the replica record of volume {volume}")))?;
            let Ok((raw, _)) = Raw::ref_from_prefix(&page) else {
                continue;
            };
            if raw.magic != MAGIC || raw.version != VERSION || raw.crc.get() != raw.sum() {
                rotten |= !page.is_zero();
                continue;
            }
            if raw.volume != volume.0 || raw.size.get() > size {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!(
                        "the replica record is of volume {} with {} bytes, not of {volume} with \
                         {size}: remove the replica's files and add it again",
                        VolumeId(raw.volume),
                        raw.size
                    ),
                ));
            }
            let sequence = raw.sequence.get();
            if let Some(record) = raw.record()
                && newest.is_none_or(|(s, _)| sequence > s)
            {
                newest = Some((sequence, record));
                before = raw.size.get();
            }
        }
        let (sequence, mut record) = newest.unwrap_or((0, EMPTY));
        if rotten {
            tracing::error!(%volume, "the replica record has rotted: the copy is compared anew");
            record.state = State::Empty;
        }
        Ok(Store {
            disk,
            volume,
            size,
            before,
            sequence: Cell::new(sequence),
            record: Cell::new(record),
        })
    }

    pub(crate) fn get(&self) -> Record {
        self.record.get()
    }

    /// Bytes of the volume when the record was written that was found.
    pub(crate) fn size_before(&self) -> u64 {
        self.before
    }

    /// Make `record` durable. If that fails the record on disk may be either one, so the caller must
    /// stop until it has been read again.
    pub(crate) async fn save(&self, record: Record) -> Result<()> {
        let (state, a, b) = match record.state {
            State::Empty => (0, 0, 0),
            State::Seeding { seed, watermark } => (1, seed.0, watermark),
            State::Consistent => (2, 0, 0),
            State::Committed { next, end } => (3, next.0, end),
            State::HandedOver { next } => (4, next.0, 0),
        };
        let sequence = self.sequence.get() + 1;
        let mut raw = Raw {
            magic: MAGIC,
            version: VERSION,
            state,
            reserved: [0; 2],
            crc: U32::new(0),
            volume: self.volume.0,
            size: U64::new(self.size),
            sequence: U64::new(sequence),
            generation: U64::new(record.generation.0),
            epoch: U64::new(record.epoch.0),
            a: U64::new(a),
            b: U64::new(b),
        };
        raw.crc = U32::new(raw.sum());
        let mut page = AlignedBuf::zeroed(PAGE);
        page[..size_of::<Raw>()].copy_from_slice(raw.as_bytes());
        let (result, _) = self.disk.write(sequence % 2 * PAGE as u64, page).await;
        result.map_err(|e| e.within("write the replica record"))?;
        sync(&self.disk).await?;
        self.sequence.set(sequence);
        self.record.set(record);
        Ok(())
    }

    pub(crate) async fn set(&self, state: State) -> Result<()> {
        let record = Record {
            state,
            ..self.get()
        };
        self.save(record).await
    }
}

async fn sync(disk: &impl Disk) -> Result<()> {
    let failed = |e| {
        Error::new(
            ErrorKind::Poisoned,
            format!("make the replica record durable: {e}"),
        )
    };
    disk.sync().await.map_err(failed)
}

/// Record that an image is `volume` as of `epoch`, as the former owner's is after a cutover: the new
/// owner then sends increments back and no seeding.
pub async fn adopt<D: Disk>(
    disk: D,
    volume: VolumeId,
    size: u64,
    generation: Generation,
    epoch: Epoch,
) -> Result<()> {
    let store = Store::open(disk, volume, size).await?;
    let record = Record {
        generation,
        epoch,
        state: State::Consistent,
    };
    store.save(record).await
}
