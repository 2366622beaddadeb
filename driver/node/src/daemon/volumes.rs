//! The volumes of a node: what the controller's calls, guests' handshakes and heartbeats work on.

mod ops;

use super::directory;
use super::front::Reach;
use super::growth::Growth;
use super::host::Host;
use super::peers::{HandoverRecord, PeersFile, ReplicaRecord};
use super::replicas::{Kept, Source};
use crate::datadir::DataDir;
use crate::engine::{Engine, VolumeHandle, VolumeSpec};
use crate::replication::{Receiving, Sending, StandbySpec, Succession};
use crate::serve::state::checkpoints;
use crate::service::{NewVolume, SeedOrder, Turn, Turns};
use block::{Epoch, Error, ErrorKind, Generation, NodeName, Result, VolumeId, VolumeName};
use nbd::accept::Accepted;
use nbd::codec::TransmissionFlags;
use nbd::{Arrival, Export, Exports};
use proto::v1::{IoCounters, ReplicaReport, ReplicaState, VolumeReport, VolumeRole};
use replica::State;
use std::any::Any;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};
use storage::ImageFile;
use tokio::sync::{Mutex, MutexGuard, Notify};
use volume::{CursorName, Role};

/// From one increment of a replica to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a node that starts waits for those who have copies of its volumes. One that refuses the
/// connection may be starting, too, as after a power cut.
const PEERS_PATIENCE: Duration = Duration::from_secs(2);
/// How long a node that stops waits for a change that is being made to a volume.
const CHANGE_PATIENCE: Duration = Duration::from_secs(3);
/// How often it is looked whether they have answered.
const PEERS_PAUSE: Duration = Duration::from_millis(10);

/// Every volume that this node has.
pub struct Volumes {
    data: DataDir,
    engine: Engine,
    reach: Reach,
    host: Host,
    /// The thread that sends replicas.
    sending: Sending,
    /// The thread that takes other nodes' replicas.
    pub(super) receiving: Receiving,
    map: RwLock<BTreeMap<VolumeName, Slot>>,
    /// Held while a volume is made, deleted or changed: one at a time, so that a repeated call finds
    /// what the first one did.
    changing: Mutex<Turns>,
    /// The reports say something new.
    changed: Arc<Notify>,
}

#[derive(Clone)]
enum Slot {
    Open(Hosted),
    /// It could not be opened, and why.
    Broken(String),
}

/// The tasks that keep a volume's replicas.
type Replicas = Arc<std::sync::Mutex<BTreeMap<NodeName, Kept>>>;

fn lock(replicas: &Replicas) -> std::sync::MutexGuard<'_, BTreeMap<NodeName, Kept>> {
    // A map whose entries are replaced whole: a panic cannot have left it half changed.
    replicas.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A volume on its shard.
#[derive(Clone)]
pub(super) struct Hosted {
    pub(super) id: VolumeId,
    pub(super) handle: VolumeHandle,
    export: Export,
    /// A standby is not offered: it would only make guests wait.
    offered: Arc<AtomicBool>,
    /// For movers.
    image: Arc<ImageFile>,
    /// The tasks that keep its replicas.
    replicas: Replicas,
    /// Which those are.
    pub(super) peers: Arc<PeersFile>,
    /// One strong count a connection, and one here.
    connections: Arc<()>,
}

