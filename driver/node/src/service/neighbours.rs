//! How far other nodes are, and hosts at sites that have no node yet. The controller says whom to
//! measure: a node is asked for nothing over a connection that is kept, a host is knocked at. The median
//! of the latest answers is what the next heartbeat says.

use proto::v1::node_client::NodeClient;
use proto::v1::{Peer, PeerLatency, PingRequest};
use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

/// How often each is asked: distances change slowly.
const EVERY: Duration = Duration::from_secs(2);
/// An answer that takes longer says that the node is busy, not that it is far.
const PATIENCE: Duration = Duration::from_secs(2);
/// Answers that the median is taken of.
const KEPT: usize = 9;
/// Nodes that are measured at most.
const PEERS_MAX: usize = 64;

/// Before the address of what is no node.
const HOST: &str = "tcp:";

/// The nodes that are measured.
#[derive(Default)]
pub(super) struct Neighbours(Mutex<BTreeMap<String, Neighbour>>);

struct Neighbour {
    address: String,
    way: Way,
    is_connected: bool,
    micros: VecDeque<u32>,
}

#[derive(Clone)]
enum Way {
    Node(NodeClient<Channel>),
    Host(String),
}

impl Way {
    /// To an address; none if it is no address.
    fn to(address: &str) -> Option<Way> {
        if let Some(host) = address.strip_prefix(HOST) {
            return Some(Way::Host(host.to_owned()));
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
        let channel = endpoint.timeout(PATIENCE).connect_lazy();
        Some(Way::Node(NodeClient::new(channel)))
    }

    /// Whether an answer came: from a host a refusal is one, and comes as fast.
    async fn answers(self) -> bool {
        match self {
            Way::Node(mut client) => client.ping(PingRequest {}).await.is_ok(),
            Way::Host(host) => {
                let knock = tokio::time::timeout(PATIENCE, TcpStream::connect(host)).await;
                knock.is_ok_and(|came| match came {
                    Ok(_) => true,
                    Err(e) => e.kind() == ErrorKind::ConnectionRefused,
                })
            }
        }
    }
}

impl Neighbours {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Neighbour>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Measure these from now on, and no others.
    pub fn set(&self, peers: Vec<Peer>) {
        let mut all = self.lock();
        all.retain(|name, n| {
            let wanted = |p: &Peer| p.node == *name && p.address == n.address;
            peers.iter().any(wanted)
        });
        for peer in peers.into_iter().take(PEERS_MAX) {
            let Some(way) = Way::to(&peer.address) else {
                continue; // what is no address cannot be measured
            };
            all.entry(peer.node).or_insert_with(|| Neighbour {
                address: peer.address,
                way,
                is_connected: false,
                micros: VecDeque::new(),
            });
        }
    }

    /// The medians so far.
    pub fn latencies(&self) -> Vec<PeerLatency> {
        let all = self.lock();
        let medians = all.iter().filter_map(|(node, n)| {
            let mut sorted: Vec<u32> = n.micros.iter().copied().collect();
            sorted.sort_unstable();
            let micros = *sorted.get(sorted.len() / 2)?;
            Some(PeerLatency {
                node: node.clone(),
                micros,
            })
        });
        medians.collect()
    }

    /// Measure until dropped.
    pub async fn keep_measuring(&self) -> std::convert::Infallible {
        let mut tick = tokio::time::interval(EVERY);
        loop {
            tick.tick().await;
            let all: Vec<_> = (self.lock().iter())
                .map(|(name, n)| (name.clone(), n.way.clone()))
                .collect();
            for (name, way) in all {
                let began = Instant::now();
                let answered = way.answers().await;
                self.learn(&name, answered.then(|| began.elapsed()));
            }
        }
    }

    fn learn(&self, name: &str, took: Option<Duration>) {
        let mut all = self.lock();
        let Some(n) = all.get_mut(name) else { return };
        // the first answer has the making of the connection in it
        let was_connected = std::mem::replace(&mut n.is_connected, took.is_some());
        if let Some(took) = took.filter(|_| was_connected) {
            if n.micros.len() == KEPT {
                n.micros.pop_front();
            }
            n.micros
                .push_back(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(node: &str, address: &str) -> Peer {
        Peer {
            node: node.into(),
            address: address.into(),
        }
    }

    #[tokio::test]
    async fn the_median_is_told_without_the_first_answer() {
        let all = Neighbours::default();
        all.set(vec![peer("a", "127.0.0.1:1"), peer("b", "127.0.0.1:2")]);
        for ms in [500, 3, 90, 4] {
            all.learn("a", Some(Duration::from_millis(ms)));
        }
        all.learn("b", None);
        let said = all.latencies();
        assert_eq!(said.len(), 1);
        assert_eq!((said[0].node.as_str(), said[0].micros), ("a", 4000));
        // another address is another way
        all.set(vec![peer("a", "127.0.0.1:9")]);
        assert_eq!(all.latencies(), []);
    }

    #[tokio::test]
    async fn a_host_answers_by_taking_a_connection_or_by_refusing_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("{HOST}{}", listener.local_addr().unwrap());
        assert!(Way::to(&address).unwrap().answers().await);
        drop(listener);
        assert!(Way::to(&address).unwrap().answers().await);
        let nowhere = format!("{HOST}no-such-host.invalid:1");
        assert!(!Way::to(&nowhere).unwrap().answers().await);
    }
}
