//! `forerun provision`: nodes made at a site, destroyed and replaced, by Terraform.

use super::client::connect;
use super::operation::{Sending, carry_out};
use super::{Failure, Out};
use proto::v1;
use proto::v1::start_request::Command;

/// What to do with nodes.
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Make a node, and seed copies of volumes to it
    Grow {
        /// Where, as in the controller's configuration
        #[arg(long)]
        site: String,
        /// Which shape, as in the price table
        #[arg(long)]
        shape: String,
        /// Its name [default: made from the site's]
        #[arg(long, default_value = "", hide_default_value = true)]
        node: String,
        /// A volume to seed to it; may be given several times
        #[arg(long = "volume", value_name = "VOL")]
        volumes: Vec<String>,
        #[command(flatten)]
        sending: Sending,
    },
    /// Empty a node that was made so, and destroy it
    Retire {
        /// Which
        node: String,
        /// Volumes that `[planning] apart` keeps apart may meet, where there is no other place for them; also for a
        /// node that is being emptied already
        #[arg(long)]
        ignore_apart: bool,
        #[command(flatten)]
        sending: Sending,
    },
    /// Replace a node that was made so by one of another shape
    Resize {
        /// Which
        node: String,
        /// Which shape
        #[arg(long)]
        shape: String,
        #[command(flatten)]
        sending: Sending,
    },
    /// Let a site have new nodes again after repeated failures
    EndQuarantine {
        /// Which
        site: String,
    },
}

/// `forerun provision ...`.
pub async fn run(verb: Verb, controller: &str, out: &Out) -> Result<(), Failure> {
    let (command, sending) = match verb {
        Verb::Grow {
            site,
            shape,
            node,
            volumes,
            sending,
        } => (
            Command::GrowNode(v1::GrowNode {
                site,
                shape,
                node,
                volumes,
            }),
            sending,
        ),
        Verb::Retire {
            node,
            ignore_apart,
            sending,
        } => (
            Command::RetireNode(v1::RetireNode { node, ignore_apart }),
            sending,
        ),
        Verb::Resize {
            node,
            shape,
            sending,
        } => (Command::ResizeNode(v1::ResizeNode { node, shape }), sending),
        Verb::EndQuarantine { site } => {
            let request = v1::EndQuarantineRequest { site: site.clone() };
            connect(controller).await?.end_quarantine(request).await?;
            if !out.is_json() {
                out.line(format!("Site {site} may have new nodes again."));
            }
            return Ok(());
        }
    };
    let operation = carry_out(controller, sending, command, out).await?;
    if !out.is_json() {
        out.line(format!("{} {}: done", operation.verb, operation.node));
    }
    Ok(())
}
