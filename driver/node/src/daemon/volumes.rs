//! The volumes of a node: what the controller's calls, guests' handshakes and heartbeats work on.

use super::directory;
use super::front::Reach;
use super::host::Host;
use crate::datadir::DataDir;
use crate::engine::{Engine, VolumeHandle, VolumeSpec};
use crate::serve::state::checkpoints;
use crate::service::{Handover, NewReplica, NewVolume, NodeOps};
use block::{Error, ErrorKind, NodeName, Result, VolumeId, VolumeName};
use nbd::accept::Accepted;
use nbd::codec::TransmissionFlags;
use nbd::{Export, Exports};
use proto::v1::{CutoverProgress, IoCounters, NodeMetrics, VolumeReport, VolumeRole};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::{Mutex, mpsc};
use volume::Role;

/// Every volume that this node has.
pub struct Volumes {
    data: DataDir,
    engine: Engine,
    reach: Reach,
    host: Host,
    map: RwLock<BTreeMap<VolumeName, Slot>>,
    /// Held while a volume is made, deleted or changed: one at a time, so that a repeated call finds
    /// what the first one did.
    changing: Mutex<()>,
}

#[derive(Clone)]
enum Slot {
    Open(Hosted),
    /// It could not be opened, and why.
    Broken(String),
}

/// A volume on its shard.
#[derive(Clone)]
struct Hosted {
    id: VolumeId,
    handle: VolumeHandle,
    export: Export,
    /// A standby is not offered: it would only make guests wait.
    offered: bool,
    /// One strong count a connection, and one here.
    connections: Arc<()>,
}

impl Volumes {
    /// Open every volume in the data directory. One that cannot be opened stops no other.
    pub(super) async fn open(data: DataDir, engine: Engine, reach: Reach) -> Result<Volumes> {
        directory::sweep(&data)?;
        let names = data.volumes()?;
        let volumes = Volumes {
            data,
            engine,
            reach,
            host: Host::default(),
            map: RwLock::default(),
            changing: Mutex::new(()),
        };
        for name in names {
            let slot = match volumes.open_one(&name).await {
                Ok(hosted) => Slot::Open(hosted),
                Err(e) => {
                    tracing::error!("{e}");
                    Slot::Broken(e.to_string())
                }
            };
            volumes.write().insert(name, slot);
        }
        Ok(volumes)
    }

    async fn open_one(&self, name: &VolumeName) -> Result<Hosted> {
        let hosted = self
            .host_volume(name, directory::open(&self.data, name)?)
            .await?;
        hosted.handle.opened().await?;
        Ok(hosted)
    }

