//! `forerun node`: run the data plane of this host in the foreground until SIGTERM or SIGINT.

use super::controller::stop_signal;
use super::{Failure, Out};
use node::VolumeName;
use node::config::Config;
use node::daemon::run as run_node;
use std::path::PathBuf;

/// How the node is set up.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// TOML file with at least `name` and `data`
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Go on with the image of this volume though it was exchanged or changed by another program:
    /// replicas are then compared with all of it; may be repeated
    #[arg(long, value_name = "VOLUME", value_parser = parse_volume)]
    adopt_image: Vec<VolumeName>,
}

fn parse_volume(s: &str) -> Result<VolumeName, String> {
    s.parse().map_err(|e: node::Error| e.to_string())
}

/// `forerun node --config FILE`.
pub async fn run(args: Args, out: &Out) -> Result<(), Failure> {
    let mut config = Config::read(&args.config)?;
    config.adopt_images = args.adopt_image;
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
