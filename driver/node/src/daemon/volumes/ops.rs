//! What the controller may ask of a node's volumes. Each call may be repeated: it finds what the first did.

use super::super::directory;
use super::super::peers::{HandoverRecord, ReplicaRecord};
use super::{Hosted, INTERVAL, Slot, Volumes};
use crate::service::{
    Consistency, Handover, NewReplica, NewVolume, NodeOps, SeedOrder, TakeOver, Turn,
};
use block::{Error, ErrorKind, NodeName, Result, VolumeId, VolumeName};
use proto::v1::{CutoverPhase, CutoverProgress, NodeMetrics, VolumeReport, WriteTrail};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use volume::Role;

/// How long a repeated hand-over waits for the new owner before it says that it still does.
const TAKING_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked whether it owns the volume.
const TAKING_PAUSE: Duration = Duration::from_millis(10);
/// The shortest interval that a bound can ask for.
const INTERVAL_MIN: Duration = Duration::from_millis(50);

impl NodeOps for Volumes {
    async fn report(&self) -> Vec<VolumeReport> {
        let slots: Vec<_> = self
            .read()
            .iter()
            .map(|(n, s)| (n.clone(), s.clone()))
            .collect();
        let mut reports = Vec::with_capacity(slots.len());
        for (name, slot) in slots {
            reports.push(self.report_one(&name, slot).await);
        }
        reports
    }

    async fn changed(&self) {
        self.changed.notified().await;
    }

    fn metrics(&self) -> NodeMetrics {
        self.host.metrics(self.data.path())
    }

    fn trails(&self) -> Vec<WriteTrail> {
        let slots = self.read();
        let open = slots.iter().filter_map(|(name, slot)| match slot {
            Slot::Open(hosted) => Some((name, hosted)),
            Slot::Broken(_) => None,
        });
        open.filter_map(|(name, hosted)| hosted.handle.activity().take_trail(name.as_str()))
            .collect()
    }

    async fn create(&self, turn: Option<Turn>, new: NewVolume) -> Result<VolumeReport> {
        let name = new.name.clone();
        let _one = self.turn(&name, turn).await?;
        match self.slot(&name) {
            Some(Slot::Open(h)) if h.id == new.id => {}
            Some(_) => {
                return Err(Error::new(
                    ErrorKind::Exists,
                    format!("make volume {name}: this node has another volume of that name"),
                ));
            }
            None => {
                let hosted = self.make(&new).await?;
                self.write().insert(name.clone(), Slot::Open(hosted));
            }
        }
        match self.slot(&name) {
            Some(slot) => Ok(self.report_one(&name, slot).await),
            None => Err(Error::new(
                ErrorKind::Cancelled,
                format!("make volume {name}: the node stops"),
            )),
        }
    }