impl Volumes {
    /// Open every volume in the data directory. One that cannot be opened stops no other.
    pub(super) async fn open(
        data: DataDir,
        engine: Engine,
        reach: Reach,
        (sending, receiving): (Sending, Receiving),
        adopt_images: &[VolumeName],
    ) -> Result<Volumes> {
        directory::sweep(&data)?;
        let names = data.volumes()?;
        if let Some(unknown) = adopt_images.iter().find(|n| !names.contains(n)) {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("adopt the image of volume {unknown}: this node has no such volume"),
            ));
        }
        let life = directory::controllers_life(&data)?;
        let volumes = Volumes {
            data,
            engine,
            reach,
            host: Host::default(),
            sending,
            receiving,
            map: RwLock::default(),
            changing: Mutex::new(Turns::since(life)),
            changed: Arc::default(),
        };
        for name in names {
            let slot = match volumes.open_one(&name, adopt_images.contains(&name)).await {
                Ok(hosted) => Slot::Open(hosted),
                Err(e) => {
                    tracing::error!("{e}");
                    Slot::Broken(e.to_string())
                }
            };
            volumes.write().insert(name, slot);
        }
        volumes.receiving.listen().await?;
        volumes.ask_peers().await;
        Ok(volumes)
    }

    /// Let those who have copies say whether somebody else owns a volume by now, before a guest is
    /// served: this node's metadata may be an old copy that was put back. Who is away cannot say so.
    async fn ask_peers(&self) {
        let open = |slot: &Slot| match slot {
            Slot::Open(hosted) => Some(hosted.clone()),
            Slot::Broken(_) => None,
        };
        let all: Vec<Hosted> = self.read().values().filter_map(open).collect();
        let waits = |h: &Hosted| {
            let replicas = h.replicas();
            h.is_offered() && replicas.values().any(|kept| !kept.status.has_heard())
        };
        let until = Instant::now() + PEERS_PATIENCE;
        while all.iter().any(waits) && Instant::now() < until {
            tokio::time::sleep(PEERS_PAUSE).await;
        }
        for hosted in all {
            // One that has gone from its shard is offered to nobody either.
            let standby = hosted.handle.call(|v, _| v.role() == Role::Standby).await;
            if standby.unwrap_or(true) {
                hosted.step_aside();
            }
        }
    }

    async fn open_one(&self, name: &VolumeName, adopt_image: bool) -> Result<Hosted> {
        let spec = directory::open(&self.data, name, adopt_image)?;
        let hosted = self.host_volume(name, spec).await?;
        hosted.handle.opened().await?;
        // The record says the new size: should it have grown, that is over.
        Growth::end(&self.dir(name))?;
        self.receive(name, &hosted).await?;
        self.resume(name, &hosted).await?;
        Ok(hosted)
    }

    /// Close a volume and open it as its files are now. Its guests' connections end. One that cannot be
    /// closed or opened says why from then on.
    pub(super) async fn reopen(&self, name: &VolumeName, hosted: Hosted) -> Result<()> {
        self.write().remove(name);
        let opened = match self.close_one(hosted).await {
            Ok(()) => self.open_one(name, false).await,
            Err(e) => Err(e),
        };
        let (slot, done) = match opened {
            Ok(hosted) => (Slot::Open(hosted), Ok(())),
            Err(e) => (Slot::Broken(e.to_string()), Err(e)),
        };
        self.write().insert(name.clone(), slot);
        self.changed.notify_one();
        done
    }

    /// Finish a volume's requests and sync it.
    pub(super) async fn close_one(&self, hosted: Hosted) -> Result<()> {
        let tasks = std::mem::take(&mut *hosted.replicas());
        for task in tasks.into_values() {
            task.stop().await?;
        }
        self.receiving.remove(hosted.id).await?;
        hosted.handle.remove().await?;
        hosted.image.settle()
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
        let offered = Arc::new(AtomicBool::new(spec.volume.role() != Role::Standby));
        Ok(Hosted {
            id: identity,
            image: Arc::new(spec.image.share()?),
            replicas: Arc::default(),
            peers: Arc::new(PeersFile::of(self.dir(name))),
            handle: self.engine.add_volume(spec).await?,
            export,
            offered,
            connections: Arc::new(()),
        })
    }

    /// Have a change to a volume begin, unless a later one has overtaken it. One at a time.
    pub(super) async fn turn(
        &self,
        volume: &VolumeName,
        turn: Option<Turn>,
    ) -> Result<MutexGuard<'_, Turns>> {
        let mut turns = self.changing.lock().await;
        if let Some(turn) = turn {
            turns.check(volume, turn)?;
            if turn.life > turns.life() {
                directory::keep_controllers_life(&self.data, turn.life)?;
            }
            turns.take(volume, turn);
        }
        Ok(turns)
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
        // What is being changed is changed first. A change that takes longer is one that a crash may cut.
        let _one = tokio::time::timeout(CHANGE_PATIENCE, self.changing.lock()).await;
        let slots = std::mem::take(&mut *self.write());
        let mut first = Ok(());
        for slot in slots.into_values() {
            if let Slot::Open(hosted) = slot {
                // Their tasks end with their handles.
                hosted.replicas().clear();
                first = first.and(self.receiving.remove(hosted.id).await);
                first = first.and(hosted.handle.remove().await);
                first = first.and(hosted.image.settle());
            }
        }
        first
    }

    async fn report_one(&self, name: &VolumeName, slot: Slot) -> VolumeReport {
        let mut report = VolumeReport {
            name: name.to_string(),
            ..VolumeReport::default()
        };
        match slot {
            Slot::Open(hosted) => self.report_hosted(name, hosted).await,
            Slot::Broken(why) => {
                report.set_role(VolumeRole::Failed);
                report.trouble = why;
                report
            }
        }
    }

    pub(super) async fn report_hosted(&self, name: &VolumeName, hosted: Hosted) -> VolumeReport {
        let mut report = VolumeReport {
            name: name.to_string(),
            ..VolumeReport::default()
        };
        report.id = hosted.id.to_string();
        report.size_bytes = hosted.export.size;
        // Asked before its part: a standby that takes over meanwhile is offered rightly.
        let was_offered = hosted.is_offered();
        let state = hosted.handle.call(|v, _| {
            (
                v.role(),
                v.open_epoch(),
                v.seen(),
                v.gave_up(),
                v.is_poisoned(),
            )
        });
        match state.await {
            Ok((role, epoch, seen, gave_up, poisoned)) => {
                let (role, generation) = match role {
                    Role::Owner { generation, .. } => (VolumeRole::Owner, generation),
                    Role::Standby => (VolumeRole::Standby, seen),
                    Role::Relinquished { generation, .. } => (VolumeRole::Forwarding, generation),
                };
                report.set_role(if poisoned { VolumeRole::Failed } else { role });
                report.generation = generation.0;
                report.epoch = epoch.0;
                if report.role() == VolumeRole::Standby && was_offered {
                    // An owner that was replaced while it ran.
                    hosted.step_aside();
                }
                if matches!(report.role(), VolumeRole::Standby | VolumeRole::Forwarding) {
                    self.report_copy(&hosted, gave_up, &mut report).await;
                }
                if poisoned {
                    report.trouble =
                        "a sync failed: nothing written since is known to be durable; \
                                      the volume has stopped"
                            .to_owned();
                }
            }
            Err(e) => report.trouble = e.to_string(),
        }
        if report.trouble.is_empty() && hosted.image.is_displaced(&self.dir(name).join("image")) {
            report.trouble = "another file is in the place of its image, or none: what is served is the \
                              file that was there, and it is gone when the node stops. Copy the volume \
                              through the node (`forerun attach`) before that"
                .to_owned();
        }
        report.replicas = report_replicas(&hosted).await;
        if hosted.is_offered() {
            report.uris = self.reach.uris(name.as_str());
        }
        let connections = Arc::strong_count(&hosted.connections).saturating_sub(2); // the map's, ours
        report.io = Some(IoCounters {
            connections: u32::try_from(connections).unwrap_or(u32::MAX),
            ..hosted.handle.activity().counters()
        });
        report
    }

    /// What the copy of one that does not own the volume is: a former owner has what it gave away.
    async fn report_copy(
        &self,
        hosted: &Hosted,
        gave_up: Option<(Generation, Epoch)>,
        report: &mut VolumeReport,
    ) {
        // A mover that has stopped has no copy to speak of.
        let Ok(Some(record)) = self.receiving.record(hosted.id).await else {
            return;
        };
        let record = record.proven(gave_up);
        report.epoch = record.epoch.0;
        if let State::Consistent | State::Committed { .. } = record.state {
            // This node may have heard of a later owner, and not have anything of its yet.
            report.generation = record.generation.0;
        }
        report.set_copy(match record.state {
            State::Consistent | State::Committed { .. } | State::HandedOver { .. } => {
                ReplicaState::Consistent
            }
            State::Seeding { .. } => ReplicaState::Seeding,
            State::Empty => ReplicaState::Unspecified,
        });
    }

    async fn make(&self, new: &NewVolume) -> Result<Hosted> {
        let spec = directory::make(&self.data, new)?;
        let hosted = self.host_volume(&new.name, spec).await?;
        // Its record is durable before its directory has a name: a volume that is there can be opened.
        hosted.handle.opened().await?;
        directory::publish(&self.data, &new.name)?;
        self.receive(&new.name, &hosted).await?;
        Ok(hosted)
    }

    pub(super) fn dir(&self, name: &VolumeName) -> PathBuf {
        self.data.volume(name)
    }

    /// A volume that is open, and where its identity was given, is the one that was meant.
    pub(super) fn hosted(
        &self,
        asked: &str,
        name: &VolumeName,
        id: Option<VolumeId>,
    ) -> Result<Hosted> {
        let refuse = |kind, why: &str| Err(Error::new(kind, format!("{asked}: {why}")));
        match self.slot(name) {
            Some(Slot::Open(hosted)) if id.is_none_or(|id| id == hosted.id) => Ok(hosted),
            Some(Slot::Open(_)) => refuse(
                ErrorKind::NotFound,
                "the volume of that name here is another one",
            ),
            Some(Slot::Broken(why)) => refuse(ErrorKind::Corrupt, &why),
            None => refuse(ErrorKind::NotFound, "this node has no such volume"),
        }
    }

    /// Let sources of this volume connect.
    async fn receive(&self, name: &VolumeName, hosted: &Hosted) -> Result<()> {
        let standby = StandbySpec {
            id: hosted.id,
            image: hosted.image.share()?,
            directory: self.dir(name),
            handle: hosted.handle.clone(),
            succession: Arc::new(Heir {
                replicas: Arc::clone(&hosted.replicas),
                peers: Arc::clone(&hosted.peers),
                offered: Arc::clone(&hosted.offered),
            }),
        };
        self.receiving.add(standby).await
    }

    /// Go on with what the volume's directory remembers: its replicas, or a hand-over.
    async fn resume(&self, name: &VolumeName, hosted: &Hosted) -> Result<()> {
        let peers = hosted.peers.read()?;
        match hosted.handle.call(|v, _| v.role()).await? {
            Role::Owner { .. } => {
                for record in &peers.replica {
                    self.replicate(name, hosted, record, &SeedOrder::default())
                        .await?;
                }
                if let Some(handover) = peers.handover {
                    self.ask(name, hosted, handover).await?;
                }
            }
            Role::Relinquished {
                to,
                generation,
                epoch,
            } => {
                let handover = peers.handover.filter(|h| h.to == to.as_str());
                let Some(handover) = handover else {
                    tracing::error!(
                        "volume {name} was given to {to}, but where that node is was not \
                         recorded: repeat the cutover"
                    );
                    return Ok(());
                };
                let record = ReplicaRecord {
                    node: handover.to.clone(),
                    address: handover.replication,
                    interval_ms: 0,
                    rate_bytes_per_second: 0,
                };
                let kept = self
                    .replicate(name, hosted, &record, &SeedOrder::default())
                    .await?;
                kept.finish_handover(generation, epoch, handover.nbd);
            }
            Role::Standby => {}
        }
        Ok(())
    }

    /// A hand-over was asked for once: if its node is not among the replicas, ask it who owns the volume.
    async fn ask(&self, name: &VolumeName, hosted: &Hosted, to: HandoverRecord) -> Result<()> {
        let node: NodeName = to.to.parse()?;
        if hosted.replicas().contains_key(&node) {
            return Ok(());
        }
        let record = ReplicaRecord {
            node: to.to,
            address: to.replication,
            interval_ms: u64::try_from(INTERVAL.as_millis()).unwrap_or(u64::MAX),
            rate_bytes_per_second: 0,
        };
        let mut kept = self
            .start(name, hosted, &record, &SeedOrder::default())
            .await?;
        kept.only_asks = true;
        hosted.replicas().insert(node.clone(), kept.clone());
        let replicas = Arc::clone(&hosted.replicas);
        tokio::spawn(async move {
            let until = Instant::now() + PEERS_PATIENCE;
            while kept.is_running() && !kept.status.has_heard() && Instant::now() < until {
                tokio::time::sleep(PEERS_PAUSE).await;
            }
            if let Err(e) = kept.stop().await {
                tracing::warn!("stop asking {node}: {e}");
            }
            lock(&replicas).retain(|n, k| *n != node || k.is_running());
        });
        Ok(())
    }

    /// Start the task of one replica, unless it runs.
    async fn replicate(
        &self,
        name: &VolumeName,
        hosted: &Hosted,
        record: &ReplicaRecord,
        order: &SeedOrder,
    ) -> Result<Kept> {
        let node = record.name()?;
        let known = hosted.replicas().get(&node).cloned();
        if let Some(kept) = known {
            if kept.is_running() && kept.address == record.address && !kept.only_asks {
                return Ok(kept);
            }
            kept.stop().await?;
        }
        let kept = self.start(name, hosted, record, order).await?;
        hosted.replicas().insert(node, kept.clone());
        Ok(kept)
    }

    async fn start(
        &self,
        name: &VolumeName,
        hosted: &Hosted,
        record: &ReplicaRecord,
        order: &SeedOrder,
    ) -> Result<Kept> {
        let source = Source {
            name: name.clone(),
            id: hosted.id,
            handle: hosted.handle.clone(),
            image: hosted.image.share()?,
        };
        let changed = Arc::clone(&self.changed);
        Kept::start(&self.sending, source, record, order, changed).await
    }
}

