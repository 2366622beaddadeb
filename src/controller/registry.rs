//! The service that nodes call: register, then heartbeats.

use super::records::{Happening, put_node};
use super::{Controller, Nodes, presence};
use crate::fleet::Node;
use crate::store::{Store, Transaction};
use node::service::to_status;
use node::{Error, ErrorKind, NodeName, Result};
use proto::v1::registry_server::Registry;
use proto::v1::{HeartbeatRequest, HeartbeatResponse, Peer, RegisterRequest, RegisterResponse};
use std::net::SocketAddr;
use tonic::{Request, Response, Status};

/// Nodes that one is told to measure: with more, each is measured by others.
const PEERS_MAX: usize = 64;

impl<S: Store, N: Nodes> Controller<S, N> {
    async fn register_node(&self, r: RegisterRequest) -> Result<()> {
        let name: NodeName = r.name.parse()?;
        for address in [&r.address, &r.replication_address, &r.nbd_address] {
            check_address(&name, address)?;
        }
        let admitted = self.admit(name.as_str(), &r.token, &r.address).await?;
        let known = self.inner.records.node(&name).await?;
        let new = Node {
            name,
            site: admitted.site.unwrap_or(r.site),
            address: r.address,
            replication_address: r.replication_address,
            nbd_address: r.nbd_address,
            shape: admitted.shape,
            draining: known.as_ref().is_some_and(|n| n.draining),
        };
        if known.as_ref() != Some(&new) {
            let mut t = Transaction::default();
            put_node(&mut t, &new)?;
            let happening = Happening {
                kind: "node-registered",
                node: new.name.to_string(),
                volume: String::new(),
                text: format!("node {} registered at {}", new.name, new.address),
            };
            self.commit(t, vec![happening]).await?;
        }
        Ok(())
    }

    /// Whom the node is to measure; `None` if it is not known here.
    async fn hear(&self, beat: HeartbeatRequest) -> Result<Option<Vec<Peer>>> {
        let name: NodeName = beat.name.parse()?;
        let nodes = self.inner.records.nodes().await?;
        if !nodes.iter().any(|n| n.name == name) {
            return Ok(None);
        }
        if self.inner.presence.heard(name.clone(), beat) {
            self.tell("node-alive", &name, format!("node {name} is there"))
                .await?;
            self.inner.arrival.notify_waiters();
        }
        let presence = &self.inner.presence;
        let there = |n: &Node| n.name != name && presence.word(&n.name).is_some_and(|w| w.alive);
        let peers = nodes.into_iter().filter(there).take(PEERS_MAX);
        let peers = peers.map(|n| Peer {
            node: n.name.to_string(),
            address: n.address,
        });
        Ok(Some(peers.collect()))
    }
}

fn check_address(name: &NodeName, address: &str) -> Result<()> {
    match address.parse::<SocketAddr>() {
        Ok(a) if a.port() != 0 && !a.ip().is_unspecified() => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "register node {name}: {address:?} is no ADDR:PORT that others can reach; set \
                 `advertise` in the node's configuration"
            ),
        )),
    }
}

#[tonic::async_trait]
impl<S: Store, N: Nodes> Registry for Controller<S, N> {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        self.register_node(request.into_inner())
            .await
            .map_err(|e| to_status(&e))?;
        let every = u64::try_from(presence::HEARTBEAT.as_millis()).unwrap_or(u64::MAX);
        Ok(Response::new(RegisterResponse {
            heartbeat_ms: every,
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let peers = self
            .hear(request.into_inner())
            .await
            .map_err(|e| to_status(&e))?;
        Ok(Response::new(HeartbeatResponse {
            register: peers.is_none(),
            peers: peers.unwrap_or_default(),
        }))
    }
}
