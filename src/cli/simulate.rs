//! `forerun simulate`: decisions replayed over recorded load, without touching a disk.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::out::{bytes, figure, text};
use super::{Failure, Out, simulate_cycle, simulate_fleet, simulate_forecasts, simulate_history};
use crate::predict::seeding::{self, Outcome, Trace, Write};

/// The unit in which the order of seeding is decided.
const EXTENT_BYTES: u64 = 64 << 10;
const SECTOR_BYTES: u64 = 512;
/// The SCSI operation code of a write.
const WRITE: &str = "2a";
/// The largest disk replayed: the tables take some 30 bytes an extent.
const LARGEST_DISK: u64 = 4 << 40;

/// Replay decisions over recorded load
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// What is dirty after a first pass, in the order of the disk and coldest first
    Seeding(Seeding),
    /// Weeks of VM series and events over sites with prices, with and without forecasts
    Fleet(simulate_fleet::Args),
    /// How long a controller's cycle takes for a whole fleet: ingest, forecast, plan
    Cycle(simulate_cycle::Args),
    /// How long forecasts of all series of a whole fleet take
    Forecasts(simulate_forecasts::Args),
    /// What the history of a whole fleet takes on disk
    History(simulate_history::Args),
}

#[derive(clap::Args, Debug)]
struct Seeding {
    /// A block trace: version,time(s),op,size(bytes),lbn(512-byte sectors)
    #[arg(long, value_name = "FILE.csv")]
    trace: PathBuf,
    /// How long a copy takes, as a share of the trace: above 0, at most 0.5
    #[arg(long, value_name = "SHARE", default_value_t = 0.25)]
    copy_fraction: f64,
    /// The disk's size in GiB; larger if the trace reaches further
    #[arg(long, value_name = "GIB", default_value_t = 32)]
    disk_gib: u64,
}

#[derive(Serialize)]
struct Order {
    dirty_bytes_left: u64,
    resent_bytes: u64,
}

#[derive(Serialize)]
struct Answer {
    linear: Order,
    predicted: Order,
}

/// Run the verb.
pub fn run(args: &Args, out: &Out) -> Result<(), Failure> {
    let args = match &args.what {
        What::Seeding(args) => args,
        What::Fleet(args) => return simulate_fleet::run(args, out),
        What::Cycle(args) => return super::block_on(simulate_cycle::run(args, out)),
        What::Forecasts(args) => return simulate_forecasts::run(args, out),
        What::History(args) => return simulate_history::run(args, out),
    };
    if !(args.copy_fraction > 0.0 && args.copy_fraction <= 0.5) {
        return Err(Failure::usage(format!(
            "a copy that takes {} of the trace: choose above 0 and at most 0.5, so that history remains before it",
            args.copy_fraction
        )));
    }
    let trace = load(&args.trace, args.disk_gib << 30)
        .map_err(|why| Failure::new(format!("read the trace {}: {why}", args.trace.display())))?;
    let result = seeding::compare(&trace, args.copy_fraction);
    let answer = Answer {
        linear: order(result.linear),
        predicted: order(result.predicted),
    };
    if out.is_json() {
        out.json(&answer);
        return Ok(());
    }
    let orders = [("linear", &answer.linear), ("predicted", &answer.predicted)];
    let columns = [
        text("ORDER"),
        figure("DIRTY AFTER FIRST PASS"),
        figure("RESENT"),
    ];
    let row = |(name, order): &(&str, &Order)| {
        vec![
            (*name).to_owned(),
            bytes(order.dirty_bytes_left),
            bytes(order.resent_bytes),
        ]
    };
    out.list(&orders, &columns, row, "");
    let never = if result.never_worse {
        "and from none it leaves more"
    } else {
        "but from one it leaves more"
    };
    out.line(format!("means over several start times; the predicted order leaves less on average or as much, {never}"));
    Ok(())
}

fn order(outcome: Outcome) -> Order {
    Order {
        dirty_bytes_left: outcome.dirty_bytes_left.round() as u64,
        resent_bytes: outcome.resent_bytes.round() as u64,
    }
}

fn load(path: &Path, disk: u64) -> Result<Trace, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let mut writes = Vec::new();
    let (mut begin, mut end, mut reach) = (f64::INFINITY, f64::NEG_INFINITY, disk);
    for (index, line) in text
        .lines()
        .enumerate()
        .skip(1)
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let request = request(line).ok_or_else(|| {
            format!(
                "line {}: `{line}` is no request: version,time,op,size,lbn is needed",
                index + 1
            )
        })?;
        begin = begin.min(request.at);
        end = end.max(request.at);
        reach = reach.max(request.until);
        if request.write && request.until > request.from {
            let (first, last) = (
                request.from / EXTENT_BYTES,
                (request.until - 1) / EXTENT_BYTES,
            );
            writes.push(Write {
                at: request.at,
                first,
                last,
            });
        }
    }
    if end <= begin {
        return Err(
            "it covers no time: at least two requests at different times are needed".into(),
        );
    }
    if reach > LARGEST_DISK {
        return Err(format!(
            "it reaches {} into the disk, and {} is the most that is replayed",
            bytes(reach),
            bytes(LARGEST_DISK)
        ));
    }
    writes
        .iter_mut()
        .for_each(|write: &mut Write| write.at -= begin);
    writes.sort_by(|a, b| a.at.total_cmp(&b.at));
    Ok(Trace {
        writes,
        seconds: end - begin,
        extents: reach.div_ceil(EXTENT_BYTES),
        extent_bytes: EXTENT_BYTES,
    })
}

struct Request {
    at: f64,
    write: bool,
    from: u64,
    until: u64,
}

fn request(line: &str) -> Option<Request> {
    let mut fields = line.split(',').map(str::trim).skip(1);
    let at: f64 = fields.next()?.parse().ok()?;
    let write = fields.next()?.eq_ignore_ascii_case(WRITE);
    let size: u64 = fields.next()?.parse().ok()?;
    let from = fields
        .next()?
        .parse::<u64>()
        .ok()?
        .checked_mul(SECTOR_BYTES)?;
    at.is_finite().then_some(Request {
        at,
        write,
        from,
        until: from.checked_add(size)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_and_nonsense_is_refused() {
        let read = request("1,5633898,2a,512,42932745").unwrap();
        assert!(read.write && (read.at, read.until - read.from) == (5_633_898.0, 512));
        assert!(!request("1,5633898,28,512,42932745").unwrap().write);
        for wrong in [
            "",
            "1,2,2a,512",
            "1,NaN,2a,512,3",
            "1,2,2a,-1,3",
            "1,2,2a,512,99999999999999999999",
        ] {
            assert!(request(wrong).is_none(), "{wrong}");
        }
    }
}
