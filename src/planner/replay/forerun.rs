//! Keeps what the planner decides.

use super::super::{
    Action, Ask, Bandwidth, Bytes, Commitments, Foresight, Held, Input, Mode, Policy, Seconds,
    Subject, WINDOWS, Windows, plan,
};
use super::forecaster::Forecaster;
use super::keeper::Keeper;
use super::run::View;
use super::world::World;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The planner with a forecaster.
pub struct Forerun<F> {
    forecaster: F,
    policy: Policy,
    commitments: Commitments,
    demand: Vec<Vec<f64>>,
    /// For each node: found once, used as it becomes past.
    overloads: Vec<Vec<Overload>>,
    wanted: BTreeSet<(usize, usize)>,
    /// For each VM: the site that scored best in the last plan.
    best: BTreeMap<usize, usize>,
    unannounced: Unannounced,
    /// For each VM: which of its needs by load were foreseen in time.
    foreseen: Vec<Foreseen>,
}

/// Past overloads that say who will leave in the next.
const OVERLOADS: usize = 5;
/// What VMs wrote over this time says what they will write.
const DAY: Seconds = Seconds(86_400);

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
            best: BTreeMap::new(),
            unannounced: Unannounced::default(),
            foreseen: world.vms.iter().map(|_| Foreseen::default()).collect(),
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
        &self,
        view: &View<'_>,
        vm: usize,
        windows: Windows,
        capacity: f64,
        overloads: f64,
    ) -> Subject {
        let world = view.world;
        let copies = (0..world.sites.len()).filter_map(|site| {
            let held = Held {
                behind: Bytes(view.copies.get(&(vm, site))?.missing as u64),
                nodes: vec![world.standby_name(site)],
            };
            Some((world.sites[site].name.clone(), held))
        });
        let day = (DAY.0 / world.step.0.max(1)) as usize;
        let v = &world.vms[vm];
        Subject {
            name: v.name.clone(),
            site: "home".into(),
            windows,
            capacity,
            overloads,
            leaves: self.foreseen[vm].leaves(),
            unannounced: self.unannounced.rate() + self.foreseen[vm].counted.unforeseen(),
            missed_share: Some((self.foreseen[vm].counted).missed_share(self.policy.missed_share)),
            moving: vec![Ask {
                volume: v.name.clone(),
                bytes: v.disk,
                ..Ask::default()
            }],
            need: world.need(&[vm].into()),
            dirty_rate: Bandwidth(recent(&v.writes[..=view.step], day) as u64),
            copies: copies.collect(),
            idle_since: (view.calm_since[v.home])
                .filter(|_| !view.away.contains_key(&vm))
                .map(|s| world.at(s)),
            site_latency_ms: BTreeMap::new(),
            node_latency_ms: BTreeMap::new(),
        }
    }
}

/// How often nodes close that nothing had announced, as far as it was seen.
#[derive(Default)]
struct Unannounced {
    closed: BTreeSet<usize>,
    count: f64,
    seconds: f64,
}

/// Before anything is seen: once in so long.
const UNANNOUNCED_EVERY: f64 = 30.0 * 86_400.0;

impl Unannounced {
    fn observe(&mut self, view: &View<'_>, passed: Seconds) {
        let world = view.world;
        for node in 0..world.nodes.len() {
            self.seconds += passed.0 as f64;
            let now = world.closed(node, view.step) && !world.announced(node, view.step);
            if !now {
                self.closed.remove(&node);
            } else if self.closed.insert(node) {
                self.count += 1.0;
            }
        }
    }

    /// Times a second.
    fn rate(&self) -> f64 {
        (self.count + 1.0) / (self.seconds + UNANNOUNCED_EVERY)
    }
}

/// For so many overloads a VM is thought to be driven out by each.
const PRIOR: f64 = 5.0;

/// What of a VM's needs by load was foreseen.
#[derive(Default)]
struct Foreseen {
    /// Whether a forecast announced one, in the latest cycles.
    said: VecDeque<bool>,
    counted: Foresight,
    away: bool,
    /// Overloads of its home that it met there, and of these those that drove it out.
    met: u32,
    driven: u32,
}

impl Foreseen {
    /// What is said now, about `lead` cycles ahead, and whether an overload begins now.
    fn observe(&mut self, said: bool, lead: usize, begins: bool) {
        self.met += u32::from(begins && !self.away);
        if begins && self.said.len() > lead {
            self.counted.overload(self.said[lead]);
        }
        self.said.push_front(said);
        self.said.truncate(lead + 1);
    }

