//! What a disk may hold: the sector oracle, and a client that writes under it and never stops.
//!
//! Every 512-byte sector that the client writes carries (volume, sector number, sequence, checksum).
//! The oracle keeps two sequences a sector: the last that was acknowledged, and the last that was
//! submitted. Whatever is read must be whole, be of this sector, and lie between the two: older is a
//! lost write, newer was never written, torn or misplaced shows in the checksum or the number.
//!
//! ```text
//! submit(s, 7) ─── acked(s, 7) ─── submit(s, 8) ──✗ connection lost
//!                                   found 7 or 8: fine      found 6: acknowledged write lost
//! ```
#![allow(
    dead_code,
    reason = "each test file is a crate of its own and uses a part of this"
)]

use crate::serving::Random;
use crate::serving::raw::{COMMAND_READ, COMMAND_WRITE, Raw};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const SECTOR: usize = 512;
/// The longest write: 16 KiB, so that some span several blocks and most begin inside one.
const SECTORS_MAX: u64 = 32;
/// How long the client knocks at a server that is gone before it says so.
const RECONNECT: Duration = Duration::from_secs(30);

/// One sector's content: header, filler that follows from it, and a checksum over both.
pub fn sector(volume: u64, lba: u64, sequence: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    bytes[..8].copy_from_slice(&volume.to_le_bytes());
    bytes[8..16].copy_from_slice(&lba.to_le_bytes());
    bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
    let mut random = Random(volume ^ lba.rotate_left(32) ^ sequence);
    for chunk in bytes[24..SECTOR - 8].chunks_exact_mut(8) {
        chunk.copy_from_slice(&random.next().to_le_bytes());
    }
    let sum = checksum(&bytes[..SECTOR - 8]);
    bytes[SECTOR - 8..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// FNV-1a: the filler makes it strong enough, and it needs nothing.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What the client knows about every sector of one volume.
pub struct Oracle {
    volume: u64,
    acknowledged: Vec<u64>,
    submitted: Vec<u64>,
    sequence: u64,
}

impl Oracle {
    pub fn new(volume: u64, bytes: u64) -> Oracle {
        let sectors = usize::try_from(bytes).unwrap() / SECTOR;
        Oracle {
            volume,
            acknowledged: vec![0; sectors],
            submitted: vec![0; sectors],
            sequence: 0,
        }
    }

    pub fn sectors(&self) -> u64 {
        self.submitted.len() as u64
    }

    /// The content of the next write to these sectors.
    pub fn submit(&mut self, first: u64, count: u64) -> Vec<u8> {
        self.sequence += 1;
        let mut data = Vec::with_capacity(usize::try_from(count).unwrap() * SECTOR);
        for lba in first..first + count {
            self.submitted[usize::try_from(lba).unwrap()] = self.sequence;
            data.extend(sector(self.volume, lba, self.sequence));
        }
        data
    }

    /// The last write submitted to these sectors was acknowledged.
    pub fn acknowledge(&mut self, first: u64, count: u64) {
        let span = usize::try_from(first).unwrap()..usize::try_from(first + count).unwrap();
        self.acknowledged[span.clone()].copy_from_slice(&self.submitted[span]);
    }

    /// Why this content of a sector is wrong, if it is.
    pub fn wrong(&self, lba: u64, found: &[u8]) -> Option<String> {
        let at = usize::try_from(lba).unwrap();
        let (acknowledged, submitted) = (self.acknowledged[at], self.submitted[at]);
        if found.iter().all(|byte| *byte == 0) {
            return (acknowledged > 0)
                .then(|| format!("sector {lba}: empty, {acknowledged} was acknowledged"));
        }
        let word = |i: usize| u64::from_le_bytes(found[i..i + 8].try_into().unwrap());
        if word(SECTOR - 8) != checksum(&found[..SECTOR - 8]) {
            return Some(format!("sector {lba}: torn or corrupt"));
        }
        let (volume, number, sequence) = (word(0), word(8), word(16));
        if (volume, number) != (self.volume, lba) {
            return Some(format!(
                "sector {lba} of volume {}: holds sector {number} of volume {volume}",
                self.volume
            ));
        }
        (sequence < acknowledged || sequence > submitted)
            .then(|| format!("sector {lba}: holds {sequence}, want {acknowledged} to {submitted}"))
    }

    /// Compares a whole image.
    pub fn check_image(&self, image: &Path) {
        let bytes = std::fs::read(image).unwrap();
        assert!(
            bytes.len() >= self.submitted.len() * SECTOR,
            "{image:?} is short"
        );
        let wrong: Vec<String> = (0..self.sectors())
            .zip(bytes.chunks_exact(SECTOR))
            .filter_map(|(lba, found)| self.wrong(lba, found))
            .collect();
        assert!(
            wrong.is_empty(),
            "{image:?}: {} sectors are wrong, such as\n{}",
            wrong.len(),
            wrong[..wrong.len().min(5)].join("\n")
        );
    }
}

/// A client that writes and reads random spans until told to stop, over as many connections one after
/// the other as it takes.
pub struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    oracle: Arc<Mutex<Oracle>>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Writer {
    pub fn start(socket: &Path, oracle: Oracle, seed: u64) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let oracle = Arc::new(Mutex::new(oracle));
        let work = Work {
            socket: socket.to_owned(),
            stop: stop.clone(),
            acknowledged: acknowledged.clone(),
            oracle: oracle.clone(),
            random: Random(seed),
        };
        let thread = Some(std::thread::spawn(move || work.run()));
        Writer {
            stop,
            acknowledged,
            oracle,
            thread,
        }
    }

    /// Waits until so many more writes were acknowledged.
    pub fn wait_for(&self, writes: u64) {
        let target = self.acknowledged.load(Ordering::Acquire) + writes;
        let began = Instant::now();
        while self.acknowledged.load(Ordering::Acquire) < target {
            let alive = self.thread.as_ref().is_some_and(|t| !t.is_finished());
            assert!(
                alive && began.elapsed() < 2 * RECONNECT,
                "the client does not get on"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends the client; what it read must have been right all along.
    pub fn stop(mut self) -> Oracle {
        self.stop.store(true, Ordering::Release);
        if let Err(wrong) = self.thread.take().unwrap().join().unwrap() {
            panic!("{wrong}");
        }
        Arc::into_inner(self.oracle).unwrap().into_inner().unwrap()
    }
}

struct Work {
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    oracle: Arc<Mutex<Oracle>>,
    random: Random,
}

impl Work {
    fn run(mut self) -> Result<(), String> {
        while !self.stop.load(Ordering::Acquire) {
            let Some(mut raw) = self.connect() else {
                continue;
            };
            while !self.stop.load(Ordering::Acquire) {
                match self.turn(&mut raw) {
                    Some(Ok(())) => {}
                    Some(Err(wrong)) => return Err(wrong),
                    None => break,
                }
            }
        }
        Ok(())
    }

    /// A negotiated connection, or None when it is time to stop.
    fn connect(&self) -> Option<Raw> {
        let began = Instant::now();
        loop {
            if let Some(raw) = Raw::try_negotiated(&self.socket) {
                return Some(raw);
            }
            if self.stop.load(Ordering::Acquire) {
                return None;
            }
            assert!(
                began.elapsed() < RECONNECT,
                "nobody serves {:?}",
                self.socket
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// One write or read. None: the connection is gone, and what was under way is uncertain.
    fn turn(&mut self, raw: &mut Raw) -> Option<Result<(), String>> {
        let sectors = self.oracle.lock().unwrap().sectors();
        let count = 1 + self.random.next() % SECTORS_MAX;
        let first = self.random.next() % (sectors - count);
        let bytes = u32::try_from(count).unwrap() * 512;
        if self.random.next() & 3 == 0 {
            raw.request(COMMAND_READ, first * 512, bytes);
            let error = raw.reply()?;
            if error != 0 {
                return Some(Err(format!("read of sector {first}: error {error}")));
            }
            let data = raw.receive_all(usize::try_from(bytes).unwrap())?;
            let oracle = self.oracle.lock().unwrap();
            let wrong = (first..)
                .zip(data.chunks_exact(SECTOR))
                .find_map(|(lba, found)| oracle.wrong(lba, found));
            return Some(wrong.map_or(Ok(()), Err));
        }
        let data = self.oracle.lock().unwrap().submit(first, count);
        raw.request(COMMAND_WRITE, first * 512, bytes);
        raw.send(&data);
        let error = raw.reply()?;
        if error != 0 {
            return Some(Err(format!("write of sector {first}: error {error}")));
        }
        self.oracle.lock().unwrap().acknowledge(first, count);
        self.acknowledged.fetch_add(1, Ordering::Release);
        Some(Ok(()))
    }
}
