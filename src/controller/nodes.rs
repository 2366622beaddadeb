//! Calls to nodes: a seam, so that tests can put a node of their own behind it.

use crate::fleet::{Answer, Consistency, Effect, Node, Progress, Volume};
use node::service::{TURN, Turn, to_error};
use node::{Error, ErrorKind, NodeName, Result};
use proto::v1::node_client::NodeClient;
use proto::v1::{self, CutoverProgress};
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// A node that has not taken the connection by then is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A node that has not answered by then is asked again; making a large image takes seconds at most.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// A silent connection is probed, so that a cutover's stream does not outlive its node.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// One call to one node.
#[derive(Clone, Debug)]
pub struct Call {
    /// To whom.
    pub to: Node,
    /// When: a node refuses a call about a volume after a later one.
    pub turn: Turn,
    /// What.
    pub request: Request,
}

/// What is asked of a node.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // each is the request of the same name in node.proto
pub enum Request {
    Create(v1::CreateVolumeRequest),
    Delete(v1::DeleteVolumeRequest),
    Resize(v1::ResizeVolumeRequest),
    StartReplica(v1::StartReplicaRequest),
    StopReplica(v1::StopReplicaRequest),
    Cutover(v1::CutoverRequest),
    TakeOver(v1::TakeOverRequest),
    Depose(v1::DeposeRequest),
}

/// Whoever carries calls to nodes.
pub trait Nodes: Send + Sync + 'static {
    /// Carry out a call, which may be a repetition. A cutover reports on its way through `progress`.
    fn call(
        &self,
        call: Call,
        progress: impl Fn(CutoverProgress) + Send + Sync,
    ) -> impl Future<Output = Result<Answer>> + Send;

    /// A while, before a node that did not answer is asked again.
    fn pause(&self, pause: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(pause)
    }
}

/// The call that brings an effect about. `find` gives a node's registration; `asked` is for people.
pub fn call_for(
    turn: Turn,
    operation_id: &str,
    asked: &str,
    effect: &Effect,
    v: &Volume,
    find: &impl Fn(&NodeName) -> Option<Node>,
) -> Result<Call> {
    let find = |name: &NodeName| {
        find(name).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("{asked}: node {name} never registered"),
            )
        })
    };
    let operation_id = operation_id.to_owned();
    let volume = v.name.to_string();
    let create = |node: &NodeName, role: v1::VolumeRole, image_path: Option<String>| {
        Ok::<_, Error>(Call {
            to: find(node)?,
            turn,
            request: Request::Create(v1::CreateVolumeRequest {
                operation_id: operation_id.clone(),
                name: v.name.to_string(),
                id: v.id.to_string(),
                size_bytes: v.size_bytes,
                image_path: image_path.unwrap_or_default(),
                role: role.into(),
            }),
        })
    };
    Ok(match effect {
        Effect::CreateOwner => create(&v.owner, v1::VolumeRole::Owner, v.image_path.clone())?,
        Effect::CreateStandby { node } => create(node, v1::VolumeRole::Standby, None)?,
        Effect::Delete { node } => Call {
            to: find(node)?,
            turn,
            request: Request::Delete(v1::DeleteVolumeRequest {
                operation_id,
                name: volume,
                id: v.id.to_string(),
            }),
        },
        Effect::Leave { node } => {
            return Err(Error::new(
                ErrorKind::Broken,
                format!("{asked}: nothing is asked of {node}"),
            ));
        }
        Effect::Resize { node, size_bytes } => Call {
            to: find(node)?,
            turn,
            request: Request::Resize(v1::ResizeVolumeRequest {
                operation_id,
                name: volume,
                size_bytes: *size_bytes,
                id: v.id.to_string(),
            }),
        },
        Effect::StartReplica { from, replica } => Call {
            to: find(from)?,
            turn,
            request: Request::StartReplica(v1::StartReplicaRequest {
                operation_id,
                volume,
                node: replica.node.to_string(),
                address: find(&replica.node)?.replication_address,
                consistency: Some(consistency(replica.consistency)),
                rate_bytes_per_second: replica.rate_bytes_per_second,
                ..Default::default()
            }),
        },
        Effect::StopReplica { node } => Call {
            to: find(&v.owner)?,
            turn,
            request: Request::StopReplica(v1::StopReplicaRequest {
                operation_id,
                volume,
                node: node.to_string(),
            }),
        },
        Effect::TakeOver { by } => Call {
            to: find(by)?,
            turn,
            request: Request::TakeOver(v1::TakeOverRequest {
                operation_id,
                volume,
                id: v.id.to_string(),
                generation: v.generation + 1,
            }),
        },
        Effect::Depose { node } => Call {
            to: find(node)?,
            turn,
            request: Request::Depose(v1::DeposeRequest {
                operation_id,
                volume,
                id: v.id.to_string(),
                generation: v.generation,
            }),
        },
        Effect::Cutover { to } => {
            let target = find(to)?;
            Call {
                to: find(&v.owner)?,
                turn,
                request: Request::Cutover(v1::CutoverRequest {
                    operation_id,
                    volume,
                    to: to.to_string(),
                    replication_address: target.replication_address,
                    nbd_address: target.nbd_address,
                }),
            }
        }
    })
}

