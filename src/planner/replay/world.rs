//! What is replayed: VMs, their homes, sites, prices, events.

use super::super::{
    Bytes, Calendar, Distribution, EventKind, Money, Need, NodeView, Prices, Seconds, Shape,
    SitePrices, SiteView, UnixTime, recommend,
};
use std::collections::BTreeSet;

/// A VM's past, one value a step.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// Where it is at home: an index into [`World::nodes`].
    pub home: usize,
    /// CPU demand.
    pub cpu: Vec<f64>,
    /// Bytes written a second.
    pub writes: Vec<f64>,
    /// CPUs that it needs on another node.
    pub cpus: f64,
    /// Memory in GiB.
    pub memory_gib: f64,
    /// Size of its disk.
    pub disk: Bytes,
}

/// A node at home. It is paid for whatever happens, so it stands in no cost here.
#[derive(Clone, Debug)]
pub struct HomeNode {
    /// Its name, as the calendar has it.
    pub name: String,
    /// CPU demand that it bears.
    pub capacity: f64,
}

/// For how long a VM that leaves without a plan is thought to stay away.
const STAY_HOURS: f64 = 2.0;

/// Weeks to replay.
#[derive(Clone, Debug)]
pub struct World {
    /// The time of the first value.
    pub start: UnixTime,
    /// Between two values.
    pub step: Seconds,
    /// Steps that are history only: nothing is counted before.
    pub warm_up: usize,
    /// Steps in all.
    pub steps: usize,
    /// The VMs.
    pub vms: Vec<Vm>,
    /// Their homes.
    pub nodes: Vec<HomeNode>,
    /// Sites to go to.
    pub sites: Vec<SiteView>,
    /// What they cost; every site above is in it.
    pub prices: Prices,
    /// Events that everybody knows. One that touches a node names the node's VMs too.
    pub calendar: Calendar,
    /// Events that only the oracle knows.
    pub surprises: Calendar,
}

impl World {
    /// The time of a step.
    #[must_use]
    pub fn at(&self, step: usize) -> UnixTime {
        self.start.after(Seconds(step as u64 * self.step.0))
    }