    /// Share of its home's overloads that drive it out.
    fn leaves(&self) -> f64 {
        let (driven, met) = (f64::from(self.driven), f64::from(self.met));
        ((driven + PRIOR) / (met + PRIOR)).min(1.0)
    }

    /// Whether the VM is away now, after a cycle, and whether load may be why it left.
    fn left(&mut self, away: bool, by_load: bool, cycle: Seconds) {
        let said = self.said.back().copied().unwrap_or(false);
        self.driven += u32::from(away && !self.away && by_load);
        if away && !self.away && by_load && !said {
            self.counted.surprise();
        }
        self.away = away;
        self.counted.pass(cycle);
    }
}

/// What a VM wrote in a second over the last day of `steps`.
fn recent(writes: &[f64], steps: usize) -> f64 {
    let day = &writes[writes.len().saturating_sub(steps)..];
    day.iter().sum::<f64>() / day.len().max(1) as f64
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
    fn lands(&self, world: &World, vm: usize) -> usize {
        let best = self.best.get(&vm).copied();
        best.unwrap_or_else(|| world.cheapest_site(vm))
    }

    fn wanted(&mut self, view: &View<'_>) -> BTreeSet<(usize, usize)> {
        let world = view.world;
        let every = (self.policy.cycle_seconds / world.step.0).max(1) as usize;
        if !view.step.is_multiple_of(every) {
            return self.wanted.clone();
        }
        self.unannounced
            .observe(view, Seconds(every as u64 * world.step.0));
        let mut subjects = Vec::new();
        for node in 0..world.nodes.len() {
            let past = &self.demand[node][..=view.step];
            let windows = WINDOWS.iter().filter_map(|steps| {
                let max = self.forecaster.window_max(node, past, *steps)?;
                Some((Seconds(*steps as u64 * world.step.0), max))
            });
            let windows = Windows::new(windows.collect());
            let likely = self.likely(world, node, view.step);
            let begins = (self.overloads[node].iter())
                .any(|o| o.from <= view.step && o.from + every > view.step);
            let past_overloads = (self.overloads[node].iter())
                .filter(|o| o.from <= view.step)
                .count() as f64;
            let capacity = world.nodes[node].capacity;
            for vm in world.at_home(node) {
                let cycle = Seconds(every as u64 * world.step.0);
                let lead = world
                    .sites
                    .iter()
                    .map(|s| s.bandwidth.time_for(world.vms[vm].disk));
                let lead = lead.max().unwrap_or_default();
                let said = (windows.over(lead + cycle)).is_some_and(|max| {
                    max.exceed(capacity * self.policy.utilisation_limit)
                        > self.policy.utilisation_probability
                });
                let cycles = lead.0.div_ceil(cycle.0.max(1)) as usize;
                self.foreseen[vm].observe(said, cycles, begins);
                let open = !world.closed(node, view.step);
                self.foreseen[vm].left(view.away.contains_key(&vm), open, cycle);
                let load = if likely.contains(&vm) {
                    windows.clone()
                } else {
                    Windows::default()
                };
                // since the beginning, shared by those who may be driven out
                let seen = ((view.step + 1) as u64 * world.step.0) as f64;
                let overloads = match likely.contains(&vm) {
                    true => past_overloads / likely.len() as f64 / seen,
                    false => 0.0,
                };
                subjects.push((vm, self.subject(view, vm, load, capacity, overloads)));
            }
        }
        let (vms, subjects): (Vec<usize>, Vec<Subject>) = subjects.into_iter().unzip();
        let input = Input {
            now: world.at(view.step),
            subjects: &subjects,
            sites: &world.sites,
            nodes: view.standbys,
            calendar: &world.calendar,
            prices: &world.prices,
            policy: &self.policy,
        };
        self.wanted.clear();
        let decisions = plan(&input, &mut self.commitments).decisions;
        for (vm, d) in vms.into_iter().zip(decisions) {
            let site_of = |name: &str| world.sites.iter().position(|s| s.name == name);
            if let Some(best) = d.best.as_deref().and_then(site_of) {
                self.best.insert(vm, best);
            }
            let site = d.site.as_deref().and_then(site_of);
            if let (Some(site), Action::Provision | Action::Seed | Action::Keep) = (site, d.action)
            {
                self.wanted.insert((vm, site));
            }
        }
        self.wanted.clone()
    }
}
