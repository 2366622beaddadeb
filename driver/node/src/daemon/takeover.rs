//! A volume changes hands without its owner's consent, because the owner is gone for good.
//!
//! ```text
//!   take over: cut the source's connection ─► the copy is a point in time? ─► HandedOver, Owner (durable)
//!              ─► guests are let in
//!   take back: end the hand-over ─┬─► it was not given away: Owner (durable), in the new generation
//!                                 └─► it was: guests that were sent on are sent away ─► take over
//!   depose:    Standby (durable) ─► its guests' connections are closed ─► its replicas are forgotten
//! ```
//!
//! What the former owner acknowledged after the copy's epoch is not in the copy. So a former owner that
//! comes back must not go on serving its guests, and must not send them on either: they would find a
//! disk that has gone back in time. It is told as soon as anybody reaches it: by the new owner, which
//! answers its replication links with a higher generation, and by the controller.
//!
//! A node that gave the volume away has a copy, too: its image as of then. Guests that it has not sent on were
//! told nothing since. They wait, and go on here.

use super::volumes::{Hosted, Volumes};
use crate::service::{TakeOver, Turn};
use block::Result;
use proto::v1::VolumeReport;
use volume::Role;

impl Volumes {
    /// See [`NodeOps::take_over`](crate::service::NodeOps::take_over).
    pub(super) async fn take_over_volume(
        &self,
        turn: Option<Turn>,
        taken: TakeOver,
    ) -> Result<VolumeReport> {
        let asked = format!("take over {}", taken.volume);
        let _one = self.turn(&taken.volume, turn).await?;
        let hosted = self.hosted(&asked, &taken.volume, Some(taken.id))?;
        if !is_over(&hosted, &taken).await? {
            let epoch = self
                .receiving
                .take_over(hosted.id, taken.generation)
                .await
                .map_err(|e| e.within(&asked))?;
            tracing::warn!(
                "volume {} is owned here now, in generation {}, as of epoch {epoch}: its owner was given up",
                taken.volume,
                taken.generation
            );
        }
        Ok(self.report_hosted(&taken.volume, hosted).await)
    }

    /// See [`NodeOps::depose`](crate::service::NodeOps::depose).
    pub(super) async fn depose_volume(&self, turn: Option<Turn>, deposed: TakeOver) -> Result<()> {
        let _one = self.turn(&deposed.volume, turn).await?;
        let Ok(hosted) = self.hosted("depose", &deposed.volume, Some(deposed.id)) else {
            return Ok(());
        };
        let generation = deposed.generation;
        hosted
            .handle
            .control(move |v, now| v.depose(now, generation))
            .await?;
        if !hosted.handle.call(|v, _| v.role() == Role::Standby).await? {
            return Ok(());
        }
        hosted.step_aside();
        hosted.peers.forget()?;
        tracing::warn!(
            "volume {} is owned elsewhere, in generation {generation}: it is not served here any more",
            deposed.volume
        );
        Ok(())
    }
}

/// Make sure that nobody else is told any more to take the volume from here. True if it is owned here as it
/// should be.
async fn is_over(hosted: &Hosted, taken: &TakeOver) -> Result<bool> {
    let next = taken.generation;
    let role = || hosted.handle.call(|v, _| v.role());
    match role().await? {
        Role::Owner { generation, .. } if generation == next => return Ok(true),
        Role::Standby => return Ok(false),
        Role::Owner { .. } | Role::Relinquished { .. } => hosted.end_handover().await?,
    }
    match role().await? {
        Role::Owner { .. } if taken.back => {
            hosted.end_replicas().await?;
            hosted.handle.control(move |v, _| v.renew(next)).await?;
            Ok(true)
        }
        Role::Relinquished { .. } => {
            hosted.handle.call(|v, now| v.send_away(now)).await?;
            Ok(false)
        }
        Role::Owner { .. } | Role::Standby => Ok(false),
    }
}
