//! Copy-before-write: before a write goes to a block that a live snapshot still needs, the block's
//! old content is read and kept.

use crate::epoch::Live;
use crate::request::{Action, SaveTicket};
use crate::snapshot::{OldBlock, SAVED_BLOCKS_MAX, Snapshot};
use crate::sync::Arc;
use block::{AlignedBuf, BLOCK_BYTES, Extent};
use std::collections::VecDeque;

/// Reads of old content under way; as many as keep a fast disk busy.
const SAVES_MAX: usize = 32;
/// Blocks of one read: 1 MiB.
const SAVE_BLOCKS_MAX: u64 = 256;

#[derive(Debug)]
struct Save {
    extent: Extent,
    /// Who wants it. A snapshot that came later is not among them: since then the content may have
    /// been changed by a write that is in its epoch.
    targets: Vec<Arc<Snapshot>>,
}

#[derive(Debug, Default)]
pub(crate) struct Saves {
    running: [Option<Save>; SAVES_MAX],
}

impl Saves {
    /// Whether a write to `blocks` must wait; asks for reads where that is what it waits for.
    pub(crate) fn must_wait(
        &mut self,
        live: &[Live],
        blocks: Extent,
        actions: &mut VecDeque<Action>,
    ) -> bool {
        let mut wait = false;
        for l in live {
            let Some(need) = l.snapshot.must_save(blocks) else {
                continue;
            };
            // What is in flight may be of the snapshot's own epoch: the content is not final yet.
            if !l.snapshot.is_settled() {
                wait = true;
                continue;
            }
            if need.count > SAVED_BLOCKS_MAX as u64 {
                l.snapshot.overrun();
                continue;
            }
            wait = true;
            self.read(live, &l.snapshot, need, actions);
        }
        wait
    }

    /// A read has ended; false if no such read was under way.
    pub(crate) fn saved(&mut self, ticket: SaveTicket, content: Result<AlignedBuf, i32>) {
        let save = self
            .running
            .get_mut(ticket.0 as usize)
            .and_then(Option::take);
        let Some(save) = save else {
            panic!("no read {} was asked for", ticket.0);
        };
        let Ok(content) = content else {
            // What cannot be read cannot be kept; the guest's write need not suffer from it.
            save.targets.iter().for_each(|s| s.overrun());
            return;
        };
        for (b, bytes) in save.extent.iter().zip(content.chunks(BLOCK_BYTES as usize)) {
            let mut old = [0; BLOCK_BYTES as usize];
            old[..bytes.len()].copy_from_slice(bytes);
            let old: OldBlock = Arc::new(old);
            save.targets.iter().for_each(|s| s.keep(b, &old));
        }
    }

    fn read(
        &mut self,
        live: &[Live],
        wanted_by: &Arc<Snapshot>,
        need: Extent,
        actions: &mut VecDeque<Action>,
    ) {
        let need = Extent::new(need.start.0, need.count.min(SAVE_BLOCKS_MAX));
        let under_way = self.running.iter().flatten().any(|s| {
            s.extent.start < need.end()
                && need.start < s.extent.end()
                && s.targets.iter().any(|t| Arc::ptr_eq(t, wanted_by))
        });
        if under_way {
            return;
        }
        let Some(free) = self.running.iter().position(Option::is_none) else {
            return;
        };
        // A later snapshot need not have settled: what this one still needs, nobody has written since.
        let also = |s: &&Arc<Snapshot>| s.must_save(need).is_some();
        self.running[free] = Some(Save {
            extent: need,
            targets: live
                .iter()
                .map(|l| &l.snapshot)
                .filter(also)
                .cloned()
                .collect(),
        });
        actions.push_back(Action::SaveOld {
            ticket: SaveTicket(free as u32),
            extent: need,
        });
    }
}
