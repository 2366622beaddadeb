//! The standby volume, as the receiving mover's thread sees it: calls to its home shard.

use crate::engine::VolumeHandle;
use block::{Epoch, Generation, Result};
use replica::Target;
use volume::Role;

/// The volume that a replica on this node becomes.
pub struct ShardTarget(VolumeHandle);

impl ShardTarget {
    /// The target of a standby volume.
    #[must_use]
    pub fn new(handle: VolumeHandle) -> ShardTarget {
        ShardTarget(handle)
    }
}

impl Target for ShardTarget {
    async fn observe(&self, generation: Generation) -> Result<()> {
        self.0
            .control(move |v, now| v.observe(now, generation))
            .await
    }

    async fn activate(&self, generation: Generation, epoch: Epoch) -> Result<()> {
        self.0
            .control(move |v, _| v.activate(generation, epoch))
            .await
    }

    async fn owned(&self) -> Result<Option<Generation>> {
        self.0
            .call(|v, _| match v.role() {
                Role::Owner { generation, .. } => Some(generation),
                _ => None,
            })
            .await
    }
}
