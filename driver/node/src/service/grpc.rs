//! The gRPC face of [`NodeOps`]: messages are checked here, and what is behind sees valid values only.

use super::ops::{
    Consistency, Handover, NewReplica, NewVolume, NodeOps, SeedOrder, TakeOver, address,
};
use super::{TURN, Turn, to_status};
use block::{Error, ErrorKind, Generation, NodeName, Result};
use proto::v1::node_server::Node;
use proto::v1::{self, ConsistencyLevel, CutoverProgress, VolumeReport, VolumeRole};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Reports of a cutover on their way to the controller. The cutover does not wait for its readers:
/// who drives it drops what does not fit.
pub const PROGRESS_BACKLOG: usize = 32;

/// The service.
pub struct Service<O> {
    name: NodeName,
    ops: Arc<O>,
}

impl<O: NodeOps> Service<O> {
    /// Serve a node's operations.
    #[must_use]
    pub fn new(name: NodeName, ops: Arc<O>) -> Service<O> {
        Service { name, ops }
    }

    fn new_volume(r: v1::CreateVolumeRequest) -> Result<NewVolume> {
        let standby = match r.role() {
            VolumeRole::Owner => false,
            VolumeRole::Standby => true,
            other => {
                return Err(invalid(format!("make volume {}: role {other:?}", r.name)));
            }
        };
        Ok(NewVolume {
            name: r.name.parse()?,
            id: r.id.parse()?,
            size_bytes: (r.size_bytes > 0).then_some(r.size_bytes),
            image: (!r.image_path.is_empty()).then(|| PathBuf::from(r.image_path)),
            standby,
        })
    }

    fn new_replica(r: v1::StartReplicaRequest) -> Result<NewReplica> {
        let asked = format!("replicate {} to {}", r.volume, r.node);
        let consistency = r.consistency.unwrap_or_default();
        let consistency = match consistency.level() {
            ConsistencyLevel::Strong => Consistency::Strong,
            ConsistencyLevel::Eventual => Consistency::Eventual,
            ConsistencyLevel::Bounded if consistency.bound_ms > 0 => {
                Consistency::Bounded(Duration::from_millis(consistency.bound_ms))
            }
            other => {
                return Err(invalid(format!(
                    "{asked}: consistency {other:?} without bound"
                )));
            }
        };
        Ok(NewReplica {
            volume: r.volume.parse()?,
            node: r.node.parse()?,
            address: address(&asked, &r.address)?,
            consistency,
            rate_bytes_per_second: (r.rate_bytes_per_second > 0).then_some(r.rate_bytes_per_second),
            order: SeedOrder {
                extent_bytes: r.extent_bytes,
                runs: r.order,
            },
        })
    }

    fn handover(r: &v1::CutoverRequest) -> Result<Handover> {
        let asked = format!("hand {} over to {}", r.volume, r.to);
        Ok(Handover {
            volume: r.volume.parse()?,
            to: r.to.parse()?,
            replication_address: address(&asked, &r.replication_address)?,
            nbd_address: address(&asked, &r.nbd_address)?,
        })
    }
}

impl TakeOver {
    fn of(volume: &str, id: &str, generation: u64, back: bool) -> Result<TakeOver> {
        Ok(TakeOver {
            volume: volume.parse()?,
            id: id.parse()?,
            generation: Generation(generation),
            back,
        })
    }
}

fn invalid(text: String) -> Error {
    Error::new(ErrorKind::Invalid, text)
}

/// The turn of a call, and what it asks for.
fn taken<T, R>(
    request: Request<T>,
    checked: impl FnOnce(T) -> Result<R>,
) -> Result<(Option<Turn>, R), Status> {
    let both = || {
        let turn = match request.metadata().get(TURN).map(|v| v.to_str()) {
            Some(Ok(text)) => Some(text.parse()?),
            Some(Err(_)) => return Err(invalid(format!("{TURN}: no text"))),
            None => None,
        };
        Ok((turn, checked(request.into_inner())?))
    };
    both().map_err(|e| to_status(&e))
}

/// Make a change in a task of its own: it must not end halfway because its caller has left.
async fn whole<T: Send + 'static>(
    change: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let ended = tokio::spawn(change).await;
    ended.unwrap_or_else(|e| {
        let why = format!("the call's task: {e}");
        Err(Error::new(ErrorKind::Broken, why))
    })
}

fn answer<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|e| to_status(&e))
}

#[tonic::async_trait]
impl<O: NodeOps> Node for Service<O> {
    type CutoverStream = Pin<Box<dyn Stream<Item = Result<CutoverProgress, Status>> + Send>>;

