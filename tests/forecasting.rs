//! What a forecast promises: on made-up series that show one property each, and on real ones where
//! the machine has them. The directory of real data is `FORERUN_DATA`, or `../shared/data`.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // tests: a panic is the report

use std::f64::consts::TAU;
use std::path::PathBuf;
use std::process::Command;

use forerun::planner::Distribution;
use forerun::predict::backtest::{self, Plan, Scores};
use forerun::predict::requirement::Requirement;
use forerun::predict::seeding::{self, Trace, Write};
use forerun::predict::{Forecast, Sample, Series, csv, forecast, quantile};
use proptest::prelude::*;

const STEP: i64 = 300;
const DAY: usize = 288;

fn series(values: Vec<f64>) -> Series {
    let samples: Vec<_> = values
        .into_iter()
        .zip(0..)
        .map(|(value, i)| (i * STEP, value))
        .collect();
    Series::from_samples(&samples).unwrap()
}

/// Even numbers in [0, 1), the same in every run.
fn noise(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn is_sound(forecast: &Forecast, horizon: usize) {
    assert_eq!(forecast.steps.len(), horizon);
    for quantiles in forecast.steps.iter().chain([&forecast.window_max]) {
        assert!(quantiles.iter().all(|q| q.is_finite()), "{quantiles:?}");
        assert!(quantiles.is_sorted(), "{quantiles:?}");
    }
    assert!(forecast.paths.iter().all(|path| path.len() == horizon));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_history_gives_finite_rising_quantiles(
        values in prop::collection::vec(prop_oneof![Just(0.0), -1e12..1e12, 0.0..1.0], 12..700),
        horizon in 1usize..60,
    ) {
        is_sound(&forecast(&series(values), horizon), horizon);
    }

    /// Bytes or mebibytes: the answer is the same, in the other unit. Powers of two keep it exact.
    #[test]
    fn the_unit_does_not_matter(seed in any::<u64>(), power in -20i32..20) {
        let mut random = noise(seed);
        let values: Vec<f64> = (0..900).map(|i| 5.0 + (i as f64 / 40.0).sin() + random()).collect();
        let unit = 2f64.powi(power);
        let one = forecast(&series(values.clone()), 12);
        let other = forecast(&series(values.iter().map(|v| v * unit).collect()), 12);
        for (a, b) in one.steps.iter().flatten().zip(other.steps.iter().flatten()) {
            prop_assert!((a * unit - b).abs() <= 1e-3 * (a * unit).abs(), "{a} * {unit} and {b}");
        }
    }
}

#[test]
fn a_constant_stays_what_it_is() {
    for value in [0.0, 7.5] {
        let forecast = forecast(&series(vec![value; 1000]), 48);
        is_sound(&forecast, 48);
        assert!(
            forecast
                .steps
                .iter()
                .chain([&forecast.window_max])
                .flatten()
                .all(|q| *q == value)
        );
        assert_eq!(forecast.passing(value), 0.0);
    }
}

/// A job that runs for ten minutes every night: quiet all day, and the forecast made just before it
/// must know.
#[test]
fn a_nightly_job_is_expected_before_it_begins() {
    let values = (0..12 * DAY - 6)
        .map(|i| if i % DAY < 2 { 100.0 } else { 1.0 })
        .collect();
    let forecast = forecast(&series(values), 48);
    let median = |step: usize| quantile::at(&forecast.steps[step], 0.5);
    assert_eq!(
        (median(5), median(6), median(7), median(8)),
        (1.0, 100.0, 100.0, 1.0)
    );
    assert!(forecast.passing(50.0) > 0.9, "{:?}", forecast.window_max);
}

/// The maximum of a window is not the maximum of the steps' quantiles.
#[test]
fn intervals_and_maxima_cover_what_they_claim() {
    let mut random = noise(7);
    let values = (0..14 * DAY).map(|i| {
        let daily = 10.0 + 4.0 * (i as f64 / DAY as f64 * TAU).sin();
        daily - 2.0 * (1.0 - random()).ln()
    });
    let scores = backtest::run(&series(values.collect()), plan(31))
        .unwrap()
        .0;
    assert!((0.74..0.86).contains(&scores.cover80), "{scores:?}");
    assert!((0.92..0.98).contains(&scores.cover95), "{scores:?}");
    assert!((0.82..0.97).contains(&scores.cover_max90), "{scores:?}");
}

/// A level shift ruins whoever believes in history, until the gate has seen the first losses. Smoothing
/// pays least, because it never believed.
#[test]
fn a_level_shift_costs_at_most_half_more_than_smoothing_pays() {
    let mut random = noise(3);
    let values = (0..10 * DAY).map(|i| if i < 6 * DAY { 10.0 } else { 100.0 } + random());
    let scores = backtest::run(&series(values.collect()), plan(29))
        .unwrap()
        .0;
    assert!(scores.ratio() < 1.5, "{scores:?}");
}

/// What was achieved over all series used to be added up by eye.
#[test]
fn a_backtest_ends_with_what_holds_for_all_of_its_series() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = noise(5);
    for name in ["even", "rising"] {
        let slope = f64::from(u8::from(name == "rising")) / 200.0;
        let rows = (0..600).map(|i| format!("{},{}\n", i * STEP, slope * i as f64 + random()));
        let text = format!("timestamp,value\n{}", rows.collect::<String>());
        std::fs::write(folder.path().join(format!("{name}.csv")), text).unwrap();
    }
    let backtest = |words: &[&str]| {
        let done = Command::new(env!("CARGO_BIN_EXE_forerun"))
            .args(["forecast", "--backtest", "--horizon", "6", "--history"])
            .args(["even.csv", "rising.csv"])
            .args(words)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).unwrap()
    };
    let answer: serde_json::Value = serde_json::from_str(&backtest(&["--output", "json"])).unwrap();
    let (rows, all) = (answer["series"].as_array().unwrap(), &answer["summary"]);
    let of = |row: &serde_json::Value, key: &str| row[key].as_f64().unwrap();
    let two = |key: &str| (of(&rows[0], key), of(&rows[1], key));
    let (a, b) = two("crps_ratio");
    assert!((of(all, "crps_ratio") - (a * b).sqrt()).abs() < 1e-9);
    assert_eq!(of(all, "worst_crps_ratio"), a.max(b));
    assert_eq!(all["worst"], if a > b { "even" } else { "rising" });
    for key in ["coverage_80", "coverage_95", "window_max_90"] {
        let (a, b) = two(key);
        assert!((of(all, key) - (a + b) / 2.0).abs() < 1e-9, "{key}");
    }
    let table = backtest(&[]);
    let ends: Vec<_> = table.lines().rev().take(2).collect();
    assert!(ends[0].contains("at worst ("), "{table}");
    assert!(ends[1].starts_with("all 2 "), "{table}");
}

