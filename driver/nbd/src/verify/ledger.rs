//! What the disk may hold, slot by slot. Pure.
//!
//! The disk is divided into slots of one I/O each. At most one write or zeroing is in flight on a
//! slot, since the protocol leaves the order of concurrent writes open. Every change gets the next
//! number of one sequence. A slot may hold the last acknowledged change or one submitted later,
//! and nothing else.

use block::sector::{Allowed, Seen, Stamp, Verdict};
use block::{SECTOR_BYTES, VolumeId};

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    acknowledged: u64,
    submitted: u64,
    /// The last zeroing that was submitted; 0 is the disk as it was made.
    zeroed: u64,
    /// A change is in flight.
    busy: bool,
}

/// What is done to a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Read and judge it.
    Read,
    /// Write stamps.
    Write,
    /// Write zeroes.
    Zero,
}

/// An I/O that was taken from the ledger and must be given back to it, done or failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What.
    pub task: Task,
    /// First byte.
    pub offset: u64,
    slot: usize,
    /// The change's number; for a read what was acknowledged when it was sent.
    sequence: u64,
}

/// The record of one disk.
#[derive(Clone, Debug)]
pub struct Ledger {
    volume: VolumeId,
    io_bytes: u32,
    slots: Vec<Slot>,
    sequence: u64,
    random: u64,
}

impl Ledger {
    /// A record of a disk of `size` bytes that is all zeroes, changed in I/Os of `io_bytes`, a
    /// multiple of the sector. A tail shorter than that is left alone. The same seed plans the
    /// same I/Os.
    #[must_use]
    pub fn new(volume: VolumeId, size: u64, io_bytes: u32, seed: u64) -> Ledger {
        assert!(io_bytes > 0 && u64::from(io_bytes).is_multiple_of(SECTOR_BYTES));
        Ledger {
            volume,
            io_bytes,
            slots: vec![Slot::default(); (size / u64::from(io_bytes)) as usize],
            sequence: 0,
            random: seed,
        }
    }

    /// Bytes of one I/O.
    #[must_use]
    pub fn io_bytes(&self) -> u32 {
        self.io_bytes
    }

    /// Bytes that the record covers.
    #[must_use]
    pub fn covers(&self) -> u64 {
        self.slots.len() as u64 * u64::from(self.io_bytes)
    }

    /// A number below `n` from the ledger's own randomness.
    pub fn below(&mut self, n: u64) -> u64 {
        // splitmix64
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % n.max(1)
    }

    /// Plan `task` on a random slot; a change that finds a change in flight there becomes a read.
    pub fn plan(&mut self, task: Task) -> Planned {
        let slot = self.below(self.slots.len() as u64) as usize;
        self.plan_at(task, slot)
    }

    /// Plan a read of the slot at `offset`.
    pub fn read_at(&mut self, offset: u64) -> Planned {
        self.plan_at(Task::Read, (offset / u64::from(self.io_bytes)) as usize)
    }

    /// Plan a write of the slot at `offset`; a read, if a change is in flight there.
    pub fn write_at(&mut self, offset: u64) -> Planned {
        self.plan_at(Task::Write, (offset / u64::from(self.io_bytes)) as usize)
    }

    fn plan_at(&mut self, task: Task, slot: usize) -> Planned {
        let offset = slot as u64 * u64::from(self.io_bytes);
        let known = &mut self.slots[slot];
        if task == Task::Read || known.busy {
            return Planned {
                task: Task::Read,
                offset,
                slot,
                sequence: known.acknowledged,
            };
        }
        self.sequence += 1;
        known.busy = true;
        known.submitted = self.sequence;
        if task == Task::Zero {
            known.zeroed = self.sequence;
        }
        Planned {
            task,
            offset,
            slot,
            sequence: self.sequence,
        }
    }

    /// The stamps that a planned write writes.
    pub fn fill(&self, planned: &Planned, buf: &mut [u8]) {
        self.stamp(planned.slot, planned.sequence).encode_run(buf);
    }

    /// A planned change was acknowledged.
    pub fn acknowledged(&mut self, planned: &Planned) {
        let slot = &mut self.slots[planned.slot];
        assert_eq!(slot.submitted, planned.sequence, "one change at a time");
        slot.busy = false;
        slot.acknowledged = planned.sequence;
    }

    /// A planned I/O failed or its connection was lost: a change may have happened, may happen yet
    /// for all that is known, or never.
    pub fn unknown(&mut self, planned: &Planned) {
        if planned.task != Task::Read {
            self.slots[planned.slot].busy = false;
        }
    }

    /// The sectors of a planned read that hold what they may not, as `(lba, verdict)`. A read may
    /// return what was acknowledged when it was sent or anything submitted by now.
    pub fn judge<'a>(
        &'a self,
        planned: &Planned,
        data: &'a [u8],
    ) -> impl Iterator<Item = (u64, Verdict)> + use<'a> {
        let now = self.slots[planned.slot];
        let allowed = Allowed {
            acknowledged: planned.sequence,
            submitted: now.submitted,
            zero: now.zeroed >= planned.sequence,
        };
        let first = planned.offset / SECTOR_BYTES;
        let (sectors, _) = data.as_chunks::<{ SECTOR_BYTES as usize }>();
        (first..)
            .zip(sectors)
            .map(move |(lba, s)| (lba, Seen::in_sector(s).judge(self.volume, lba, allowed)))
            .filter(|(_, verdict)| *verdict != Verdict::Right)
    }

    /// What the slot at `offset` must hold, if it is known: the bytes go to `buf`. False while a
    /// change's outcome is not known.
    #[must_use]
    pub fn expected(&self, offset: u64, buf: &mut [u8]) -> bool {
        let index = (offset / u64::from(self.io_bytes)) as usize;
        let slot = &self.slots[index];
        if slot.acknowledged == slot.zeroed {
            buf.fill(0);
        } else {
            self.stamp(index, slot.acknowledged).encode_run(buf);
        }
        slot.acknowledged == slot.submitted
    }

    fn stamp(&self, slot: usize, sequence: u64) -> Stamp {
        Stamp {
            volume: self.volume,
            lba: slot as u64 * u64::from(self.io_bytes) / SECTOR_BYTES,
            sequence,
        }
    }
}
