//! `forerun serve`: one image over NBD, with nothing else around it.

use super::{Failure, Out, size};
use crate::identity;
use node::serve::{
    CacheMode, CheckpointName, Listen, OpenOptions, Options, Tracking, run as serve,
};
use std::net::SocketAddr;
use std::path::PathBuf;

/// What to serve, and how.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The raw image file or block device
    image: PathBuf,
    /// Listen on a unix socket at this path [default: forerun-IMAGE.sock in the runtime directory]
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    socket: Option<PathBuf>,
    /// Listen on TCP (port 0: any free one)
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Name of the export; the empty name finds it too
    #[arg(long, value_name = "NAME", default_value = "")]
    export: String,
    /// Make a sparse image of this size first, for example 10G
    #[arg(long, value_name = "SIZE", value_parser = size::parse, conflicts_with = "read_only")]
    create: Option<u64>,
    /// Refuse writes; several read-only servers may share an image
    #[arg(long)]
    read_only: bool,
    /// direct: O_DIRECT; writeback: through the page cache, durable after a flush
    #[arg(long, value_name = "MODE", default_value = "direct", value_parser = parse_cache)]
    cache: CacheMode,
    /// Track changes durably in this file, made if it is not there. It sees only what is written
    /// through this server
    #[arg(long, value_name = "FILE", conflicts_with = "read_only")]
    state: Option<PathBuf>,
    /// Offer what changes from now on as qemu:dirty-bitmap:NAME, if there is no checkpoint of that
    /// name yet; may be repeated
    #[arg(long, value_name = "NAME", requires = "state", value_parser = parse_checkpoint)]
    checkpoint: Vec<CheckpointName>,
    /// Go on with an image that was exchanged or changed by another program since: every checkpoint
    /// then counts all of it as changed
    #[arg(long, requires = "state")]
    adopt_image: bool,
    /// Most connections at a time; more wait to be accepted
    #[arg(long, value_name = "N", default_value_t = 64)]
    connections: usize,
    /// Threads with a ring of their own; one image keeps one of them busy, so more help only in
    /// measurements
    #[arg(long, value_name = "N", default_value_t = 1, hide_short_help = true, value_parser = clap::value_parser!(u8).range(1..=64))]
    shards: u8,
    /// Give each of these threads a processor of its own: where the host does nothing else
    #[arg(long, hide_short_help = true)]
    pin: bool,
    /// Let other machines connect without encryption
    #[arg(long)]
    allow_plaintext: bool,
}

fn parse_cache(s: &str) -> Result<CacheMode, String> {
    s.parse().map_err(|e: node::Error| e.to_string())
}

fn parse_checkpoint(s: &str) -> Result<CheckpointName, String> {
    s.parse().map_err(|e: node::Error| e.to_string())
}

/// Serve until told to stop.
pub fn run(args: Args, out: &Out) -> Result<(), Failure> {
    let listen = match (args.listen, args.socket) {
        (Some(addr), _) => Listen::Tcp(addr),
        (None, Some(path)) => Listen::Unix(path),
        (None, None) => Listen::Unix(default_socket(&args.image)),
    };
    let tracking = match args.state {
        Some(file) => Some(Tracking {
            file,
            id: identity::draw()?,
            checkpoints: args.checkpoint,
            adopt_image: args.adopt_image,
        }),
        None => None,
    };
    let options = Options {
        image: args.image,
        open: OpenOptions {
            cache: args.cache,
            read_only: args.read_only,
            create: args.create,
        },
        tracking,
        listen,
        export: args.export,
        connections: args.connections,
        allow_plaintext: args.allow_plaintext,
        shards: usize::from(args.shards),
        pin: args.pin,
    };
    serve(&options, |uri| match out.is_json() {
        true => out.json(&serde_json::json!({ "uri": uri })),
        false => out.line(uri),
    })?;
    Ok(())
}

fn default_socket(image: &std::path::Path) -> PathBuf {
    let dir = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let name = image.file_name().unwrap_or(image.as_os_str());
    dir.join(format!("forerun-{}.sock", name.to_string_lossy()))
}