fn plan(stride: usize) -> Plan {
    Plan {
        horizon: 48,
        fitted: false,
        history: 1.0 / 3.0,
        stride,
    }
}

/// Real data, or nothing with a word about it.
fn data(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("FORERUN_DATA")
        .map_or_else(|| PathBuf::from("../shared/data"), PathBuf::from);
    let path = root.join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is not here", path.display());
    None
}

#[test]
fn real_cloud_metrics_beat_smoothing_and_none_is_much_worse() {
    let Some(folder) = data("vm-metrics") else {
        return;
    };
    let mut scores: Vec<(PathBuf, Scores)> = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let series = Series::from_samples(&csv::read(&text, None).unwrap()[""]).unwrap();
        scores.push((path, backtest::run(&series, plan(41)).unwrap().0));
    }
    let count = scores.len() as f64;
    let ratio = scores.iter().map(|(_, s)| s.ratio()).sum::<f64>() / count;
    assert!(ratio <= 0.85, "{ratio} {scores:?}");
    for (path, score) in &scores {
        assert!(score.ratio() <= 1.1, "{} {score:?}", path.display());
    }
    let cover80 = scores.iter().map(|(_, s)| s.cover80).sum::<f64>() / count;
    assert!((0.76..=0.86).contains(&cover80), "{cover80} {scores:?}");
}

