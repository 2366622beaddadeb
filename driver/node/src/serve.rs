//! `forerun serve`: one image, one export, no configuration.
//!
//! ```text
//! lock and open the image ─► engine ─► listener ─► accept, handshake (tokio) ─► home shard
//! SIGTERM, SIGINT ─► no more connections ─► replies go out ─► sync ─► exit
//! ```

pub(crate) mod listener;
pub(crate) mod state;

use crate::complaints::Complaints;
use crate::engine::{CONNECTIONS_MAX, Engine, VOLUME_REQUESTS_MAX, VolumeHandle, VolumeSpec};
use block::{Error, ErrorKind, Result};
use listener::Listener;
use nbd::accept::HANDSHAKE_DEADLINE;
use nbd::codec::TransmissionFlags;
use nbd::{Export, Exports};
pub use state::Tracking;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use storage::ImageFile;
pub use storage::{CacheMode, OpenOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
pub use volume::CheckpointName;
use volume::{Config, Volume};

/// Pause after a failed accept (most often no descriptor was left), so that it is not tried in a
/// loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A unix socket at this path.
    Unix(PathBuf),
    /// TCP. Off loopback only with [`Options::allow_plaintext`].
    Tcp(SocketAddr),
}

/// What to serve, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The image or block device.
    pub image: PathBuf,
    /// How to open it.
    pub open: OpenOptions,
    /// Track changes durably; without it nothing is tracked.
    pub tracking: Option<Tracking>,
    /// Where.
    pub listen: Listen,
    /// The export's name. The empty name finds it too.
    pub export: String,
    /// Most connections at a time; more wait to be accepted.
    pub connections: usize,
    /// Serve TCP without encryption to other machines.
    pub allow_plaintext: bool,
    /// Threads with a ring. One image has one home, so one is enough.
    pub shards: usize,
    /// Give each shard a processor of its own.
    pub pin: bool,
}

struct OneExport {
    name: String,
    export: Export,
}

impl Exports for OneExport {
    fn names(&self) -> Vec<String> {
        vec![self.name.clone()]
    }
    fn find(&self, name: &str) -> Option<Export> {
        (name == self.name || name.is_empty()).then(|| self.export.clone())
    }
}

/// Serve until SIGTERM or SIGINT. `ready` is told the URI once clients may connect.
pub fn run(options: &Options, ready: impl FnOnce(&str)) -> Result<()> {
    check(options)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("start the async runtime", e))?
        .block_on(serve(options, ready))
}

fn check(options: &Options) -> Result<()> {
    let invalid = |why: String| Err(Error::new(ErrorKind::Invalid, why));
    if let Listen::Tcp(addr) = options.listen
        && !addr.ip().is_loopback()
        && !options.allow_plaintext
    {
        return invalid(format!(
            "listen on {addr}: everybody on that network could read and write the image. Use a \
             unix socket or 127.0.0.1, or say --allow-plaintext if the network is trusted"
        ));
    }
    if !(1..=CONNECTIONS_MAX).contains(&options.connections) {
        return invalid(format!("--connections: from 1 to {CONNECTIONS_MAX}"));
    }
    if options.export.len() > nbd::handshake::STRING_MAX {
        return invalid("--export: the name is longer than the protocol allows".into());
    }
    Ok(())
}

async fn serve(options: &Options, ready: impl FnOnce(&str)) -> Result<()> {
    let mut terminated = on(SignalKind::terminate())?;
    let mut interrupted = on(SignalKind::interrupt())?;

    let image = ImageFile::open(&options.image, &options.open)?;
    let mut export = Export::new(options.export.as_str(), image.size);
    if options.open.read_only {
        export = export.read_only();
    }
    if !image.can_trim() {
        export.flags = export.flags.without(TransmissionFlags::SEND_TRIM);
    }
    let config = Config {
        size: image.size,
        max_requests: VOLUME_REQUESTS_MAX,
        align: u64::from(image.unit()),
        read_only: options.open.read_only,
    };
    let settling = image.share()?;
    let listener = Listener::bind(&options.listen)?;
    let engine = Engine::start(options.shards, options.pin)?;
    let volume = match &options.tracking {
        Some(tracking) => state::host(&engine, image, &options.image, config, tracking).await?,
        None => {
            let spec = VolumeSpec {
                volume: Volume::ephemeral(config),
                image,
                meta: None,
            };
            engine.add_volume(spec).await?
        }
    };
    export.checkpoints = volume.call(|v, _| state::checkpoints(v.cursors())).await?;
    let exports = Arc::new(OneExport {
        name: options.export.clone(),
        export,
    });
    ready(&listener.uri(&options.export)?);

    let places = Arc::new(Semaphore::new(options.connections));
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
        () = accept_all(&listener, &places, &exports, &volume) => {}
    }
    tracing::info!("stopping: finishing what is in flight");
    drop(listener);
    volume.remove().await?;
    if !options.open.read_only {
        settling.settle()?;
    }
    tokio::task::spawn_blocking(|| engine.stop())
        .await
        .map_err(|e| Error::new(ErrorKind::Broken, format!("stop the engine: {e}")))?
}

fn on(kind: SignalKind) -> Result<tokio::signal::unix::Signal> {
    signal(kind).map_err(|e| Error::io("handle signals", e))
}

/// Handshakes at a time. A client that connects and says nothing costs a place among these and not
/// among the connections; when they are all taken, the oldest gives way to the newest, so that silent
/// clients keep nobody out.
const HANDSHAKES_MAX: usize = 64;

/// Accept for ever. Each handshake is a task of its own under a deadline; with a place among the
/// connections it goes on to the shard, and beyond the cap it waits for one.
async fn accept_all(
    listener: &Listener,
    places: &Arc<Semaphore>,
    exports: &Arc<OneExport>,
    volume: &VolumeHandle,
) {
    let mut handshakes: VecDeque<AbortHandle> = VecDeque::with_capacity(HANDSHAKES_MAX);
    let complaints = Arc::new(Complaints::default());
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(e) => {
                tracing::warn!("accept: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        handshakes.retain(|handshake| !handshake.is_finished());
        if handshakes.len() == HANDSHAKES_MAX
            && let Some(oldest) = handshakes.pop_front()
        {
            oldest.abort();
        }
        let (exports, volume) = (Arc::clone(exports), volume.clone());
        let (places, complaints) = (Arc::clone(places), Arc::clone(&complaints));
        let handshake = tokio::spawn(async move {
            let joined = match stream.handshake(&*exports, HANDSHAKE_DEADLINE).await {
                Ok(accepted) => match places.acquire_owned().await {
                    Ok(place) => volume.connect(accepted, Box::new(place)),
                    Err(_) => return, // the server is stopping
                },
                Err(e) => Err(e),
            };
            match joined {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::Disconnected => tracing::debug!("{e}"),
                Err(e) => complaints.warn(e),
            }
        });
        handshakes.push_back(handshake.abort_handle());
    }
}
