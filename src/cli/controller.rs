//! `forerun controller`: run the controller in the foreground until SIGTERM or SIGINT.

use super::{Failure, Out};
use crate::controller::{Config, serve};
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

/// How the controller is set up: a file, and options that go before it.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// TOML file with `listen`, `data` and `allow_plaintext`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to take calls [default: 127.0.0.1:7400]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Where to keep the store [default: /var/lib/forerun/controller]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Take unencrypted calls on an address that is not loopback
    #[arg(long)]
    allow_plaintext: bool,
}

impl Args {
    fn config(self) -> Result<Config, Failure> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        if let Some(listen) = self.listen {
            config.listen = listen;
        }
        if let Some(data) = self.data {
            config.data = data;
        }
        config.allow_plaintext |= self.allow_plaintext;
        Ok(config)
    }
}

/// `forerun controller`.
pub async fn run(args: Args, out: &Out) -> Result<(), Failure> {
    let config = args.config()?;
    let data = config.data.clone();
    let stop = stop_signal()?;
    serve(config, stop, |address| {
        if out.is_json() {
            out.json(&serde_json::json!({ "listening": address.to_string(), "data": data }));
        } else {
            out.line(format!(
                "Controller listening on {address}, store in {}",
                data.display()
            ));
        }
    })
    .await?;
    Ok(())
}

/// Resolves when the process is asked to stop.
pub fn stop_signal() -> Result<impl Future<Output = ()> + Send, Failure> {
    let take = |kind| signal(kind).map_err(|e| Failure::new(format!("take signals: {e}")));
    let (mut term, mut int) = (
        take(SignalKind::terminate())?,
        take(SignalKind::interrupt())?,
    );
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}
