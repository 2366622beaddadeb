//! `forerun plan`: where copies should be, and why.

use super::{Failure, Out, planned, samples};
use crate::planner::replay::{Forecaster, Recent};
use crate::planner::{
    Ask, Bandwidth, Bytes, Calendar, Commitments, Distribution, Held, Input, Mode, Money, Need,
    NodeView, Plan, Policy, Prices, Seconds, SiteView, Subject, UnixTime, WINDOWS, Windows,
};
use crate::predict::{Sample, Series, csv};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Say where copies should be, what that costs, and why
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Plan from this file (sites, nodes and what may have to move) instead of asking the controller
    #[arg(long, value_name = "FILE", requires = "prices")]
    fleet: Option<PathBuf>,
    /// Price table
    #[arg(long, value_name = "FILE", requires = "fleet")]
    prices: Option<PathBuf>,
    /// Calendar of events
    #[arg(long, value_name = "FILE", requires = "fleet")]
    calendar: Option<PathBuf>,
    /// Policy
    #[arg(long, value_name = "FILE", requires = "fleet")]
    policy: Option<PathBuf>,
    /// How far to go: forecast-only, advise or auto
    #[arg(long, value_name = "MODE", value_parser = mode, requires = "fleet")]
    mode: Option<Mode>,
    /// Plan as of this time (seconds since 1970) instead of now
    #[arg(long, value_name = "SECONDS", requires = "fleet")]
    at: Option<u64>,
    /// Have the controller carry its plan out now, whatever its mode
    #[arg(long, conflicts_with_all = ["fleet", "review"])]
    apply: bool,
    /// Show how right the controller's past plans were
    #[arg(long, conflicts_with = "fleet")]
    review: bool,
}

