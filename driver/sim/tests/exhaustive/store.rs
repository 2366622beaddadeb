//! The three disks of a replica. An operation lasts until [`Disks::step`] ends it, and every state that a
//! power cut may leave at that point can be asked for.

use block::{AlignedBuf, Disk, Result, SECTOR_BYTES};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

type Sector = [u8; SECTOR_BYTES as usize];
const ZERO: Sector = [0; SECTOR_BYTES as usize];

/// What a disk holds; sectors that are not there are zero.
pub type Content = BTreeMap<u64, Sector>;

#[derive(Clone)]
struct Write {
    op: u64,
    disk: usize,
    sector: u64,
    content: Sector,
}

enum What {
    Write,
    /// With the writes that had completed when it began.
    Sync(usize, Vec<u64>),
}

#[derive(Default)]
struct State {
    next: u64,
    cache: [Content; 3],
    durable: [Content; 3],
    /// Written and not synced, in order.
    later: Vec<Write>,
    queue: VecDeque<(u64, What)>,
    wakers: BTreeMap<u64, Waker>,
}

impl State {
    fn is_flying(&self, op: u64) -> bool {
        self.queue.iter().any(|(o, _)| *o == op)
    }

    /// Sectors that a power cut may leave one way or another.
    fn open(&self) -> Vec<&Write> {
        let differs = |w: &&Write| {
            let durable = self.durable[w.disk].get(&w.sector).unwrap_or(&ZERO);
            let others = |o: &&Write| (o.disk, o.sector) == (w.disk, w.sector);
            *durable != w.content || self.later.iter().filter(others).count() > 1
        };
        self.later.iter().filter(differs).collect()
    }
}

/// The image, the staging file and the record of a replica.
#[derive(Clone, Default)]
pub struct Disks(Rc<RefCell<State>>);

impl Disks {
    /// Disks that hold this, durably.
    pub fn holding(content: [Content; 3]) -> Disks {
        Disks(Rc::new(RefCell::new(State {
            cache: content.clone(),
            durable: content,
            ..State::default()
        })))
    }

    pub fn disk(&self, number: usize, size: u64) -> One {
        One {
            disks: self.clone(),
            number,
            size,
        }
    }

    /// What reads see.
    pub fn cache(&self, number: usize) -> Content {
        self.0.borrow().cache[number].clone()
    }

    /// The oldest operation ends; false if none is under way.
    pub fn step(&self) -> bool {
        let mut s = self.0.borrow_mut();
        let Some((op, what)) = s.queue.pop_front() else {
            return false;
        };
        match what {
            What::Write => {
                let done: Vec<Write> = s.later.iter().filter(|w| w.op == op).cloned().collect();
                for w in done {
                    s.cache[w.disk].insert(w.sector, w.content);
                }
            }
            What::Sync(disk, covered) => {
                let is_covered = |w: &Write| w.disk == disk && covered.contains(&w.op);
                let (now, later) = std::mem::take(&mut s.later)
                    .into_iter()
                    .partition(is_covered);
                s.later = later;
                for w in now {
                    s.durable[disk].insert(w.sector, w.content);
                }
            }
        }
        let waker = s.wakers.remove(&op);
        drop(s);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// In how many groups what is not synced is taken: as many as there are sectors, up to `most`.
    pub fn groups(&self, most: usize) -> usize {
        self.0.borrow().open().len().min(most)
    }

    /// What a power cut leaves that keeps the groups whose bits are set.
    pub fn after(&self, kept: u64, groups: usize) -> [Content; 3] {
        let s = self.0.borrow();
        let mut content = s.durable.clone();
        let open = s.open();
        for (i, w) in open.iter().enumerate() {
            if kept & (1 << (i * groups / open.len())) != 0 {
                content[w.disk].insert(w.sector, w.content);
            }
        }
        content
    }

    fn begin(&self, what: impl FnOnce(&mut State, u64) -> What) -> u64 {
        let mut s = self.0.borrow_mut();
        let op = s.next;
        s.next += 1;
        let what = what(&mut s, op);
        s.queue.push_back((op, what));
        op
    }

    async fn end(&self, op: u64) {
        poll_fn(|cx| {
            let mut s = self.0.borrow_mut();
            if !s.is_flying(op) {
                return Poll::Ready(());
            }
            s.wakers.insert(op, cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    async fn write(&self, disk: usize, offset: u64, bytes: &[u8]) {
        assert!(offset.is_multiple_of(SECTOR_BYTES) && bytes.len().is_multiple_of(512));
        let op = self.begin(|s, op| {
            for (i, part) in bytes.chunks(512).enumerate() {
                let mut content = ZERO;
                content.copy_from_slice(part);
                let sector = offset / SECTOR_BYTES + i as u64;
                let write = Write {
                    op,
                    disk,
                    sector,
                    content,
                };
                s.later.push(write);
            }
            What::Write
        });
        self.end(op).await;
    }
}

/// One of them.
pub struct One {
    disks: Disks,
    number: usize,
    size: u64,
}

impl Disk for One {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, offset: u64, mut buf: AlignedBuf) -> (Result<()>, AlignedBuf) {
        let s = self.disks.0.borrow();
        for (i, part) in buf.chunks_mut(512).enumerate() {
            let sector = offset / SECTOR_BYTES + i as u64;
            part.copy_from_slice(s.cache[self.number].get(&sector).unwrap_or(&ZERO));
        }
        drop(s);
        (Ok(()), buf)
    }

    async fn write(&self, offset: u64, buf: AlignedBuf) -> (Result<()>, AlignedBuf) {
        self.disks.write(self.number, offset, &buf).await;
        (Ok(()), buf)
    }

    async fn zero(&self, offset: u64, len: u64) -> Result<()> {
        // Space that is given back is far larger than what is in it: what is there is overwritten.
        let there = {
            let s = self.disks.0.borrow();
            let sectors = offset / SECTOR_BYTES..(offset + len) / SECTOR_BYTES;
            let all = s.cache[self.number].range(sectors);
            all.map(|(at, _)| *at).collect::<Vec<_>>()
        };
        let number = self.number;
        let op = self.disks.begin(|s, op| {
            for sector in there {
                s.later.push(Write {
                    op,
                    disk: number,
                    sector,
                    content: ZERO,
                });
            }
            What::Write
        });
        self.disks.end(op).await;
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        let number = self.number;
        let op = self.disks.begin(|s, _| {
            let done = |w: &&Write| w.disk == number && !s.is_flying(w.op);
            let covered = s.later.iter().filter(done).map(|w| w.op).collect();
            What::Sync(number, covered)
        });
        self.disks.end(op).await;
        Ok(())
    }

    async fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        let s = self.disks.0.borrow();
        let mut data = s.cache[self.number].iter().filter(|(_, c)| **c != ZERO);
        let is_left = data.any(|(at, _)| *at >= offset / SECTOR_BYTES);
        Ok(is_left.then_some((offset, self.size)))
    }
}
