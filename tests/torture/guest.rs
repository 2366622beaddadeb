//! A client at full rate that knows what it wrote. Its connection may be lost only when the node that it
//! is connected to was killed; then it comes back, here or there, with the same record.

use node::VolumeId;
use node::client::verify::{self, Ledger, Verifier, Workload};
use node::client::{Client, Uri};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const IO_BYTES: u32 = 4096;
const MIB: u64 = 1 << 20;
/// The volume: as much as a copy of it costs.
pub const SIZE: u64 = 96 * MIB;
/// What the client writes: as much as an epoch costs at most.
pub const HOT: u64 = 16 * MIB;
/// A disk that answers nothing for so long is lost to any guest.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a volume is served, and how often each of these was killed.
#[derive(Clone)]
pub struct Doors {
    pub uris: [Uri; 2],
    pub kills: Arc<[AtomicU64; 2]>,
}

/// What a client did.
#[derive(Default)]
pub struct Deeds {
    pub ios: u64,
    pub longest: Duration,
    pub connections: u64,
    pub wrong: Vec<String>,
}

pub struct Guest {
    doors: Doors,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Ledger, Deeds)>,
}

impl Guest {
    /// Fills the volume, and begins.
    pub fn start(doors: Doors, volume: VolumeId, seed: u64, door: usize) -> Guest {
        let mut ledger = Ledger::new(volume, HOT, IO_BYTES, seed);
        let mut client = connect(&doors.uris[door]);
        verify::fill(&mut client, &mut ledger, HOT).unwrap();
        let mut piece = vec![0; MIB as usize];
        for at in (HOT..SIZE).step_by(piece.len()) {
            noise(at, &mut piece);
            client.write(at, &piece, false).unwrap();
        }
        client.close().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (here, ends) = (doors.clone(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || work(&here, ledger, door, &ends));
        Guest {
            doors,
            stop,
            thread,
        }
    }

    pub fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Ends it, and reads the whole volume back at `door`.
    pub fn stop(self, door: usize) -> Deeds {
        self.stop.store(true, Ordering::Release);
        let (mut ledger, mut deeds) = self.thread.join().unwrap();
        let mut client = connect(&self.doors.uris[door]);
        let found = verify::compare(&mut client, &mut ledger).unwrap();
        if found.mismatches > 0 {
            let first = found.complaints.join("; ");
            let wrong = format!("{} sectors are wrong at the end: {first}", found.mismatches);
            deeds.wrong.push(wrong);
        }
        assert_eq!(found.bytes, HOT);
        let (mut is, mut should) = (vec![0; MIB as usize], vec![0; MIB as usize]);
        for at in (HOT..SIZE).step_by(is.len()) {
            client.read(at, &mut is).unwrap();
            noise(at, &mut should);
            if is != should {
                deeds
                    .wrong
                    .push(format!("bytes that nobody wrote changed after {at}"));
            }
        }
        deeds
    }
}

fn work(doors: &Doors, mut ledger: Ledger, mut door: usize, stop: &AtomicBool) -> (Ledger, Deeds) {
    let mut deeds = Deeds::default();
    let mut away = Instant::now();
    while !stop.load(Ordering::Acquire) && deeds.wrong.is_empty() {
        let workload = Workload {
            uri: doors.uris[door].clone(),
            depth: 16,
            rate: None,
            writes: 60,
            zeroes: 5,
            patience: PATIENCE,
        };
        let kills = || doors.kills[door].load(Ordering::Acquire);
        let before = kills();
        let Ok(verifier) = Verifier::start(workload, ledger.clone()) else {
            if away.elapsed() > PATIENCE {
                deeds
                    .wrong
                    .push(format!("no node serves it for {PATIENCE:?}"));
            }
            door = 1 - door;
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        while !verifier.is_lost() && !stop.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let (kept, seen) = verifier.stop().unwrap();
        ledger = kept;
        away = Instant::now();
        deeds.connections += 1;
        deeds.ios += seen.ios;
        let longest = Duration::from_secs_f64(seen.latency.max_us / 1e6);
        deeds.longest = deeds.longest.max(longest);
        if (seen.errors, seen.mismatches) != (0, 0) {
            let (errors, mismatches) = (seen.errors, seen.mismatches);
            let first = seen.complaints.join("; ");
            let wrong = format!("{errors} errors, {mismatches} mismatches: {first}");
            deeds.wrong.push(wrong);
        }
        if let Some(lost) = seen.lost
            && kills() == before
        {
            let wrong = format!("its connection to a living node was lost: {lost}");
            deeds.wrong.push(wrong);
        }
        door = 1 - door;
    }
    (ledger, deeds)
}

fn connect(uri: &Uri) -> Client {
    let until = Instant::now() + PATIENCE;
    loop {
        match Client::connect(uri, &[], PATIENCE) {
            Ok(client) => return client,
            Err(e) => assert!(Instant::now() < until, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes that no compression shrinks.
fn noise(at: u64, out: &mut [u8]) {
    let mut x = at | 1;
    for word in out.chunks_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        word.copy_from_slice(&x.to_le_bytes()[..word.len()]);
    }
}
