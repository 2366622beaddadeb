//! Disks whose every possible state after a power cut can be asked for.

use volume::META_PAGE_BYTES;

const SECTOR: usize = 512;

/// An image of which a few sectors matter; each holds the number of the write that made it.
#[derive(Clone)]
pub struct Image {
    pub cache: Vec<u64>,
    durable: Vec<u64>,
    /// Written since: by which operation, where, what.
    later: Vec<(u64, usize, u64)>,
    /// Operations that have not completed.
    flying: Vec<u64>,
    /// What the running sync covers.
    syncing: Option<Vec<(u64, usize, u64)>>,
}

impl Image {
    pub fn new(sectors: usize) -> Image {
        Image {
            cache: vec![0; sectors],
            durable: vec![0; sectors],
            later: Vec::new(),
            flying: Vec::new(),
            syncing: None,
        }
    }

    /// A write begins: from now on any part of it may be on the disk.
    pub fn begin(&mut self, op: u64, sector: usize, content: u64) {
        self.later.push((op, sector, content));
        if !self.flying.contains(&op) {
            self.flying.push(op);
        }
    }

    /// It has completed: reads see it.
    pub fn complete(&mut self, op: u64) {
        self.flying.retain(|o| *o != op);
        for (_, sector, content) in self.later.iter().filter(|(o, ..)| *o == op) {
            self.cache[*sector] = *content;
        }
    }

    pub fn sync(&mut self) {
        assert!(self.syncing.is_none(), "[disk] one sync at a time");
        let done = |w: &&(u64, usize, u64)| !self.flying.contains(&w.0);
        self.syncing = Some(self.later.iter().filter(done).copied().collect());
    }

    pub fn synced(&mut self) {
        for covered in self.syncing.take().unwrap() {
            self.durable[covered.1] = covered.2;
            let at = self.later.iter().position(|w| *w == covered).unwrap();
            self.later.remove(at);
        }
    }

    pub fn unsynced(&self) -> usize {
        self.later.len()
    }

    /// What a power cut leaves that keeps the unsynced writes whose bits are set.
    pub fn after(&self, kept: u64) -> Image {
        let mut content = self.durable.clone();
        for (i, (_, sector, to)) in self.later.iter().enumerate() {
            if kept & (1 << i) != 0 {
                content[*sector] = *to;
            }
        }
        Image {
            durable: content.clone(),
            cache: content,
            later: Vec::new(),
            flying: Vec::new(),
            syncing: None,
        }
    }
}

/// A metadata file, torn between sectors.
#[derive(Clone)]
pub struct MetaDisk {
    pub cache: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    syncing: Option<usize>,
}

impl MetaDisk {
    pub fn new(len: u64) -> MetaDisk {
        MetaDisk {
            cache: vec![0; len as usize],
            durable: vec![0; len as usize],
            unsynced: Vec::new(),
            syncing: None,
        }
    }

    pub fn write(&mut self, slot: u32, bytes: &[u8; META_PAGE_BYTES]) {
        assert!(self.syncing.is_none(), "[unsynced page] written in a sync");
        let at = slot as usize * META_PAGE_BYTES;
        let same = |(o, _): &(usize, Vec<u8>)| *o / META_PAGE_BYTES == slot as usize;
        assert!(
            !self.unsynced.iter().any(same),
            "[unsynced page] overwritten"
        );
        self.cache[at..at + META_PAGE_BYTES].copy_from_slice(bytes);
        for (i, sector) in bytes.chunks(SECTOR).enumerate() {
            self.unsynced.push((at + i * SECTOR, sector.to_vec()));
        }
    }

    pub fn sync(&mut self) {
        self.syncing = Some(self.unsynced.len());
    }

    pub fn synced(&mut self) {
        for (at, bytes) in self.unsynced.drain(..self.syncing.take().unwrap()) {
            self.durable[at..at + SECTOR].copy_from_slice(&bytes);
        }
    }

    pub fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// What a power cut leaves of a file whose unsynced sectors are taken in so many groups, of which
    /// those are kept whose bits are set.
    pub fn after(&self, kept: u64, groups: usize) -> MetaDisk {
        let mut content = self.durable.clone();
        let n = self.unsynced.len();
        for (i, (at, bytes)) in self.unsynced.iter().enumerate() {
            if kept & (1 << (i * groups / n)) != 0 {
                content[*at..*at + SECTOR].copy_from_slice(bytes);
            }
        }
        MetaDisk {
            durable: content.clone(),
            cache: content,
            unsynced: Vec::new(),
            syncing: None,
        }
    }
}
