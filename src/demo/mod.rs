//! `forerun demo`: the whole of it on one machine, without root and without another program.
//!
//! ```text
//! controller, n1, n2      children of this process, on loopback, in a directory of their own
//! volume on n1            filled in part by a client that knows what it wrote
//! load                    2,000 random 4 KiB I/Os a second, from here to the end, every read judged;
//!                         two seconds of it alone, to know the client's latency without a replica
//! replica on n2           seeded, then a few increments
//! cutover to n2           under the load, whose connection stays up
//! comparison              every byte on n2 against the client's own record
//! ```

mod processes;
mod report;
mod scene;

pub use report::{Client, Cutover, Increment, Report, Seed};

use crate::cli::{Failure, Out, Progress};
use node::client::verify::{self, Ledger, Verifier, Workload, compare};
use node::client::{Client as NbdClient, Uri};
use node::{Error, ErrorKind, Result};
use scene::Scene;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Bytes of one I/O of the client.
const IO_BYTES: u32 = 4096;
/// Of a hundred bytes of the volume so many are written before the replica is made.
const FILL_PERCENT: u64 = 60;
/// Of a hundred I/Os of the load. The rest are reads, which are judged.
const WRITES: u8 = 88;
const ZEROES: u8 = 2;
/// Requests in flight: a guest with a deep queue.
const DEPTH: usize = 128;
/// Longer than any stall that is not a failure.
const PATIENCE: Duration = Duration::from_secs(30);
/// Increments to see before the cutover.
const INCREMENTS: usize = 3;
/// How long seeding, and then those increments, may take before the demo gives up.
const REPLICA_PATIENCE: Duration = Duration::from_secs(120);
/// How often the replica is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long the load runs before the replica is made, to know the client's latency without it.
const BEFORE: Duration = Duration::from_secs(2);
/// How much of its beginning does not count: connections and caches are new.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long the load goes on after the cutover.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// What the demo does.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of the volume.
    pub size_bytes: u64,
    /// I/Os a second.
    pub rate: u32,
    /// Plans the same I/Os again.
    pub seed: u64,
}

/// Play the demo. Fails if anything was lost, and then the report says what.
pub async fn run(options: &Options, out: &Out) -> std::result::Result<(), Failure> {
    let dir = tempfile::Builder::new().prefix("forerun-demo-").tempdir();
    let dir = dir.map_err(|e| Error::io("make a directory for the demo", e))?;
    let progress = Progress::words(out);
    progress.say("starting a controller and two nodes".to_owned());
    let scene = Scene::start(dir.path()).await?;
    let report = play(options, &scene, &progress).await;
    progress.end();
    scene.stop().await?;
    let (report, complaints) = report?;
    if out.is_json() {
        out.json(&report);
    } else {
        out.line(report.text());
    }
    for complaint in &complaints {
        out.note(complaint);
    }
    if report.is_good() {
        Ok(())
    } else {
        Err(Failure::new(format!(
            "the demo found {} errors and {} mismatches (seed {})",
            report.client.errors, report.client.mismatches, options.seed
        )))
    }
}

async fn play(
    options: &Options,
    scene: &Scene,
    progress: &Progress,
) -> std::result::Result<(Report, Vec<String>), Failure> {
    let id = scene.create_volume(options.size_bytes).await?;
    let uri = scene.uri().await?;
    let ledger = Ledger::new(id, options.size_bytes, IO_BYTES, options.seed);

    progress.say("filling the volume".to_owned());
    let ledger = fill(&uri, ledger).await?;

    progress.say("writing for a while without a replica".to_owned());
    let load = Verifier::start(workload(&uri, Some(options.rate), WRITES, ZEROES), ledger)?;
    tokio::time::sleep(WARM_UP).await;
    let _ = load.interval();
    tokio::time::sleep(BEFORE).await;
    let before = load.interval();

    progress.say("seeding a replica on n2 while the client writes".to_owned());
    scene.add_replica().await?;
    let seed = seeded(scene, &load).await?;
    let seeding = load.interval();

    progress.say("replicating increments".to_owned());
    let increments = increments(scene, &load).await?;

    progress.say("cutting over to n2 while the client writes".to_owned());
    let _ = load.interval(); // from here on only what is around the cutover
    let done = scene.cutover().await?;
    tokio::time::sleep(AFTERWARDS).await;
    let around = load.interval();

    progress.say("comparing every byte".to_owned());
    let (mut ledger, seen) = blocking(move || load.stop()).await?;
    if let Some(lost) = &seen.lost {
        return Err(Failure::new(format!(
            "the client lost its connection: {lost}"
        )));
    }
    let uri = scene.uri().await?;
    let at_rest = blocking(move || {
        let mut client = NbdClient::connect(&uri, &[], PATIENCE)?;
        compare(&mut client, &mut ledger)
    })
    .await?;
    let complaints = [&seen.complaints[..], &at_rest.complaints[..]].concat();
    let report = Report {
        volume_bytes: options.size_bytes,
        seed,
        increments,
        cutover: Cutover {
            frozen_ms: done.frozen_micros as f64 / 1e3,
            stall_max_ms: around.max_us / 1e3,
            converge_seconds: done.converge_micros as f64 / 1e6,
            generation: done.generation,
        },
        client: Client::new(&seen, &at_rest, &before, &seeding),
        identical: at_rest.identical() && at_rest.bytes == options.size_bytes,
    };
    Ok((report, complaints))
}

fn workload(uri: &Uri, rate: Option<u32>, writes: u8, zeroes: u8) -> Workload {
    Workload {
        uri: uri.clone(),
        depth: DEPTH,
        rate,
        writes,
        zeroes,
        patience: PATIENCE,
    }
}

/// Write the first [`FILL_PERCENT`] of the volume. The rest stays a hole.
async fn fill(uri: &Uri, mut ledger: Ledger) -> Result<Ledger> {
    let uri = uri.clone();
    blocking(move || {
        let bytes = ledger.covers() / 100 * FILL_PERCENT;
        let mut client = NbdClient::connect(&uri, &[], PATIENCE)?;
        verify::fill(&mut client, &mut ledger, bytes)?;
        client.flush()?;
        client.close()?;
        Ok(ledger)
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::new(ErrorKind::Broken, format!("a thread of the demo: {e}")))?
}

/// Wait until the replica is a point in time.
async fn seeded(scene: &Scene, load: &Verifier) -> std::result::Result<Seed, Failure> {
    let replica = scene
        .replica_when(load, REPLICA_PATIENCE, |r| {
            r.epoch > 0 || !r.increments.is_empty()
        })
        .await?;
    let seed = replica.seed.unwrap_or_default();
    Ok(Seed {
        bytes_total: seed.bytes_total,
        bytes_sent: seed.bytes_sent,
        seconds: seed.micros as f64 / 1e6,
    })
}

/// Watch a few increments go by. The node reports the latest, so they are collected by epoch.
async fn increments(
    scene: &Scene,
    load: &Verifier,
) -> std::result::Result<Vec<Increment>, Failure> {
    let mut seen = BTreeMap::new();
    let until = Instant::now() + REPLICA_PATIENCE;
    while seen.len() < INCREMENTS {
        let left = until.saturating_duration_since(Instant::now());
        let replica = scene
            .replica_when(load, left, |r| !r.increments.is_empty())
            .await?;
        for i in replica.increments {
            let increment = Increment {
                epoch: i.epoch,
                dirty_bytes: i.dirty_bytes,
                sent_bytes: i.sent_bytes,
                seconds: i.micros as f64 / 1e6,
            };
            seen.insert(i.epoch, increment);
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(seen.into_values().collect())
}