fn mode(text: &str) -> Result<Mode, String> {
    match text {
        "forecast-only" => Ok(Mode::ForecastOnly),
        "advise" => Ok(Mode::Advise),
        "auto" => Ok(Mode::Auto),
        _ => Err("say forecast-only, advise or auto".into()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fleet {
    #[serde(default)]
    site: Vec<Site>,
    #[serde(default)]
    node: Vec<Node>,
    #[serde(default)]
    subject: Vec<Moving>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Site {
    name: String,
    latency_ms: f64,
    bandwidth_mib: f64,
    provision_seconds: u64,
    quota: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    name: String,
    site: String,
    #[serde(default)]
    domain: String,
    latency_ms: f64,
    utilisation: f64,
    total_gib: f64,
    free_gib: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Moving {
    name: String,
    site: String,
    /// `timestamp,value`, the present last.
    history: Option<PathBuf>,
    capacity: f64,
    cpus: f64,
    memory_gib: f64,
    volume: Vec<Volume>,
    /// GiB behind, by site.
    #[serde(default)]
    copies: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Volume {
    name: String,
    gib: f64,
    /// What is written to it, in MiB a second: copies must be sent that.
    #[serde(default)]
    written_mib: f64,
    group: Option<String>,
}

impl Fleet {
    /// Refuse figures that are none: a plan made of them would be none either.
    fn check(&self) -> Result<(), String> {
        let sane = |of: &str, figures: &[(&str, f64)]| {
            let mut figures = figures.iter();
            match figures.find(|(_, x)| !x.is_finite() || *x < 0.0) {
                Some((name, x)) => Err(format!("{of}: {name} = {x} is no size")),
                None => Ok(()),
            }
        };
        for s in &self.site {
            let figures = [
                ("latency_ms", s.latency_ms),
                ("bandwidth_mib", s.bandwidth_mib),
            ];
            sane(&format!("site {}", s.name), &figures)?;
        }
        for n in &self.node {
            let figures = [
                ("latency_ms", n.latency_ms),
                ("utilisation", n.utilisation),
                ("total_gib", n.total_gib),
                ("free_gib", n.free_gib),
            ];
            sane(&format!("node {}", n.name), &figures)?;
        }
        for m in &self.subject {
            let figures = [
                ("capacity", m.capacity),
                ("cpus", m.cpus),
                ("memory_gib", m.memory_gib),
            ];
            sane(&format!("subject {}", m.name), &figures)?;
            for v in &m.volume {
                let figures = [("gib", v.gib), ("written_mib", v.written_mib)];
                sane(&format!("volume {} of {}", v.name, m.name), &figures)?;
            }
            for (site, behind) in &m.copies {
                sane(&format!("copies of {}", m.name), &[(site, *behind)])?;
            }
        }
        Ok(())
    }
}

/// A plan from files, with the fallbacks that it took.
#[derive(Serialize)]
struct Planned {
    #[serde(flatten)]
    plan: Plan,
    notes: Vec<String>,
}

/// A history that ends so many steps before the plan's time is said to.
const STALE_STEPS: i64 = 12;

/// Plan once: the controller's plan, or from files.
pub fn run(args: &Args, controller: &str, out: &Out) -> Result<(), Failure> {
    match (&args.fleet, &args.prices) {
        (Some(fleet), Some(prices)) => from_files(args, fleet, prices, out),
        _ if args.review => super::block_on(planned::review(controller, out)),
        _ => super::block_on(planned::plan(args.apply, controller, out)),
    }
}

fn from_files(args: &Args, fleet_path: &Path, prices: &Path, out: &Out) -> Result<(), Failure> {
    let fleet: Fleet = toml::from_str(&read(fleet_path)?)
        .map_err(|e| Failure::usage(format!("fleet {}: {e}", fleet_path.display())))?;
    fleet
        .check()
        .map_err(|why| Failure::usage(format!("fleet {}: {why}", fleet_path.display())))?;
    let prices = parsed(prices, Prices::parse)?;
    let calendar = match &args.calendar {
        Some(path) => parsed(path, Calendar::parse)?,
        None => Calendar::default(),
    };
    let mut policy = match &args.policy {
        Some(path) => parsed(path, Policy::parse)?,
        None => Policy::default(),
    };
    policy.mode = args.mode.unwrap_or(policy.mode);
    let now = match args.at {
        Some(at) => at,
        None => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_err(|e| Failure::new(format!("this host's clock stands before 1970: {e}")))?
            .as_secs(),
    };
    let base = fleet_path.parent().unwrap_or(Path::new("."));
    let mut notes = Vec::new();
    let subjects = fleet.subject.into_iter();
    let subjects: Vec<Subject> = subjects
        .map(|m| subject(m, base, now, &mut notes))
        .collect::<Result<_, _>>()?;
    let sites: Vec<SiteView> = fleet.site.into_iter().map(site).collect();
    let nodes: Vec<NodeView> = fleet.node.into_iter().map(node).collect();
    let input = Input {
        now: UnixTime(now),
        subjects: &subjects,
        sites: &sites,
        nodes: &nodes,
        calendar: &calendar,
        prices: &prices,
        policy: &policy,
    };
    let plan = crate::planner::plan(&input, &mut Commitments::default());
    let planned = serde_json::to_value(Planned { plan, notes })
        .map_err(|e| Failure::new(format!("print the plan: {e}")))?;
    planned::show(&planned, false, out);
    Ok(())
}

fn parsed<T>(
    path: &Path,
    parse: impl Fn(&str) -> Result<T, crate::planner::Invalid>,
) -> Result<T, Failure> {
    parse(&read(path)?).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))
}

fn site(s: Site) -> SiteView {
    SiteView {
        name: s.name,
        latency_ms: s.latency_ms,
        bandwidth: Bandwidth((s.bandwidth_mib * f64::from(1 << 20)) as u64),
        provision: Seconds(s.provision_seconds),
        quota: s.quota,
        shut: None,
    }
}

fn node(n: Node) -> NodeView {
    NodeView {
        name: n.name,
        site: n.site,
        domain: n.domain,
        available: true,
        latency_ms: n.latency_ms,
        utilisation: n.utilisation,
        total: Bytes::from_gib(n.total_gib),
        free: Bytes::from_gib(n.free_gib),
        groups: BTreeMap::new(),
        hour: Money(0.0),
    }
}

fn subject(m: Moving, base: &Path, now: u64, notes: &mut Vec<String>) -> Result<Subject, Failure> {
    let windows = match &m.history {
        Some(path) => windows(&base.join(path), now, notes)?,
        None => Windows::default(),
    };
    let copies = m.copies.into_iter().map(|(site, gib)| {
        let held = Held {
            behind: Bytes::from_gib(gib),
            nodes: Vec::new(),
        };
        (site, held)
    });
    let written: f64 = m.volume.iter().map(|v| v.written_mib).sum();
    Ok(Subject {
        windows,
        dirty_rate: Bandwidth((written * f64::from(1 << 20)) as u64),
        capacity: m.capacity,
        leaves: 1.0,
        unannounced: 0.0,
        overloads: 0.0,
        missed_share: None,
        need: Need {
            cpus: Distribution::certain(m.cpus),
            memory_gib: Distribution::certain(m.memory_gib),
            storage: m.volume.iter().map(|v| Bytes::from_gib(v.gib)).sum(),
        },
        moving: (m.volume.into_iter())
            .map(|v| Ask {
                volume: v.name,
                bytes: Bytes::from_gib(v.gib),
                group: v.group,
                ..Ask::default()
            })
            .collect(),
        copies: copies.collect(),
        idle_since: None,
        site_latency_ms: BTreeMap::new(),
        node_latency_ms: BTreeMap::new(),
        name: m.name,
        site: m.site,
    })
}

/// What a `timestamp,value` file says of the windows ahead. Without a forecast only events count.
fn windows(path: &Path, now: u64, notes: &mut Vec<String>) -> Result<Windows, Failure> {
    let name = format!("history {}", path.display());
    let mut samples: Vec<Sample> = csv::read(&samples::read(path)?, None)
        .map_err(|e| Failure::new(format!("{name}: {e}")))?
        .into_values()
        .flatten()
        .collect();
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let all = samples.len();
    samples.retain(|(at, _)| *at <= now);
    if samples.len() < all {
        notes.push(format!(
            "{name}: {} samples are of times after the plan's and do not count: check the clock of whoever \
             measured, or plan --at their time",
            all - samples.len()
        ));
    }
    let series = match Series::from_samples(&samples) {
        Ok(series) => series,
        Err(e) => {
            notes.push(format!("{name}: {e}: only events count"));
            return Ok(Windows::default());
        }
    };
    if let Some(repaired) = series.notes.sentence() {
        notes.push(format!("{name}: {repaired}"));
    }
    let step = i64::from(series.step_seconds);
    let end = series.start + (series.values.len() as i64 - 1) * step;
    let past = now.saturating_sub(end);
    if past > STALE_STEPS * step {
        notes.push(format!(
            "{name}: it ends {past} s before the plan's time: its last value is taken for the present"
        ));
    }
    let mut forecaster = Recent { day: series.day() };
    let windows = WINDOWS.iter().filter_map(|steps| {
        let max = forecaster.window_max(0, &series.values, *steps)?;
        Some((Seconds(*steps as u64 * step.unsigned_abs()), max))
    });
    let windows: Vec<_> = windows.collect();
    if windows.is_empty() {
        notes.push(format!(
            "{name}: {} values are fewer than the shortest window: only events count",
            series.values.len()
        ));
    }
    Ok(Windows::new(windows))
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|e| Failure::new(format!("read {}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_file_becomes_subjects_with_forecasts() {
        let dir = tempfile::tempdir().unwrap();
        let rows: String = (0..600)
            .map(|i| format!("{},{}\n", i * 300, i % 7))
            .collect();
        std::fs::write(dir.path().join("a.csv"), format!("timestamp,value\n{rows}")).unwrap();
        let fleet: Fleet = toml::from_str(
            r#"
            [[subject]]
            name = "a"
            site = "home"
            history = "a.csv"
            capacity = 5.5
            cpus = 2
            memory_gib = 4
            volume = [{ name = "a-disk", gib = 10 }]
            copies = { east = 0.5 }
            "#,
        )
        .unwrap();
        let (mut notes, now) = (Vec::new(), 600 * 300);
        let moving = fleet.subject.into_iter().next().unwrap();
        let s = subject(moving, dir.path(), now, &mut notes).unwrap();
        assert_eq!(notes, Vec::<String>::new());
        // every half hour has a six in it
        assert!(s.windows.over(Seconds(1800)).unwrap().exceed(5.5) > 0.5);
        assert_eq!(s.copies["east"].behind, Bytes::from_gib(0.5));
    }
}
