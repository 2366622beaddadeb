//! `forerun forecast --backtest`: forecasts from many moments of the past beside what came, for each series and
//! for all of them together.
//!
//! Series are scored on all cores; what one forecast takes is measured afterwards, one at a time.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde::Serialize;

use super::out::{figure, text};
use super::{Failure, Out};
use crate::predict::backtest::{self, Plan, Scores, Sight};
use crate::predict::{Series, fan};

/// Days of history drawn left of the fan.
const DRAWN_DAYS: usize = 1;

/// How one series was foreseen.
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

/// How all of them were. The ratio is a geometric mean, which takes twice as good and half as good for even; all
/// else are means.
#[derive(Serialize)]
struct Summary {
    series: usize,
    origins: usize,
    mase: f64,
    crps_ratio: f64,
    worst_crps_ratio: f64,
    worst: String,
    coverage_80: f64,
    coverage_95: f64,
    window_max_90: f64,
    seconds: f64,
}

#[derive(Serialize)]
struct Answer {
    series: Vec<Row>,
    summary: Summary,
}

/// Scores every series, and draws the last forecast of the last one into the file `svg`. `ahead` makes one
/// forecast from nothing.
pub(super) fn run(
    all: &[(String, Series)],
    plan: Plan,
    ahead: impl Fn(&Series),
    svg: &Path,
    out: &Out,
) -> Result<(), Failure> {
    let mut rows = Vec::new();
    let mut drawn = None;
    for ((name, series), scored) in all.iter().zip(score(all, plan)) {
        let Some((scores, sight)) = scored else {
            return Err(Failure::new(format!(
                "backtest {name}: its {} points leave no room for {} steps after a third of history",
                series.values.len(),
                plan.horizon
            )));
        };
        let started = Instant::now();
        ahead(series);
        rows.push(Row::new(name, &scores, started.elapsed().as_secs_f64()));
        drawn = Some((name, series, sight));
    }
    if let Some((name, series, sight)) = drawn {
        let first = sight.at.saturating_sub(DRAWN_DAYS * series.day());
        let picture = fan::svg(
            name,
            &series.values[first..sight.at],
            &sight.forecast.steps,
            &series.values[sight.at..sight.at + plan.horizon],
        );
        std::fs::write(svg, picture)
            .map_err(|e| Failure::new(format!("write the fan chart {}: {e}", svg.display())))?;
        out.note(format!("fan chart of {name}: {}", svg.display()));
    }
    tell(
        Answer {
            summary: Summary::of(&rows),
            series: rows,
        },
        out,
    );
    Ok(())
}

/// Scores of all series in their order, made on all cores.
fn score(all: &[(String, Series)], plan: Plan) -> Vec<Option<(Scores, Sight)>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some((_, series)) = all.get(place) else {
                return done;
            };
            done.push((place, backtest::run(series, plan)));
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut done = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..cores.min(all.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let mut done = work();
        for helper in helpers {
            match helper.join() {
                Ok(theirs) => done.extend(theirs),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, scored)| scored).collect()
}

fn tell(answer: Answer, out: &Out) {
    if out.is_json() {
        out.json(&answer);
        return;
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
    let Answer { series, summary } = answer;
    let mut lines: Vec<_> = series.iter().map(Row::cells).collect();
    if series.len() > 1 {
        lines.push(summary.cells());
    }
    out.list(&lines, &columns, Clone::clone, "");
    if series.len() > 1 {
        out.line(format!(
            "of the baseline: the geometric mean of all, {:.3} at worst ({}); all else are means",
            summary.worst_crps_ratio, summary.worst
        ));
    }
}

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

impl Row {
    fn new(name: &str, scores: &Scores, seconds: f64) -> Row {
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

    fn cells(&self) -> Vec<String> {
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

impl Summary {
    /// Of one row at least.
    fn of(rows: &[Row]) -> Summary {
        let mean = |of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>() / rows.len() as f64;
        let worst = rows
            .iter()
            .max_by(|a, b| a.crps_ratio.total_cmp(&b.crps_ratio));
        Summary {
            series: rows.len(),
            origins: rows.iter().map(|row| row.origins).sum(),
            mase: mean(|row| row.mase),
            crps_ratio: mean(|row| row.crps_ratio.ln()).exp(),
            worst_crps_ratio: worst.map_or(1.0, |row| row.crps_ratio),
            worst: worst.map_or_else(String::new, |row| row.series.clone()),
            coverage_80: mean(|row| row.coverage_80),
            coverage_95: mean(|row| row.coverage_95),
            window_max_90: mean(|row| row.window_max_90),
            seconds: mean(|row| row.seconds),
        }
    }

    fn cells(&self) -> Vec<String> {
        vec![
            format!("all {}", self.series),
            self.origins.to_string(),
            format!("{:.3}", self.mase),
            String::new(),
            format!("{:.3}", self.crps_ratio),
            percent(self.coverage_80),
            percent(self.coverage_95),
            percent(self.window_max_90),
            format!("{:.4}", self.seconds),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_as_good_and_half_as_good_are_even() {
        let row = |name: &str, ratio: f64, cover: f64| {
            let scores = Scores {
                origins: 10,
                mase: ratio,
                crps: ratio,
                baseline_crps: 1.0,
                cover80: cover,
                cover95: cover,
                cover_max90: cover,
            };
            Row::new(name, &scores, 0.002)
        };
        let rows = [row("a", 0.5, 0.7), row("b", 2.0, 0.9), row("c", 1.0, 0.8)];
        let summary = Summary::of(&rows);
        assert!((summary.crps_ratio - 1.0).abs() < 1e-12);
        assert_eq!((summary.worst_crps_ratio, &*summary.worst), (2.0, "b"));
        assert!((summary.mase - 3.5 / 3.0).abs() < 1e-12);
        let cells = summary.cells();
        assert_eq!(cells.len(), rows[0].cells().len());
        assert_eq!(
            cells[..2].iter().chain(&cells[4..]).collect::<Vec<_>>(),
            ["all 3", "30", "1.000", "80.0%", "80.0%", "80.0%", "0.0020"]
        );
    }
}
