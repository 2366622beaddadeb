//! `forerun simulate fleet`: the planner replayed over VM series that have happened.

use super::out::{bytes, figure, text};
use super::{Failure, Out, samples};
use crate::planner::replay::{
    self, Forerun, HomeNode, Keeper, MostRecent, Nothing, Oracle, Recent, Tally, Vm, World,
};
use crate::planner::{
    Bandwidth, Bytes, Calendar, Event, EventKind, Policy, Prices, Seconds, SiteView, UnixTime,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Sites and prices that are replayed unless a table is given.
const PRICES: &str = include_str!("simulate_fleet_prices.toml");

/// Replay weeks of VM series over sites with prices
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Directory with series: CSV (or .csv.gz) with the columns vm, ts(s), cpu_mhz, wr_kbs and more
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Price table; its sites are where VMs can go
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Policy of the planner
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// VMs on a home node
    #[arg(long, default_value_t = 5)]
    vms_per_node: usize,
    /// A home node's capacity: this quantile of its demand in the first week
    #[arg(long, default_value_t = 0.98)]
    capacity_quantile: f64,
    /// Seeds the unannounced events
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Replay only so many of the VMs, drawn at random
    #[arg(long, value_name = "COUNT")]
    vms: Option<usize>,
    /// Seeds the drawing
    #[arg(long, default_value_t = 1, requires = "vms")]
    draw: u64,
}

const STEP: u64 = 300;
const DAY: usize = (86_400 / STEP) as usize;
const WEEK: usize = 7 * DAY;
/// The traces have no disk sizes: so many times the memory, and at least so many GiB.
const DISK_PER_MEMORY: f64 = 8.0;
const DISK_LEAST_GIB: f64 = 20.0;
/// For seeding, of each site: one gigabit a second.
const BANDWIDTH: Bandwidth = Bandwidth(125_000_000);
/// What a site's node takes to come up.
const PROVISION: Seconds = Seconds(180);
/// Announced maintenance of each node: every week, this long.
const MAINTENANCE: Seconds = Seconds(2 * 3600);
/// Unannounced maintenance comes to one node every so often.
const SURPRISE_EVERY: u64 = 4 * 86_400;

#[derive(Serialize)]
struct Row {
    keeper: &'static str,
    #[serde(flatten)]
    tally: Tally,
    cost_with_delay: f64,
    seeded_over_oracle: f64,
    cost_over_oracle: f64,
}

#[derive(Serialize)]
struct Report {
    assumed: Vec<String>,
    vms: usize,
    nodes: usize,
    days: usize,
    currency: String,
    keepers: Vec<Row>,
    /// What a migration that waits has to cost for copies to pay, against keeping none.
    pays_from: Option<f64>,
    goals: BTreeMap<&'static str, bool>,
}

/// Replay.
pub fn run(args: &Args, out: &Out) -> Result<(), Failure> {
    let prices = match &args.prices {
        Some(path) => Prices::parse(&read(path)?),
        None => Prices::parse(PRICES),
    };
    let policy = match &args.policy {
        Some(path) => Policy::parse(&read(path)?),
        None => Ok(assumed_policy()),
    };
    let prices = prices.map_err(|e| Failure::usage(e.to_string()))?;
    let policy = policy.map_err(|e| Failure::usage(e.to_string()))?;
    let mut series = load(&args.data)?;
    if let Some(count) = args.vms {
        draw(&mut series, count, &mut Random(args.draw));
    }
    let world = world(args, series, prices)?;
    let report = compare(args, &world, policy);
    if out.is_json() {
        out.json(&report);
        return Ok(());
    }
    for line in &report.assumed {
        out.line(format!("assumed: {line}"));
    }
    out.list(
        &report.keepers,
        &[
            text("KEEPER"),
            figure("MIGRATIONS"),
            figure("WARM"),
            figure("SEEDED"),
            figure("x ORACLE"),
            figure("COST"),
            figure("x ORACLE"),
            figure("WITH DELAY"),
            figure("NODE HOURS"),
            figure("WASTED"),
            figure("NODES MADE"),
        ],
        |r| {
            vec![
                r.keeper.to_owned(),
                r.tally.migrations.to_string(),
                format!("{:.1}%", 100.0 * r.tally.warm_share),
                bytes(r.tally.seeded_bytes),
                format!("{:.2}", r.seeded_over_oracle),
                format!("{:.2}", r.tally.cost),
                format!("{:.2}", r.cost_over_oracle),
                format!("{:.2}", r.cost_with_delay),
                format!("{:.1}", r.tally.node_hours),
                format!("{:.1}", r.tally.node_hours_wasted),
                r.tally.churn.to_string(),
            ]
        },
        "nothing was replayed",
    );
    for row in &report.keepers {
        let cold: Vec<String> = (row.tally.cold.iter())
            .map(|(cause, n)| format!("{n} by {cause}"))
            .collect();
        if !cold.is_empty() {
            out.line(format!("not warm, {}: {}", row.keeper, cold.join(", ")));
        }
    }
    out.line(
        "ahead is: a larger share warm, and less cost with what waiting costs; keeping nothing is charged \
         for its waits because it has no warm migration to compare",
    );
    if let Some(price) = report.pays_from {
        out.line(format!(
            "copies cost less than keeping nothing as soon as a migration that waits costs {price:.2} {}",
            report.currency
        ));
    }
    for (goal, met) in &report.goals {
        out.line(format!(
            "{} {goal}",
            if *met { "met:   " } else { "missed:" }
        ));
    }
    Ok(())
}

