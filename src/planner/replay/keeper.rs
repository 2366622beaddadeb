//! Four ways to decide which copies to keep.

use super::super::{
    Action, Ask, Bandwidth, Bytes, Commitments, Distribution, Held, Input, Mode, Money, Policy,
    Seconds, Subject, Windows, plan,
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
    spans: Vec<Span>,
}

/// From which step to which a copy is wanted.
struct Span {
    vm: usize,
    site: usize,
    from: usize,
    to: usize,
}

impl Oracle {
    /// From the departures of a replay in which nothing was kept. A copy stays between two departures
    /// if keeping it, at `share` of the price of a node of its own, is cheaper than sending it again.
    #[must_use]
    pub fn new(world: &World, departures: &[Departure], share: f64) -> Oracle {
        let mut by_vm: BTreeMap<usize, Vec<Departure>> = BTreeMap::new();
        for d in departures {
            by_vm.entry(d.vm).or_default().push(*d);
        }
        let mut spans = Vec::new();
        for (vm, mut departures) in by_vm {
            departures.sort_by_key(|d| d.at);
            let at_sites = (0..world.sites.len())
                .map(|site| Oracle::at_site(world, site, vm, &departures, share));
            if let Some((_, best)) = at_sites.min_by(|a, b| a.0.total_cmp(&b.0)) {
                spans.extend(best);
            }
        }
        Oracle { spans }
    }

    /// When a VM's copy is wanted if all its departures go to one site, and the price of that.
    fn at_site(
        world: &World,
        site: usize,
        vm: usize,
        departures: &[Departure],
        share: f64,
    ) -> (f64, Vec<Span>) {
        let keeping = |from, to| Oracle::keeping(world, site, vm, (from, to), share);
        let prices = world.prices.site(&world.sites[site].name);
        let sending = prices.map_or(0.0, |p| p.egress(world.vms[vm].disk).0);
        let lead = Oracle::lead(world, site, vm);
        let mut spans: Vec<Span> = Vec::new();
        let mut cost = 0.0;
        for d in departures {
            let begin = d.at.saturating_sub(lead);
            match spans.last_mut() {
                Some(last) if keeping(last.to, begin) < sending => {
                    cost += keeping(last.to, d.at);
                    last.to = d.until;
                }
                _ => {
                    cost += sending + keeping(begin, d.at);
                    spans.push(Span {
                        vm,
                        site,
                        from: begin,
                        to: d.until,
                    });
                }
            }
            let away = Seconds((d.until - d.at) as u64 * world.step.0);
            cost += world.node_hour(site, &[vm].into()).0 * away.hours();
        }
        (cost, spans)
    }

    /// Steps before a departure at which its copy must begin: all VMs of the node may leave at once
    /// and share the bandwidth.
    fn lead(world: &World, site: usize, vm: usize) -> usize {
        let home = world.vms[vm].home;
        let all: Bytes = world.at_home(home).map(|v| world.vms[v].disk).sum();
        let site = &world.sites[site];
        let seconds = site.provision + site.bandwidth.time_for(all);
        seconds.0.div_ceil(world.step.0) as usize + 1
    }

    /// The price of keeping a copy from one step to another.
    fn keeping(world: &World, site: usize, vm: usize, span: (usize, usize), share: f64) -> f64 {
        let Ok(prices) = world.prices.site(&world.sites[site].name) else {
            return 0.0;
        };
        let time = Seconds(span.1.saturating_sub(span.0) as u64 * world.step.0);
        let written: f64 = (span.0..span.1).map(|t| world.dirtied(vm, t)).sum();
        share * world.standby_hour(site, &[vm].into()).0 * time.hours()
            + prices.storage(world.vms[vm].disk, time).0
            + prices.egress(Bytes(written as u64)).0
    }
}

impl Keeper for Oracle {
    fn wanted(&mut self, view: &View<'_>) -> BTreeSet<(usize, usize)> {
        (self.spans.iter())
            .filter(|s| (s.from..s.to).contains(&view.step))
            .map(|s| (s.vm, s.site))
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
/// What VMs wrote over this time says what they will write.
const DAY: Seconds = Seconds(86_400);
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
                node_hour: marginal(view, site, &vms),
            };
            Some((world.sites[site].name.clone(), held))
        });
        let day = (DAY.0 / world.step.0.max(1)) as usize;
        let written = |v: &usize| recent(&world.vms[*v].writes[..=view.step], day);
        let written: f64 = vms.iter().map(written).sum();
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
            dirty_rate: Bandwidth(written as u64),
            copies: copies.collect(),
            idle_since: (view.calm_since[node])
                .filter(|_| !vms.iter().any(|v| view.away.contains_key(v)))
                .map(|s| world.at(s)),
            site_latency_ms: BTreeMap::new(),
            node_latency_ms: BTreeMap::new(),
        };
        self.held.insert(name.to_owned(), vms);
        subject
    }
}

/// What a VM wrote in a second over the last day of `steps`.
fn recent(writes: &[f64], steps: usize) -> f64 {
    let day = &writes[writes.len().saturating_sub(steps)..];
    day.iter().sum::<f64>() / day.len().max(1) as f64
}

/// What an hour of the site's node costs more with these copies at rest than without them.
fn marginal(view: &View<'_>, site: usize, vms: &BTreeSet<usize>) -> Money {
    let resting = |(vm, s): &&(usize, usize)| *s == site && view.away.get(vm) != Some(s);
    let with: BTreeSet<usize> = view.copies.keys().filter(resting).map(|k| k.0).collect();
    let without = with.difference(vms).copied().collect::<BTreeSet<_>>();
    let hour = |v: &BTreeSet<usize>| {
        if v.is_empty() {
            0.0
        } else {
            view.world.standby_hour(site, v).0
        }
    };
    Money(hour(&with) - hour(&without))
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
            nodes: view.standbys,
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
