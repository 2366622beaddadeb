//! `forerun simulate cycle`: a controller's cycle for a whole fleet, from the nodes' heartbeats to the
//! plan in the store.
//!
//! It is the controller itself, in this process, on files of its own: nodes register, each volume of
//! theirs is one VM's disk with six metrics, and thirty days of history are written first, which takes
//! minutes and is not counted. A period is two seconds here, and a day 288 of them.

use super::simulate_forecasts::{DAY, DAYS, METRICS, models};
use super::{Failure, Out};
use crate::controller::{Rehearsal, Took};
use serde::Serialize;
use std::path::PathBuf;

/// Cycles that are measured: the first meets a history of which nothing was learned.
const CYCLES: usize = 4;

/// Run a controller's cycle for a whole fleet, and say how long each part took
#[derive(clap::Args, Debug)]
pub struct Args {
    /// VMs, each with one volume of six metrics
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    vms: usize,
    /// Nodes that they are spread over
    #[arg(long, value_name = "N", default_value_t = 100)]
    nodes: usize,
    /// Days of 288 samples of history
    #[arg(long, value_name = "N", default_value_t = DAYS)]
    days: usize,
    /// Where the controller's files go: a directory that is not there yet
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// A folder with fleet files to make series from
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

#[derive(Serialize)]
struct Answer {
    vms: usize,
    nodes: usize,
    days: usize,
    history_bytes: u64,
    cycles: Vec<Took>,
}

/// Run the verb.
pub async fn run(args: &Args, out: &Out) -> Result<(), Failure> {
    if args.vms == 0 || args.nodes == 0 || !(1..=DAYS).contains(&args.days) || args.dir.exists() {
        return Err(Failure::usage(format!(
            "{} VMs on {} nodes for {} days in {}: at least one of each, at most {DAYS} days, and a \
             directory that is not there yet",
            args.vms,
            args.nodes,
            args.days,
            args.dir.display()
        )));
    }
    let models = models(args.data.as_deref())?;
    let value = |series: usize, point: usize| {
        let model = &models[series % models.len()];
        // machines with the same model live at different hours
        model[(point + 61 * (series / models.len())) % model.len()]
    };
    out.note(format!("writing {} days of history", args.days));
    let points = args.days * DAY;
    let rehearsal = Rehearsal::prepare(&args.dir, args.nodes, args.vms, points, &value).await?;
    let mut cycles = Vec::new();
    for cycle in 0..CYCLES {
        let took = rehearsal.cycle(points + cycle, &value).await?;
        if !out.is_json() {
            out.line(format!(
                "cycle {}: {} samples written in {:.2} s, forecast in {:.1} s, planned in {:.1} s: \
                 {:.1} s in all",
                cycle + 1,
                took.samples,
                took.ingest_seconds,
                took.forecast_seconds,
                took.plan_seconds,
                took.seconds
            ));
        }
        cycles.push(took);
    }
    let answer = Answer {
        vms: args.vms,
        nodes: args.nodes,
        days: args.days,
        history_bytes: rehearsal.history_bytes()?,
        cycles,
    };
    if out.is_json() {
        out.json(&answer);
    } else {
        out.line(format!(
            "{} VMs ({} series) on {} nodes, {} days of history in {}",
            args.vms,
            args.vms * METRICS,
            args.nodes,
            args.days,
            super::out::bytes(answer.history_bytes)
        ));
    }
    Ok(())
}