/// Every migration that waits counts the same here, so a move has a value and its seconds have little.
fn assumed_policy() -> Policy {
    Policy {
        expected_hold_seconds: 5 * 86_400,
        minimum_hold_seconds: 5400,
        open_score: 0.0,
        utilisation_limit: 1.0,
        utilisation_probability: 0.3,
        missed_share: 0.7,
        value_of_second: 0.001,
        value_of_move: 5.0,
        ..Policy::default()
    }
}

fn compare(args: &Args, world: &World, policy: Policy) -> Report {
    let value = policy.value_of_second;
    let of_move = policy.value_of_move;
    let nothing = replay::run(world, &mut Nothing, value);
    let mut keepers: Vec<(&str, Box<dyn Keeper>)> = vec![
        ("most-recent-target", Box::new(MostRecent::default())),
        (
            "forerun",
            Box::new(Forerun::new(world, Recent { day: DAY }, policy)),
        ),
    ];
    let departures = nothing.departures.clone();
    let mut tallies = vec![("no-forecast", nothing)];
    for (name, keeper) in &mut keepers {
        tallies.push((name, replay::run(world, keeper.as_mut(), value)));
    }
    let oracles = ORACLE_SHARES
        .map(|share| replay::run(world, &mut Oracle::new(world, &departures, share), value));
    let oracle = oracles
        .into_iter()
        .min_by(|a, b| a.cost.total_cmp(&b.cost))
        .unwrap_or_default();
    tallies.push(("oracle", oracle.clone()));
    let over = |x: f64, y: f64| if y > 0.0 { x / y } else { 1.0 };
    let rows: Vec<Row> = tallies
        .into_iter()
        .map(|(keeper, tally)| Row {
            keeper,
            cost_with_delay: tally.cost + tally.delay_cost + of_move * waited(&tally),
            seeded_over_oracle: over(tally.seeded_bytes as f64, oracle.seeded_bytes as f64),
            cost_over_oracle: over(tally.cost, oracle.cost),
            tally,
        })
        .collect();
    let goals = match rows.as_slice() {
        [none, recent, ours, _] => {
            let better = |of: &dyn Fn(&Row) -> f64| of(ours) < of(none).min(of(recent));
            BTreeMap::from([
                ("at least 80% warm", ours.tally.warm_share >= 0.8),
                (
                    "seeded at most 1.5 times the oracle's",
                    ours.seeded_over_oracle <= 1.5,
                ),
                (
                    "cost under 1.3 times the oracle's",
                    ours.cost_over_oracle < 1.3,
                ),
                (
                    "more warm than both baselines",
                    better(&|r| -r.tally.warm_share),
                ),
                (
                    "cheaper than both baselines, with what waiting costs",
                    better(&|r| r.cost_with_delay),
                ),
                (
                    "cheaper than a copy at the most recent target, without",
                    ours.tally.cost < recent.tally.cost,
                ),
            ])
        }
        _ => BTreeMap::new(),
    };
    let pays_from = match rows.as_slice() {
        [none, _, ours, _] => {
            let dearer = ours.tally.cost - none.tally.cost;
            let saved = waited(&none.tally) - waited(&ours.tally);
            (saved > 0.0).then(|| (dearer / saved).max(0.0))
        }
        _ => None,
    };
    Report {
        pays_from,
        assumed: vec![
            format!(
                "{} VMs a home node, its capacity the {} quantile of its demand in the first week, \
                 which is history only",
                args.vms_per_node, args.capacity_quantile
            ),
            format!(
                "disks of {DISK_PER_MEMORY} times the memory and at least {DISK_LEAST_GIB} GiB: the \
                 traces have no disk sizes"
            ),
            format!(
                "announced maintenance of each node every week for {} h; unannounced every {} days, \
                 seed {}",
                MAINTENANCE.0 / 3600,
                SURPRISE_EVERY / 86_400,
                args.seed
            ),
            format!(
                "{} MB/s to each site, {} s for a new node, {} {} for each second that a migration \
                 waits and {} for each that has to",
                BANDWIDTH.0 / 1_000_000,
                PROVISION.0,
                policy.value_of_second,
                world.prices.currency,
                policy.value_of_move
            ),
            "copies rest on hosts where VMs run if these have room, else on a node of their own".into(),
            "forecasts are the windows of the last day and of the same time of earlier days, not the \
             controller's gate of experts"
                .into(),
        ],
        vms: world.vms.len(),
        nodes: world.nodes.len(),
        days: (world.steps - world.warm_up) / DAY,
        currency: world.prices.currency.clone(),
        keepers: rows,
        goals,
    }
}

