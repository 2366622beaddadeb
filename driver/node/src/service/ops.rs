//! What a node can do, as the service needs it: the seam between gRPC and the daemon.

use super::Turn;
use block::{Error, ErrorKind, Generation, NodeName, Result, VolumeId, VolumeName};
use proto::v1::{CutoverProgress, NodeMetrics, VolumeReport, WriteTrail};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

/// A volume to be made or adopted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// Its name.
    pub name: VolumeName,
    /// Its identity.
    pub id: VolumeId,
    /// Its size; `None` is the image's own.
    pub size_bytes: Option<u64>,
    /// An existing image to adopt.
    pub image: Option<PathBuf>,
    /// Whether it begins as a standby, which serves nobody until it is activated.
    pub standby: bool,
}

/// How far a replica may be behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Not at all.
    Strong,
    /// At most this long.
    Bounded(Duration),
    /// As the network allows.
    Eventual,
}

/// A replica to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewReplica {
    /// Of which volume.
    pub volume: VolumeName,
    /// On which node.
    pub node: NodeName,
    /// Where that node takes replication.
    pub address: SocketAddr,
    /// How far it may be behind.
    pub consistency: Consistency,
    /// Cap on its bandwidth.
    pub rate_bytes_per_second: Option<u64>,
    /// In which order its baseline is best copied.
    pub order: SeedOrder,
}

/// An order of extents as it came: runs, first extent and number in turn. Empty where none is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeedOrder {
    /// Bytes of an extent.
    pub extent_bytes: u64,
    /// The runs.
    pub runs: Vec<u32>,
}

/// A volume to be handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// Which.
    pub volume: VolumeName,
    /// To which node.
    pub to: NodeName,
    /// Where that node takes replication.
    pub replication_address: SocketAddr,
    /// Where that node serves NBD: old connections are forwarded there.
    pub nbd_address: SocketAddr,
}

/// A volume to be taken over from an owner that is gone for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakeOver {
    /// Which.
    pub volume: VolumeName,
    /// Its identity.
    pub id: VolumeId,
    /// The generation to own it in.
    pub generation: Generation,
    /// This node was to hand it over: if it has not given it away it goes on with what it has.
    pub back: bool,
}

/// What the controller may ask of a node. Every call may be repeated, and a repetition answers as
/// the first did: the caller may have died before it had the answer. One that changes something has a
/// [`Turn`], and is refused if a later one about its volume was here before; who calls by hand has none.
pub trait NodeOps: Send + Sync + 'static {
    /// Every volume as it stands.
    fn report(&self) -> impl Future<Output = Vec<VolumeReport>> + Send;

    /// Returns when the reports say something that is worth telling before the next heartbeat is due.
    fn changed(&self) -> impl Future<Output = ()> + Send;

    /// The host as it stands.
    fn metrics(&self) -> NodeMetrics;

    /// The extents that guests wrote since this was asked last.
    fn trails(&self) -> Vec<WriteTrail>;

    /// Make or adopt a volume. If it exists with the same identity, that is the answer; with another
    /// one, `Exists`.
    fn create(
        &self,
        turn: Option<Turn>,
        new: NewVolume,
    ) -> impl Future<Output = Result<VolumeReport>> + Send;

    /// Delete a volume with this identity; an adopted image stays. False if there is none.
    fn delete(
        &self,
        turn: Option<Turn>,
        name: VolumeName,
        id: VolumeId,
    ) -> impl Future<Output = Result<bool>> + Send;

    /// Grow a volume with this identity; one that has as many bytes, or more, stays as it is. Its guests'
    /// connections end, and those that come have the new size.
    fn resize(
        &self,
        turn: Option<Turn>,
        name: VolumeName,
        id: VolumeId,
        size_bytes: u64,
    ) -> impl Future<Output = Result<VolumeReport>> + Send;

    /// Replicate to a standby from now on, over restarts too.
    fn start_replica(
        &self,
        turn: Option<Turn>,
        new: NewReplica,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Forget a replica. False if there was none.
    fn stop_replica(
        &self,
        turn: Option<Turn>,
        volume: VolumeName,
        node: NodeName,
    ) -> impl Future<Output = Result<bool>> + Send;

    /// Hand a volume over, reporting on the way; the last report has the phase `Done`. A handover
    /// goes on when nobody listens to the reports any more.
    fn cutover(
        &self,
        turn: Option<Turn>,
        handover: Handover,
        progress: mpsc::Sender<CutoverProgress>,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Own a volume of which this node has a consistent copy, or which it gave away, without the consent of
    /// who owned it last. A hand-over that is under way here ends.
    fn take_over(
        &self,
        turn: Option<Turn>,
        taken: TakeOver,
    ) -> impl Future<Output = Result<VolumeReport>> + Send;

    /// Serve a volume no longer: another node took it over in this generation. Its guests' connections
    /// are closed. A volume that is not here is no error.
    fn depose(
        &self,
        turn: Option<Turn>,
        deposed: TakeOver,
    ) -> impl Future<Output = Result<()>> + Send;
}

/// Parse an ADDR:PORT of a request.
pub(super) fn address(what: &str, text: &str) -> Result<SocketAddr> {
    text.parse().map_err(|_| {
        Error::new(
            ErrorKind::Invalid,
            format!("{what}: {text:?} is no ADDR:PORT"),
        )
    })
}
