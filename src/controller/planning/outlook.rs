//! From the history to what the planner asks of it: distributions of demand over windows, and of what a
//! node's volumes need where they go.
//!
//! ```text
//! Kept ─► a node's processors and memory ───────────────► cycle ─► maxima over five windows
//!      └► what guests do with the volumes at home there ─► cycle ─► four hours' workload ─┐
//!                        └────────────► regressions, fitted anew ────────────────────────┴► needs
//! Learned ◄─► what each forecast learned
//! ```
//!
//! A workload is summed over the volumes that are at home on a node now, all through the past, so that
//! a volume that came yesterday is no rise of the others' load. Nothing is kept in memory between two
//! cycles: the same files give the same answer, in another process too.

use super::ingest::{of_node, of_vm, of_volume};
use crate::history::{Kept, Key, Learned, Metric, Part, Span};
use crate::planner::{Distribution, Seconds, UnixTime, WINDOWS, Windows};
use crate::predict::cycle::{self, Limits, Task};
use crate::predict::quantile::{LEVELS, Quantiles};
use crate::predict::requirement::{Requirement, Resource};
use crate::predict::series::LEAST_SAMPLES;
use crate::predict::{Memory, Sample, Series};
use node::{Error, ErrorKind, Result};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The window for which needs are stated: four hours of five minutes.
const NEEDED: usize = WINDOWS[2];
/// Series that are learned from nothing in one cycle: each takes some two hundred milliseconds of a core,
/// and a cycle in which a whole fleet is new must not take a minute. The others are forecast by all
/// experts alike until a later cycle.
const NEWCOMERS: usize = 200;
/// Samples that regressions are fitted to: a week of five minutes.
const FITTED: usize = 2016;
/// A resource of whose variance the workload explains less is forecast by itself: its own past says
/// more than the line does.
const EXPLAINS: f64 = 0.5;
/// Samples that say what is written lately, where nothing can be fitted: an hour of five minutes.
const LATELY: usize = 12;
/// Samples of a node's load that are looked back at to see how right a prediction was.
const RECENT: usize = 576;

/// What guests do: the columns of the regressions.
const WORKLOAD: [Metric; 4] = [
    Metric::Reads,
    Metric::Writes,
    Metric::DiskRead,
    Metric::DiskWrite,
];

/// Where the past is, and on which grid.
pub(super) struct Past<'a> {
    pub kept: &'a Kept,
    pub learned: &'a Learned,
    pub period: Seconds,
    pub day: Seconds,
    /// How far back is looked.
    pub span: i64,
    /// The share above which a node is short of something.
    pub limit: f64,
}

/// A node, and the volumes at home there.
pub(super) struct Home {
    pub node: String,
    /// Its processors and its bytes of memory; none before it has said.
    pub capacity: Option<[f64; 2]>,
    pub volumes: Vec<String>,
    /// The VMs whose disks they are, one for each; empty where nobody measures VMs.
    pub vms: Vec<String>,
    /// Files in place of what it says of its processors and memory, as shares.
    pub files: [Option<Series>; 2],
}

/// What is forecast of one node.
#[derive(Clone, Default)]
pub(super) struct Demand {
    /// The scarcer of processors and memory, as shares.
    pub windows: Windows,
    /// The larger share of both at each time lately.
    pub recent: Vec<(UnixTime, f64)>,
    /// The newest shares.
    pub newest: [Option<f64>; 2],
    /// What its volumes need where they go; what is not known is left out.
    pub needs: BTreeMap<Resource, Need>,
    pub notes: Vec<String>,
}

/// What is needed of one resource.
#[derive(Clone, Debug)]
pub(super) struct Need {
    /// Over the next four hours of five minutes.
    pub most: Distribution,
    /// What was used lately, on average.
    pub lately: f64,
    /// Share of the resource's variance that the workload explains; none where it has a forecast of its
    /// own.
    pub explained: Option<f64>,
}

/// A need at the quantile of shapes, as a plan shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(in crate::controller) struct Stated {
    pub resource: &'static str,
    pub unit: &'static str,
    pub quantile: f64,
    pub amount: f64,
    /// Where it comes from: `workload`, or `itself`.
    pub from: &'static str,
    pub explained: Option<f64>,
}

