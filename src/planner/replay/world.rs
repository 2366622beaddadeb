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
    /// one shape, filled one after the other with the largest first, whichever is cheapest.
    #[must_use]
    pub fn node_hour(&self, site: usize, vms: &BTreeSet<usize>) -> Money {
        self.hour(site, vms.iter().map(|vm| self.size(*vm)).collect())
    }

    /// The price of an hour of nodes that only hold copies of these VMs' disks.
    #[must_use]
    pub fn standby_hour(&self, site: usize, vms: &BTreeSet<usize>) -> Money {
        match vms.is_empty() {
            true => Money(0.0),
            false => self.hour(site, self.resting(vms).collect()),
        }
    }

    /// What copies take at rest: room, and once what it takes to receive them.
    fn resting(&self, vms: &BTreeSet<usize>) -> impl Iterator<Item = Size> {
        let need = Need::standby(Bytes(0));
        let (cpus, memory) = (need.cpus.quantile(1.0), need.memory_gib.quantile(1.0));
        let copies = vms.iter().map(|vm| self.vms[*vm].disk.gib());
        std::iter::once(Size([cpus, memory, 0.0])).chain(copies.map(|gib| Size([0.0, 0.0, gib])))
    }

    /// The price of an hour of all that runs at a site and all that only rests there: copies take what
    /// room the hosts have left, or a node of their own, whichever is cheaper.
    #[must_use]
    pub fn site_hour(&self, site: usize, run: &BTreeSet<usize>, rest: &BTreeSet<usize>) -> Money {
        let apart = self.node_hour(site, run).0 + self.standby_hour(site, rest).0;
        if run.is_empty() || rest.is_empty() {
            return Money(apart);
        }
        let running = run.iter().map(|vm| self.size(*vm));
        let sizes = running.chain(self.resting(rest)).collect();
        Money(apart.min(self.hour(site, sizes).0))
    }

    fn size(&self, vm: usize) -> Size {
        let vm = &self.vms[vm];
        Size([vm.cpus, vm.memory_gib, vm.disk.gib()])
    }

    fn hour(&self, site: usize, mut sizes: Vec<Size>) -> Money {
        let Ok(prices) = self.prices.site(&self.sites[site].name) else {
            return Money(0.0);
        };
        if sizes.is_empty() {
            return Money(0.0);
        }
        sizes.sort_by(|a, b| b.0[0].total_cmp(&a.0[0]).then(b.0[2].total_cmp(&a.0[2])));
        let one = Size::sum(&sizes).cheapest(prices);
        let several = (prices.shapes.iter()).filter_map(|shape| hosts(&sizes, shape, prices));
        let price = several.chain(one).min_by(f64::total_cmp);
        Money(price.unwrap_or_else(|| largest(&Size::sum(&sizes), prices)))
    }

    /// What the node for copies at a site is called.
    #[must_use]
    pub fn standby_name(&self, site: usize) -> String {
        format!("standby-{}", self.sites[site].name)
    }

    /// The node at a site for copies of these VMs' disks, with the room that is left on it.
    #[must_use]
    pub fn standby(&self, site: usize, vms: &BTreeSet<usize>) -> Option<NodeView> {
        let view = &self.sites[site];
        let prices = self.prices.site(&view.name).ok()?;
        let used: Bytes = vms.iter().map(|v| self.vms[*v].disk).sum();
        let one = recommend(&Need::standby(Bytes(0)), prices, 1.0)?.shape;
        let one = Bytes::from_gib(one.storage_gib).0.max(1);
        // another is made beside it before it is full, and it is seen as one
        let total = one.saturating_mul(1 + used.0 / (one / 4 * 3).max(1));
        Some(NodeView {
            name: self.standby_name(site),
            site: view.name.clone(),
            available: true,
            latency_ms: view.latency_ms,
            total: Bytes(total),
            free: Bytes(total.saturating_sub(used.0)),
            hour: self.standby_hour(site, vms),
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

/// CPUs, memory in GiB and storage in GiB.
#[derive(Clone, Copy)]
struct Size([f64; 3]);

impl Size {
    fn of(shape: &Shape) -> Size {
        Size([shape.cpus, shape.memory_gib, shape.storage_gib])
    }

    fn sum(sizes: &[Size]) -> Size {
        sizes.iter().fold(Size([0.0; 3]), |a, b| a.and(b))
    }

    fn and(&self, other: &Size) -> Size {
        Size(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }

    fn fits(&self, room: &Size) -> bool {
        (0..3).all(|i| self.0[i] <= room.0[i])
    }

    /// The price of an hour of the cheapest shape that bears it.
    fn cheapest(&self, prices: &SitePrices) -> Option<f64> {
        let bears = prices.shapes.iter().filter(|s| self.fits(&Size::of(s)));
        bears.map(|s| s.hour).min_by(f64::total_cmp)
    }
}

/// The price of an hour of hosts of one shape; the last host may be smaller. None if something is too
/// large for it.
fn hosts(sizes: &[Size], shape: &Shape, prices: &SitePrices) -> Option<f64> {
    let room = Size::of(shape);
    let mut hosts: Vec<Size> = Vec::new();
    for size in sizes {
        if !size.fits(&room) {
            return None;
        }
        match hosts.iter_mut().find(|used| used.and(size).fits(&room)) {
            Some(used) => *used = used.and(size),
            None => hosts.push(*size),
        }
    }
    let (last, full) = hosts.split_last()?;
    Some(shape.hour * full.len() as f64 + last.cheapest(prices).unwrap_or(shape.hour))
}

/// As many of the largest shape as a sum needs, for what no shape bears.
fn largest(size: &Size, prices: &SitePrices) -> f64 {
    let Some(largest) = (prices.shapes.iter()).max_by(|a, b| a.cpus.total_cmp(&b.cpus)) else {
        return 0.0;
    };
    let room = Size::of(largest).0;
    let times = (0..3).map(|i| size.0[i] / room[i]).fold(1.0, f64::max);
    largest.hour * times.ceil()
}
