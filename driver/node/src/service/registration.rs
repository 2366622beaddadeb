//! The node's side of the registry: register, then heartbeats, for ever. A controller that is away
//! changes nothing for guests: the node serves on and tries again.

use super::neighbours::Neighbours;
use super::{NodeOps, to_error};
use block::{Error, Result};
use proto::v1::registry_client::RegistryClient;
use proto::v1::{HeartbeatRequest, RegisterRequest};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// Between attempts to reach a controller that is away.
const RETRY: Duration = Duration::from_secs(1);
/// A controller that takes longer than this is tried again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Register with the controller at `ADDR:PORT` and send heartbeats until dropped.
pub async fn keep_registered<O: NodeOps>(controller: String, me: RegisterRequest, ops: Arc<O>) {
    let neighbours = Neighbours::default();
    tokio::select! {
        () = stay_registered(&controller, &me, &*ops, &neighbours) => {}
        never = neighbours.keep_measuring() => match never {},
    }
}

async fn stay_registered<O: NodeOps>(
    controller: &str,
    me: &RegisterRequest,
    ops: &O,
    neighbours: &Neighbours,
) {
    let mut said = String::new();
    loop {
        let Err(e) = serve_one(controller, me, ops, neighbours).await;
        // Once for each reason: a controller may be away for days.
        let now = e.to_string();
        if now != said {
            tracing::warn!("controller {controller}: {now}; serving on without it");
            said = now;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn serve_one<O: NodeOps>(
    controller: &str,
    me: &RegisterRequest,
    ops: &O,
    neighbours: &Neighbours,
) -> Result<std::convert::Infallible> {
    let asked = "register";
    let lost = |e: tonic::Status| to_error(asked, &e);
    let endpoint = Endpoint::from_shared(format!("http://{controller}"))
        .map_err(|e| Error::new(block::ErrorKind::Invalid, format!("{asked}: {e}")))?
        .connect_timeout(PATIENCE)
        .timeout(PATIENCE);
    let channel = endpoint
        .connect()
        .await
        .map_err(|e| Error::new(block::ErrorKind::Disconnected, format!("{asked}: {e}")))?;
    let mut client: RegistryClient<Channel> = RegistryClient::new(channel);
    loop {
        let answer = client
            .register(me.clone())
            .await
            .map_err(lost)?
            .into_inner();
        tracing::info!("registered with the controller at {controller}");
        let mut tick = tokio::time::interval(Duration::from_millis(answer.heartbeat_ms.max(100)));
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = ops.changed() => tick.reset(),
            }
            let beat = HeartbeatRequest {
                name: me.name.clone(),
                volumes: ops.report().await,
                metrics: Some(ops.metrics()),
                trails: ops.trails(),
                latencies: neighbours.latencies(),
            };
            let answer = client.heartbeat(beat).await.map_err(lost)?.into_inner();
            if answer.register {
                break;
            }
            neighbours.set(answer.peers);
        }
    }
}
