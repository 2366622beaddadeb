//! Calls to nodes: a seam, so that tests can put a node of their own behind it.

use crate::fleet::{Answer, Consistency, Effect, Node, Progress, Volume};
use node::service::{TURN, Turn, to_error};
use node::{Error, ErrorKind, NodeName, Result};
use proto::v1::node_client::NodeClient;
use proto::v1::{self, CutoverProgress};
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;
use tonic::service::Interceptor;
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
    let to = find(effect.at(v))?;
    let operation_id = operation_id.to_owned();
    let (volume, id) = (v.name.to_string(), v.id.to_string());
    let request = match effect {
        Effect::CreateOwner | Effect::CreateStandby { .. } => {
            let (role, image_path) = match effect {
                Effect::CreateOwner => (v1::VolumeRole::Owner, v.image_path.clone()),
                _ => (v1::VolumeRole::Standby, None),
            };
            Request::Create(v1::CreateVolumeRequest {
                operation_id,
                name: volume,
                id,
                size_bytes: v.size_bytes,
                image_path: image_path.unwrap_or_default(),
                role: role.into(),
            })
        }
        Effect::Delete { .. } => Request::Delete(v1::DeleteVolumeRequest {
            operation_id,
            name: volume,
            id,
        }),
        Effect::Leave { node } => {
            return Err(Error::new(
                ErrorKind::Broken,
                format!("{asked}: nothing is asked of {node}"),
            ));
        }
        Effect::Resize { size_bytes, .. } => Request::Resize(v1::ResizeVolumeRequest {
            operation_id,
            name: volume,
            size_bytes: *size_bytes,
            id,
        }),
        Effect::StartReplica { replica, .. } => Request::StartReplica(v1::StartReplicaRequest {
            operation_id,
            volume,
            node: replica.node.to_string(),
            address: find(&replica.node)?.replication_address,
            consistency: Some(consistency(replica.consistency)),
            rate_bytes_per_second: replica.rate_bytes_per_second,
            ..Default::default()
        }),
        Effect::StopReplica { node } => Request::StopReplica(v1::StopReplicaRequest {
            operation_id,
            volume,
            node: node.to_string(),
        }),
        Effect::TakeOver { .. } => Request::TakeOver(v1::TakeOverRequest {
            operation_id,
            volume,
            id,
            generation: v.generation + 1,
            back: false,
        }),
        Effect::TakeBack => Request::TakeOver(v1::TakeOverRequest {
            operation_id,
            volume,
            id,
            // The next one may be its cutover's target's.
            generation: v.generation + 2,
            back: true,
        }),
        Effect::Depose { .. } => Request::Depose(v1::DeposeRequest {
            operation_id,
            volume,
            id,
            generation: v.generation,
        }),
        Effect::Cutover { to: target } => {
            let target = find(target)?;
            Request::Cutover(v1::CutoverRequest {
                operation_id,
                volume,
                to: target.name.to_string(),
                replication_address: target.replication_address,
                nbd_address: target.nbd_address,
            })
        }
    };
    Ok(Call { to, turn, request })
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
    fn channel(&self, node: &Node) -> Result<Channel> {
        let mut channels = self.channels.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(channel) = channels.get(&node.address) {
            return Ok(channel.clone());
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
        Ok(channel)
    }
}

/// What each message to a node carries: its turn, and until when an answer is waited for.
fn carried(turn: Turn, timeout: Option<Duration>) -> impl Interceptor {
    move |mut message: tonic::Request<()>| {
        if let Ok(turn) = turn.to_string().parse() {
            message.metadata_mut().insert(TURN, turn); // two numbers: always a header's value
        }
        if let Some(timeout) = timeout {
            message.set_timeout(timeout);
        }
        Ok(message)
    }
}

fn done<T>(_: tonic::Response<T>) -> Answer {
    Answer::default()
}

impl Nodes for GrpcNodes {
    async fn call(
        &self,
        call: Call,
        progress: impl Fn(CutoverProgress) + Send + Sync,
    ) -> Result<Answer> {
        // a cutover takes as long as it takes, and says how it goes
        let timeout = (!matches!(call.request, Request::Cutover(_))).then_some(CALL_TIMEOUT);
        let channel = self.channel(&call.to)?;
        let mut client = NodeClient::with_interceptor(channel, carried(call.turn, timeout));
        let asked = format!("node {} at {}", call.to.name, call.to.address);
        let failed = |status: tonic::Status| to_error(&asked, &status);
        let answer = match call.request {
            Request::Create(r) => client.create_volume(r).await.map(|v| {
                let v = v.into_inner();
                Answer {
                    size_bytes: v.size_bytes,
                    generation: v.generation,
                    cutover: None,
                }
            }),
            Request::Delete(r) => client.delete_volume(r).await.map(done),
            Request::Resize(r) => client.resize_volume(r).await.map(done),
            Request::StartReplica(r) => client.start_replica(r).await.map(done),
            Request::StopReplica(r) => client.stop_replica(r).await.map(done),
            Request::TakeOver(r) => client.take_over(r).await.map(|v| Answer {
                generation: v.into_inner().generation,
                ..Answer::default()
            }),
            Request::Depose(r) => client.depose(r).await.map(done),
            Request::Cutover(r) => {
                let mut stream = client.cutover(r).await.map_err(failed)?.into_inner();
                while let Some(p) = stream.message().await.map_err(failed)? {
                    if p.phase() == v1::CutoverPhase::Done {
                        return Ok(Answer {
                            size_bytes: 0,
                            generation: p.generation,
                            cutover: Some(Progress {
                                frozen_micros: p.frozen_micros,
                                converge_micros: p.converge_micros,
                                generation: p.generation,
                            }),
                        });
                    }
                    progress(p);
                }
                return Err(Error::new(
                    ErrorKind::Disconnected,
                    format!("{asked}: its report of the cutover ended before the cutover did"),
                ));
            }
        };
        answer.map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_carries_its_turn_and_until_when_its_answer_is_waited_for() {
        let carried = |timeout| {
            let turn = Turn { life: 3, number: 7 };
            let call = carried(turn, timeout).call(tonic::Request::new(()));
            call.unwrap().metadata().clone()
        };
        let timed = carried(Some(CALL_TIMEOUT));
        assert_eq!(timed.get(TURN).unwrap(), "3/7");
        assert!(timed.contains_key("grpc-timeout"));
        // a cutover has no deadline here: the node's own budgets end it
        let untimed = carried(None);
        assert!(untimed.contains_key(TURN) && !untimed.contains_key("grpc-timeout"));
    }
}
