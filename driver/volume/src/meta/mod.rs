//! The metadata file: pages in A/B slots, and the commits that make them durable.
//!
//! ```text
//!   slot   0 1   superblock A B        a commit: write pages, each into the slot that does not
//!          2 3   intents 0  A B        hold its newest content, then one fdatasync; the next
//!          4 5   intents 1  A B        begins only after that, so no unsynced page is overwritten
//! ```
//!
//! A change of the superblock is answered when *both* its slots hold it (two commits): then one slot
//! may rot and the other still says who owns the volume. An intent is answered after one commit,
//! because writes wait for it; in return an intent page of which a slot has rotted counts as all set.
//!
//! After a process died, the file as read may be newer than what its disk holds. So opening begins
//! with an fdatasync of what waits to be written, and until then nothing is believed and nothing
//! overwritten. What an fdatasync of an earlier process failed to write does not wait any more; so the file
//! must be read from its disk, not from pages that the kernel has left.

pub(crate) mod page;
pub(crate) mod superblock;

use crate::intent::{Intents, pages_of};
use crate::request::{Action, META_PAGE_BYTES};
use block::{AREA_BYTES, Epoch, VolumeId};
use page::Slot;
use std::collections::VecDeque;
use superblock::Found;
pub use superblock::Identity;
pub(crate) use superblock::Superblock;

/// Bytes of the metadata file of a volume of `size` bytes. Allocate them all before the volume is
/// made: a full disk must not be found out when a guest's write waits for an intent.
#[must_use]
pub fn meta_bytes(size: u64) -> u64 {
    let pages = 1 + pages_of(size.div_ceil(AREA_BYTES)) as u64;
    pages * 2 * META_PAGE_BYTES as u64
}

/// What the superblock said in a slot.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    version: u64,
    /// The oldest cursor in it; `None` without cursors.
    oldest: Option<Epoch>,
    ceiling: Epoch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Commit {
    None,
    /// The first sync after opening.
    Opening,
    /// With or without the superblock's newer slot.
    Running {
        superblock: bool,
    },
}

/// Writes pages and knows what is durable.
#[derive(Debug)]
pub(crate) struct Store {
    id: VolumeId,
    seq: u64,
    /// The slot (0 or 1) that holds each page's newest content; page 0 is the superblock.
    newest: Vec<u8>,
    /// Changes of the superblock so far.
    version: u64,
    slots: [Written; 2],
    /// What both slots durably hold or exceed.
    durable: Written,
    commit: Commit,
    opening: bool,
    formatting: bool,
}

impl Store {
    /// For a new volume: the first commits write every slot.
    pub(crate) fn create(id: VolumeId, areas: u64) -> Store {
        Store {
            id,
            seq: 0,
            newest: vec![0; 1 + pages_of(areas)],
            version: 1,
            slots: [Written::default(); 2],
            durable: Written::default(),
            commit: Commit::None,
            opening: false,
            formatting: true,
        }
    }

    /// For a volume whose superblock was found; reads the intents.
    pub(crate) fn open(found: &Found, meta: &[u8], intents: &mut Intents, areas: u64) -> Store {
        let id = found.superblock.identity.id;
        let mut store = Store::create(id, areas);
        (store.opening, store.formatting) = (true, false);
        store.newest[0] = found.slot;
        store.durable.oldest = oldest(&found.superblock);
        store.slots = [store.durable; 2];
        store.seq = found.seq;
        for page in 1..store.newest.len() {
            let read = |slot: usize| {
                let at = (page * 2 + slot) * META_PAGE_BYTES;
                meta.get(at..at + META_PAGE_BYTES)
                    .map_or(Slot::Rotten { seq: 0 }, |b| {
                        page::decode(id, page as u32, b)
                    })
            };
            let slots = [read(0), read(1)];
            store.seq = store.seq.max(slots[0].seq()).max(slots[1].seq());
            let rotten = slots.iter().position(|s| matches!(s, Slot::Rotten { .. }));
            let newest = match &slots {
                // The next write must not go over the rotten slot: torn, it would leave the other,
                // which may be older, to be believed.
                _ if rotten.is_some() => rotten.unwrap_or(0) as u8,
                [Slot::Good { seq: a, .. }, Slot::Good { seq: b, .. }] => u8::from(b > a),
                [_, Slot::Good { .. }] => 1,
                _ => 0,
            };
            store.newest[page] = newest;
            let payload = match &slots[usize::from(newest)] {
                Slot::Good { payload, .. } if rotten.is_none() => Some(payload.as_slice()),
                _ => None,
            };
            intents.load(page - 1, payload);
        }
        store
    }

