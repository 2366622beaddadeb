//! Disks that keep what was synced, and of the rest whatever they like, sector by sector.

use super::Rng;

/// The image: a stamp for each hot sector.
pub struct Image {
    pub cache: Vec<u64>,
    /// For each sector what a power cut may leave: the durable content, then every later write.
    may_be: Vec<Vec<u64>>,
    /// How many of those were there when the running sync began.
    syncing: Option<Vec<usize>>,
}

impl Image {
    pub fn new(sectors: usize) -> Image {
        Image {
            cache: vec![0; sectors],
            may_be: vec![vec![0]; sectors],
            syncing: None,
        }
    }
    pub fn write(&mut self, i: usize, stamp: u64) {
        self.cache[i] = stamp;
        self.may_be[i].push(stamp);
    }
    pub fn is_syncing(&self) -> bool {
        self.syncing.is_some()
    }
    pub fn sync(&mut self) {
        assert!(!self.is_syncing(), "one sync at a time");
        self.syncing = Some(self.may_be.iter().map(Vec::len).collect());
    }
    pub fn synced(&mut self) {
        for (versions, n) in self.may_be.iter_mut().zip(self.syncing.take().unwrap()) {
            versions.drain(..n - 1);
        }
    }
    pub fn sync_failed(&mut self) {
        self.syncing = None;
    }
    pub fn crash(&mut self, power: bool, rng: &mut Rng) {
        self.syncing = None;
        if power {
            for (versions, cache) in self.may_be.iter_mut().zip(&mut self.cache) {
                *cache = versions[rng.below(versions.len() as u64) as usize];
                *versions = vec![*cache];
            }
        }
    }
}

/// The metadata file: bytes, torn between sectors of 512.
pub struct MetaDisk {
    pub cache: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    syncing: Option<usize>,
}

impl MetaDisk {
    pub fn new(len: usize) -> MetaDisk {
        MetaDisk {
            cache: vec![0; len],
            durable: vec![0; len],
            unsynced: Vec::new(),
            syncing: None,
        }
    }
    pub fn write(&mut self, slot: u32, bytes: &[u8]) {
        assert!(self.syncing.is_none(), "a page was written during a sync");
        let at = slot as usize * 4096;
        assert!(
            self.unsynced
                .iter()
                .all(|(o, _)| *o / 4096 != slot as usize),
            "an unsynced page was overwritten"
        );
        self.cache[at..at + 4096].copy_from_slice(bytes);
        for i in 0..8 {
            let sector = bytes[i * 512..(i + 1) * 512].to_vec();
            self.unsynced.push((at + i * 512, sector));
        }
    }
    pub fn is_syncing(&self) -> bool {
        self.syncing.is_some()
    }
    pub fn sync(&mut self) {
        assert!(!self.is_syncing(), "one sync at a time");
        self.syncing = Some(self.unsynced.len());
    }
    pub fn synced(&mut self) {
        let n = self.syncing.take().unwrap();
        for (at, bytes) in self.unsynced.drain(..n) {
            self.durable[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }
    pub fn sync_failed(&mut self) {
        self.syncing = None;
    }
    pub fn crash(&mut self, power: bool, rng: &mut Rng) {
        self.syncing = None;
        if power {
            for (at, bytes) in self.unsynced.drain(..) {
                if rng.one_in(2) {
                    self.durable[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
            if rng.one_in(5) {
                // A sector of the intents rots. One of the superblock may be lost only if the other
                // copy is not torn, or the volume refuses to open.
                let at = 8192 + rng.below(self.durable.len() as u64 - 8192) as usize;
                self.durable[at] ^= 0x10;
            }
            self.cache.copy_from_slice(&self.durable);
        }
    }
}