impl Demand {
    /// The needs as a plan shows them.
    pub fn stated(&self, quantile: f64) -> Vec<Stated> {
        let each = self.needs.iter().map(|(resource, need)| {
            let (resource, unit, scale) = match resource {
                Resource::Cpu => ("cpu", "cores", 1.0),
                Resource::Memory => ("memory", "GiB", 1.0 / f64::from(1 << 30)),
                Resource::DiskBandwidth => ("disk", "MiB/s", 1.0 / f64::from(1 << 20)),
                Resource::ReplicationBandwidth => {
                    ("replication", "MiB/s", 1.0 / f64::from(1 << 20))
                }
                Resource::DirtyRate => ("dirty", "MiB/s", 1.0 / f64::from(1 << 20)),
            };
            Stated {
                resource,
                unit,
                quantile,
                amount: need.most.quantile(quantile) * scale,
                from: match need.explained {
                    Some(_) => "workload",
                    None => "itself",
                },
                explained: need.explained,
            }
        });
        each.collect()
    }
}

/// A home's past on the grid, missing where nothing was measured.
struct Rows {
    /// Processors and memory.
    own: [Vec<f64>; 2],
    disk: Vec<f64>,
    /// Of its VMs, and which of them were ever measured.
    guests: [Vec<f64>; 2],
    guests_seen: HashSet<String>,
    workload: [Vec<f64>; WORKLOAD.len()],
    dirtied: Vec<f64>,
    replicated: Vec<f64>,
}

impl Rows {
    fn new(points: usize) -> Rows {
        let none = || vec![f64::NAN; points];
        Rows {
            own: [none(), none()],
            disk: none(),
            guests: [none(), none()],
            guests_seen: HashSet::new(),
            workload: std::array::from_fn(|_| none()),
            dirtied: none(),
            replicated: none(),
        }
    }
}

impl Rows {
    /// The sum of two parts.
    fn add(&mut self, part: Rows) {
        let Rows {
            own,
            disk,
            guests,
            guests_seen,
            workload,
            dirtied,
            replicated,
        } = part;
        let mine = (self.own.iter_mut())
            .chain(&mut self.guests)
            .chain(&mut self.workload)
            .chain([&mut self.disk, &mut self.dirtied, &mut self.replicated]);
        let theirs =
            (own.iter())
                .chain(&guests)
                .chain(&workload)
                .chain([&disk, &dirtied, &replicated]);
        for (sum, value) in mine.flatten().zip(theirs.flatten()) {
            if value.is_finite() {
                add(sum, *value);
            }
        }
        self.guests_seen.extend(guests_seen);
    }
}

/// Adds to a sum that is missing before the first.
fn add(sum: &mut f64, value: f64) {
    *sum = value + if sum.is_finite() { *sum } else { 0.0 };
}

/// Whose samples a series has.
enum Owner {
    Node(usize),
    Volume(usize),
    Vm(usize, String),
}

/// The grid on which all is laid.
#[derive(Clone, Copy)]
struct Grid {
    first: i64,
    last: i64,
    step: i64,
    day: u32,
}

impl Grid {
    fn points(self) -> usize {
        ((self.last - self.first) / self.step + 1).max(1) as usize
    }

    fn samples(self, row: &[f64]) -> Vec<Sample> {
        let at = |i: usize| self.first + i as i64 * self.step;
        let known = row.iter().enumerate().filter(|(_, v)| v.is_finite());
        known.map(|(i, v)| (at(i), *v)).collect()
    }

    fn series(self, row: &[f64]) -> std::result::Result<Series, String> {
        let mut series = Series::up_to(&self.samples(row), self.step as u32, self.last)
            .map_err(|e| e.to_string())?;
        series.day_seconds = self.day;
        Ok(series)
    }
}

/// What is asked of the forecasts: of a home, processors, memory or a column of its workload.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Asked {
    home: usize,
    what: What,
    steps: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum What {
    Own(usize),
    Workload(usize),
}

impl What {
    fn name(self) -> &'static str {
        match self {
            What::Own(0) => "cpu",
            What::Own(_) => "memory",
            What::Workload(c) => WORKLOAD[c].name(),
        }
    }
}

/// Under which name is kept what was learned.
fn name_of(node: &str, what: What, steps: usize) -> String {
    format!("{steps}/{}/{node}", what.name())
}

/// What plans learned of a node's metric over one of their windows; nothing where they do not look at it.
/// Blocks on the disk.
pub(super) fn learned(
    learned: &Learned,
    node: &str,
    metric: Metric,
    steps: usize,
) -> Result<Option<Memory>> {
    let what = match metric {
        Metric::Cpu => What::Own(0),
        Metric::Memory => What::Own(1),
        _ => return Ok(None),
    };
    if !WINDOWS.contains(&steps) {
        return Ok(None);
    }
    learned.read(&name_of(node, what, steps))
}