    async fn host_volume(&self, name: &VolumeName, spec: VolumeSpec) -> Result<Hosted> {
        let identity = spec.volume.identity().map(|i| i.id).ok_or_else(|| {
            Error::new(
                ErrorKind::Broken,
                format!("open volume {name}: it has no identity"),
            )
        })?;
        let mut export = Export::new(name.as_str(), spec.image.size);
        if !spec.image.can_trim() {
            export.flags = export.flags.without(TransmissionFlags::SEND_TRIM);
        }
        export.checkpoints = checkpoints(spec.volume.cursors());
        let offered = spec.volume.role() != Role::Standby;
        Ok(Hosted {
            id: identity,
            handle: self.engine.add_volume(spec).await?,
            export,
            offered,
            connections: Arc::new(()),
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<VolumeName, Slot>> {
        self.map.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<VolumeName, Slot>> {
        self.map.write().unwrap_or_else(|e| e.into_inner())
    }

    fn slot(&self, name: &VolumeName) -> Option<Slot> {
        self.read().get(name).cloned()
    }

    /// Hand a negotiated connection to its volume.
    pub(super) fn connect(&self, accepted: Accepted, place: Box<dyn Any + Send>) -> Result<()> {
        let name = accepted.agreed.export.name.clone();
        let found = name.parse().ok().and_then(|n| self.slot(&n));
        let Some(Slot::Open(hosted)) = found else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("connect to volume {name}: it was deleted during the handshake"),
            ));
        };
        hosted
            .handle
            .connect(accepted, Box::new((place, hosted.connections)))
    }

    /// Finish every volume's requests and sync it.
    pub(super) async fn close(&self) -> Result<()> {
        let slots = std::mem::take(&mut *self.write());
        let mut first = Ok(());
        for slot in slots.into_values() {
            if let Slot::Open(hosted) = slot {
                first = first.and(hosted.handle.remove().await);
            }
        }
        first
    }

    async fn report_one(&self, name: &VolumeName, slot: Slot) -> VolumeReport {
        let mut report = VolumeReport {
            name: name.to_string(),
            ..VolumeReport::default()
        };
        let hosted = match slot {
            Slot::Open(hosted) => hosted,
            Slot::Broken(why) => {
                report.set_role(VolumeRole::Failed);
                report.trouble = why;
                return report;
            }
        };
        report.id = hosted.id.to_string();
        report.size_bytes = hosted.export.size;
        let state = hosted
            .handle
            .call(|v, _| (v.role(), v.open_epoch(), v.seen(), v.is_poisoned()));
        match state.await {
            Ok((role, epoch, seen, poisoned)) => {
                let (role, generation) = match role {
                    Role::Owner { generation, .. } => (VolumeRole::Owner, generation),
                    Role::Standby => (VolumeRole::Standby, seen),
                    Role::Relinquished { generation, .. } => (VolumeRole::Forwarding, generation),
                };
                report.set_role(if poisoned { VolumeRole::Failed } else { role });
                report.generation = generation.0;
                report.epoch = epoch.0;
                if poisoned {
                    report.trouble =
                        "a sync failed: nothing written since is known to be durable; \
                                      the volume has stopped"
                            .to_owned();
                }
            }
            Err(e) => report.trouble = e.to_string(),
        }
        if hosted.offered {
            report.uris = self.reach.uris(name.as_str());
        }
        let connections = Arc::strong_count(&hosted.connections).saturating_sub(2); // the map's, ours
        report.io = Some(IoCounters {
            connections: u32::try_from(connections).unwrap_or(u32::MAX),
            ..IoCounters::default()
        });
        report
    }

    async fn make(&self, new: &NewVolume) -> Result<Hosted> {
        let spec = directory::make(&self.data, new)?;
        let hosted = self.host_volume(&new.name, spec).await?;
        // Its record is durable before its directory has a name: a volume that is there can be opened.
        hosted.handle.opened().await?;
        directory::publish(&self.data, &new.name)?;
        Ok(hosted)
    }
}

impl Exports for Volumes {
    fn names(&self) -> Vec<String> {
        let offered = |slot: &Slot| matches!(slot, Slot::Open(h) if h.offered);
        let map = self.read();
        map.iter()
            .filter(|(_, s)| offered(s))
            .map(|(n, _)| n.to_string())
            .collect()
    }

    fn find(&self, name: &str) -> Option<Export> {
        // What follows an '@' is between nodes; no volume's name has one.
        let (volume, suffix) = name
            .split_once('@')
            .map_or((name, None), |(v, s)| (v, Some(s)));
        match self.slot(&volume.parse().ok()?)? {
            Slot::Open(h) => match suffix {
                Some(suffix) => h.handle.find(&h.export, suffix),
                None => Some(h.export).filter(|_| h.offered),
            },
            Slot::Broken(_) => None,
        }
    }
}

fn replication_missing(asked: String) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("{asked}: this version of the node does not replicate yet"),
    )
}

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

    fn metrics(&self) -> NodeMetrics {
        self.host.metrics(self.data.path())
    }

    async fn create(&self, new: NewVolume) -> Result<VolumeReport> {
        let _one = self.changing.lock().await;
        let name = new.name.clone();
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

    async fn delete(&self, name: VolumeName, id: VolumeId) -> Result<bool> {
        let _one = self.changing.lock().await;
        match self.slot(&name) {
            Some(Slot::Open(h)) if h.id == id => {
                self.write().remove(&name);
                h.handle.remove().await?;
                directory::delete(&self.data, &name)?;
                Ok(true)
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

    async fn resize(&self, name: VolumeName, size_bytes: u64) -> Result<VolumeReport> {
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "resize {name} to {size_bytes} bytes: this version of the node cannot resize yet"
            ),
        ))
    }

    async fn start_replica(&self, new: NewReplica) -> Result<()> {
        Err(replication_missing(format!(
            "replicate {} to {}",
            new.volume, new.node
        )))
    }

    async fn stop_replica(&self, _: VolumeName, _: NodeName) -> Result<bool> {
        Ok(false) // none can have been started
    }

    async fn cutover(&self, handover: Handover, _: mpsc::Sender<CutoverProgress>) -> Result<()> {
        Err(replication_missing(format!(
            "hand {} over to {}",
            handover.volume, handover.to
        )))
    }
}