/// A volume's replicas as its owner sees them.
async fn report_replicas(hosted: &Hosted) -> Vec<ReplicaReport> {
    let kept: Vec<_> = hosted
        .replicas()
        .iter()
        .filter(|(_, kept)| kept.is_running() && !kept.only_asks)
        .map(|(node, kept)| (node.clone(), kept.status.clone()))
        .collect();
    let names: Vec<_> = kept.iter().map(|(node, _)| node.clone()).collect();
    let lags = move |v: &mut volume::Volume, _| {
        let lag = |node: NodeName| v.lag_bytes(&CursorName::Replica(node));
        names.into_iter().map(lag).collect::<Vec<_>>()
    };
    // A volume that has gone has no lag; its report says so elsewhere.
    let lags = hosted.handle.call(lags).await.unwrap_or_default();
    let lags = lags.into_iter().chain(std::iter::repeat(0));
    kept.iter()
        .zip(lags)
        .map(|((node, status), lag)| status.report(node.as_str(), lag))
        .collect()
}

impl Hosted {
    fn is_offered(&self) -> bool {
        self.offered.load(Ordering::Acquire)
    }

    /// Bytes of the volume.
    pub(super) fn size(&self) -> u64 {
        self.export.size
    }

    /// Bytes of the block device that is its image, as of now; `None` if it is a file.
    pub(super) fn device_size(&self) -> Result<Option<u64>> {
        self.image.device_size()
    }

