//! Keeps what was needed, knowing every departure.

use super::super::{Bytes, Seconds};
use super::keeper::Keeper;
use super::run::{Departure, View};
use super::world::World;
use std::collections::{BTreeMap, BTreeSet};

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
