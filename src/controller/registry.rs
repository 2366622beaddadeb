//! The service that nodes call: register, then heartbeats.

use super::records::{Happening, put_node};
use super::{Controller, Nodes, presence};
use crate::fleet::Node;
use crate::store::{Store, Transaction};
use node::service::to_status;
use node::{Error, ErrorKind, NodeName, Result};
use proto::v1::registry_server::Registry;
use proto::v1::{HeartbeatRequest, HeartbeatResponse, Peer, RegisterRequest, RegisterResponse};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tonic::{Request, Response, Status};

/// Whom one node is told to measure. With more nodes each measures some of every site.
const PEERS_MAX: usize = 64;
/// Before the name of a site that is measured as such; in no node's name.
pub(super) const SITE: &str = "site/";
/// Before the address of what is no node.
const HOST: &str = "tcp:";

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
            let text = format!("node {name} is there");
            self.announce("node-alive", name.as_str(), text).await?;
            self.inner.arrival.notify_waiters();
        }
        let presence = &self.inner.presence;
        let there = |n: &Node| n.name != name && presence.word(&n.name).is_some_and(|w| w.alive);
        let own = nodes.iter().position(|n| n.name == name).unwrap_or(0);
        let alive = nodes.into_iter().map(|n| there(&n).then_some(n)).collect();
        let peers = neighbours(alive, own).map(|n| Peer {
            node: n.name.to_string(),
            address: n.address,
        });
        let sites = self.inner.probes.iter().map(|(site, address)| Peer {
            node: format!("{SITE}{site}"),
            address: format!("{HOST}{address}"),
        });
        Ok(Some(sites.chain(peers).take(PEERS_MAX).collect()))
    }
}

/// Nodes in the order in which the one at `own` measures them: one of each site, then a second of each,
/// from its own place on, so that those that are many share the work.
fn neighbours(nodes: Vec<Option<Node>>, own: usize) -> impl Iterator<Item = Node> {
    let count = nodes.len().max(1);
    let mut of_site: BTreeMap<String, usize> = BTreeMap::new();
    let mut ranked: Vec<(usize, usize, Node)> = Vec::new();
    let mut nodes = nodes;
    nodes.rotate_left(own % count);
    for (place, n) in nodes.into_iter().enumerate() {
        let Some(n) = n else { continue };
        let rank = of_site.entry(n.site.clone()).or_default();
        ranked.push((*rank, place, n));
        *rank += 1;
    }
    ranked.sort_by_key(|(rank, place, _)| (*rank, *place));
    ranked.into_iter().map(|(_, _, n)| n)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_measures_some_of_every_site_and_others_than_its_neighbour_does() {
        let node = |i: usize| Node {
            name: format!("n{i:03}").parse().unwrap(),
            site: if i < 190 { "big" } else { "small" }.into(),
            address: String::new(),
            replication_address: String::new(),
            nbd_address: String::new(),
            shape: None,
            draining: false,
        };
        let all = |own: usize| {
            let nodes = (0..200).map(|i| (i != own).then(|| node(i))).collect();
            neighbours(nodes, own).take(PEERS_MAX).collect::<Vec<_>>()
        };
        for own in [0, 7, 150, 199] {
            let found = all(own);
            let small = found.iter().filter(|n| n.site == "small").count();
            assert!(small >= 9, "{small} of the small site");
            assert!(found.iter().all(|n| *n != node(own)));
        }
        assert!(all(100).contains(&node(130)) && !all(20).contains(&node(130)));
    }
}
