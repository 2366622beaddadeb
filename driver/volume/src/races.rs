//! The gate on one thread and movers on others, over one image, in very many interleavings.
//!
//! The gate is a whole [`Volume`]; what a mover does with its snapshot is what the sender does: read the
//! image, look for what was saved, ship. Whatever the interleaving, a mover must end with the content of
//! its point in time, or with a snapshot that says that it is none any more.
//!
//! See `explore` for how they are run.

use crate::budget::Budget;
use crate::explore::explore;
use crate::request::{Action, Admission, Completion, Op, Request, RequestId};
use crate::snapshot::Snapshot;
use crate::sync::{Arc, AtomicBool, AtomicU64, AtomicUsize, Ordering, thread};
use crate::{Config, CursorName, Identity, Role, Start, Volume};
use block::{AlignedBuf, BLOCK_BYTES, Block, Epoch, Extent, Generation, Nanos, Span, VolumeId};
use std::collections::BTreeMap;

const NOW: Nanos = Nanos(1 << 40);
const BLOCKS: u64 = 4;

/// What each block of the image holds, as one number.
type Image = Arc<[AtomicU64; BLOCKS as usize]>;

/// The thread that owns the volume, and the image below it.
struct Gate {
    volume: Volume,
    image: Image,
    /// Reads for copy-before-write fail from this block on.
    unreadable: u64,
    writes: BTreeMap<u32, (Extent, u64)>,
}

impl Gate {
    /// A volume whose every block holds 1, tracked for these replicas.
    fn new(replicas: &[&str]) -> Gate {
        let config = Config {
            size: BLOCKS * BLOCK_BYTES,
            max_requests: 64,
            align: 512,
            read_only: false,
        };
        let identity = Identity {
            id: VolumeId([4; 16]),
            name: "v".parse().unwrap(),
            image: String::new(),
        };
        let owner = Role::Owner {
            generation: Generation(1),
            since: Epoch(0),
        };
        let mut gate = Gate {
            volume: Volume::create(config, identity, owner).unwrap(),
            image: Arc::new([const { AtomicU64::new(0) }; BLOCKS as usize]),
            unreadable: BLOCKS,
            writes: BTreeMap::new(),
        };
        gate.run();
        for replica in replicas {
            gate.volume.add_cursor(name(replica), Start::Now).unwrap();
            gate.run();
            gate.volume.seeded(&name(replica)).unwrap();
            gate.run();
        }
        gate.write(0..BLOCKS, 1);
        gate
    }

    /// Carry out what the volume asks for.
    fn run(&mut self) {
        while let Some(action) = self.volume.poll() {
            match action {
                Action::SyncMeta => self.volume.meta_synced(NOW, Ok(())),
                Action::SyncImage => self.volume.image_synced(NOW, Ok(())),
                Action::Issue(id) => self.issue(id),
                Action::SaveOld { ticket, extent } => {
                    let old = if extent.end().0 > self.unreadable {
                        Err(5)
                    } else {
                        Ok(bytes(&self.image, extent))
                    };
                    self.volume.saved(ticket, old);
                }
                _ => {}
            }
        }
    }

    fn issue(&mut self, id: RequestId) {
        let (extent, value) = self.writes[&id.0];
        for b in extent.iter() {
            self.image[b.0 as usize].store(value, Ordering::Release);
        }
        let completion = self.volume.complete(NOW, id, Ok(()));
        assert_eq!(completion, Completion::Reply(Ok(())));
    }

    fn submit(&mut self, blocks: std::ops::Range<u64>, value: u64) -> (RequestId, Admission) {
        let id = RequestId(self.writes.len() as u32);
        let extent = Extent::new(blocks.start, blocks.end - blocks.start);
        self.writes.insert(id.0, (extent, value));
        let request = Request {
            id,
            op: Op::Write,
            fua: false,
            span: Span::new(blocks.start * BLOCK_BYTES, extent.count * BLOCK_BYTES),
        };
        (id, self.volume.submit(NOW, request))
    }

    fn write(&mut self, blocks: std::ops::Range<u64>, value: u64) {
        let (id, admission) = self.submit(blocks, value);
        if admission == Admission::Issue {
            self.issue(id);
        }
        self.run();
    }

    fn rotate(&mut self, replica: &str) -> Arc<Snapshot> {
        self.volume.rotate(&name(replica)).unwrap()
    }

    /// Ship a snapshot on a thread of its own: every block as it was then, or `None` if the snapshot
    /// was overrun.
    fn mover(&self, snapshot: Arc<Snapshot>) -> thread::JoinHandle<Option<Vec<u64>>> {
        let image = self.image.clone();
        thread::spawn(move || {
            while !snapshot.is_settled() {
                thread::yield_now();
            }
            let mut shipped = vec![0; BLOCKS as usize];
            let mut at = Block(0);
            while let Some(extent) = snapshot.next_pending(at, 2) {
                let mut read: Vec<u64> = extent
                    .iter()
                    .map(|b| image[b.0 as usize].load(Ordering::Acquire))
                    .collect();
                for (b, value) in extent.iter().zip(&mut read) {
                    if let Some(old) = snapshot.saved(b) {
                        *value = u64::from_le_bytes(*old.first_chunk().unwrap());
                    }
                }
                snapshot.shipped(extent);
                shipped[extent.start.0 as usize..extent.end().0 as usize].copy_from_slice(&read);
                at = extent.end();
            }
            (!snapshot.is_overrun()).then_some(shipped)
        })
    }
}