    /// The superblock has changed; the change is durable when [`Store::durable`] reaches the number.
    pub(crate) fn change(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// Number of the last change.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The change that is surely durable, with all before it.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.version
    }

    /// The oldest cursor that the disk may know, in a slot that is durable or under way; `None` if it
    /// surely knows none. A removed cursor is still one while a crash could bring it back.
    pub(crate) fn oldest_cursor(&self) -> Option<Epoch> {
        let [a, b] = self.slots;
        let known = [self.durable.oldest, a.oldest, b.oldest];
        known.into_iter().flatten().min()
    }

    /// Epochs that may be given out.
    pub(crate) fn ceiling(&self) -> Epoch {
        self.durable.ceiling
    }

    /// Begin a commit if one is due.
    pub(crate) fn begin(
        &mut self,
        superblock: &Superblock,
        intents: &mut Intents,
        actions: &mut VecDeque<Action>,
    ) {
        if self.commit != Commit::None {
            return;
        }
        if self.opening {
            self.commit = Commit::Opening;
            actions.push_back(Action::SyncMeta);
            return;
        }
        let stale = self.slots.iter().any(|s| s.version < self.version);
        let write_superblock = stale && !self.formatting;
        if !stale && !intents.is_urgent() {
            return;
        }
        self.seq += 1;
        if write_superblock {
            let slot = self.write(0, &superblock.encode(), actions);
            self.slots[usize::from(slot)] = Written {
                version: self.version,
                oldest: oldest(superblock),
                ceiling: superblock.ceiling,
            };
        }
        for (page, payload) in intents.begin(self.formatting) {
            self.write(page + 1, &payload, actions);
            if self.formatting {
                self.write(page + 1, &payload, actions);
            }
        }
        self.commit = Commit::Running {
            superblock: write_superblock,
        };
        actions.push_back(Action::SyncMeta);
    }

    /// The commit is durable.
    pub(crate) fn synced(&mut self, intents: &mut Intents) {
        let commit = std::mem::replace(&mut self.commit, Commit::None);
        assert_ne!(
            commit,
            Commit::None,
            "no sync of the metadata was asked for"
        );
        intents.committed();
        if commit == Commit::Opening {
            self.opening = false;
        } else {
            self.formatting = false;
        }
        if commit == (Commit::Running { superblock: true }) {
            let [a, b] = self.slots;
            self.durable = Written {
                version: a.version.min(b.version),
                oldest: a.oldest.into_iter().chain(b.oldest).min(),
                ceiling: a.ceiling.min(b.ceiling),
            };
        }
    }

    /// Write a page into the slot that does not hold its newest content.
    fn write(&mut self, page: usize, payload: &[u8], actions: &mut VecDeque<Action>) -> u8 {
        let slot = 1 - self.newest[page];
        self.newest[page] = slot;
        actions.push_back(Action::WriteMeta {
            slot: page as u32 * 2 + u32::from(slot),
            bytes: page::encode(self.id, page as u32, self.seq, payload),
        });
        slot
    }
}

fn oldest(superblock: &Superblock) -> Option<Epoch> {
    superblock.cursors.iter().map(|c| c.epoch).min()
}