/// Migrations that had to wait.
fn waited(tally: &Tally) -> f64 {
    tally.migrations.saturating_sub(tally.warm) as f64
}

fn world(args: &Args, series: Series, prices: Prices) -> Result<World, Failure> {
    let bad = |why: &str| Failure::usage(format!("replay {}: {why}", args.data.display()));
    if args.vms_per_node == 0 || !(0.0..=1.0).contains(&args.capacity_quantile) {
        return Err(bad(
            "at least one VM a node, and a capacity quantile from 0 to 1",
        ));
    }
    let first = series.values().filter_map(|s| s.keys().next()).min();
    let last = series.values().filter_map(|s| s.keys().next_back()).max();
    let (Some(&first), Some(&last)) = (first, last) else {
        return Err(bad("no samples in it"));
    };
    let steps = (last - first + 1) as usize;
    if steps < WEEK + DAY {
        return Err(bad("less than eight days: the first week is history only"));
    }
    let vms: Vec<Vm> = series
        .iter()
        .enumerate()
        .map(|(i, (name, samples))| vm(name, i / args.vms_per_node, samples, first, steps))
        .collect();
    let count = vms.len().div_ceil(args.vms_per_node);
    let sites = prices.sites().map(site).collect();
    let mut world = World {
        start: UnixTime(first * STEP),
        step: Seconds(STEP),
        warm_up: WEEK,
        steps,
        vms,
        nodes: Vec::new(),
        sites,
        prices,
        calendar: Calendar::default(),
        surprises: Calendar::default(),
    };
    for node in 0..count {
        let mut week: Vec<f64> = world.demand(node)[..WEEK].to_vec();
        week.sort_by(f64::total_cmp);
        let at = (args.capacity_quantile * (WEEK - 1) as f64) as usize;
        world.nodes.push(HomeNode {
            name: format!("home-{node}"),
            capacity: week[at],
        });
    }
    (world.calendar, world.surprises) = events(&world, args.seed);
    Ok(world)
}

fn site(name: &str) -> SiteView {
    SiteView {
        name: name.to_owned(),
        latency_ms: 10.0,
        bandwidth: BANDWIDTH,
        provision: PROVISION,
        quota: u32::MAX,
        shut: None,
    }
}

/// Each node on its own weekday at two in the morning; surprises at any time.
fn events(world: &World, seed: u64) -> (Calendar, Calendar) {
    let event = |node: usize, at: UnixTime, every| Event {
        name: format!("maintenance of home-{node}"),
        kind: EventKind::Maintenance,
        nodes: (world.at_home(node).map(|v| world.vms[v].name.clone()))
            .chain([world.nodes[node].name.clone()])
            .collect(),
        site: None,
        at,
        lasts: MAINTENANCE,
        every,
        until: None,
        probability: 1.0,
        load: 1.0,
    };
    let midnight = world.start.0 / 86_400 * 86_400;
    let announced = (0..world.nodes.len()).map(|n| {
        let day = 7 + n as u64 % 7;
        event(
            n,
            UnixTime(midnight + day * 86_400 + 2 * 3600),
            Some(Seconds(7 * 86_400)),
        )
    });
    let end = world.at(world.steps).0;
    let mut random = Random(seed);
    let mut surprises = Vec::new();
    let mut at = world.at(world.warm_up).0;
    while at < end {
        let node = random.below(world.nodes.len() as u64) as usize;
        surprises.push(event(
            node,
            UnixTime(at + random.below(SURPRISE_EVERY)),
            None,
        ));
        at += SURPRISE_EVERY;
    }
    (Calendar::of(announced.collect()), Calendar::of(surprises))
}

/// Any spread will do, and the same seed must give the same weeks: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Leave so many VMs, of all that there are if they are fewer.
fn draw(series: &mut Series, count: usize, random: &mut Random) {
    let mut names: Vec<u64> = series.keys().copied().collect();
    let count = count.min(names.len());
    for i in 0..count {
        let rest = (names.len() - i) as u64;
        names.swap(i, i + random.below(rest) as usize);
    }
    series.retain(|name, _| names[..count].contains(name));
}

/// Copies of one home share a node, so what one costs is not known before all are: the cheapest wins.
const ORACLE_SHARES: [f64; 4] = [1.0, 0.5, 0.2, 0.0];