fn name(replica: &str) -> CursorName {
    CursorName::Replica(replica.parse().unwrap())
}

fn bytes(image: &Image, extent: Extent) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed((extent.count * BLOCK_BYTES) as usize);
    for (b, part) in extent.iter().zip(buf.chunks_mut(BLOCK_BYTES as usize)) {
        let value = image[b.0 as usize].load(Ordering::Acquire);
        part[..8].copy_from_slice(&value.to_le_bytes());
    }
    buf
}

/// A guest overwrites blocks, some twice, while they are shipped.
///
/// The gate once asked twice whether the first block must be saved, to find it and then to measure the
/// run from it. A mover that shipped the block in between made the run empty, and to ask about an empty
/// run that begins at block 0 went through 2^58 words: the shard hung.
#[test]
fn a_mover_ships_the_point_in_time() {
    explore(|| {
        let mut gate = Gate::new(&["n2"]);
        let snapshot = gate.rotate("n2");
        gate.run();
        let mover = gate.mover(snapshot);
        gate.write(0..1, 2);
        gate.write(1..3, 3);
        gate.write(0..1, 4);
        gate.write(2..4, 5);
        assert_eq!(mover.join().unwrap(), Some(vec![1; 4]));
    });
}

/// A write was in flight when the epoch ended: it is in the epoch, whenever it lands.
#[test]
fn a_mover_waits_for_the_writes_of_the_epoch() {
    explore(|| {
        let mut gate = Gate::new(&["n2"]);
        let (id, admission) = gate.submit(1..3, 2);
        assert_eq!(admission, Admission::Issue);
        let snapshot = gate.rotate("n2");
        let mover = gate.mover(snapshot);
        // Held until the epoch has settled and the old content is saved.
        gate.write(2..3, 9);
        gate.issue(id);
        gate.run();
        assert_eq!(mover.join().unwrap(), Some(vec![1, 2, 2, 1]));
    });
}

/// Old content that cannot be kept makes the snapshot void, and every mover that read what came after
/// must know. What was saved is dropped at that moment: a mover that finds it gone must find the mark.
#[test]
fn a_snapshot_that_is_overrun_says_so() {
    explore(|| {
        let mut gate = Gate::new(&["n2"]);
        let snapshot = gate.rotate("n2");
        gate.run();
        let mover = gate.mover(snapshot);
        gate.unreadable = 2;
        gate.write(0..1, 2);
        gate.write(2..3, 3);
        gate.write(1..2, 4);
        let shipped = mover.join().unwrap();
        assert!(shipped.is_none_or(|s| s == [1; 4]));
    });
}

/// Two replicas at two points in time: a block's content before a write may belong to one and not to
/// the other.
#[test]
fn two_movers_ship_two_points_in_time() {
    explore(|| {
        let mut gate = Gate::new(&["n2", "n3"]);
        let first = gate.rotate("n2");
        gate.run();
        let mover = gate.mover(first);
        gate.write(0..2, 2);
        let second = gate.rotate("n3");
        gate.run();
        let other = gate.mover(second);
        gate.write(1..4, 3);
        assert_eq!(mover.join().unwrap(), Some(vec![1; 4]));
        assert_eq!(other.join().unwrap(), Some(vec![2, 2, 1, 1]));
    });
}

/// The mirror broke before the last of its epoch was confirmed: whoever sees the epoch settled sees
/// that it must be shipped after all.
#[test]
fn an_unconfirmed_mirror_is_never_taken_for_a_shipped_epoch() {
    explore(|| {
        let budget = Budget::new(1);
        let snapshot = Snapshot::new(Epoch(1), Vec::new(), false, true, BLOCKS, &budget);
        let snapshot = Arc::new(snapshot);
        let seen = snapshot.clone();
        let mover = thread::spawn(move || {
            while !seen.is_settled() {
                thread::yield_now();
            }
            assert!(!seen.is_mirrored());
        });
        snapshot.mirror_broke();
        snapshot.settle();
        mover.join().unwrap();
    });
}

/// Maps are made on the shard and dropped wherever their last holder is.
#[test]
fn a_budget_is_never_passed_and_never_leaks() {
    explore(|| {
        let budget = Budget::with_limit(250);
        let highest = Arc::new(AtomicUsize::new(0));
        let got = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (budget, highest, got) = (budget.clone(), highest.clone(), got.clone());
                thread::spawn(move || {
                    for _ in 0..2 {
                        let charge = budget.charge(100, 50);
                        highest.fetch_max(budget.used(), Ordering::AcqRel);
                        got.fetch_or(charge.is_some(), Ordering::AcqRel);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert!(highest.load(Ordering::Acquire) <= 200 && got.load(Ordering::Acquire));
        assert_eq!(budget.used(), 0);
    });
}
