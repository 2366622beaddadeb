//! Four ways to decide which copies to keep.

use super::super::{
    Action, Ask, Bytes, Commitments, Distribution, Held, Input, Mode, Policy, Seconds, Subject,
    Windows, plan,
};
use super::run::{Departure, View};
use super::world::World;
use std::collections::{BTreeMap, BTreeSet};

/// Decides which copies there shall be.
pub trait Keeper {
    /// The copies wanted from this step on, as VM and site.
    fn wanted(&mut self, view: &View<'_>) -> BTreeSet<(usize, usize)>;

    /// Whether, of the VMs that could leave, those with a warm copy go first.
    fn prefers_warm(&self) -> bool {
        true
    }
}

/// Foresees the maximum of a node's demand over the next steps from what came before.
pub trait Forecaster {
    /// `past` ends with the present value.
    fn window_max(&mut self, node: usize, past: &[f64], steps: usize) -> Option<Distribution>;
}

/// Keeps nothing.
pub struct Nothing;

impl Keeper for Nothing {
    fn wanted(&mut self, _: &View<'_>) -> BTreeSet<(usize, usize)> {
        BTreeSet::new()
    }

    fn prefers_warm(&self) -> bool {
        false
    }
}

/// Keeps a copy wherever a VM has been last.
#[derive(Default)]
pub struct MostRecent(BTreeMap<usize, usize>);

impl Keeper for MostRecent {
    fn wanted(&mut self, view: &View<'_>) -> BTreeSet<(usize, usize)> {
        self.0.extend(view.away);
        self.0.iter().map(|(vm, site)| (*vm, *site)).collect()
    }
}

/// Knows every departure.
pub struct Oracle {
    /// For each copy, from which step to which it is wanted.
    spans: Vec<(usize, usize, usize, usize)>,
}

impl Oracle {
    /// From the departures of a replay in which nothing was kept.
    #[must_use]
    pub fn new(world: &World, departures: &[Departure]) -> Oracle {
        let mut by_vm: BTreeMap<usize, Vec<Departure>> = BTreeMap::new();
        for d in departures {
            by_vm.entry(d.vm).or_default().push(*d);
        }
        let mut spans = Vec::new();
        for (vm, mut departures) in by_vm {
            departures.sort_by_key(|d| d.at);
            let only: BTreeSet<usize> = [vm].into();
            let site = world.cheapest_site(&only);
            let mut last: Option<usize> = None;
            for d in departures {
                let begin = d.at.saturating_sub(Oracle::lead(world, site, &only, d.at));
                match last {
                    Some(i) if Oracle::keeping_pays(world, site, vm, spans[i], begin) => {
                        spans[i].3 = d.until
                    }
                    _ => {
                        last = Some(spans.len());
                        spans.push((vm, site, begin, d.until));
                    }
                }
            }
        }
        Oracle { spans }
    }

    /// Steps before a departure at which its copy must begin: all VMs of the node may leave at once
    /// and share the bandwidth.
    fn lead(world: &World, site: usize, only: &BTreeSet<usize>, _at: usize) -> usize {
        let home = only.iter().next().map_or(0, |v| world.vms[*v].home);
        let all: Bytes = world.at_home(home).map(|v| world.vms[v].disk).sum();
        let site = &world.sites[site];
        let seconds = site.provision + site.bandwidth.time_for(all);
        seconds.0.div_ceil(world.step.0) as usize + 1
    }

    /// Whether keeping from one departure's end to the next one's beginning is cheaper than sending
    /// it all again.
    fn keeping_pays(
        world: &World,
        site: usize,
        vm: usize,
        span: (usize, usize, usize, usize),
        next: usize,
    ) -> bool {
        if next <= span.3 {
            return true;
        }
        let Ok(prices) = world.prices.site(&world.sites[site].name) else {
            return false;
        };
        let gap = Seconds((next - span.3) as u64 * world.step.0);
        let written: f64 = (span.3..next).map(|t| world.dirtied(vm, t)).sum();
        let keep = world.node_hour(site, &[vm].into()).0 * gap.hours()
            + prices.storage(world.vms[vm].disk, gap).0
            + prices.egress(Bytes(written as u64)).0;
        keep < prices.egress(world.vms[vm].disk).0
    }
}

impl Keeper for Oracle {
    fn wanted(&mut self, view: &View<'_>) -> BTreeSet<(usize, usize)> {
        (self.spans.iter())
            .filter(|(_, _, from, to)| (*from..*to).contains(&view.step))
            .map(|(vm, site, _, _)| (*vm, *site))
            .collect()
    }

