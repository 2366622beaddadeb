//! The gRPC face of [`NodeOps`]: messages are checked here, and what is behind sees valid values only.

use super::ops::{
    Consistency, Handover, NewReplica, NewVolume, NodeOps, SeedOrder, TakeOver, address,
};
use super::to_status;
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

    async fn create(&self, r: v1::CreateVolumeRequest) -> Result<VolumeReport> {
        let standby = match r.role() {
            VolumeRole::Owner => false,
            VolumeRole::Standby => true,
            other => {
                return Err(invalid(format!("make volume {}: role {other:?}", r.name)));
            }
        };
        self.ops
            .create(NewVolume {
                name: r.name.parse()?,
                id: r.id.parse()?,
                size_bytes: (r.size_bytes > 0).then_some(r.size_bytes),
                image: (!r.image_path.is_empty()).then(|| PathBuf::from(r.image_path)),
                standby,
            })
            .await
    }

    async fn start(&self, r: v1::StartReplicaRequest) -> Result<()> {
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
        self.ops
            .start_replica(NewReplica {
                volume: r.volume.parse()?,
                node: r.node.parse()?,
                address: address(&asked, &r.address)?,
                consistency,
                rate_bytes_per_second: (r.rate_bytes_per_second > 0)
                    .then_some(r.rate_bytes_per_second),
                order: SeedOrder {
                    extent_bytes: r.extent_bytes,
                    runs: r.order,
                },
            })
            .await
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
    fn of(volume: &str, id: &str, generation: u64) -> Result<TakeOver> {
        Ok(TakeOver {
            volume: volume.parse()?,
            id: id.parse()?,
            generation: Generation(generation),
        })
    }
}

fn invalid(text: String) -> Error {
    Error::new(ErrorKind::Invalid, text)
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
        answer(self.create(r.into_inner()).await)
    }

    async fn delete_volume(
        &self,
        r: Request<v1::DeleteVolumeRequest>,
    ) -> Result<Response<v1::DeleteVolumeResponse>, Status> {
        let r = r.into_inner();
        let names = r.name.parse().and_then(|name| Ok((name, r.id.parse()?)));
        let (name, id) = names.map_err(|e| to_status(&e))?;
        let existed = self.ops.delete(name, id).await;
        answer(existed.map(|existed| v1::DeleteVolumeResponse { existed }))
    }

    async fn resize_volume(
        &self,
        r: Request<v1::ResizeVolumeRequest>,
    ) -> Result<Response<VolumeReport>, Status> {
        let r = r.into_inner();
        let name = r.name.parse().map_err(|e| to_status(&e))?;
        let id = r.id.parse().map_err(|e| to_status(&e))?;
        answer(self.ops.resize(name, id, r.size_bytes).await)
    }

    async fn start_replica(
        &self,
        r: Request<v1::StartReplicaRequest>,
    ) -> Result<Response<v1::StartReplicaResponse>, Status> {
        let started = self.start(r.into_inner()).await;
        answer(started.map(|()| v1::StartReplicaResponse {}))
    }

    async fn stop_replica(
        &self,
        r: Request<v1::StopReplicaRequest>,
    ) -> Result<Response<v1::StopReplicaResponse>, Status> {
        let r = r.into_inner();
        let names = r.volume.parse().and_then(|v| Ok((v, r.node.parse()?)));
        let (volume, node) = names.map_err(|e| to_status(&e))?;
        let existed = self.ops.stop_replica(volume, node).await;
        answer(existed.map(|existed| v1::StopReplicaResponse { existed }))
    }

    async fn take_over(
        &self,
        r: Request<v1::TakeOverRequest>,
    ) -> Result<Response<VolumeReport>, Status> {
        let r = r.into_inner();
        let taken = TakeOver::of(&r.volume, &r.id, r.generation).map_err(|e| to_status(&e))?;
        answer(self.ops.take_over(taken).await)
    }

    async fn depose(
        &self,
        r: Request<v1::DeposeRequest>,
    ) -> Result<Response<v1::DeposeResponse>, Status> {
        let r = r.into_inner();
        let deposed = TakeOver::of(&r.volume, &r.id, r.generation).map_err(|e| to_status(&e))?;
        let done = self.ops.depose(deposed).await;
        answer(done.map(|()| v1::DeposeResponse {}))
    }

    async fn cutover(
        &self,
        r: Request<v1::CutoverRequest>,
    ) -> Result<Response<Self::CutoverStream>, Status> {
        let handover = Self::handover(&r.into_inner()).map_err(|e| to_status(&e))?;
        let (progress, mut reports) = mpsc::channel(PROGRESS_BACKLOG);
        let (to, stream) = mpsc::channel(PROGRESS_BACKLOG);
        let ops = Arc::clone(&self.ops);
        // In a task of its own: past the relinquish record it must end although the caller left.
        let driven = tokio::spawn(async move { ops.cutover(handover, progress).await });
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