/// Every third machine of a real fleet, from fewer origins than `forerun forecast --backtest` scores: the
/// limits leave room for what so few say.
#[test]
fn real_disk_writes_are_foreseen_far_better_than_by_smoothing() {
    let Some(path) = data("vm-fleet/bitbrains-2013-08-30vms.csv.gz") else {
        return;
    };
    let unpacked = Command::new("gzip").arg("-dc").arg(path).output().unwrap();
    let text = String::from_utf8(unpacked.stdout).unwrap();
    let histories = csv::read(&text, Some("wr_kbs")).unwrap();
    let machines: Vec<_> = histories.values().skip(1).step_by(3).collect();
    assert!(machines.len() >= 10);
    let scores: Vec<Scores> = std::thread::scope(|threads| {
        let half = |samples: &[&Vec<Sample>]| -> Vec<Scores> {
            let each = samples.iter().map(|samples| {
                let series = Series::from_samples(samples).unwrap();
                backtest::run(&series, plan(61)).unwrap().0
            });
            each.collect()
        };
        let (one, other) = machines.split_at(machines.len() / 2);
        let other = threads.spawn(move || half(other));
        [half(one), other.join().unwrap()].concat()
    });
    let mean = |of: fn(&Scores) -> f64| scores.iter().map(of).sum::<f64>() / scores.len() as f64;
    let ratio = mean(|s| s.ratio().ln()).exp();
    assert!(ratio <= 0.70, "{ratio} {scores:?}");
    assert!((0.76..=0.88).contains(&mean(|s| s.cover80)), "{scores:?}");
    assert!(mean(|s| s.cover95) >= 0.92, "{scores:?}");
    assert!(
        (0.84..=0.96).contains(&mean(|s| s.cover_max90)),
        "{scores:?}"
    );
}

/// What a workload needs goes into a plan as the planner takes every forecast: as quantiles.
#[test]
fn what_a_forecast_workload_needs_is_a_distribution_of_the_plan() {
    let mut random = noise(11);
    let rows: Vec<(Vec<f64>, f64)> = (0..500)
        .map(|i| {
            let written = 1e6 * (2.0 + (i as f64 / 40.0).sin());
            (vec![written], 0.2 + written / 1e6 + 0.4 * random())
        })
        .collect();
    let cores = Requirement::fit(&rows).unwrap();
    let history = rows.iter().map(|row| row.0[0]).collect();
    let ahead = forecast(&series(history), 48);
    let needed = cores.needed(&[ahead.window_max]);
    let need = Distribution::new(quantile::LEVELS.into_iter().zip(needed)).unwrap();
    assert!((3.2..3.8).contains(&need.quantile(0.9)), "{need:?}");
    assert!(
        need.exceed(4.5) < 0.05 && need.exceed(2.0) > 0.5,
        "{need:?}"
    );
}

#[test]
fn coldest_first_leaves_less_than_half_on_a_real_trace() {
    let Some(path) = data("vm-block-trace.csv") else {
        return;
    };
    let text = std::fs::read_to_string(path).unwrap();
    let requests: Vec<Vec<&str>> = text
        .lines()
        .skip(1)
        .map(|line| line.split(',').collect())
        .collect();
    let time = |request: &[&str]| request[1].parse::<f64>().unwrap();
    let begin = time(&requests[0]);
    let writes = requests
        .iter()
        .filter(|request| request[2] == "2a")
        .map(|request| {
            let from = request[4].parse::<u64>().unwrap() * 512;
            let until = from + request[3].parse::<u64>().unwrap();
            Write {
                at: time(request) - begin,
                first: from >> 16,
                last: (until - 1) >> 16,
            }
        });
    let trace = Trace {
        writes: writes.collect(),
        seconds: time(&requests[requests.len() - 1]) - begin,
        extents: 32 << 14,
        extent_bytes: 1 << 16,
    };
    let result = seeding::compare(&trace, 0.25);
    assert!(
        result.predicted.dirty_bytes_left <= 0.5 * result.linear.dirty_bytes_left,
        "{result:?}"
    );
    assert!(result.never_worse, "{result:?}");
}
