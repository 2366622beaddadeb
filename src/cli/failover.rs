//! `forerun failover`: a replica takes the place of an owner that is gone for good.

use super::client::connect;
use super::operation::{Sending, carry_out};
use super::{Failure, Out};
use proto::v1;
use proto::v1::start_request::Command;

/// What to bring back, and where.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Which volume
    volume: String,
    /// The new owner; without it, the node whose replica is the furthest
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// You have made sure that the owner's host is off or cut off from its guests. Two owners lose each
    /// other's writes, and silence alone does not prove that there is only one
    #[arg(long)]
    owner_is_off: bool,
    /// The same of the node to which an unfinished cutover was handing the volume over. The owner takes it back:
    /// what its guests were told until then it has. What the other node may have told guests since is lost
    #[arg(long)]
    target_is_off: bool,
    #[command(flatten)]
    sending: Sending,
}

/// `forerun failover VOL [--to NODE] --owner-is-off`.
pub async fn run(args: Args, controller: &str, out: &Out) -> Result<(), Failure> {
    let Args {
        volume,
        to,
        owner_is_off,
        target_is_off,
        sending,
    } = args;
    let command = Command::Failover(v1::Failover {
        volume: volume.clone(),
        to: to.unwrap_or_default(),
        owner_is_off,
        target_is_off,
    });
    let operation = carry_out(controller, sending, command, out).await?;
    if out.is_json() {
        return Ok(());
    }
    let request = v1::ListVolumesRequest {
        volume: volume.clone(),
    };
    let answer = connect(controller).await?.list_volumes(request).await?;
    let Some(v) = answer.into_inner().volumes.pop() else {
        return Ok(()); // deleted since
    };
    out.line(format!(
        "Volume {volume} is owned by {} now (generation {}).",
        v.owner, v.generation
    ));
    if let Some(step) = operation.steps.first() {
        out.note(format!("Done: {}.", step.name));
    }
    out.note(format!(
        "What another node acknowledged after that is on its disk only. It serves nobody when it comes \
         back. Its guests start anew: forerun attach {volume}"
    ));
    Ok(())
}