    fn prefers_warm(&self) -> bool {
        false
    }
}

/// The planner with a forecaster.
pub struct Forerun<F> {
    forecaster: F,
    policy: Policy,
    commitments: Commitments,
    held: BTreeMap<String, BTreeSet<usize>>,
    demand: Vec<Vec<f64>>,
    /// For each node: found once, used as it becomes past.
    overloads: Vec<Vec<Overload>>,
    wanted: BTreeSet<(usize, usize)>,
}

/// Past overloads that say who will leave in the next.
const OVERLOADS: usize = 5;
/// Windows that are forecast, in steps.
const WINDOWS: [usize; 5] = [6, 12, 36, 96, 192];

impl<F: Forecaster> Forerun<F> {
    /// Plan a world.
    #[must_use]
    pub fn new(world: &World, forecaster: F, policy: Policy) -> Forerun<F> {
        let demand: Vec<Vec<f64>> = (0..world.nodes.len()).map(|n| world.demand(n)).collect();
        let overloads = (0..world.nodes.len())
            .map(|n| overloads(world.nodes[n].capacity, &demand[n]))
            .collect();
        Forerun {
            forecaster,
            policy: Policy {
                mode: Mode::Auto,
                ..policy
            },
            commitments: Commitments::default(),
            held: BTreeMap::new(),
            demand,
            overloads,
            wanted: BTreeSet::new(),
        }
    }

    /// Who would leave a node that runs out: the fewest VMs that would have relieved it at the peaks
    /// of its latest overloads.
    fn likely(&self, world: &World, node: usize, step: usize) -> BTreeSet<usize> {
        let past = self.overloads[node].iter().rev().filter(|o| o.from <= step);
        let mut peaks: Vec<usize> = past.take(OVERLOADS).map(|o| o.peak_by(step)).collect();
        let capacity = world.nodes[node].capacity;
        let demand = &self.demand[node];
        let mut likely = BTreeSet::new();
        while !peaks.is_empty() {
            let relieves = |vm: usize, t: &usize| world.vms[vm].cpu[*t] >= demand[*t] - capacity;
            let covered = |vm: &usize| peaks.iter().filter(|t| relieves(*vm, t)).count();
            let smallest_last = |vm: &usize| (covered(vm), std::cmp::Reverse(world.vms[*vm].disk));
            match world.at_home(node).max_by_key(smallest_last) {
                Some(vm) if covered(&vm) > 0 => {
                    peaks.retain(|t| !relieves(vm, t));
                    likely.insert(vm);
                }
                // nobody alone is enough for these
                _ => {
                    for t in std::mem::take(&mut peaks) {
                        let home = world.at_home(node).collect();
                        likely.extend(world.shed(node, t, home, &likely.clone()));
                    }
                }
            }
        }
        likely
    }