    async fn delete(&self, turn: Option<Turn>, name: VolumeName, id: VolumeId) -> Result<bool> {
        let _one = self.turn(&name, turn).await?;
        match self.slot(&name) {
            Some(Slot::Open(h)) if h.id == id => {
                self.write().remove(&name);
                let deleted = match self.close_one(h).await {
                    Ok(()) => directory::delete(&self.data, &name),
                    Err(e) => Err(e),
                };
                if let Err(e) = &deleted {
                    self.write().insert(name, Slot::Broken(e.to_string()));
                }
                deleted.map(|()| true)
            }
            Some(Slot::Broken(why)) => Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "delete volume {name}: it could not be opened, so it is not certain that it is the \
                     one that was meant ({why}). Remove {} by hand if it is",
                    self.data.volume(&name).display()
                ),
            )),
            // Of another identity: the one that was meant is not here.
            Some(Slot::Open(_)) | None => Ok(false),
        }
    }

    async fn resize(
        &self,
        turn: Option<Turn>,
        name: VolumeName,
        id: VolumeId,
        size_bytes: u64,
    ) -> Result<VolumeReport> {
        self.grow(turn, name, id, size_bytes).await
    }

    async fn start_replica(&self, turn: Option<Turn>, new: NewReplica) -> Result<()> {
        let asked = format!("replicate {} to {}", new.volume, new.node);
        let _one = self.turn(&new.volume, turn).await?;
        let hosted = self.hosted(&asked, &new.volume, None)?;
        if !hosted.handle.call(|v, _| v.role()).await?.is_owner() {
            return Err(Error::new(
                ErrorKind::NotOwner,
                format!("{asked}: this node does not own the volume"),
            ));
        }
        let interval = match new.consistency {
            Consistency::Strong => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "{asked}: this version keeps strong replicas only during a cutover; use \
                         bounded=SECONDS"
                    ),
                ));
            }
            // Half of the bound is left for the increment itself.
            Consistency::Bounded(bound) => (bound / 2).clamp(INTERVAL_MIN, INTERVAL),
            Consistency::Eventual => INTERVAL,
        };
        let record = ReplicaRecord {
            node: new.node.to_string(),
            address: new.address,
            interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
            rate_bytes_per_second: new.rate_bytes_per_second.unwrap_or(0),
        };
        hosted.peers.change(|p| p.set(record.clone()))?;
        self.replicate(&new.volume, &hosted, &record, &new.order)
            .await
            .map(|_| ())
    }

    async fn stop_replica(
        &self,
        turn: Option<Turn>,
        volume: VolumeName,
        node: NodeName,
    ) -> Result<bool> {
        let _one = self.turn(&volume, turn).await?;
        let Ok(hosted) = self.hosted("stop a replica", &volume, None) else {
            return Ok(false);
        };
        let running = hosted.replicas().remove(&node);
        if let Some(running) = &running {
            running.stop().await?;
        }
        let known = hosted.peers.change(|p| p.remove(&node))?;
        hosted.untrack(node).await?;
        Ok(known || running.is_some())
    }

    async fn cutover(
        &self,
        turn: Option<Turn>,
        handover: Handover,
        progress: mpsc::Sender<CutoverProgress>,
    ) -> Result<()> {
        let asked = format!("hand {} over to {}", handover.volume, handover.to);
        let (kept, next, hosted) = {
            let one = self.turn(&handover.volume, turn).await?;
            let hosted = self.hosted(&asked, &handover.volume, None)?;
            let record = HandoverRecord {
                to: handover.to.to_string(),
                replication: handover.replication_address,
                nbd: handover.nbd_address,
            };
            let role = hosted.handle.call(|v, _| v.role()).await?;
            let next = match &role {
                Role::Relinquished { to, generation, .. } if *to == handover.to => {
                    // It happened, perhaps in an earlier life of this node: make sure that it ends.
                    hosted.peers.change(|p| p.handover = Some(record))?;
                    let is_told = {
                        let replicas = hosted.replicas();
                        let kept = replicas.get(&handover.to);
                        kept.is_some_and(|k| {
                            k.is_running() && k.address == handover.replication_address
                        })
                    };
                    if !is_told {
                        self.resume(&handover.volume, &hosted).await?;
                    }
                    drop(one);
                    is_taken(&asked, &hosted).await?;
                    let done = CutoverProgress {
                        phase: CutoverPhase::Done.into(),
                        generation: generation.0,
                        ..CutoverProgress::default()
                    };
                    let _ = progress.send(done).await; // nobody watches
                    return Ok(());
                }
                Role::Owner { generation, .. } => generation.next(),
                Role::Relinquished { .. } | Role::Standby => {
                    return Err(Error::new(
                        ErrorKind::NotOwner,
                        format!("{asked}: this node is the volume's {role}"),
                    ));
                }
            };
            // Before anything moves it is recorded where to: a restart must find the new owner.
            let known = hosted.peers.change(|p| {
                p.handover = Some(record);
                p.replica_on(&handover.to).cloned()
            })?;
            let replica = known.unwrap_or_else(|| ReplicaRecord {
                node: handover.to.to_string(),
                address: handover.replication_address,
                interval_ms: u64::try_from(INTERVAL.as_millis()).unwrap_or(u64::MAX),
                rate_bytes_per_second: 0,
            });
            let replica = ReplicaRecord {
                address: handover.replication_address,
                ..replica
            };
            let kept = self
                .replicate(&handover.volume, &hosted, &replica, &SeedOrder::default())
                .await?;
            (kept, next, hosted)
        };
        let report = kept.hand_over(next, handover.nbd_address, progress).await?;
        tracing::info!(
            "volume {} is owned by {} now, in generation {}: frozen {:?} after {:?}",
            handover.volume,
            handover.to,
            report.generation,
            report.frozen,
            report.converging,
        );
        let _one = self.changing.lock().await;
        let concluded = match hosted.retire().await {
            Ok(()) => self.receiving.remember(hosted.id).await,
            failed => failed,
        };
        if let Err(e) = concluded {
            // The volume has moved all the same; the next owner here forgets them first.
            tracing::warn!("forget the replicas of {}: {e}", handover.volume);
        }
        Ok(())
    }

    async fn take_over(&self, turn: Option<Turn>, taken: TakeOver) -> Result<VolumeReport> {
        self.take_over_volume(turn, taken).await
    }

    async fn depose(&self, turn: Option<Turn>, deposed: TakeOver) -> Result<()> {
        self.depose_volume(turn, deposed).await
    }
}

/// Waits for the new owner of a volume that was given away to have taken it: requests are sent on then.
async fn is_taken(asked: &str, hosted: &Hosted) -> Result<()> {
    let until = Instant::now() + TAKING_PATIENCE;
    while !hosted.handle.call(|v, _| v.is_forwarding()).await? {
        if Instant::now() >= until {
            let why = format!("{asked}: it was given away, and is waited for until it is taken");
            return Err(Error::new(ErrorKind::Timeout, why));
        }
        tokio::time::sleep(TAKING_PAUSE).await;
    }
    Ok(())
}
