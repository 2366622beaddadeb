//! One keeper through all the weeks, step by step, with the accounts.

use super::super::{Bytes, NodeView};
use super::keeper::Keeper;
use super::world::World;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What a copy may lack and still be warm, as a share of its disk.
const WARM: f64 = 0.01;
/// Steps for which demand must have been well below capacity before VMs come home.
const CALM_STEPS: usize = 12;
/// Well below capacity.
const CALM: f64 = 0.9;

/// A VM that left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    /// Which.
    pub vm: usize,
    /// When, as a step.
    pub at: usize,
    /// Until when; the end of the replay if it did not come back.
    pub until: usize,
}

/// The accounts of one keeper.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    /// VMs that left home.
    pub migrations: usize,
    /// Of these, how many landed on a warm copy.
    pub warm: usize,
    /// Share of migrations that landed on a warm copy.
    pub warm_share: f64,
    /// Bytes sent to other sites, increments included.
    pub seeded_bytes: u64,
    /// Price of nodes, storage and egress.
    pub cost: f64,
    /// Of the cost, what nodes took.
    pub cost_nodes: f64,
    /// Of that, what copies at rest took beside the hosts on which VMs ran.
    pub cost_standby: f64,
    /// Of the cost, what storage took.
    pub cost_storage: f64,
    /// Of the cost, what egress took.
    pub cost_egress: f64,
    /// Of that, what keeping whole copies up took.
    pub cost_increments: f64,
    /// What the seconds that migrations waited for cost.
    pub delay_cost: f64,
    /// Hours of nodes on which no VM ran.
    pub node_hours_wasted: f64,
    /// Hours of nodes in all.
    pub node_hours: f64,
    /// Nodes made.
    pub churn: usize,
    /// Copies begun and given up unused.
    pub copies_unused: usize,
    /// Who left when.
    #[serde(skip)]
    pub departures: Vec<Departure>,
    /// Migrations that found no warm copy, by what made the VM leave.
    pub cold: BTreeMap<&'static str, usize>,
}

/// A copy of a VM's disk at a site.
#[derive(Clone, Debug)]
pub struct Copy {
    /// What it lacks.
    pub missing: f64,
    /// From which step on there is a node to send to.
    ready: f64,
    used: bool,
}

/// The state that keepers see.
pub struct View<'a> {
    /// What is replayed.
    pub world: &'a World,
    /// Now, as a step; values up to here are known.
    pub step: usize,
    /// Copies by VM and site.
    pub copies: &'a BTreeMap<(usize, usize), Copy>,
    /// VMs that are away, and where.
    pub away: &'a BTreeMap<usize, usize>,
    /// Nodes that hold copies at rest, one a site.
    pub standbys: &'a [NodeView],
    /// For each node, since when it has been calm; none while it is not.
    pub calm_since: &'a [Option<usize>],
}

struct Run<'a> {
    world: &'a World,
    copies: BTreeMap<(usize, usize), Copy>,
    away: BTreeMap<usize, usize>,
    calm_since: Vec<Option<usize>>,
    /// Sites that have nodes of ours, and from when the first one serves.
    nodes: BTreeMap<usize, f64>,
    open: BTreeMap<usize, usize>,
    tally: Tally,
    value_of_second: f64,
}

/// Replay. `value_of_second` is what a second costs that a migration waits for its copy.
#[must_use]
pub fn run(world: &World, keeper: &mut dyn Keeper, value_of_second: f64) -> Tally {
    let mut run = Run {
        world,
        copies: BTreeMap::new(),
        away: BTreeMap::new(),
        calm_since: vec![Some(0); world.nodes.len()],
        nodes: BTreeMap::new(),
        open: BTreeMap::new(),
        tally: Tally::default(),
        value_of_second,
    };
    for step in world.warm_up..world.steps {
        for node in 0..world.nodes.len() {
            run.settle(node, step, keeper);
        }
        let view = View {
            world,
            step,
            copies: &run.copies,
            standbys: &run.standbys(),
            away: &run.away,
            calm_since: &run.calm_since,
        };
        let wanted = keeper.wanted(&view);
        run.keep(&wanted, step);
        run.send(step);
        run.pay();
    }
    run.finish()
}