fn lock<T>(all: &Mutex<T>) -> MutexGuard<'_, T> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Look ahead for every home, by node. Blocks on the disk and takes all of `threads`. With `learn`,
/// what was learned is stored.
pub(super) fn look(
    past: &Past<'_>,
    homes: &[Home],
    now: UnixTime,
    threads: NonZeroUsize,
    learn: bool,
) -> Result<BTreeMap<String, Demand>> {
    let step = past.period.0.max(1) as i64;
    let last = now.0 as i64 / step * step;
    let grid = Grid {
        first: last - past.span / step * step,
        last,
        step,
        day: u32::try_from(past.day.0).unwrap_or(u32::MAX),
    };
    let rows = gather(past.kept, homes, grid, threads)?;
    let mut demands: BTreeMap<String, Demand> = BTreeMap::new();
    let mut series: BTreeMap<(usize, What), Series> = BTreeMap::new();
    for (h, (home, rows)) in homes.iter().zip(&rows).enumerate() {
        let mut demand = Demand {
            recent: recent(home, rows, grid),
            ..Demand::default()
        };
        for i in [0, 1] {
            let found = match &home.files[i] {
                Some(file) => Ok(file.clone()),
                None => grid.series(&rows.own[i]),
            };
            let word = What::Own(i).name();
            match found {
                Ok(found) => {
                    demand.newest[i] = found.values.last().map(|v| v / whole(home, i));
                    series.insert((h, What::Own(i)), found);
                }
                Err(why) => demand.notes.push(format!(
                    "node {}, {word}: {why}: only events count",
                    home.node
                )),
            }
        }
        for c in 0..WORKLOAD.len() {
            if let Ok(found) = grid.series(&rows.workload[c]) {
                series.insert((h, What::Workload(c)), found);
            }
        }
        demands.insert(home.node.clone(), demand);
    }
    let maxima = forecast(past, homes, &series, threads, learn)?;
    for (h, (home, rows)) in homes.iter().zip(&rows).enumerate() {
        let Some(demand) = demands.get_mut(&home.node) else {
            continue; // each was put there above
        };
        let windows = |i: usize, whole: f64| {
            let of = |steps: usize| {
                let what = What::Own(i);
                let most = maxima.get(&Asked {
                    home: h,
                    what,
                    steps,
                })?;
                let most = distribution(most)?.scaled(1.0 / whole);
                Some((Seconds(steps as u64 * past.period.0), most))
            };
            Windows::new(WINDOWS.into_iter().filter_map(of).collect())
        };
        let [cpu, memory] = [0, 1].map(|i| windows(i, whole(home, i)));
        needs(demand, home, h, rows, &maxima);
        demand.windows = if risk(&memory, past.limit) > risk(&cpu, past.limit) {
            memory
        } else {
            cpu
        };
    }
    Ok(demands)
}

/// What a share is of: a file's are shares already.
fn whole(home: &Home, i: usize) -> f64 {
    match (&home.files[i], home.capacity) {
        (None, Some(capacity)) if capacity[i] > 0.0 => capacity[i],
        _ => 1.0,
    }
}

/// The chance that the limit is passed within the longest window.
fn risk(windows: &Windows, limit: f64) -> f64 {
    let most = windows.lengths().last().and_then(|l| windows.over(l));
    most.map_or(0.0, |most| most.exceed(limit))
}

fn distribution(quantiles: &Quantiles) -> Option<Distribution> {
    Distribution::new(LEVELS.into_iter().zip(*quantiles)).ok()
}

/// The homes' pasts, read once, by all threads: unpacking a month of a large fleet takes most of a cycle.
fn gather(kept: &Kept, homes: &[Home], grid: Grid, threads: NonZeroUsize) -> Result<Vec<Rows>> {
    let mut owners: HashMap<String, Vec<Owner>> = HashMap::new();
    for (h, home) in homes.iter().enumerate() {
        if home.capacity.is_none() {
            continue; // a share of what is not known
        }
        let mut own = |machine: String, owner| owners.entry(machine).or_default().push(owner);
        own(of_node(&home.node), Owner::Node(h));
        for volume in &home.volumes {
            own(of_volume(volume), Owner::Volume(h));
        }
        // one VM may have several volumes
        for vm in home.vms.iter().collect::<HashSet<_>>() {
            own(of_vm(vm), Owner::Vm(h, vm.clone()));
        }
    }
    let read = |part| gather_part(kept, &owners, homes.len(), grid, part);
    let of = threads.get();
    let parts: Vec<_> = std::thread::scope(|scope| {
        let spawn = |index| scope.spawn(move || read(Part { index, of }));
        let started: Vec<_> = (0..of).map(spawn).collect();
        started.into_iter().map(|part| part.join()).collect()
    });
    let mut whole: Option<Vec<Rows>> = None;
    for part in parts {
        let part = part.map_err(|_| {
            Error::new(ErrorKind::Broken, "read the history: a thread of it ended")
        })??;
        match &mut whole {
            None => whole = Some(part),
            Some(whole) => {
                for (sum, part) in whole.iter_mut().zip(part) {
                    sum.add(part);
                }
            }
        }
    }
    Ok(whole.unwrap_or_default())
}

