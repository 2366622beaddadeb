//! A disk that forgets what was not synced.

use super::{Dice, pause};
use block::{AlignedBuf, Disk, Error, Result};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const PAGE: usize = 4096;

struct Inner {
    /// What reads see.
    now: RefCell<Vec<u8>>,
    /// What survives a power cut for certain.
    durable: RefCell<Vec<u8>>,
    written: RefCell<Vec<bool>>,
    /// Pages written since the last sync.
    unsynced: RefCell<Vec<usize>>,
    dice: Dice,
    /// Writes, zeroes and syncs left before the power fails; shared by the disks of one machine.
    power: Rc<Cell<u64>>,
    pub bytes_written: Cell<u64>,
    /// What a disk without power says.
    errno: Cell<i32>,
    /// How long a write takes, in turns of the others, at most. It goes on when nobody waits for it.
    write_turns: Cell<u64>,
    /// How long a sync takes, in turns of the others, at least.
    sync_turns: Cell<u64>,
    syncs: Cell<u64>,
    written_while_syncing: Cell<u64>,
}

#[derive(Clone)]
pub struct MemDisk(Rc<Inner>);

pub fn forever() -> Rc<Cell<u64>> {
    Rc::new(Cell::new(u64::MAX))
}

impl MemDisk {
    pub fn new(size: u64, dice: &Dice, power: &Rc<Cell<u64>>) -> MemDisk {
        MemDisk(Rc::new(Inner {
            now: RefCell::new(vec![0; size as usize]),
            durable: RefCell::new(vec![0; size as usize]),
            written: RefCell::new(vec![false; (size as usize).div_ceil(PAGE)]),
            unsynced: RefCell::default(),
            dice: dice.clone(),
            power: power.clone(),
            bytes_written: Cell::new(0),
            errno: Cell::new(5),
            write_turns: Cell::new(0),
            sync_turns: Cell::new(0),
            syncs: Cell::new(0),
            written_while_syncing: Cell::new(0),
        }))
    }

    /// The same disk with more room, which is zeroes.
    pub fn grown(&self, size: u64) -> MemDisk {
        let more = MemDisk::new(size, &self.0.dice, &self.0.power);
        for (from, to) in [
            (&self.0.now, &more.0.now),
            (&self.0.durable, &more.0.durable),
        ] {
            let (from, mut to) = (from.borrow(), to.borrow_mut());
            // Most of it is zeroes that nobody has touched, and need not be.
            for (from, to) in from.chunks(PAGE).zip(to.chunks_mut(PAGE)) {
                if from.iter().any(|b| *b != 0) {
                    to[..from.len()].copy_from_slice(from);
                }
            }
        }
        more
    }

    pub fn content(&self) -> Vec<u8> {
        self.0.now.borrow().clone()
    }

    pub fn bytes_written(&self) -> u64 {
        self.0.bytes_written.get()
    }

    /// Fail with another errno than EIO once the power is used up.
    pub fn fail_with(&self, errno: i32) {
        self.0.errno.set(errno);
    }

    /// From now on writes take up to so long, and what began lands, as on a ring, whoever was waiting for it.
    pub fn slow_write(&self, turns: u64) {
        self.0.write_turns.set(turns);
    }

    pub fn slow_sync(&self, turns: u64) {
        self.0.sync_turns.set(turns);
    }

    pub fn written_while_syncing(&self) -> u64 {
        self.0.written_while_syncing.get()
    }

    /// Write at once, as the guest's own path does.
    pub fn poke(&self, offset: u64, bytes: &[u8]) {
        let at = offset as usize;
        self.0.now.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        for page in at / PAGE..(at + bytes.len()).div_ceil(PAGE) {
            self.0.written.borrow_mut()[page] = true;
            self.0.unsynced.borrow_mut().push(page);
        }
    }

    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        self.0.now.borrow()[offset as usize..offset as usize + len].to_vec()
    }

    /// The power fails: each page that was not synced is kept or lost, as the dice say.
    pub fn power_cut(&self) {
        let mut now = self.0.now.borrow_mut();
        let mut durable = self.0.durable.borrow_mut();
        for page in std::mem::take(&mut *self.0.unsynced.borrow_mut()) {
            let range = page * PAGE..((page + 1) * PAGE).min(now.len());
            if self.0.dice.roll(2) == 0 {
                durable[range.clone()].copy_from_slice(&now[range]);
            } else {
                now[range.clone()].copy_from_slice(&durable[range]);
            }
        }
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.spend()?;
        self.poke(offset, bytes);
        self.0
            .bytes_written
            .set(self.0.bytes_written.get() + bytes.len() as u64);
        if self.0.syncs.get() > 0 {
            let while_syncing = &self.0.written_while_syncing;
            while_syncing.set(while_syncing.get() + bytes.len() as u64);
        }
        Ok(())
    }

    fn spend(&self) -> Result<()> {
        let left = self.0.power.get();
        if left == 0 {
            return Err(Error::errno("the power is off", self.0.errno.get()));
        }
        self.0.power.set(left - 1);
        Ok(())
    }
}

impl Disk for MemDisk {
    fn size(&self) -> u64 {
        self.0.now.borrow().len() as u64
    }

    async fn read(&self, offset: u64, mut buf: AlignedBuf) -> (Result<()>, AlignedBuf) {
        pause(self.0.dice.roll(3)).await;
        let at = offset as usize;
        let len = buf.len();
        buf.copy_from_slice(&self.0.now.borrow()[at..at + len]);
        pause(self.0.dice.roll(3)).await;
        (Ok(()), buf)
    }

    async fn write(&self, offset: u64, buf: AlignedBuf) -> (Result<()>, AlignedBuf) {
        match self.0.write_turns.get() {
            0 => pause(self.0.dice.roll(4)).await,
            most => {
                let (disk, turns) = (self.clone(), self.0.dice.roll(most));
                let landing = tokio::task::spawn_local(async move {
                    pause(turns).await;
                    (disk.put(offset, &buf), buf)
                });
                return landing.await.unwrap();
            }
        }
        (self.put(offset, &buf), buf)
    }

    async fn zero(&self, offset: u64, len: u64) -> Result<()> {
        pause(self.0.dice.roll(2)).await;
        self.spend()?;
        self.poke(offset, &vec![0; len as usize]);
        for page in offset as usize / PAGE..(offset + len) as usize / PAGE {
            self.0.written.borrow_mut()[page] = false;
        }
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        let pages = std::mem::take(&mut *self.0.unsynced.borrow_mut());
        self.0.syncs.set(self.0.syncs.get() + 1);
        pause(self.0.sync_turns.get() + self.0.dice.roll(4)).await;
        self.0.syncs.set(self.0.syncs.get() - 1);
        if let Err(e) = self.spend() {
            // Nothing is known of them: the power may yet take them.
            self.0.unsynced.borrow_mut().extend(pages);
            return Err(e);
        }
        let now = self.0.now.borrow();
        let mut durable = self.0.durable.borrow_mut();
        for page in pages {
            let range = page * PAGE..((page + 1) * PAGE).min(now.len());
            durable[range.clone()].copy_from_slice(&now[range]);
        }
        Ok(())
    }

    async fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        let written = self.0.written.borrow();
        let first = offset as usize / PAGE;
        let Some(start) = (first..written.len()).find(|p| written[*p]) else {
            return Ok(None);
        };
        let end = (start..written.len()).find(|p| !written[*p]);
        let end = end.unwrap_or(written.len()) * PAGE;
        let start = ((start * PAGE) as u64).max(offset);
        Ok(Some((start, (end as u64).min(self.size()))))
    }
}
