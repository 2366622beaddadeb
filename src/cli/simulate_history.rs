//! `forerun simulate history`: what a fleet's history takes on disk, and how long it takes to write and
//! to read.
//!
//! The same series as `forerun simulate forecasts` makes, one frame for every five minutes, into a file as a
//! controller keeps it.

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::simulate_forecasts::{DAY, DAYS, METRICS, STEP_SECONDS, models};
use super::{Failure, Out};
use crate::history::{Kept, Key, Metric, Span};

/// Write the history of a fleet, and say how large it is
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where: a new file
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// VMs, with six series each
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    vms: usize,
    /// Days of five minutes, at most thirty
    #[arg(long, value_name = "N", default_value_t = DAYS)]
    days: usize,
    /// A folder with fleet files to make series from
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

#[derive(Serialize)]
struct Answer {
    vms: usize,
    samples: u64,
    bytes: u64,
    bytes_a_sample: f64,
    write_seconds: f64,
    read_seconds: f64,
}

/// Run the verb.
pub fn run(args: &Args, out: &Out) -> Result<(), Failure> {
    if args.vms == 0 || !(1..=DAYS).contains(&args.days) || args.file.exists() {
        return Err(Failure::usage(format!(
            "{} VMs for {} days in {}: at least one VM, 1 to {DAYS} days, and a file that is not there yet",
            args.vms,
            args.days,
            args.file.display()
        )));
    }
    let models = models(args.data.as_deref())?;
    let keys: Vec<Key> = (0..args.vms * METRICS)
        .map(|i| Key {
            machine: format!("vm-{}", i / METRICS),
            metric: Metric::MACHINE[i % METRICS],
        })
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|e| Failure::new(format!("start a runtime: {e}")))?;
    let kept = Kept::open(&args.file, STEP_SECONDS as u32, args.days as u32)?;

    let started = Instant::now();
    // One point more than whole days: it closes the last of them.
    for point in 0..=args.days * DAY {
        let value = |series: usize| {
            let model = &models[series % models.len()];
            // Machines with the same model live at different hours.
            model[(point + 61 * (series / models.len())) % model.len()]
        };
        let samples = keys
            .iter()
            .enumerate()
            .map(|(i, key)| (key.clone(), value(i)));
        let at = point as i64 * STEP_SECONDS;
        let append = kept.append(at, at, samples.collect());
        runtime.block_on(append)?;
    }
    let write_seconds = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let always = Span {
        from: 0,
        to: i64::MAX,
        step: STEP_SECONDS as u32,
    };
    let mut samples = 0;
    for series in kept.walk(always, |_| true)? {
        samples += series?.1.len() as u64;
    }
    let bytes = kept.bytes()?;
    let answer = Answer {
        vms: args.vms,
        samples,
        bytes,
        bytes_a_sample: bytes as f64 / samples as f64,
        write_seconds,
        read_seconds: started.elapsed().as_secs_f64(),
    };
    if out.is_json() {
        out.json(&answer);
    } else {
        out.line(format!(
            "{} VMs, {} days: {samples} samples in {}, {:.2} bytes each; written in {:.1} s, read in {:.1} s",
            answer.vms,
            args.days,
            super::out::bytes(bytes),
            answer.bytes_a_sample,
            answer.write_seconds,
            answer.read_seconds
        ));
    }
    Ok(())
}
