//! `forerun simulate forecasts`: every series of a whole fleet forecast once.
//!
//! Every VM has six series of thirty days, made from real ones (or, without data, from a daily rhythm
//! with bursts) by moving and scaling them. Their memories are warm, as in every cycle but the first:
//! they were learned from the real series, stored, and are read back here. The clock runs from the
//! first history that is read to the last memory that is stored.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use serde::Serialize;

use super::{Failure, Out, samples};
use crate::predict::cycle::{self, Limits, Task};
use crate::predict::series::DAY_SECONDS;
use crate::predict::{Memory, Series, csv, quantile};

/// Metrics of a VM: CPU, memory, disk read and write, network in and out.
pub(super) const METRICS: usize = 6;
/// Their columns in a fleet's CSV file.
const COLUMNS: [&str; METRICS] = ["cpu_mhz", "mem_kb", "rd_kbs", "wr_kbs", "rx_kbs", "tx_kbs"];
/// Real series read: enough that they differ, few enough that learning them takes no minute.
const MODELS: usize = 20;
/// Five-minute samples in a history.
pub(super) const DAYS: usize = 30;
pub(super) const STEP_SECONDS: i64 = 300;
pub(super) const DAY: usize = 288;
/// Samples that pass between the stored memory and the cycle.
const PASSED: usize = 1;

/// Forecast a whole fleet once, and say how long it took
#[derive(clap::Args, Debug)]
pub struct Args {
    /// VMs, with six series each
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    vms: usize,
    /// A folder with fleet files (vm,ts,…,cpu_mhz,…,mem_kb,rd_kbs,wr_kbs,rx_kbs,tx_kbs) to make series from
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Steps to forecast
    #[arg(long, value_name = "STEPS", default_value_t = 48)]
    horizon: usize,
    /// Threads; all cores unless given
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

#[derive(Serialize)]
struct Answer {
    vms: usize,
    forecasts: usize,
    threads: usize,
    seconds: f64,
    memories_stored: usize,
    memory_bytes_mean: u64,
    median_of_maxima: f64,
}

/// What a made-up series is made from, and what is remembered of it.
struct Model {
    values: Vec<f64>,
    memory: Vec<u8>,
}

/// Run the verb.
pub fn run(args: &Args, out: &Out) -> Result<(), Failure> {
    if args.vms == 0 || args.horizon == 0 || args.horizon > DAY {
        return Err(Failure::usage(format!(
            "{} VMs, {} steps: at least one VM, and 1 to {DAY} steps",
            args.vms, args.horizon
        )));
    }
    let threads = args
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN));
    let raw = models(args.data.as_deref())?;
    out.note(format!("learning {} series", raw.len()));
    let models = learn(raw, args.horizon, threads);
    let limits = Limits {
        threads,
        replays: 0,
    };
    let (stored, bytes, forecasts) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicUsize::new(0));
    let medians = AtomicU64::new(0);
    let tasks = (0..args.vms * METRICS).map(|key| task(key, &models, args.horizon));
    let started = Instant::now();
    cycle::cycle(tasks, limits, |foresight| {
        forecasts.fetch_add(1, Ordering::Relaxed);
        let median = quantile::at(&foresight.forecast.window_max, 0.5);
        medians.fetch_add(median.clamp(0.0, 1e9) as u64, Ordering::Relaxed);
        if foresight.store {
            let written = std::hint::black_box(foresight.memory.to_bytes()).len();
            stored.fetch_add(1, Ordering::Relaxed);
            bytes.fetch_add(written as u64, Ordering::Relaxed);
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    let forecasts = forecasts.into_inner();
    let stored = stored.into_inner();
    let answer = Answer {
        vms: args.vms,
        forecasts,
        threads: threads.get(),
        seconds,
        memories_stored: stored,
        memory_bytes_mean: bytes.into_inner() / stored.max(1) as u64,
        median_of_maxima: medians.into_inner() as f64 / forecasts as f64,
    };
    if out.is_json() {
        out.json(&answer);
    } else {
        out.line(format!(
            "{} VMs: {} forecasts of {} steps in {seconds:.1} s on {} threads; {} memories stored, {} bytes each",
            answer.vms, answer.forecasts, args.horizon, answer.threads, stored, answer.memory_bytes_mean
        ));
    }
    Ok(())
}

/// What a fleet is made from: thirty days of some real series, or of made-up ones.
pub(super) fn models(data: Option<&Path>) -> Result<Vec<Vec<f64>>, Failure> {
    match data {
        Some(folder) => load(folder),
        None => Ok((0..MODELS * METRICS).map(invented).collect()),
    }
}

/// A series of thirty days ending now, and the memory that was stored a cycle ago.
fn task(key: usize, models: &[Model], horizon: usize) -> Task<usize> {
    let model = &models[key % models.len()];
    let scale = 1.0 + (key / models.len()) as f64 / 1000.0;
    let history = Series {
        start: 0,
        step_seconds: STEP_SECONDS as u32,
        day_seconds: DAY_SECONDS,
        values: model.values.iter().map(|v| v * scale).collect(),
        notes: Default::default(),
    };
    Task {
        key,
        history,
        memory: Memory::from_bytes(&model.memory).ok(),
        horizon,
    }
}

fn learn(raw: Vec<Vec<f64>>, horizon: usize, threads: NonZeroUsize) -> Vec<Model> {
    let models = std::sync::Mutex::new(Vec::new());
    let tasks = raw.into_iter().map(|values| Task {
        history: Series {
            start: 0,
            step_seconds: STEP_SECONDS as u32,
            day_seconds: DAY_SECONDS,
            values: values[..values.len() - PASSED].to_vec(),
            notes: Default::default(),
        },
        key: values,
        memory: None,
        horizon,
    });
    let limits = Limits {
        threads,
        replays: usize::MAX,
    };
    cycle::cycle(tasks, limits, |foresight| {
        let model = Model {
            values: foresight.key,
            memory: foresight.memory.to_bytes(),
        };
        models
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(model);
    });
    models
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Every metric of the first machines in the folder's files, each repeated to thirty days.
fn load(folder: &Path) -> Result<Vec<Vec<f64>>, Failure> {
    let failed = |why: &dyn std::fmt::Display| {
        Failure::new(format!("read fleet files in {}: {why}", folder.display()))
    };
    let mut found = Vec::new();
    for (name, text) in samples::all(folder)? {
        let failed = |why: &dyn std::fmt::Display| failed(&format!("{name}: {why}"));
        for column in COLUMNS {
            let histories = csv::read(&text, Some(column)).map_err(|e| failed(&e))?;
            let series = histories
                .values()
                .filter_map(|samples| Series::from_samples(samples).ok());
            found.extend(
                series
                    .take(MODELS)
                    .map(|series| thirty_days(&series.values)),
            );
        }
    }
    if found.is_empty() {
        return Err(failed(&"no series in them is long enough"));
    }
    Ok(found)
}

fn thirty_days(values: &[f64]) -> Vec<f64> {
    values.iter().copied().cycle().take(DAYS * DAY).collect()
}

/// A daily rhythm, noise, and bursts as rare as the key says.
fn invented(key: usize) -> Vec<f64> {
    let mut state = key as u64 + 1;
    let mut random = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let value = |i: usize| {
        let turn = (i + 7 * key) as f64 / DAY as f64 * std::f64::consts::TAU;
        let burst = if random() < 0.002 * (key % 20) as f64 {
            400.0 * random()
        } else {
            0.0
        };
        20.0 + 10.0 * turn.sin() + 5.0 * random() + burst
    };
    (0..DAYS * DAY).map(value).collect()
}
