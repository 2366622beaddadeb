//! Guests: connections are accepted and handshaken here, and handed to the volume's home shard.

use super::Volumes;
use crate::complaints::Complaints;
use crate::serve::listener::{Listener, Stream};
use block::{ErrorKind, Result};
use nbd::accept::HANDSHAKE_DEADLINE;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Connections of one listener at a time, those in the handshake too. More wait to be accepted.
const CONNECTIONS_MAX: usize = 128;
/// Pause after a failed accept (most often no descriptor was left), so that it is not tried in a
/// loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// By what guests reach this node.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    pub socket: PathBuf,
    pub tcp: SocketAddr,
}

impl Reach {
    /// The URIs of an export, for guests on this host first. A volume's name needs no escape.
    pub fn uris(&self, volume: &str) -> Vec<String> {
        vec![
            format!("nbd+unix:///{volume}?socket={}", self.socket.display()),
            format!("nbd://{}/{volume}", self.tcp),
        ]
    }
}

/// Accept for ever. Each handshake is a task of its own under a deadline.
pub(super) async fn accept_all(listener: Listener, volumes: Arc<Volumes>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let complaints = Arc::new(Complaints::default());
    loop {
        // A place first: beyond the cap clients wait in the listener's queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok(stream) => {
                let (volumes, complaints) = (Arc::clone(&volumes), Arc::clone(&complaints));
                tokio::spawn(async move {
                    if let Err(e) = receive(stream, &volumes, Box::new(place)).await {
                        complaints.warn(e);
                    }
                });
            }
            Err(e) => {
                tracing::warn!("accept: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn receive(
    stream: Stream,
    volumes: &Volumes,
    place: Box<dyn std::any::Any + Send>,
) -> Result<()> {
    let joined = match stream.handshake(volumes, HANDSHAKE_DEADLINE).await {
        Ok(accepted) => volumes.connect(accepted, place),
        Err(e) => Err(e),
    };
    match joined {
        Err(e) if e.kind() == ErrorKind::Disconnected => {
            tracing::debug!("{e}");
            Ok(())
        }
        result => result,
    }
}