/// A consistency on the wire.
#[must_use]
pub fn consistency(c: Consistency) -> v1::Consistency {
    let (level, bound) = match c {
        Consistency::Strong => (v1::ConsistencyLevel::Strong, Duration::ZERO),
        Consistency::Bounded(d) => (v1::ConsistencyLevel::Bounded, d),
        Consistency::Eventual => (v1::ConsistencyLevel::Eventual, Duration::ZERO),
    };
    v1::Consistency {
        level: level.into(),
        bound_ms: u64::try_from(bound.as_millis()).unwrap_or(u64::MAX),
    }
}

/// Nodes over gRPC. One connection a node, made when first needed and again after it broke.
#[derive(Default)]
pub struct GrpcNodes {
    channels: Mutex<HashMap<String, Channel>>,
}

impl GrpcNodes {
    fn client(&self, node: &Node) -> Result<NodeClient<Channel>> {
        let mut channels = self.channels.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(channel) = channels.get(&node.address) {
            return Ok(NodeClient::new(channel.clone()));
        }
        let endpoint = Endpoint::from_shared(format!("http://{}", node.address)).map_err(|e| {
            Error::new(
                ErrorKind::Invalid,
                format!(
                    "node {} registered the address {:?}: {e}",
                    node.name, node.address
                ),
            )
        })?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .connect_lazy();
        channels.insert(node.address.clone(), channel.clone());
        Ok(NodeClient::new(channel))
    }
}

fn in_turn<T>(turn: Turn, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Ok(turn) = turn.to_string().parse() {
        request.metadata_mut().insert(TURN, turn); // two numbers: always a header's value
    }
    request
}

fn timed<T>(turn: Turn, message: T) -> tonic::Request<T> {
    let mut request = in_turn(turn, message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

impl Nodes for GrpcNodes {
    async fn call(
        &self,
        call: Call,
        progress: impl Fn(CutoverProgress) + Send + Sync,
    ) -> Result<Answer> {
        let mut client = self.client(&call.to)?;
        let asked = format!("node {}", call.to.name);
        let failed = |status: tonic::Status| to_error(&asked, &status);
        match call.request {
            Request::Create(r) => {
                let v = client
                    .create_volume(timed(call.turn, r))
                    .await
                    .map_err(failed)?
                    .into_inner();
                Ok(Answer {
                    size_bytes: v.size_bytes,
                    generation: v.generation,
                    cutover: None,
                })
            }
            Request::Delete(r) => {
                client
                    .delete_volume(timed(call.turn, r))
                    .await
                    .map_err(failed)?;
                Ok(Answer::default())
            }
            Request::Resize(r) => {
                client
                    .resize_volume(timed(call.turn, r))
                    .await
                    .map_err(failed)?;
                Ok(Answer::default())
            }
            Request::StartReplica(r) => {
                client
                    .start_replica(timed(call.turn, r))
                    .await
                    .map_err(failed)?;
                Ok(Answer::default())
            }
            Request::StopReplica(r) => {
                client
                    .stop_replica(timed(call.turn, r))
                    .await
                    .map_err(failed)?;
                Ok(Answer::default())
            }
            Request::TakeOver(r) => {
                let v = client
                    .take_over(timed(call.turn, r))
                    .await
                    .map_err(failed)?;
                Ok(Answer {
                    generation: v.into_inner().generation,
                    ..Answer::default()
                })
            }
            Request::Depose(r) => {
                client.depose(timed(call.turn, r)).await.map_err(failed)?;
                Ok(Answer::default())
            }
            Request::Cutover(r) => {
                let mut stream = client
                    .cutover(in_turn(call.turn, r))
                    .await
                    .map_err(failed)?
                    .into_inner();
                while let Some(p) = stream.message().await.map_err(failed)? {
                    if p.phase() == v1::CutoverPhase::Done {
                        let cutover = Progress {
                            frozen_micros: p.frozen_micros,
                            converge_micros: p.converge_micros,
                            generation: p.generation,
                        };
                        return Ok(Answer {
                            size_bytes: 0,
                            generation: p.generation,
                            cutover: Some(cutover),
                        });
                    }
                    progress(p);
                }
                Err(Error::new(
                    ErrorKind::Disconnected,
                    format!("{asked}: its report of the cutover ended before the cutover did"),
                ))
            }
        }
    }
}
