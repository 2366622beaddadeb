//! `forerun forecast`: what comes next of a volume, a VM or a node, or in a file of samples, and how good such
//! forecasts were.

use std::path::{Path, PathBuf};

use super::out::figure;
use super::{Failure, Out, backtest, foretold, samples};
use crate::predict::{self, Forecast, Series, Told, csv, series};

/// Longest horizon: beyond it the analogues of a month's history are too few.
const LONGEST_HORIZON: usize = 2016;
/// The part of each series that comes before the first origin of a backtest.
const BACKTEST_HISTORY: f64 = 1.0 / 3.0;

/// Forecast what the controller measures of a volume, a VM or a node, or a file; or score forecasts of its past
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A volume, a measured VM or a node of the controller's fleet; `volume/NAME`, `vm/NAME` or `node/NAME` where
    /// several have the name
    #[arg(value_name = "NAME", required_unless_present = "history")]
    name: Option<String>,
    /// What of it: disk-write, disk-read, writes, reads, dirtied or replicated of a volume [default: disk-write];
    /// cpu, memory, disk-read, disk-write, network-in or network-out of a VM or a node [default: cpu]
    #[arg(long, value_name = "METRIC", conflicts_with = "history")]
    metric: Option<String>,
    /// A CSV file (or .csv.gz) with a header, without any controller: a column of times and one or more of values
    #[arg(long, value_name = "FILE.csv", num_args = 1.., conflicts_with = "name")]
    history: Vec<PathBuf>,
    /// The column to forecast, if there are several
    #[arg(long, value_name = "NAME", requires = "history")]
    column: Option<String>,
    /// The machine to forecast, if the file has a column `vm`; several for a backtest
    #[arg(long, value_name = "ID", num_args = 1.., requires = "history")]
    vm: Vec<String>,
    /// The column is a counter: forecast its rate a second
    #[arg(long, requires = "history")]
    counter: bool,
    /// Ask ARIMA, ETS and MSTL too: a little better on some series, and much slower
    #[arg(long, requires = "history")]
    fitted: bool,
    /// Steps to forecast
    #[arg(long, value_name = "STEPS", default_value_t = 48)]
    horizon: usize,
    /// Forecast from many moments of the past instead, and score what came
    #[arg(long, requires = "history")]
    backtest: bool,
    /// Samples between the origins of a backtest
    #[arg(
        long,
        value_name = "SAMPLES",
        default_value_t = 13,
        requires = "backtest"
    )]
    stride: usize,
    /// Where a backtest draws the fan chart of its last origin
    #[arg(
        long,
        value_name = "FILE.svg",
        default_value = "backtest.svg",
        requires = "backtest"
    )]
    svg: PathBuf,
}

/// Run the verb.
pub fn run(args: &Args, controller: &str, out: &Out) -> Result<(), Failure> {
    if args.horizon == 0 || args.horizon > LONGEST_HORIZON || args.stride == 0 {
        return Err(Failure::usage(format!(
            "a horizon of {} steps every {} samples: the horizon must be 1 to {LONGEST_HORIZON}, the stride at least 1",
            args.horizon, args.stride
        )));
    }
    if let Some(name) = &args.name {
        let metric = args.metric.as_deref().unwrap_or_default();
        let asked = foretold::ask(name, metric, args.horizon, controller, out);
        return super::block_on(asked);
    }
    let mut all = Vec::new();
    for path in &args.history {
        all.extend(load(path, args, out)?);
    }
    if args.backtest {
        let plan = predict::backtest::Plan {
            horizon: args.horizon,
            fitted: args.fitted,
            history: BACKTEST_HISTORY,
            stride: args.stride,
        };
        let ahead = |series: &Series| drop(std::hint::black_box(once(series, args)));
        backtest::run(&all, plan, ahead, &args.svg, out)
    } else {
        ahead(&all, args, out)
    }
}

fn load(path: &Path, args: &Args, out: &Out) -> Result<Vec<(String, Series)>, Failure> {
    let failed = |why: &dyn std::fmt::Display| {
        Failure::new(format!("read the history {}: {why}", path.display()))
    };
    let text = samples::read(path)?;
    let histories = csv::read(&text, args.column.as_deref()).map_err(|e| failed(&e))?;
    if let Some(vm) = args.vm.iter().find(|vm| !histories.contains_key(*vm)) {
        return Err(failed(&format!("it has no machine `{vm}`")));
    }
    if histories.is_empty() {
        return Err(failed(&predict::SeriesError::Empty));
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let wanted = histories
        .iter()
        .filter(|(vm, _)| args.vm.is_empty() || args.vm.contains(vm));
    wanted
        .map(|(vm, samples)| {
            let parts = [&*stem, vm, args.column.as_deref().unwrap_or("")];
            let name = parts
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join("/");
            let made = if args.counter {
                Series::from_samples(&series::rates(samples))
            } else {
                Series::from_samples(samples)
            };
            let series = made.map_err(|e| failed(&format!("{name}: {e}")))?;
            if let Some(repaired) = series.notes.sentence().filter(|_| !args.backtest) {
                out.note(format!("{name}: {repaired}"));
            }
            Ok((name, series))
        })
        .collect()
}

fn ahead(all: &[(String, Series)], args: &Args, out: &Out) -> Result<(), Failure> {
    let [(name, series)] = all else {
        let names = all
            .iter()
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>()
            .join(", ");
        return Err(Failure::usage(format!(
            "forecast one series at a time; these were read: {names} (choose with --vm)"
        )));
    };
    let told = Told::of(name, series.step_seconds, &once(series, args));
    show(&told, |value| format!("{value:.4}"), out);
    Ok(())
}

/// A forecast as it is asked for, with values that are written so for people.
pub(super) fn show(told: &Told, value: impl Fn(f64) -> String, out: &Out) {
    if out.is_json() {
        out.json(told);
        return;
    }
    let columns = [
        figure("STEP"),
        figure("2.5%"),
        figure("10%"),
        figure("MEDIAN"),
        figure("90%"),
        figure("97.5%"),
    ];
    let levels = ["0.025", "0.1", "0.5", "0.9", "0.975"];
    let cells = levels.map(|level| told.quantiles.get(level));
    let steps: Vec<usize> = (0..cells[0].map_or(0, Vec::len)).collect();
    let row = |step: &usize| {
        let of = |values: &Option<&Vec<f64>>| {
            let known = values.and_then(|values| values.get(*step));
            known.map_or_else(String::new, |v| value(*v))
        };
        let number = std::iter::once((step + 1).to_string());
        number.chain(cells.iter().map(of)).collect()
    };
    out.list(&steps, &columns, row, "");
    let most = |level: &str| {
        told.window_max
            .get(level)
            .map_or_else(String::new, |v| value(*v))
    };
    out.line(format!(
        "maximum of the window: median {}, 90% {}, 95% {}; led by {}",
        most("0.5"),
        most("0.9"),
        most("0.95"),
        told.chosen
    ));
}

fn once(series: &Series, args: &Args) -> Forecast {
    if args.fitted {
        predict::forecast_fitted(series, args.horizon)
    } else {
        predict::forecast(series, args.horizon)
    }
}
