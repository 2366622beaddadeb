//! The replicas that a volume keeps, and its way to a new owner.

use super::peers::ReplicaRecord;
use super::status::{ReplicaStatus, micros};
use crate::engine::{Ahead, VolumeHandle};
use crate::replication::{Redirect, ReplicaHandle, ReplicaSpec, Sending};
use crate::service::SeedOrder;
use block::{Error, ErrorKind, Generation, NodeName, Result, VolumeId, VolumeName};
use nbd::client::Uri;
use proto::v1::{CutoverPhase, CutoverProgress};
use replica::cutover::{Phase, Plan, Report, Update};
use replica::{Order, Tuning};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use storage::ImageFile;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};

/// The longest that a cutover may hold the guest before it gives the attempt up.
const FREEZE_BUDGET: Duration = Duration::from_secs(1);
/// What the last increment should take, so that the guest is held for a few milliseconds in all.
const LAST_INCREMENT: Duration = Duration::from_millis(3);

/// A replica that is kept.
#[derive(Clone)]
pub(super) struct Kept {
    handle: ReplicaHandle,
    pub status: ReplicaStatus,
    pub address: SocketAddr,
    /// No replica is wanted there: its node is asked who owns the volume.
    pub only_asks: bool,
    /// Where guests find the node, once the volume is handed over to it.
    new_owner: NewOwner,
    to: NodeName,
    name: VolumeName,
    volume: VolumeHandle,
}

/// Where guests find the node that a volume is handed over to, and the link to it that is dialled
/// before it owns the volume.
#[derive(Clone, Default)]
struct NewOwner(Arc<Mutex<(Option<SocketAddr>, Option<Ahead>)>>);

impl NewOwner {
    fn lock(&self) -> MutexGuard<'_, (Option<SocketAddr>, Option<Ahead>)> {
        // Each half is replaced as a whole: a panic cannot have left it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn export_at(nbd: SocketAddr, volume: &VolumeName) -> Result<Uri> {
    format!("nbd://{nbd}/{volume}").parse()
}

/// The volume of a replica.
pub(super) struct Source {
    pub name: VolumeName,
    pub id: VolumeId,
    pub handle: VolumeHandle,
    pub image: ImageFile,
}

impl Kept {
    /// Keep the replica of a record; `changed` is told when its state is another one.
    pub async fn start(
        sending: &Sending,
        source: Source,
        record: &ReplicaRecord,
        order: &SeedOrder,
        changed: Arc<Notify>,
    ) -> Result<Kept> {
        let to = record.name()?;
        let status = ReplicaStatus::new(changed);
        let told = status.clone();
        let new_owner = NewOwner::default();
        let redirect = redirect(&source, new_owner.clone());
        let (name, volume) = (source.name.clone(), source.handle.clone());
        let rate = record.rate_bytes_per_second;
        let size = source.image.size;
        let spec = ReplicaSpec {
            order: Order::of_runs(size, order.extent_bytes, &order.runs),
            id: source.id,
            handle: source.handle,
            image: source.image,
            replica: to.clone(),
            address: record.address,
            interval: Duration::from_millis(record.interval_ms),
            tuning: Tuning {
                rate: (rate > 0).then_some(rate),
                ..Tuning::default()
            },
            news: Arc::new(move |news| told.take(news)),
            redirect,
        };
        Ok(Kept {
            handle: sending.add(spec).await?,
            status,
            address: record.address,
            only_asks: false,
            new_owner,
            to,
            name,
            volume,
        })
    }

    /// Whether its task has not ended.
    pub fn is_running(&self) -> bool {
        self.handle.is_running()
    }

    /// Stop keeping it.
    pub async fn stop(&self) -> Result<()> {
        match self.handle.stop().await {
            // It has ended by itself.
            Err(e) if e.kind() == ErrorKind::Disconnected => Ok(()),
            result => result,
        }
    }

    fn plan(&self, next: Generation) -> Plan {
        Plan {
            to: self.to.clone(),
            next,
            freeze_budget: FREEZE_BUDGET,
            last_increment: LAST_INCREMENT,
        }
    }