struct Sample {
    cpu: f64,
    writes: f64,
    cpus: f64,
    memory_kb: f64,
}

type Series = BTreeMap<u64, BTreeMap<u64, Sample>>;

/// Gaps are filled with the last value.
fn vm(name: &u64, home: usize, samples: &BTreeMap<u64, Sample>, first: u64, steps: usize) -> Vm {
    let (mut cpu, mut writes) = (Vec::with_capacity(steps), Vec::with_capacity(steps));
    let mut last = (0.0, 0.0);
    for t in 0..steps as u64 {
        if let Some(s) = samples.get(&(first + t)) {
            last = (s.cpu, s.writes);
        }
        cpu.push(last.0);
        writes.push(last.1);
    }
    let cpus = samples.values().map(|s| s.cpus).fold(1.0, f64::max);
    let memory_gib = samples.values().map(|s| s.memory_kb).fold(0.0, f64::max) / f64::from(1 << 20);
    Vm {
        name: format!("vm-{name}"),
        home,
        cpu,
        writes,
        cpus,
        memory_gib,
        disk: Bytes::from_gib((DISK_PER_MEMORY * memory_gib).max(DISK_LEAST_GIB)),
    }
}

fn load(dir: &Path) -> Result<Series, Failure> {
    let fail =
        |e: &dyn std::fmt::Display| Failure::new(format!("read series in {}: {e}", dir.display()));
    let mut series = Series::new();
    for (name, text) in samples::all(dir)? {
        parse(&text, &mut series).map_err(|e| fail(&format!("{name}: {e}")))?;
    }
    if series.is_empty() {
        return Err(fail(&"no samples in its files"));
    }
    Ok(series)
}

fn parse(text: &str, series: &mut Series) -> Result<(), String> {
    let mut lines = text.lines().enumerate();
    let (_, head) = lines.next().ok_or("it is empty")?;
    let column = |name: &str| {
        let found = head
            .split(',')
            .position(|c| c.trim().split('(').next() == Some(name));
        found.ok_or(format!("no column {name} in its first line"))
    };
    // a unit in parentheses may follow a name
    let names = ["vm", "ts", "cores", "cpu_mhz", "mem_cap_kb", "wr_kbs"];
    let columns = names.map(column);
    for (i, line) in lines {
        let cells: Vec<&str> = line.split(',').collect();
        let mut values = [0.0; 6];
        for (value, column) in values.iter_mut().zip(&columns) {
            let cell = cells.get(*column.as_ref().map_err(Clone::clone)?);
            *value = cell
                .and_then(|c| c.trim().parse().ok())
                .filter(|v: &f64| v.is_finite() && *v >= 0.0)
                .ok_or(format!("line {} is no sample", i + 1))?;
        }
        let [vm, at, cpus, cpu, memory_kb, written] = values;
        let sample = Sample {
            cpu,
            writes: written * 1024.0,
            cpus,
            memory_kb,
        };
        // two samples in one step: the later one counts
        series
            .entry(vm as u64)
            .or_default()
            .insert(at as u64 / STEP, sample);
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|e| Failure::new(format!("read {}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_land_on_the_grid_and_gaps_are_filled() {
        let mut s = Series::new();
        let text = "vm,ts(s),cores,cpu_mhz,mem_cap_kb,wr_kbs\n7,300,2,10,1048576,1\n7,1201,2,30,1048576,2\n";
        parse(text, &mut s).unwrap();
        let v = vm(&7, 0, &s[&7], 1, 5);
        assert_eq!(v.cpu, [10.0, 10.0, 10.0, 30.0, 30.0]);
        assert_eq!((v.cpus, v.memory_gib), (2.0, 1.0));
        assert_eq!(v.disk, Bytes::from_gib(20.0));
    }

    #[test]
    fn the_same_vms_are_drawn_again_and_others_with_another_seed() {
        let drawn = |seed, count| {
            let mut s: Series = (0..30).map(|vm| (vm, BTreeMap::new())).collect();
            draw(&mut s, count, &mut Random(seed));
            s.into_keys().collect::<Vec<u64>>()
        };
        assert_eq!(drawn(1, 10).len(), 10);
        assert_eq!(drawn(1, 10), drawn(1, 10));
        assert_ne!(drawn(1, 10), drawn(2, 10));
        assert_eq!(drawn(1, 99), drawn(2, 30));
    }

    #[test]
    fn bad_files_say_where() {
        let mut s = Series::new();
        assert!(
            parse("vm,ts(s)\n1,2\n", &mut s)
                .unwrap_err()
                .contains("cores")
        );
        let text = "vm,ts(s),cores,cpu_mhz,mem_cap_kb,wr_kbs\n7,300,2,NaN,1,1\n";
        assert!(parse(text, &mut s).unwrap_err().contains("line 2"));
    }
}