    /// It is a standby now: offer it to nobody and send to nobody.
    pub(super) fn step_aside(&self) {
        self.offered.store(false, Ordering::Release);
        // Their tasks end with their handles.
        self.replicas().clear();
    }

    fn replicas(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeName, Kept>> {
        lock(&self.replicas)
    }
}

impl Hosted {
    /// A hand-over that is under way is given up, also one that was begun in an earlier life.
    pub(super) async fn end_handover(&self) -> Result<()> {
        let Some(handover) = self.peers.change(|p| p.handover.take())? else {
            return Ok(());
        };
        let kept = self.replicas().remove(&handover.to.parse()?);
        match kept {
            Some(kept) => kept.stop().await,
            None => Ok(()),
        }
    }

    /// Every replica is kept no longer: the owner goes on in another generation, and is told anew which to keep.
    pub(super) async fn end_replicas(&self) -> Result<()> {
        let all = std::mem::take(&mut *self.replicas());
        for kept in all.into_values() {
            kept.stop().await?;
        }
        self.peers.forget()
    }

    /// Nothing has to be remembered for a copy that is kept no more: its cursor would hold dirty maps, and
    /// leave areas to compare after a crash, for ever.
    async fn untrack(&self, node: NodeName) -> Result<()> {
        let name = CursorName::Replica(node);
        let asked = name.clone();
        let tracks = move |v: &mut volume::Volume, _| {
            v.owned().is_some() && v.cursors().iter().any(|c| c.name == asked)
        };
        if self.handle.call(tracks).await? {
            let remove = move |v: &mut volume::Volume, now| v.remove_cursor(now, &name);
            self.handle.control(remove).await?;
        }
        Ok(())
    }