    async fn ping(
        &self,
        _: Request<v1::PingRequest>,
    ) -> Result<Response<v1::PingResponse>, Status> {
        Ok(Response::new(v1::PingResponse {}))
    }

    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(v1::StatusResponse {
            name: self.name.to_string(),
            volumes: self.ops.report().await,
        }))
    }

    async fn create_volume(
        &self,
        r: Request<v1::CreateVolumeRequest>,
    ) -> Result<Response<VolumeReport>, Status> {
        let (turn, new) = taken(r, Self::new_volume)?;
        let ops = Arc::clone(&self.ops);
        answer(whole(async move { ops.create(turn, new).await }).await)
    }

    async fn delete_volume(
        &self,
        r: Request<v1::DeleteVolumeRequest>,
    ) -> Result<Response<v1::DeleteVolumeResponse>, Status> {
        let (turn, (name, id)) = taken(r, |r| Ok((r.name.parse()?, r.id.parse()?)))?;
        let ops = Arc::clone(&self.ops);
        let existed = whole(async move { ops.delete(turn, name, id).await }).await;
        answer(existed.map(|existed| v1::DeleteVolumeResponse { existed }))
    }

    async fn resize_volume(
        &self,
        r: Request<v1::ResizeVolumeRequest>,
    ) -> Result<Response<VolumeReport>, Status> {
        let (turn, (name, id, size)) =
            taken(r, |r| Ok((r.name.parse()?, r.id.parse()?, r.size_bytes)))?;
        let ops = Arc::clone(&self.ops);
        answer(whole(async move { ops.resize(turn, name, id, size).await }).await)
    }

    async fn start_replica(
        &self,
        r: Request<v1::StartReplicaRequest>,
    ) -> Result<Response<v1::StartReplicaResponse>, Status> {
        let (turn, new) = taken(r, Self::new_replica)?;
        let ops = Arc::clone(&self.ops);
        let started = whole(async move { ops.start_replica(turn, new).await }).await;
        answer(started.map(|()| v1::StartReplicaResponse {}))
    }

    async fn stop_replica(
        &self,
        r: Request<v1::StopReplicaRequest>,
    ) -> Result<Response<v1::StopReplicaResponse>, Status> {
        let (turn, (volume, node)) = taken(r, |r| Ok((r.volume.parse()?, r.node.parse()?)))?;
        let ops = Arc::clone(&self.ops);
        let existed = whole(async move { ops.stop_replica(turn, volume, node).await }).await;
        answer(existed.map(|existed| v1::StopReplicaResponse { existed }))
    }

    async fn take_over(
        &self,
        r: Request<v1::TakeOverRequest>,
    ) -> Result<Response<VolumeReport>, Status> {
        let of = |r: v1::TakeOverRequest| TakeOver::of(&r.volume, &r.id, r.generation, r.back);
        let (turn, take) = taken(r, of)?;
        let ops = Arc::clone(&self.ops);
        answer(whole(async move { ops.take_over(turn, take).await }).await)
    }

    async fn depose(
        &self,
        r: Request<v1::DeposeRequest>,
    ) -> Result<Response<v1::DeposeResponse>, Status> {
        let of = |r: v1::DeposeRequest| TakeOver::of(&r.volume, &r.id, r.generation, false);
        let (turn, deposed) = taken(r, of)?;
        let ops = Arc::clone(&self.ops);
        let done = whole(async move { ops.depose(turn, deposed).await }).await;
        answer(done.map(|()| v1::DeposeResponse {}))
    }

    async fn cutover(
        &self,
        r: Request<v1::CutoverRequest>,
    ) -> Result<Response<Self::CutoverStream>, Status> {
        let (turn, handover) = taken(r, |r| Self::handover(&r))?;
        let (progress, mut reports) = mpsc::channel(PROGRESS_BACKLOG);
        let (to, stream) = mpsc::channel(PROGRESS_BACKLOG);
        let ops = Arc::clone(&self.ops);
        // In a task of its own: past the relinquish record it must end although the caller left.
        let driven = tokio::spawn(async move { ops.cutover(turn, handover, progress).await });
        tokio::spawn(async move {
            let mut listening = true;
            while let Some(report) = reports.recv().await {
                listening = listening && to.send(Ok(report)).await.is_ok();
            }
            let failed = match driven.await {
                Ok(Ok(())) => return,
                Ok(Err(e)) => to_status(&e),
                Err(e) => to_status(&Error::new(
                    ErrorKind::Broken,
                    format!("the cutover's task: {e}"),
                )),
            };
            let _ = to.send(Err(failed)).await; // the caller left
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
