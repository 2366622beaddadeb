//! `forerun cutover`: move ownership while the guest runs.

use super::operation::{Sending, carry_out};
use super::out::duration;
use super::{Failure, Out};
use proto::v1;
use proto::v1::start_request::Command;
use std::time::Duration;

/// What to move, and where.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Which volume
    volume: String,
    /// The new owner; it must have a replica
    #[arg(long, value_name = "NODE")]
    to: String,
    #[command(flatten)]
    sending: Sending,
}

/// `forerun cutover VOL --to NODE`.
pub async fn run(args: Args, controller: &str, out: &Out) -> Result<(), Failure> {
    let Args {
        volume,
        to,
        sending,
    } = args;
    let command = Command::Cutover(v1::Cutover {
        volume: volume.clone(),
        to: to.clone(),
    });
    let operation = carry_out(controller, sending, command, out).await?;
    if !out.is_json() {
        let p = operation.cutover.unwrap_or_default();
        out.line(format!(
            "Volume {volume} is owned by {to} now (generation {}). It converged in {} and was frozen for {}.",
            p.generation,
            duration(Duration::from_micros(p.converge_micros)),
            duration(Duration::from_micros(p.frozen_micros)),
        ));
        out.note(format!(
            "Connections to the former owner go on. New ones: forerun attach {volume}"
        ));
    }
    Ok(())
}
