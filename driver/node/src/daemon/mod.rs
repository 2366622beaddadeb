//! `forerun node`: the data plane of a host.
//!
//! ```text
//! lock the data directory ─► engine ─► open every volume by itself ─► listen ─► register
//!
//!   guests ──NBD (unix, TCP)──► accept ─► handshake ─► home shard
//!   controller ──gRPC──► service ──► Volumes (NodeOps)
//!   heartbeats ──► controller, for as long as there is one
//!
//! SIGTERM, SIGINT ─► no more connections ─► replies go out ─► sync ─► exit
//! ```
//!
//! A volume that cannot be opened is reported with what is wrong and stops nobody else. A controller
//! that is away stops nobody either.

mod directory;
mod front;
mod growth;
mod host;
mod peers;
mod replicas;
mod status;
mod takeover;
mod volumes;

pub use volumes::Volumes;

use crate::config::Config;
use crate::datadir::DataDir;
use crate::engine::Engine;
use crate::replication::{Receiving, Sending};
use crate::serve::Listen;
use crate::serve::listener::Listener;
use crate::service::{Service, keep_registered};
use block::{Error, ErrorKind, Result};
use proto::v1::RegisterRequest;
use proto::v1::node_server::NodeServer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// Where a node listens, once it does.
#[derive(Clone, Debug)]
pub struct Ready {
    /// gRPC.
    pub listening: SocketAddr,
    /// NBD over TCP.
    pub nbd: SocketAddr,
    /// Replication.
    pub replication: SocketAddr,
}

/// Run a node until `stop`. `ready` is told where it listens.
pub async fn run(
    config: Config,
    stop: impl Future<Output = ()> + Send,
    ready: impl FnOnce(&Ready),
) -> Result<()> {
    let data = DataDir::lock(&config.data)?;
    let socket = data.path().join("nbd.sock");
    let shards = match config.shards {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let engine = Engine::start(shards, config.pin)?.named(&config.name);

    let (grpc, listening) = bind("the controller's calls", config.listen).await?;
    let (peers, replication) = bind("replication", config.replication).await?;
    let unix = Listener::bind(&Listen::Unix(socket.clone()))?;
    let tcp = Listener::bind(&Listen::Tcp(config.nbd))?;
    let nbd = tcp.tcp_address()?;
    let at = Ready {
        listening,
        nbd,
        replication,
    };
    let reach = front::Reach {
        socket,
        tcp: config.advertised(nbd),
    };
    let peers = peers
        .into_std()
        .and_then(|l| l.set_nonblocking(false).map(|()| l))
        .map_err(|e| Error::io("hand the replication port to its thread", e))?;
    let (sending, receiving) = (Sending::start()?, Receiving::start(peers)?);
    let volumes = Arc::new(
        Volumes::open(
            data,
            engine,
            reach,
            (sending, receiving),
            &config.adopt_images,
        )
        .await?,
    );
    ready(&at);

    let me = RegisterRequest {
        name: config.name.to_string(),
        site: config.site.clone(),
        address: config.advertised(listening).to_string(),
        replication_address: config.advertised(replication).to_string(),
        nbd_address: config.advertised(nbd).to_string(),
        token: config.token.clone(),
    };
    let registration = config
        .controller
        .clone()
        .map(|c| tokio::spawn(keep_registered(c, me, Arc::clone(&volumes))));
    let guests = [unix, tcp].map(|l| tokio::spawn(front::accept_all(l, Arc::clone(&volumes))));
    let service = NodeServer::new(Service::new(config.name, Arc::clone(&volumes)));
    let (told, stopping) = oneshot::channel();
    let stop = async {
        stop.await;
        let _ = told.send(()); // it waits below
    };
    let serve = Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(TcpIncoming::from(grpc).with_nodelay(Some(true)), stop);
    let late = async {
        if stopping.await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(CALLS_PATIENCE).await;
    };
    // A caller that reads nothing would keep its connection, and with it this node, for ever.
    let served = tokio::select! {
        served = serve => served,
        () = late => Ok(()),
    };

    tracing::info!("stopping: finishing what is in flight");
    for task in guests.into_iter().chain(registration) {
        task.abort();
        let _ = task.await; // aborted: its listener is closed now
    }
    volumes.close().await?;
    served.map_err(|e| Error::new(ErrorKind::Io, format!("serve gRPC on {listening}: {e}")))
}

/// How long the controller's calls may take to end once the node is told to stop.
const CALLS_PATIENCE: Duration = Duration::from_secs(3);

/// How long a port may still belong to the process that was here before. The kernel takes a killed
/// process's io_uring apart after the process is gone, and an accept in flight holds the port until
/// then: a supervisor that restarts a node at once would find its own port taken.
const PORT_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is tried meanwhile.
const PORT_PAUSE: Duration = Duration::from_millis(20);

async fn bind(what: &str, address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let asked = format!("listen for {what} on {address} (another port may be free)");
    let began = Instant::now();
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(e)
                if e.kind() == std::io::ErrorKind::AddrInUse && began.elapsed() < PORT_PATIENCE =>
            {
                tokio::time::sleep(PORT_PAUSE).await;
            }
            Err(e) => return Err(Error::io(asked, e)),
        }
    };
    let address = listener.local_addr().map_err(|e| Error::io(asked, e))?;
    Ok((listener, address))
}

#[cfg(test)]
mod tests;
