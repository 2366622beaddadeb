//! `forerun node`: run the data plane of this host in the foreground until SIGTERM or SIGINT.

use super::controller::stop_signal;
use super::{Failure, Out};
use node::config::Config;
use node::daemon::run as run_node;
use std::path::PathBuf;

/// How the node is set up.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// TOML file with at least `name` and `data`
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// `forerun node --config FILE`.
pub async fn run(args: Args, out: &Out) -> Result<(), Failure> {
    let config = Config::read(&args.config)?;
    let (name, data) = (config.name.to_string(), config.data.clone());
    let stop = stop_signal()?;
    run_node(config, stop, |at| {
        if out.is_json() {
            out.json(&serde_json::json!({
                "name": name,
                "data": data,
                "listening": at.listening.to_string(),
                "nbd": at.nbd.to_string(),
                "replication": at.replication.to_string(),
            }));
        } else {
            out.line(format!(
                "Node {name} listening on {}, NBD on {}, replication on {}, volumes in {}",
                at.listening,
                at.nbd,
                at.replication,
                data.display()
            ));
        }
    })
    .await?;
    Ok(())
}
