//! The standby volume, as the receiving mover's thread sees it: calls to its home shard.

use crate::engine::VolumeHandle;
use block::{Epoch, Generation, Result};
use replica::Target;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use volume::Role;

/// The volume that a replica on this node becomes.
pub struct ShardTarget {
    handle: VolumeHandle,
    offered: Arc<AtomicBool>,
}

impl ShardTarget {
    /// The target of a standby volume; `offered` is set when it is taken over.
    #[must_use]
    pub fn new(handle: VolumeHandle, offered: Arc<AtomicBool>) -> ShardTarget {
        ShardTarget { handle, offered }
    }
}

impl Target for ShardTarget {
    async fn observe(&self, generation: Generation) -> Result<()> {
        self.handle
            .control(move |v, now| v.observe(now, generation))
            .await
    }

    async fn activate(&self, generation: Generation, epoch: Epoch) -> Result<()> {
        self.handle
            .control(move |v, _| v.activate(generation, epoch))
            .await?;
        self.offered.store(true, Ordering::Release);
        Ok(())
    }

    async fn gave_up(&self) -> Result<Option<(Generation, Epoch)>> {
        self.handle.call(|v, _| v.gave_up()).await
    }

    async fn owned(&self) -> Result<Option<Generation>> {
        self.handle
            .call(|v, _| match v.role() {
                Role::Owner { generation, .. } => Some(generation),
                _ => None,
            })
            .await
    }
}
