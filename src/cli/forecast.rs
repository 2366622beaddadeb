//! `forerun forecast`: what comes next of a volume, a VM or a node, or in a file of samples, and how good such
//! forecasts were.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::out::{figure, text};
use super::{Failure, Out, foretold, samples};
use crate::predict::{self, Forecast, Series, Told, backtest, csv, fan, series};

/// Longest horizon: beyond it the analogues of a month's history are too few.
const LONGEST_HORIZON: usize = 2016;
/// Days of history drawn left of the fan.
const DRAWN_DAYS: usize = 1;

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
    /// The machine to forecast, if the file has a column `vm`
    #[arg(long, value_name = "ID", requires = "history")]
    vm: Option<String>,
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

#[derive(Serialize)]
struct Row {
    series: String,
    origins: usize,
    mase: f64,
    crps: f64,
    baseline_crps: f64,
    crps_ratio: f64,
    coverage_80: f64,
    coverage_95: f64,
    window_max_90: f64,
    seconds: f64,
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
        score(&all, args, out)
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
    if let Some(vm) = args.vm.as_ref().filter(|vm| !histories.contains_key(*vm)) {
        return Err(failed(&format!("it has no machine `{vm}`")));
    }
    if histories.is_empty() {
        return Err(failed(&predict::SeriesError::Empty));
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let wanted = histories
        .iter()
        .filter(|(vm, _)| args.vm.as_ref().is_none_or(|wanted| wanted == *vm));
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

fn score(all: &[(String, Series)], args: &Args, out: &Out) -> Result<(), Failure> {
    let plan = backtest::Plan {
        horizon: args.horizon,
        fitted: args.fitted,
        history: 1.0 / 3.0,
        stride: args.stride,
    };
    let mut rows = Vec::new();
    let mut drawn = None;
    for (name, series) in all {
        let Some((scores, sight)) = backtest::run(series, plan) else {
            return Err(Failure::new(format!(
                "backtest {name}: its {} points leave no room for {} steps after a third of history",
                series.values.len(),
                args.horizon
            )));
        };
        // What one forecast costs from nothing: learning over the last days and the forecast itself.
        let started = Instant::now();
        std::hint::black_box(once(series, args));
        rows.push(row(name, &scores, started.elapsed().as_secs_f64()));
        drawn = Some((name, series, sight));
    }
    if let Some((name, series, sight)) = drawn {
        let first = sight.at.saturating_sub(DRAWN_DAYS * series.day());
        let observed = &series.values[sight.at..sight.at + args.horizon];
        let picture = fan::svg(
            name,
            &series.values[first..sight.at],
            &sight.forecast.steps,
            observed,
        );
        std::fs::write(&args.svg, picture).map_err(|e| {
            Failure::new(format!("write the fan chart {}: {e}", args.svg.display()))
        })?;
        out.note(format!("fan chart of {name}: {}", args.svg.display()));
    }
    let columns = [
        text("SERIES"),
        figure("ORIGINS"),
        figure("MASE"),
        figure("CRPS"),
        figure("OF BASELINE"),
        figure("IN 80%"),
        figure("IN 95%"),
        figure("MAX IN 90%"),
        figure("SECONDS"),
    ];
    out.list(&rows, &columns, Row::cells, "");
    if rows.len() > 1 && !out.is_json() {
        let count = rows.len() as f64;
        let ratio = (rows.iter().map(|row| row.crps_ratio.ln()).sum::<f64>() / count).exp();
        let mean = |of: fn(&Row) -> f64| 100.0 * rows.iter().map(of).sum::<f64>() / count;
        out.line(format!(
            "{} series: CRPS {ratio:.3} of the baseline's (geometric mean), {:.1}% in 80%, {:.1}% in 95%, {:.1}% of maxima in 90%",
            rows.len(), mean(|row| row.coverage_80), mean(|row| row.coverage_95), mean(|row| row.window_max_90)
        ));
    }
    Ok(())
}

fn row(name: &str, scores: &backtest::Scores, seconds: f64) -> Row {
    Row {
        series: name.to_owned(),
        origins: scores.origins,
        mase: scores.mase,
        crps: scores.crps,
        baseline_crps: scores.baseline_crps,
        crps_ratio: scores.ratio(),
        coverage_80: scores.cover80,
        coverage_95: scores.cover95,
        window_max_90: scores.cover_max90,
        seconds,
    }
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let percent = |share: f64| format!("{:.1}%", 100.0 * share);
        vec![
            self.series.clone(),
            self.origins.to_string(),
            format!("{:.3}", self.mase),
            format!("{:.4}", self.crps),
            format!("{:.3}", self.crps_ratio),
            percent(self.coverage_80),
            percent(self.coverage_95),
            percent(self.window_max_90),
            format!("{:.4}", self.seconds),
        ]
    }
}
