//! Epochs: the open one, into which writes are marked, and those closed but not yet had by everybody.

use crate::budget::Budget;
use crate::map::{DirtyMap, blocks_of};
use crate::request::Action;
use block::{Epoch, Extent};
use std::collections::VecDeque;

#[derive(Debug)]
pub(crate) struct Epochs {
    open: Epoch,
    active: DirtyMap,
    /// Issued writes of the open epoch that have not completed.
    flying: u32,
}

impl Epochs {
    pub(crate) fn new(size: u64, open: Epoch) -> Epochs {
        let blocks = blocks_of(size);
        let budget = Budget::new(blocks.div_ceil(block::BLOCKS_PER_REGION));
        Epochs {
            open,
            active: DirtyMap::new(blocks, &budget),
            flying: 0,
        }
    }

    /// A write is being issued: mark it. The epoch it belongs to.
    pub(crate) fn issue(&mut self, blocks: Extent) -> Epoch {
        self.active.set(blocks);
        self.flying += 1;
        self.open
    }

    /// A write of `epoch` has completed.
    pub(crate) fn complete(&mut self, epoch: Epoch, _actions: &mut VecDeque<Action>) {
        assert_eq!(epoch, self.open);
        self.flying -= 1;
    }
}