impl Run<'_> {
    /// Who leaves and who comes home at this step.
    fn settle(&mut self, node: usize, step: usize, keeper: &dyn Keeper) {
        let world = self.world;
        let all: BTreeSet<usize> = world.at_home(node).collect();
        let demand: f64 = all.iter().map(|v| world.vms[*v].cpu[step]).sum();
        let closed = world.closed(node, step);
        if closed || demand > CALM * world.nodes[node].capacity {
            self.calm_since[node] = None;
        } else {
            self.calm_since[node].get_or_insert(step);
        }
        if self.calm_since[node].is_some_and(|since| step - since >= CALM_STEPS) {
            for vm in &all {
                if self.away.remove(vm).is_some()
                    && let Some(at) = self.open.remove(vm)
                {
                    self.tally.departures.push(Departure {
                        vm: *vm,
                        at,
                        until: step,
                    });
                }
            }
        }
        let at_home: BTreeSet<usize> = all
            .into_iter()
            .filter(|v| !self.away.contains_key(v))
            .collect();
        let leaving = if closed {
            at_home.into_iter().collect()
        } else {
            let warm = if keeper.prefers_warm() {
                at_home
                    .iter()
                    .copied()
                    .filter(|v| self.warm_site(*v).is_some())
                    .collect()
            } else {
                BTreeSet::new()
            };
            world.shed(node, step, at_home, &warm)
        };
        for vm in leaving {
            self.depart(vm, step, keeper);
        }
    }

    /// The nodes at the sites, with the room that is left on them.
    fn standbys(&self) -> Vec<NodeView> {
        let copies = |site: usize| {
            let here = self.copies.keys().filter(|(_, s)| *s == site);
            here.map(|(vm, _)| *vm).collect()
        };
        (self.nodes.keys())
            .filter_map(|site| self.world.standby(*site, &copies(*site)))
            .collect()
    }

    fn is_warm(&self, vm: usize, copy: &Copy) -> bool {
        copy.missing <= WARM * self.world.vms[vm].disk.0 as f64
    }

    fn warm_site(&self, vm: usize) -> Option<usize> {
        let mine = self.copies.range((vm, 0)..=(vm, usize::MAX));
        mine.filter(|(_, c)| self.is_warm(vm, c))
            .map(|((_, s), _)| *s)
            .next()
    }

    fn depart(&mut self, vm: usize, step: usize, keeper: &dyn Keeper) {
        let world = self.world;
        // the most complete copy, or where the keeper says
        let mine = self.copies.range((vm, 0)..=(vm, usize::MAX));
        let site = mine
            .min_by(|a, b| a.1.missing.total_cmp(&b.1.missing))
            .map_or_else(|| keeper.lands(world, vm), |((_, s), _)| *s);
        let ready = self.node(site, step);
        let lacking = self
            .copies
            .get(&(vm, site))
            .map_or(world.vms[vm].disk.0 as f64, |c| c.missing);
        let warm = self
            .copies
            .get(&(vm, site))
            .is_some_and(|c| self.is_warm(vm, c));
        let wait = (ready - step as f64).max(0.0) * world.step.0 as f64;
        let delay = wait + lacking / world.sites[site].bandwidth.0.max(1) as f64;
        self.tally.migrations += 1;
        self.tally.warm += usize::from(warm);
        if !warm {
            *self.tally.cold.entry(self.cause(vm, step)).or_default() += 1;
            self.tally.delay_cost += delay * self.value_of_second;
        }
        self.charge(site, lacking);
        let landed = Copy {
            missing: 0.0,
            ready,
            used: true,
        };
        self.copies.insert((vm, site), landed);
        self.away.insert(vm, site);
        self.open.insert(vm, step);
    }

    /// Why a VM leaves.
    fn cause(&self, vm: usize, step: usize) -> &'static str {
        let home = self.world.vms[vm].home;
        if self.world.announced(home, step) {
            "announced maintenance"
        } else if self.world.closed(home, step) {
            "unannounced maintenance"
        } else {
            "load"
        }
    }

    /// The remote node for a VM's home at a site, made if it is not there.
    fn node(&mut self, site: usize, step: usize) -> f64 {
        let world = self.world;
        if !self.nodes.contains_key(&site) {
            self.tally.churn += 1;
        }
        let provision = world.sites[site].provision.0 as f64 / world.step.0 as f64;
        *self.nodes.entry(site).or_insert(step as f64 + provision)
    }

    fn charge(&mut self, site: usize, bytes: f64) {
        self.tally.seeded_bytes += bytes as u64;
        self.tally.cost_egress += self.egress(site, bytes);
    }

    fn egress(&self, site: usize, bytes: f64) -> f64 {
        let prices = self.world.prices.site(&self.world.sites[site].name);
        prices.map_or(0.0, |p| p.egress(Bytes(bytes as u64)).0)
    }

    /// Begin what is wanted and absent, give up what is not wanted and not in use.
    fn keep(&mut self, wanted: &BTreeSet<(usize, usize)>, step: usize) {
        let away = self.away.clone();
        let mut unused = 0;
        self.copies.retain(|(vm, site), copy| {
            let stays = wanted.contains(&(*vm, *site)) || away.get(vm) == Some(site);
            unused += usize::from(!stays && !copy.used);
            stays
        });
        self.tally.copies_unused += unused;
        for (vm, site) in wanted {
            if !self.copies.contains_key(&(*vm, *site)) {
                let ready = self.node(*site, step);
                let missing = self.world.vms[*vm].disk.0 as f64;
                self.copies.insert(
                    (*vm, *site),
                    Copy {
                        missing,
                        ready,
                        used: false,
                    },
                );
            }
        }
        let in_use: BTreeSet<usize> = self.copies.keys().map(|(_, site)| *site).collect();
        self.nodes.retain(|site, _| in_use.contains(site));
    }

    /// A step's sending: copies of one site share its bandwidth, smallest lack first.
    fn send(&mut self, step: usize) {
        let world = self.world;
        for site in 0..world.sites.len() {
            let mut budget = (world.sites[site].bandwidth.0 * world.step.0) as f64;
            let mut keys: Vec<(usize, usize)> = self
                .copies
                .keys()
                .copied()
                .filter(|(vm, s)| *s == site && self.away.get(vm) != Some(s))
                .collect();
            keys.sort_by(|a, b| self.copies[a].missing.total_cmp(&self.copies[b].missing));
            for key in keys {
                let dirty = world.dirtied(key.0, step);
                let disk = world.vms[key.0].disk.0 as f64;
                let Some(copy) = self.copies.get_mut(&key) else {
                    continue;
                };
                let baseline = copy.missing;
                copy.missing = (copy.missing + dirty).min(disk);
                let share = (step as f64 + 1.0 - copy.ready).clamp(0.0, 1.0);
                let sent = copy.missing.min(budget * share);
                copy.missing -= sent;
                budget -= sent;
                self.charge(site, sent);
                self.tally.cost_increments += self.egress(site, (sent - baseline).max(0.0));
            }
        }
    }

    fn pay(&mut self) {
        let world = self.world;
        let hours = world.step.hours();
        for site in self.nodes.keys().copied() {
            let here: BTreeSet<usize> = (self.copies.keys())
                .filter(|(_, s)| *s == site)
                .map(|k| k.0)
                .collect();
            let (running, resting): (BTreeSet<usize>, BTreeSet<usize>) =
                here.iter().partition(|v| self.away.get(v) == Some(&site));
            if !here.is_empty() {
                self.tally.node_hours += hours;
                let all = world.site_hour(site, &running, &resting).0;
                let hosts = world.node_hour(site, &running).0;
                self.tally.cost_nodes += all * hours;
                self.tally.cost_standby += (all - hosts) * hours;
            }
            if running.is_empty() && !resting.is_empty() {
                self.tally.node_hours_wasted += hours;
            }
            if let Ok(prices) = world.prices.site(&world.sites[site].name) {
                let disks = here.iter().map(|v| world.vms[*v].disk).sum();
                self.tally.cost_storage += prices.storage(disks, world.step).0;
            }
        }
    }

    fn finish(mut self) -> Tally {
        for (vm, at) in std::mem::take(&mut self.open) {
            let until = self.world.steps;
            self.tally.departures.push(Departure { vm, at, until });
        }
        self.tally.cost = self.tally.cost_nodes + self.tally.cost_storage + self.tally.cost_egress;
        self.tally.warm_share = self.tally.warm as f64 / self.tally.migrations.max(1) as f64;
        self.tally
    }
}