    /// The ownership has ended here, and with it the replicas that it kept. What is not forgotten now
    /// would be when the volume comes back; then its guests would wait for it.
    async fn retire(&self) -> Result<()> {
        if self.handle.call(|v, _| v.owned().is_none()).await? {
            // Their tasks end with their handles.
            self.replicas().clear();
            self.peers.change(|p| p.replica.clear())?;
        }
        Ok(())
    }
}

/// What of a volume concerns its change of owner.
struct Heir {
    replicas: Replicas,
    peers: Arc<PeersFile>,
    offered: Arc<AtomicBool>,
}

impl Succession for Heir {
    fn taking(&self) {
        lock(&self.replicas).clear();
        if let Err(e) = self.peers.forget() {
            // The controller notices a replica that is kept unasked.
            tracing::warn!("forget the replicas of an earlier ownership: {e}");
        }
    }

    fn taken(&self) {
        self.offered.store(true, Ordering::Release);
    }
}

impl Exports for Volumes {
    fn names(&self) -> Vec<String> {
        let offered = |slot: &Slot| matches!(slot, Slot::Open(h) if h.is_offered());
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
                None => Some(h.export.clone()).filter(|_| h.is_offered()),
            },
            Slot::Broken(_) => None,
        }
    }

    fn arrival(&self, name: &str) -> Option<Arrival> {
        let (volume, suffix) = name.split_once('@')?;
        match self.slot(&volume.parse().ok()?)? {
            Slot::Open(h) => h.handle.arrival(suffix),
            Slot::Broken(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
