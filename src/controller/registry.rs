//! The service that nodes call: register, then heartbeats.

use super::records::{Happening, put_node};
use super::{Controller, Nodes, presence};
use crate::fleet::Node;
use crate::store::{Store, Transaction};
use node::service::to_status;
use node::{Error, ErrorKind, NodeName, Result};
use proto::v1::registry_server::Registry;
use proto::v1::{HeartbeatRequest, HeartbeatResponse, RegisterRequest, RegisterResponse};
use std::net::SocketAddr;
use tonic::{Request, Response, Status};

impl<S: Store, N: Nodes> Controller<S, N> {
    async fn register_node(&self, r: RegisterRequest) -> Result<()> {
        let name: NodeName = r.name.parse()?;
        for address in [&r.address, &r.replication_address, &r.nbd_address] {
            check_address(&name, address)?;
        }
        let new = Node {
            name,
            site: r.site,
            address: r.address,
            replication_address: r.replication_address,
            nbd_address: r.nbd_address,
        };
        let known = self.inner.records.node(&new.name).await?;
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

    async fn hear(&self, beat: HeartbeatRequest) -> Result<bool> {
        let name: NodeName = beat.name.parse()?;
        if self.inner.records.node(&name).await?.is_none() {
            return Ok(false);
        }
        if self.inner.presence.heard(name.clone(), beat) {
            self.tell("node-alive", &name, format!("node {name} is there"))
                .await?;
            self.inner.arrival.notify_waiters();
        }
        Ok(true)
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
        let known = self
            .hear(request.into_inner())
            .await
            .map_err(|e| to_status(&e))?;
        Ok(Response::new(HeartbeatResponse { register: !known }))
    }
}
