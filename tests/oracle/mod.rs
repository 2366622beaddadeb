//! A client that writes and reads under the sector oracle and does not stop when its server dies.
//!
//! Every 512-byte sector that it writes is stamped with volume, place and sequence ([`block::sector`]).
//! It keeps two sequences a sector: the last that was acknowledged, and the last that was submitted.
//! Whatever is read must lie between the two: older is a lost write, newer was never written.
//!
//! ```text
//! submit(s, 7) ─── acknowledge(s, 7) ─── submit(s, 8) ──✗ connection lost
//!                                found 7 or 8: right      found 6: an acknowledged write is lost
//! ```
#![allow(
    dead_code,
    reason = "each test file is a crate of its own and uses a part of this"
)]

use crate::serving::Random;
use block::sector::{Allowed, Seen, Stamp, Verdict};
use block::{ErrorKind, VolumeId};
use nbd::client::{Client, Uri};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SECTOR: usize = 512;
/// The longest write: 16 KiB, so that some span several blocks and most begin inside one.
const SECTORS_MAX: u64 = 32;
/// How long the server may be silent, or gone, before the client says so.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the client knows about every sector of one volume.
pub struct Oracle {
    volume: VolumeId,
    acknowledged: Vec<u64>,
    submitted: Vec<u64>,
    sequence: u64,
}

impl Oracle {
    /// For a volume that is empty.
    pub fn new(volume: u8, bytes: u64) -> Oracle {
        let sectors = usize::try_from(bytes).unwrap() / SECTOR;
        Oracle {
            volume: VolumeId([volume; 16]),
            acknowledged: vec![0; sectors],
            submitted: vec![0; sectors],
            sequence: 0,
        }
    }

    pub fn sectors(&self) -> u64 {
        self.submitted.len() as u64
    }

    /// The content of the next write to these sectors.
    pub fn submit(&mut self, lba: u64, count: u64) -> Vec<u8> {
        self.sequence += 1;
        let stamp = Stamp {
            volume: self.volume,
            lba,
            sequence: self.sequence,
        };
        let mut data = vec![0; usize::try_from(count).unwrap() * SECTOR];
        stamp.encode_run(&mut data);
        self.submitted[span(lba, count)].fill(self.sequence);
        data
    }

    /// The last write submitted to these sectors was acknowledged.
    pub fn acknowledge(&mut self, lba: u64, count: u64) {
        let span = span(lba, count);
        self.acknowledged[span.clone()].copy_from_slice(&self.submitted[span]);
    }

    /// What is wrong with content found from sector `lba` on.
    pub fn wrong(&self, lba: u64, found: &[u8]) -> Vec<String> {
        (lba..)
            .zip(found.as_chunks::<SECTOR>().0)
            .filter_map(|(lba, sector)| {
                let at = usize::try_from(lba).unwrap();
                let allowed = Allowed {
                    acknowledged: self.acknowledged[at],
                    submitted: self.submitted[at],
                    zero: self.acknowledged[at] == 0,
                };
                let verdict = Seen::in_sector(sector).judge(self.volume, lba, allowed);
                (verdict != Verdict::Right)
                    .then(|| format!("sector {lba}: {verdict:?}, want {allowed:?}"))
            })
            .collect()
    }

    /// Compares a whole image.
    pub fn check_image(&self, image: &Path) {
        let bytes = std::fs::read(image).unwrap();
        assert!(
            bytes.len() >= self.submitted.len() * SECTOR,
            "{image:?} is short"
        );
        let wrong = self.wrong(0, &bytes[..self.submitted.len() * SECTOR]);
        assert!(
            wrong.is_empty(),
            "{image:?}: {} sectors are wrong, such as\n{}",
            wrong.len(),
            wrong[..wrong.len().min(5)].join("\n")
        );
    }
}

fn span(lba: u64, count: u64) -> std::ops::Range<usize> {
    usize::try_from(lba).unwrap()..usize::try_from(lba + count).unwrap()
}

/// Writes and reads random spans until told to stop, over as many connections, one after the other,
/// as it takes.
pub struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: JoinHandle<Result<Oracle, String>>,
}

impl Writer {
    pub fn start(uri: &str, oracle: Oracle, seed: u64) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let work = Work {
            uri: uri.parse().unwrap(),
            stop: Arc::clone(&stop),
            acknowledged: Arc::clone(&acknowledged),
            oracle,
            random: Random(seed),
        };
        Writer {
            stop,
            acknowledged,
            thread: std::thread::spawn(move || work.run()),
        }
    }

    /// Waits until so many more writes were acknowledged.
    pub fn wait_for(&self, writes: u64) {
        let target = self.acknowledged.load(Ordering::Acquire) + writes;
        let began = Instant::now();
        while self.acknowledged.load(Ordering::Acquire) < target && !self.thread.is_finished() {
            assert!(began.elapsed() < 2 * PATIENCE, "the client does not get on");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends the client; what it read must have been right all along.
    pub fn stop(self) -> Oracle {
        self.stop.store(true, Ordering::Release);
        match self.thread.join().unwrap() {
            Ok(oracle) => oracle,
            Err(wrong) => panic!("{wrong}"),
        }
    }
}

struct Work {
    uri: Uri,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    oracle: Oracle,
    random: Random,
}

impl Work {
    fn run(mut self) -> Result<Oracle, String> {
        let mut lost = Instant::now();
        while !self.stop.load(Ordering::Acquire) {
            match Client::connect(&self.uri, &[], PATIENCE) {
                Ok(mut client) => {
                    self.converse(&mut client)?;
                    lost = Instant::now();
                }
                Err(e) if lost.elapsed() > PATIENCE => return Err(e.to_string()),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        Ok(self.oracle)
    }

    /// Until told to stop, or until the connection is lost: what was under way is then uncertain.
    fn converse(&mut self, client: &mut Client) -> Result<(), String> {
        while !self.stop.load(Ordering::Acquire) {
            let count = 1 + self.random.next() % SECTORS_MAX;
            let lba = self.random.next() % (self.oracle.sectors() - count);
            let done = if self.random.next() & 3 == 0 {
                let mut found = vec![0; usize::try_from(count).unwrap() * SECTOR];
                client.read(lba * 512, &mut found).map(|()| {
                    let wrong = self.oracle.wrong(lba, &found);
                    wrong.is_empty().then_some(()).ok_or(wrong.join("\n"))
                })
            } else {
                let data = self.oracle.submit(lba, count);
                client.write(lba * 512, &data, false).map(|()| {
                    self.oracle.acknowledge(lba, count);
                    self.acknowledged.fetch_add(1, Ordering::Release);
                    Ok(())
                })
            };
            match done {
                Ok(judged) => judged?,
                Err(e) if e.kind() == ErrorKind::Disconnected => return Ok(()),
                Err(e) => return Err(format!("the client saw an error: {e}")),
            }
        }
        Ok(())
    }
}