    /// The VMs whose home a node is.
    pub fn at_home(&self, node: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.vms.len()).filter(move |v| self.vms[*v].home == node)
    }

    /// The demand of a node's VMs, wherever they are.
    #[must_use]
    pub fn demand(&self, node: usize) -> Vec<f64> {
        (0..self.steps)
            .map(|t| self.at_home(node).map(|v| self.vms[v].cpu[t]).sum())
            .collect()
    }

    /// Whether a node is in maintenance at a step, announced or not.
    #[must_use]
    pub fn closed(&self, node: usize, step: usize) -> bool {
        self.announced(node, step) || self.closes(&self.surprises, node, step)
    }

    /// Whether a node is in maintenance at a step that everybody knew of.
    #[must_use]
    pub fn announced(&self, node: usize, step: usize) -> bool {
        self.closes(&self.calendar, node, step)
    }

    fn closes(&self, calendar: &Calendar, node: usize, step: usize) -> bool {
        let now = self.at(step);
        let name = &self.nodes[node].name;
        (calendar.between(now, now.after(Seconds(1))).iter())
            .any(|o| o.event.kind == EventKind::Maintenance && o.event.touches(name, "home"))
    }

    /// What these VMs need together. Disks and memory have sizes; CPUs too, as a VM's own limit.
    #[must_use]
    pub fn need(&self, vms: &BTreeSet<usize>) -> Need {
        let sum = |f: &dyn Fn(&Vm) -> f64| vms.iter().map(|v| f(&self.vms[*v])).sum::<f64>();
        Need {
            cpus: Distribution::certain(sum(&|v| v.cpus)),
            memory_gib: Distribution::certain(sum(&|v| v.memory_gib)),
            storage: vms.iter().map(|v| self.vms[*v].disk).sum(),
        }
    }

    /// The price of an hour of hosts for these VMs at a site: one that bears them all, or several of
    /// one shape, filled one after the other with the largest VMs first, whichever is cheapest.
    #[must_use]
    pub fn node_hour(&self, site: usize, vms: &BTreeSet<usize>) -> Money {
        let Ok(prices) = self.prices.site(&self.sites[site].name) else {
            return Money(0.0);
        };
        let one = recommend(&self.need(vms), prices, 1.0).map(|r| r.shape.hour);
        let several = (prices.shapes.iter()).filter_map(|shape| self.hosts(vms, shape, prices));
        let price = several.chain(one).min_by(f64::total_cmp);
        Money(price.unwrap_or_else(|| self.largest(vms, prices)))
    }

    /// The price of an hour of hosts of one shape; the last host may be smaller. None if a VM is too
    /// large for it.
    fn hosts(&self, vms: &BTreeSet<usize>, shape: &Shape, prices: &SitePrices) -> Option<f64> {
        let size = |v: &usize| {
            let v = &self.vms[*v];
            [v.cpus, v.memory_gib, v.disk.gib()]
        };
        let room = [shape.cpus, shape.memory_gib, shape.storage_gib];
        let mut sorted: Vec<usize> = vms.iter().copied().collect();
        sorted.sort_by(|a, b| size(b)[0].total_cmp(&size(a)[0]).then(a.cmp(b)));
        let mut hosts: Vec<(BTreeSet<usize>, [f64; 3])> = Vec::new();
        for vm in sorted {
            let needs = size(&vm);
            let fits = |used: &[f64; 3]| (0..3).all(|i| used[i] + needs[i] <= room[i]);
            let host = match hosts.iter().position(|(_, used)| fits(used)) {
                Some(i) => &mut hosts[i],
                None if fits(&[0.0; 3]) => {
                    hosts.push(Default::default());
                    hosts.last_mut()?
                }
                None => return None,
            };
            host.0.insert(vm);
            (0..3).for_each(|i| host.1[i] += needs[i]);
        }
        let (last, full) = hosts.split_last()?;
        let last = recommend(&self.need(&last.0), prices, 1.0).map_or(shape.hour, |r| r.shape.hour);
        Some(shape.hour * full.len() as f64 + last)
    }

    /// As many of the largest shape as their sum needs, for VMs that no shape bears.
    fn largest(&self, vms: &BTreeSet<usize>, prices: &SitePrices) -> f64 {
        let need = self.need(vms);
        let Some(largest) = (prices.shapes.iter()).max_by(|a, b| a.cpus.total_cmp(&b.cpus)) else {
            return 0.0;
        };
        let times = [
            need.cpus.quantile(1.0) / largest.cpus,
            need.memory_gib.quantile(1.0) / largest.memory_gib,
            need.storage.gib() / largest.storage_gib,
        ];
        largest.hour * times.into_iter().fold(1.0, f64::max).ceil()
    }

    /// The price of an hour of a node that only holds copies of these VMs' disks.
    #[must_use]
    pub fn standby_hour(&self, site: usize, vms: &BTreeSet<usize>) -> Money {
        let Ok(prices) = self.prices.site(&self.sites[site].name) else {
            return Money(0.0);
        };
        let need = Need::standby(vms.iter().map(|v| self.vms[*v].disk).sum());
        match recommend(&need, prices, 1.0) {
            Some(r) => Money(r.shape.hour),
            None => self.node_hour(site, vms),
        }
    }

    /// The node for copies at a site that holds so much, with the room that is left on it.
    #[must_use]
    pub fn standby(&self, site: usize, used: Bytes) -> Option<NodeView> {
        let view = &self.sites[site];
        let prices = self.prices.site(&view.name).ok()?;
        let total = Bytes::from_gib(
            recommend(&Need::standby(used), prices, 1.0)?
                .shape
                .storage_gib,
        );
        Some(NodeView {
            name: format!("standby-{}", view.name),
            site: view.name.clone(),
            available: true,
            latency_ms: view.latency_ms,
            total,
            free: Bytes(total.0.saturating_sub(used.0)),
            ..NodeView::default()
        })
    }

    /// The site to which a VM goes at the least price if nothing of it is anywhere: its disk is sent,
    /// and a host bears it for as long as stays usually are.
    #[must_use]
    pub fn cheapest_site(&self, vm: usize) -> usize {
        let price = |site: usize| {
            let prices = self.prices.site(&self.sites[site].name);
            let egress = prices.map_or(0.0, |p| p.egress(self.vms[vm].disk).0);
            egress + self.node_hour(site, &[vm].into()).0 * STAY_HOURS
        };
        (0..self.sites.len())
            .min_by(|a, b| price(*a).total_cmp(&price(*b)))
            .unwrap_or(0)
    }

    /// Bytes that a VM writes in a step, at most its whole disk.
    #[must_use]
    pub fn dirtied(&self, vm: usize, step: usize) -> f64 {
        let vm = &self.vms[vm];
        (vm.writes[step] * self.step.0 as f64).min(vm.disk.0 as f64)
    }

    /// Which VMs leave so that `at_home` fits into the capacity: of those preferred, then of the
    /// others, the smallest disk whose CPU suffices, or else the busiest and on.
    #[must_use]
    pub fn shed(
        &self,
        node: usize,
        step: usize,
        mut at_home: BTreeSet<usize>,
        preferred: &BTreeSet<usize>,
    ) -> Vec<usize> {
        let mut leaving = Vec::new();
        loop {
            let demand: f64 = at_home.iter().map(|v| self.vms[*v].cpu[step]).sum();
            let excess = demand - self.nodes[node].capacity;
            if excess <= 0.0 || at_home.is_empty() {
                return leaving;
            }
            let cpu = |v: &usize| self.vms[*v].cpu[step];
            // a VM that is nearly idle relieves nobody, however warm its copy is
            let useful = |v: &&usize| cpu(v) > 0.1 * excess;
            let pool: Vec<usize> = match at_home.intersection(preferred).filter(useful).count() {
                0 => at_home.iter().copied().collect(),
                _ => at_home.intersection(preferred).copied().collect(),
            };
            let enough = pool.iter().filter(|v| cpu(v) >= excess);
            let next = enough
                .min_by_key(|v| self.vms[**v].disk)
                .or_else(|| pool.iter().max_by(|a, b| cpu(a).total_cmp(&cpu(b))));
            let Some(&next) = next else {
                return leaving;
            };
            at_home.remove(&next);
            leaving.push(next);
        }
    }
}