/// What one part of the history says of every home.
fn gather_part(
    kept: &Kept,
    owners: &HashMap<String, Vec<Owner>>,
    homes: usize,
    grid: Grid,
    part: Part,
) -> Result<Vec<Rows>> {
    let mut rows: Vec<Rows> = (0..homes).map(|_| Rows::new(grid.points())).collect();
    let span = Span {
        from: grid.first,
        to: grid.last,
        step: grid.step as u32,
    };
    for found in kept.walk_part(span, part, |key| owners.contains_key(&key.machine))? {
        let (Key { machine, metric }, samples) = found?;
        for owner in owners.get(&machine).into_iter().flatten() {
            let (Owner::Node(h) | Owner::Volume(h) | Owner::Vm(h, _)) = *owner;
            let home = &mut rows[h];
            let row = match (owner, metric) {
                (Owner::Node(_), Metric::Cpu) => &mut home.own[0],
                (Owner::Node(_), Metric::Memory) => &mut home.own[1],
                (Owner::Node(_), Metric::DiskRead | Metric::DiskWrite) => &mut home.disk,
                (Owner::Vm(_, vm), Metric::Cpu) => {
                    home.guests_seen.insert(vm.clone());
                    &mut home.guests[0]
                }
                (Owner::Vm(..), Metric::Memory) => &mut home.guests[1],
                (Owner::Volume(_), Metric::Dirtied) => &mut home.dirtied,
                (Owner::Volume(_), Metric::Replicated) => &mut home.replicated,
                (Owner::Volume(_), metric) => match WORKLOAD.iter().position(|m| *m == metric) {
                    Some(c) => &mut home.workload[c],
                    None => continue,
                },
                _ => continue,
            };
            for (at, value) in &samples {
                add(&mut row[((at - grid.first) / grid.step) as usize], *value);
            }
        }
    }
    Ok(rows)
}

fn recent(home: &Home, rows: &Rows, grid: Grid) -> Vec<(UnixTime, f64)> {
    let points = grid.points();
    let shares = (points.saturating_sub(RECENT)..points).filter_map(|i| {
        let share = |m: usize| {
            let value = match &home.files[m] {
                // its last value is that of now
                Some(file) => *file
                    .values
                    .get((file.values.len() + i).checked_sub(points)?)?,
                None => rows.own[m][i],
            };
            let known = home.files[m].is_some() || home.capacity.is_some();
            Some(value / whole(home, m)).filter(|s| known && s.is_finite())
        };
        let most = share(0).into_iter().chain(share(1)).reduce(f64::max)?;
        Some((UnixTime((grid.first + i as i64 * grid.step) as u64), most))
    });
    shares.collect()
}

/// The maxima that are asked for. Windows longer than half of what is known are left out: nothing of
/// that length was ever seen.
fn forecast(
    past: &Past<'_>,
    homes: &[Home],
    series: &BTreeMap<(usize, What), Series>,
    threads: NonZeroUsize,
    learn: bool,
) -> Result<BTreeMap<Asked, Quantiles>> {
    let named = |asked: &Asked| name_of(&homes[asked.home].node, asked.what, asked.steps);
    let mut all = Vec::new();
    let mut wanted = HashSet::new();
    for home in 0..homes.len() {
        let own = [0, 1]
            .into_iter()
            .flat_map(|i| WINDOWS.map(|w| (What::Own(i), w)));
        let load = (0..WORKLOAD.len()).map(|c| (What::Workload(c), NEEDED));
        for (what, steps) in own.chain(load) {
            let asked = Asked { home, what, steps };
            // remembered also while the node is silent
            wanted.insert(named(&asked));
            let known = series.get(&(home, what)).map_or(0, |s| s.values.len());
            let is_own = matches!(what, What::Own(_));
            if known >= LEAST_SAMPLES && (steps * 2 <= known || !is_own) {
                all.push(asked);
            }
        }
    }
    let trouble = Mutex::new(None);
    let tasks = all.into_iter().filter_map(|asked| {
        let memory = past.learned.read(&named(&asked)).unwrap_or_else(|e| {
            *lock(&trouble) = Some(e);
            None
        });
        Some(Task {
            history: series.get(&(asked.home, asked.what))?.clone(),
            memory,
            horizon: asked.steps,
            key: asked,
        })
    });
    let limits = Limits {
        threads,
        replays: NEWCOMERS,
    };
    let found = Mutex::new((BTreeMap::new(), Vec::new()));
    cycle::cycle(tasks, limits, |foresight| {
        let record = (learn && foresight.store)
            .then(|| (named(&foresight.key), Memory::to_bytes(&foresight.memory)));
        let mut found = lock(&found);
        found.0.insert(foresight.key, foresight.forecast.window_max);
        found.1.extend(record);
    });
    if let Some(e) = lock(&trouble).take() {
        return Err(e);
    }
    let (maxima, records) = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    if learn {
        past.learned.write(&records, &wanted)?;
    }
    Ok(maxima)
}