    fn subject(
        &mut self,
        view: &View<'_>,
        name: &str,
        vms: BTreeSet<usize>,
        windows: Windows,
        node: usize,
    ) -> Subject {
        let world = view.world;
        let mut vms = vms;
        if self.commitments.get(name).is_some() {
            vms.extend(self.held.get(name).into_iter().flatten());
        }
        let copies = (0..world.sites.len()).filter_map(|site| {
            let lacking = vms
                .iter()
                .map(|v| view.copies.get(&(*v, site)).map(|c| c.missing));
            let lacking: f64 = lacking.sum::<Option<f64>>()?;
            let held = Held {
                behind: Bytes(lacking as u64),
                node_hour: world.node_hour(site, &vms),
            };
            Some((world.sites[site].name.clone(), held))
        });
        let subject = Subject {
            name: name.to_owned(),
            site: "home".into(),
            windows,
            capacity: world.nodes[node].capacity,
            moving: vms
                .iter()
                .map(|v| Ask {
                    volume: world.vms[*v].name.clone(),
                    bytes: world.vms[*v].disk,
                    ..Ask::default()
                })
                .collect(),
            need: world.need(&vms),
            copies: copies.collect(),
            idle_since: (view.calm_since[node])
                .filter(|_| !vms.iter().any(|v| view.away.contains_key(v)))
                .map(|s| world.at(s)),
        };
        self.held.insert(name.to_owned(), vms);
        subject
    }
}

/// A time at which a node's demand was above its capacity.
struct Overload {
    from: usize,
    /// Steps at which the demand was higher than ever before in it.
    records: Vec<usize>,
}

impl Overload {
    /// Its peak as far as it is past.
    fn peak_by(&self, step: usize) -> usize {
        let seen = self.records.iter().rev().find(|t| **t <= step);
        seen.copied().unwrap_or(self.from)
    }
}

fn overloads(capacity: f64, demand: &[f64]) -> Vec<Overload> {
    let mut found: Vec<Overload> = Vec::new();
    let mut last_above = None;
    for (step, d) in demand.iter().enumerate().filter(|(_, d)| **d > capacity) {
        match found.last_mut() {
            Some(o) if last_above == step.checked_sub(1) => {
                if o.records.last().is_some_and(|r| demand[*r] < *d) {
                    o.records.push(step);
                }
            }
            _ => found.push(Overload {
                from: step,
                records: vec![step],
            }),
        }
        last_above = Some(step);
    }
    found
}

impl<F: Forecaster> Keeper for Forerun<F> {
    fn wanted(&mut self, view: &View<'_>) -> BTreeSet<(usize, usize)> {
        let world = view.world;
        let every = (self.policy.cycle_seconds / world.step.0).max(1) as usize;
        if !view.step.is_multiple_of(every) {
            return self.wanted.clone();
        }
        let mut subjects = Vec::new();
        for node in 0..world.nodes.len() {
            let past = &self.demand[node][..=view.step];
            let windows = WINDOWS.iter().filter_map(|steps| {
                let max = self.forecaster.window_max(node, past, *steps)?;
                Some((Seconds(*steps as u64 * world.step.0), max))
            });
            let windows = Windows::new(windows.collect());
            let name = world.nodes[node].name.clone();
            let likely = self.likely(world, node, view.step);
            if !likely.is_empty() {
                subjects.push(self.subject(view, &format!("{name} load"), likely, windows, node));
            }
            let all = world.at_home(node).collect();
            subjects.push(self.subject(view, &name, all, Windows::default(), node));
        }
        let input = Input {
            now: world.at(view.step),
            subjects: &subjects,
            sites: &world.sites,
            nodes: &[],
            calendar: &world.calendar,
            prices: &world.prices,
            policy: &self.policy,
        };
        let plan = plan(&input, &mut self.commitments);
        self.wanted.clear();
        for d in &plan.decisions {
            let site = d
                .site
                .as_ref()
                .and_then(|s| world.sites.iter().position(|x| x.name == *s));
            if let (Some(site), Action::Provision | Action::Seed | Action::Keep) = (site, d.action)
            {
                self.wanted
                    .extend(self.held[&d.subject].iter().map(|vm| (*vm, site)));
            }
        }
        self.wanted.clone()
    }
}

/// Forecasts by what happened: the windows of the last day, and those at the same time of earlier
/// days. No learning; the yardstick for better ones.
pub struct Recent {
    /// Steps in a day.
    pub day: usize,
}

/// Days whose window at the same time of day is taken.
const DAYS: usize = 7;
/// How often such a window counts, against one of the last day.
const SAME_TIME_WEIGHT: usize = 8;

impl Forecaster for Recent {
    fn window_max(&mut self, _: usize, past: &[f64], steps: usize) -> Option<Distribution> {
        let now = past.len();
        let max = |from: usize| {
            past[from..(from + steps).min(now)]
                .iter()
                .copied()
                .fold(f64::MIN, f64::max)
        };
        let mut sample: Vec<f64> = (now.saturating_sub(self.day)..now.saturating_sub(steps))
            .step_by(steps)
            .map(max)
            .collect();
        for days in 1..=DAYS {
            if let Some(from) = now.checked_sub(days * self.day) {
                sample.extend(std::iter::repeat_n(max(from), SAME_TIME_WEIGHT));
            }
        }
        sample.sort_by(f64::total_cmp);
        let n = sample.len() as f64;
        let level = |i: usize| (i as f64 + 0.5) / n;
        Distribution::new(sample.iter().enumerate().map(|(i, v)| (level(i), *v))).ok()
    }
}