    /// Hand the volume over in generation `next` to the replica's node, where guests connect to `nbd`.
    pub async fn hand_over(
        &self,
        next: Generation,
        nbd: SocketAddr,
        progress: mpsc::Sender<CutoverProgress>,
    ) -> Result<Report> {
        self.new_owner.lock().0 = Some(nbd);
        let (status, told) = (self.status.clone(), progress.clone());
        let (new_owner, volume) = (self.new_owner.clone(), self.volume.clone());
        let (owner, runtime) = (export_at(nbd, &self.name)?, Handle::current());
        let watch = move |update: &Update| {
            if update.phase == Phase::Converge {
                let mut new_owner = new_owner.lock();
                if new_owner.1.is_none() {
                    let _runtime = runtime.enter();
                    new_owner.1 = Some(volume.dial_ahead(owner.clone(), next));
                }
            }
            if update.phase == Phase::Mirror {
                status.mirroring();
            }
            // A watcher that is slow misses a report and nothing else.
            let _ = told.try_send(to_proto(update));
        };
        let report = self.handle.cut_over(self.plan(next), Box::new(watch)).await;
        self.new_owner.lock().1 = None; // not taken, if it failed
        let report = report?;
        let _ = progress.send(finished(&report)).await; // nobody watches
        Ok(report)
    }

    /// Finish the hand-over of a volume whose record says that it was relinquished, in the background
    /// and for as long as it takes.
    pub fn finish_handover(&self, next: Generation, epoch: block::Epoch, nbd: SocketAddr) {
        self.new_owner.lock().0 = Some(nbd);
        let (kept, plan) = (self.clone(), self.plan(next));
        tokio::spawn(async move {
            let done = kept
                .handle
                .roll_forward(plan, epoch, Box::new(|_| ()))
                .await;
            match done {
                Ok(()) => tracing::info!("the hand-over to {} is complete", kept.to),
                Err(e) => {
                    tracing::error!("hand over to {}: {e}", kept.to);
                    kept.status.trouble(e.to_string());
                }
            }
        });
    }
}

/// Make the volume forward to its new owner. Forwarding outlives the mover's task: it runs on the
/// node's own runtime.
fn redirect(source: &Source, new_owner: NewOwner) -> Redirect {
    let (handle, name, runtime) = (
        source.handle.clone(),
        source.name.clone(),
        Handle::current(),
    );
    Arc::new(move |to, _| {
        let (answer, answered) = oneshot::channel();
        let (nbd, ahead) = {
            let mut new_owner = new_owner.lock();
            (new_owner.0, new_owner.1.take())
        };
        let (handle, name) = (handle.clone(), name.clone());
        runtime.spawn(async move {
            let _ = answer.send(forward(&handle, &name, &to, nbd, ahead).await); // the node ends
        });
        answered
    })
}

async fn forward(
    handle: &VolumeHandle,
    name: &VolumeName,
    to: &NodeName,
    nbd: Option<SocketAddr>,
    ahead: Option<Ahead>,
) -> Result<()> {
    let nbd = nbd.ok_or_else(|| {
        Error::new(
            ErrorKind::Broken,
            format!("redirect {name} to {to}: its address is not known"),
        )
    })?;
    handle.forward(export_at(nbd, name)?, ahead).await?;
    // It was frozen for the hand-over; should the volume come back, it must not be.
    handle.thaw().await
}

fn whole(rate: f64) -> u64 {
    rate.max(0.0) as u64
}

fn to_proto(update: &Update) -> CutoverProgress {
    let phase = match update.phase {
        Phase::Finish | Phase::Prepare => CutoverPhase::Prepare,
        Phase::Converge | Phase::Mirror => CutoverPhase::Converge,
        Phase::Freeze => CutoverPhase::Freeze,
        Phase::Relinquish => CutoverPhase::Relinquish,
        Phase::Activate => CutoverPhase::Activate,
        Phase::Redirect => CutoverPhase::Redirect,
    };
    let mut notes = Vec::new();
    if update.phase == Phase::Finish {
        notes.push("an increment that was under way is finished first".to_owned());
    }
    if let Some(limit) = update.paced {
        notes.push(format!(
            "the guest's writes are paced to {:.1} MB/s",
            limit as f64 / 1e6
        ));
    }
    if let Some(lacking) = update.lacking() {
        notes.push(format!(
            "the link lacks {:.1} MB/s to keep up with the guest",
            lacking / 1e6
        ));
    }
    if update.phase == Phase::Mirror {
        notes.push("the guest's writes wait for the replica until it has all".to_owned());
    }
    CutoverProgress {
        phase: phase.into(),
        bytes_left: update.dirty,
        dirty_bytes_per_second: whole(update.dirty_rate),
        send_bytes_per_second: whole(update.link_rate),
        eta_ms: update
            .eta
            .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        note: notes.join("; "),
        ..CutoverProgress::default()
    }
}

fn finished(report: &Report) -> CutoverProgress {
    CutoverProgress {
        phase: CutoverPhase::Done.into(),
        frozen_micros: micros(report.frozen),
        converge_micros: micros(report.converging),
        generation: report.generation.0,
        ..CutoverProgress::default()
    }
}