/// What the volumes of a home need: from the workload where that explains it, else from the resource's
/// own forecast.
fn needs(
    demand: &mut Demand,
    home: &Home,
    h: usize,
    rows: &Rows,
    maxima: &BTreeMap<Asked, Quantiles>,
) {
    let workload: Option<Vec<Quantiles>> = (0..WORKLOAD.len())
        .map(|c| {
            let what = What::Workload(c);
            let steps = NEEDED;
            maxima
                .get(&Asked {
                    home: h,
                    what,
                    steps,
                })
                .copied()
        })
        .collect();
    let has_guests =
        !home.vms.is_empty() && home.vms.iter().all(|vm| rows.guests_seen.contains(vm));
    let used = |i: usize| {
        if has_guests {
            &rows.guests[i]
        } else {
            &rows.own[i]
        }
    };
    for (resource, row) in [
        (Resource::Cpu, used(0)),
        (Resource::Memory, used(1)),
        (Resource::DiskBandwidth, &rows.disk),
        (Resource::ReplicationBandwidth, &rows.replicated),
        (Resource::DirtyRate, &rows.dirtied),
    ] {
        let first = row.len().saturating_sub(FITTED);
        let pairs: Vec<(Vec<f64>, f64)> = (first..row.len())
            .map(|i| {
                (
                    rows.workload.iter().map(|column| column[i]).collect(),
                    row[i],
                )
            })
            .filter(|(columns, used): &(Vec<f64>, f64)| {
                used.is_finite() && columns.iter().all(|v| v.is_finite())
            })
            .collect();
        let lately = lately(row);
        let fitted = (workload.as_ref().zip(Requirement::fit(&pairs).ok()))
            .filter(|(_, fitted)| fitted.explained >= EXPLAINS)
            .and_then(|(workload, fitted)| {
                let most = distribution(&fitted.needed(workload))?;
                Some((most, Some(fitted.explained)))
            });
        let own = || {
            let i = match resource {
                Resource::Cpu => 0,
                Resource::Memory => 1,
                _ => return empirical(row),
            };
            if has_guests {
                return empirical(row);
            }
            // the window that covers four hours
            let what = What::Own(i);
            let windows = WINDOWS.into_iter();
            let mut known = windows.filter_map(|steps| {
                let most = maxima.get(&Asked {
                    home: h,
                    what,
                    steps,
                })?;
                Some((steps, most))
            });
            let most = known.clone().find(|(steps, _)| *steps >= NEEDED);
            let most = most.or(known.next_back())?.1;
            let whole = home.capacity?[i] / whole(home, i);
            Some(distribution(most)?.scaled(whole))
        };
        let need = fitted.or_else(|| Some((own()?, None)));
        if let Some((most, explained)) = need {
            demand.needs.insert(
                resource,
                Need {
                    most,
                    lately,
                    explained,
                },
            );
        }
    }
}

fn lately(row: &[f64]) -> f64 {
    let known = row.iter().rev().filter(|v| v.is_finite()).take(LATELY);
    let (sum, count) = known.fold((0.0, 0.0), |(sum, count), v| (sum + v, count + 1.0));
    sum / f64::max(count, 1.0)
}

/// What was used in the past that is fitted, where nothing better is known.
fn empirical(row: &[f64]) -> Option<Distribution> {
    let first = row.len().saturating_sub(FITTED);
    let mut known: Vec<f64> = row[first..]
        .iter()
        .copied()
        .filter(|v| v.is_finite())
        .collect();
    if known.len() < LEAST_SAMPLES {
        return None;
    }
    distribution(&crate::predict::quantile::of_sample(&mut known))
}

#[cfg(test)]
#[path = "outlook_tests.rs"]
mod tests;
