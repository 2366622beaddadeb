//! The standby volume, as the receiving mover's thread sees it: calls to its home shard.

use crate::engine::VolumeHandle;
use block::{Epoch, ErrorKind, Generation, Result};
use replica::Target;
use std::sync::Arc;
use volume::Volume;

/// What goes with a change of owner on the node that becomes it, besides the volume's own record.
pub trait Succession: Send + Sync {
    /// This node is about to own the volume: what an earlier ownership of its own left is to be gone
    /// before that is durable. May wait for the disk; must not fail, since there is no way back.
    fn taking(&self);

    /// It owns the volume: guests may be told of it.
    fn taken(&self);
}

/// The volume that a replica on this node becomes.
pub struct ShardTarget {
    handle: VolumeHandle,
    succession: Arc<dyn Succession>,
}

impl ShardTarget {
    /// The target of a standby volume; `succession` is told when it is taken over.
    #[must_use]
    pub fn new(handle: VolumeHandle, succession: Arc<dyn Succession>) -> ShardTarget {
        ShardTarget { handle, succession }
    }
}

impl Target for ShardTarget {
    async fn observe(&self, generation: Generation) -> Result<()> {
        self.handle
            .control(move |v, now| v.observe(now, generation))
            .await
    }

    async fn last_owned(&self) -> Result<Generation> {
        self.handle.call(|v, _| v.last_owned()).await
    }

    async fn activate(&self, generation: Generation, epoch: Epoch) -> Result<()> {
        // A repeated call finds the replicas of the ownership that the first one began, and a late one is
        // refused.
        let begins = move |v: &mut Volume, _| v.owned().is_none() && generation > v.seen();
        if self.handle.call(begins).await? {
            self.succession.taking();
        }
        self.handle
            .control(move |v, _| v.activate(generation, epoch))
            .await?;
        self.succession.taken();
        Ok(())
    }

    async fn seen(&self) -> Result<Generation> {
        self.handle.call(|v, _| v.seen()).await
    }

    async fn gave_up(&self) -> Result<Option<(Generation, Epoch)>> {
        self.handle.call(|v, _| v.gave_up()).await
    }

    async fn owned(&self) -> Result<Option<Generation>> {
        let Some(generation) = self.handle.call(|v, _| v.owned()).await? else {
            return Ok(None);
        };
        // A former owner that hears of it asks no more, and this node may not own it after a power cut
        // before that is durable.
        match self.observe(generation).await {
            Ok(()) => Ok(Some(generation)),
            Err(e) if e.kind() == ErrorKind::Fenced => Ok(None),
            Err(e) => Err(e),
        }
    }
}
