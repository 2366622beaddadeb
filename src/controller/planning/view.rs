//! The fleet as the planner sees it.
//!
//! A subject is a node with the volumes that are at home there: those that it owns, and those that a
//! plan moved away from it and that will come back.

use super::book::Began;
use super::{Metric, Planning, Rules, now, outlook};
use crate::controller::places::lacking;
use crate::controller::provisioning::Sites;
use crate::controller::{Controller, Nodes, places};
use crate::fleet::{Status, Volume};
use crate::planner::{
    Ask, Bandwidth, Bytes, Calendar, Distribution, EventKind, Held, Money, Need, NodeView, Prices,
    Seconds, SiteView, Subject, UnixTime, Windows,
};
use crate::predict::csv;
use crate::store::Store;
use node::{Error, ErrorKind, NodeName, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Demand below this share of its limit is calm.
const CALM: f64 = 0.9;
/// The quantile of predicted utilisation by which a target is judged.
const UTILISATION_QUANTILE: f64 = 0.9;
/// Samples that say how much is written: an hour of five minutes.
const LATELY: usize = 12;
/// All that a node has.
const CAPACITY: f64 = 1.0;

/// What a cycle looks at.
pub(super) struct View {
    pub subjects: Vec<Subject>,
    pub sites: Vec<SiteView>,
    pub nodes: Vec<NodeView>,
    pub notes: Vec<String>,
}

/// What is forecast of one node: the scarcer of its processors and its memory.
struct Demand {
    windows: Windows,
    cpu: Windows,
    memory: Windows,
    calm: bool,
    /// Bytes a second that guests make dirty in its volumes.
    dirtied: f64,
}

impl<S: Store, N: Nodes> Controller<S, N> {
    /// Take one sample of everything that nodes said.
    pub(super) async fn sample(&self, planning: &Planning) -> Result<()> {
        let at = now();
        let nodes = self.inner.records.nodes().await?;
        let volumes = self.inner.records.volumes().await?;
        let mut seen = planning.seen();
        let seen = &mut *seen;
        for n in &nodes {
            let Some(word) = self.inner.presence.word(&n.name).filter(|w| w.alive) else {
                continue;
            };
            let (m, name) = (word.metrics, n.name.as_str());
            let memory = 1.0 - m.memory_available_bytes as f64 / m.memory_total_bytes as f64;
            let cpu = f64::from(m.cpu_permille) / 1000.0;
            for (metric, word, said) in [
                (Metric::Cpu, "cpu", cpu),
                (Metric::Memory, "memory", memory),
            ] {
                let from_file = planning
                    .series(name, word)
                    .and_then(std::result::Result::ok);
                let value = from_file.and_then(|v| v.last().copied()).unwrap_or(said);
                seen.history.add(metric, name, at, value);
            }
            let network = m
                .network_received_bytes
                .saturating_add(m.network_sent_bytes);
            for (metric, total) in [
                (Metric::DiskRead, m.disk_read_bytes),
                (Metric::DiskWrite, m.disk_written_bytes),
                (Metric::Network, network),
            ] {
                if let Some(rate) = seen.totals.rate(metric, name, at, total) {
                    seen.history.add(metric, name, at, rate);
                }
            }
        }
        for v in &volumes {
            let said = self.inner.presence.report(&v.owner, v.name.as_str());
            let written = said
                .and_then(|(r, _)| r.io)
                .map_or(0, |io| io.written_bytes);
            let dirtied = self.inner.presence.heat.dirtied(&v.name);
            for (metric, total) in [(Metric::Written, written), (Metric::Dirtied, dirtied)] {
                if let Some(rate) = seen.totals.rate(metric, v.name.as_str(), at, total) {
                    seen.history.add(metric, v.name.as_str(), at, rate);
                }
            }
        }
        Ok(())
    }

    pub(super) async fn view(
        &self,
        planning: &Planning,
        rules: &Rules,
        began: &BTreeMap<String, Began>,
    ) -> Result<View> {
        let volumes = self.inner.records.volumes().await?;
        let away = self.away().await?;
        let mut notes = Vec::new();
        let mut nodes = places::of(self, &[]).await?;
        let mut at_home: BTreeMap<String, Vec<&Volume>> = BTreeMap::new();
        for v in volumes.iter().filter(|v| v.status == Status::Ready) {
            let home = away
                .get(v.name.as_str())
                .map_or(v.owner.as_str(), |a| &a.home);
            at_home.entry(home.to_owned()).or_default().push(v);
        }
        let mut demands = self.demands(planning, rules, &nodes, &mut notes).await?;
        let hold = Seconds(rules.policy.expected_hold_seconds);
        for n in &mut nodes {
            let demand = demands.get(&n.name);
            if let Some(max) = demand.and_then(|d| d.windows.over(hold)) {
                n.utilisation = max.quantile(UTILISATION_QUANTILE);
            }
        }
        let mut subjects = Vec::new();
        for (home, mine) in &at_home {
            let Some(node) = nodes.iter().find(|n| n.name == *home) else {
                notes.push(format!(
                    "node {home}: it never registered, so nothing is planned for it"
                ));
                continue;
            };
            let demand = demands.remove(home);
            let idle = self.idle_since(planning, rules, home, mine, demand.as_ref());
            let mut demand = demand.unwrap_or_else(Demand::unknown);
            demand.dirtied = self.dirty_rate(planning, mine);
            subjects.push(
                self.subject(node, mine, demand, idle, &nodes, rules)
                    .await?,
            );
        }
        let provisioned = self.provisioned_sites().await?;
        notes.extend(provisioned.trouble.clone());
        let sites = Self::sites(planning, &nodes, began, &provisioned);
        Ok(View {
            subjects,
            sites,
            nodes,
            notes,
        })
    }

    /// What is forecast of every node. Forecasts take milliseconds each, so they are made beside what
    /// answers nodes and people.
    async fn demands(
        &self,
        planning: &Planning,
        rules: &Rules,
        nodes: &[NodeView],
        notes: &mut Vec<String>,
    ) -> Result<BTreeMap<String, Demand>> {
        let period = Seconds(planning.config.period_seconds);
        let day = Seconds(planning.config.day_seconds);
        let limit = CAPACITY * rules.policy.utilisation_limit;
        let mut past = Vec::new();
        for n in nodes {
            let mut of = |metric: Metric, word: &str| match planning.series(&n.name, word) {
                Some(Ok(values)) => values,
                Some(Err(e)) => {
                    let name = &n.name;
                    notes.push(format!(
                        "node {name}, {word}: {e}; what the node says counts"
                    ));
                    planning.seen().history.values(metric, name)
                }
                None => planning.seen().history.values(metric, &n.name),
            };
            let cpu = of(Metric::Cpu, "cpu");
            let memory = of(Metric::Memory, "memory");
            past.push((n.name.clone(), cpu, memory));
        }
        let forecast = tokio::task::spawn_blocking(move || {
            let of = |(name, cpu, memory): (String, Vec<f64>, Vec<f64>)| {
                let (demand, notes) = Demand::of(&name, &cpu, &memory, period, day, limit);
                (name, demand, notes)
            };
            past.into_iter().map(of).collect::<Vec<_>>()
        });
        let forecast = forecast.await.map_err(|e| {
            Error::new(
                ErrorKind::Broken,
                format!("forecast the nodes' demand: {e}"),
            )
        })?;
        let mut demands = BTreeMap::new();
        for (name, demand, why) in forecast {
            demands.insert(name, demand);
            notes.extend(why);
        }
        Ok(demands)
    }

    /// Bytes a second that guests made dirty lately, in all of these volumes.
    fn dirty_rate(&self, planning: &Planning, mine: &[&Volume]) -> f64 {
        let seen = planning.seen();
        let of = |v: &&Volume| {
            let all = seen.history.values(Metric::Dirtied, v.name.as_str());
            let lately = &all[all.len().saturating_sub(LATELY)..];
            lately.iter().sum::<f64>() / lately.len().max(1) as f64
        };
        mine.iter().map(of).sum()
    }

    /// Since when a node has been calm, with all of its volumes at home and no maintenance near.
    fn idle_since(
        &self,
        planning: &Planning,
        rules: &Rules,
        home: &str,
        mine: &[&Volume],
        demand: Option<&Demand>,
    ) -> Option<UnixTime> {
        let mut seen = planning.seen();
        let all_here = mine.iter().all(|v| v.owner.as_str() == home);
        let closed = maintenance(
            &rules.calendar,
            home,
            None,
            now(),
            Seconds(rules.policy.cycle_seconds),
        );
        if all_here && !closed && demand.is_some_and(|d| d.calm) {
            Some(*seen.idle_since.entry(home.to_owned()).or_insert_with(now))
        } else {
            seen.idle_since.remove(home);
            None
        }
    }

    async fn subject(
        &self,
        node: &NodeView,
        mine: &[&Volume],
        demand: Demand,
        idle_since: Option<UnixTime>,
        nodes: &[NodeView],
        rules: &Rules,
    ) -> Result<Subject> {
        let name: NodeName = node.name.parse()?;
        let metrics = self
            .inner
            .presence
            .word(&name)
            .map(|w| w.metrics)
            .unwrap_or_default();
        let hold = Seconds(rules.policy.expected_hold_seconds);
        let scaled = |w: &Windows, whole: f64| {
            let max = w
                .over(hold)
                .cloned()
                .unwrap_or(Distribution::certain(CAPACITY));
            max.scaled(whole)
        };
        let memory_gib = Bytes(metrics.memory_total_bytes).gib();
        let avoid: Vec<String> = nodes
            .iter()
            .filter(|n| maintenance(&rules.calendar, &n.name, Some(&n.site), now(), hold))
            .map(|n| n.name.clone())
            .chain([node.name.clone()])
            .collect();
        let mut node_latency_ms = BTreeMap::new();
        let mut site_latency_ms: BTreeMap<String, f64> = BTreeMap::new();
        for other in nodes.iter().filter(|n| n.name != node.name) {
            let far = self.inner.presence.distance(&name, &other.name.parse()?);
            if let Some(ms) = far.map(|d| d.as_secs_f64() * 1e3) {
                node_latency_ms.insert(other.name.clone(), ms);
                let nearest = site_latency_ms.entry(other.site.clone()).or_insert(ms);
                *nearest = nearest.min(ms);
            }
        }
        Ok(Subject {
            name: node.name.clone(),
            site: node.site.clone(),
            capacity: CAPACITY,
            need: Need {
                cpus: scaled(&demand.cpu, f64::from(metrics.cpus)),
                memory_gib: scaled(&demand.memory, memory_gib),
                storage: mine.iter().map(|v| Bytes(v.size_bytes)).sum(),
            },
            windows: demand.windows,
            dirty_rate: Bandwidth(demand.dirtied as u64),
            moving: mine
                .iter()
                .map(|v| Ask {
                    volume: v.name.to_string(),
                    bytes: Bytes(v.size_bytes),
                    avoid: avoid.clone(),
                    ..Ask::default()
                })
                .collect(),
            copies: self.copies(mine, nodes, &rules.prices).await?,
            idle_since,
            site_latency_ms,
            node_latency_ms,
        })
    }

    /// Sites that have a copy of each of these volumes.
    async fn copies(
        &self,
        mine: &[&Volume],
        nodes: &[NodeView],
        prices: &Prices,
    ) -> Result<BTreeMap<String, Held>> {
        let registered = self.inner.records.nodes().await?;
        let sites: BTreeSet<&str> = nodes.iter().map(|n| n.site.as_str()).collect();
        let mut copies = BTreeMap::new();
        for site in sites {
            let here = |n: &NodeName| nodes.iter().any(|v| v.name == n.as_str() && v.site == site);
            let mut behind = Some(Bytes(0));
            let mut holders = BTreeSet::new();
            for v in mine {
                let said = self.inner.presence.report(&v.owner, v.name.as_str());
                let lacking = if here(&v.owner) {
                    holders.insert(v.owner.clone());
                    Some(0)
                } else {
                    v.replicas.iter().find(|r| here(&r.node)).map(|r| {
                        holders.insert(r.node.clone());
                        lacking(said.as_ref().map(|s| &s.0), r.node.as_str(), v.size_bytes)
                    })
                };
                behind = behind
                    .zip(lacking)
                    .map(|(b, l)| Bytes(b.0.saturating_add(l)));
            }
            let Some(behind) = behind else { continue };
            // nodes that were bought go with the copies; those that people brought stay anyway
            let bought = registered.iter().filter(|n| holders.contains(&n.name));
            let hour: f64 = bought
                .filter_map(|n| {
                    let shapes = &prices.site(site).ok()?.shapes;
                    let shape = n.shape.as_ref()?;
                    shapes.iter().find(|s| s.name == *shape).map(|s| s.hour)
                })
                .sum();
            let node_hour = Money(hour);
            copies.insert(site.to_owned(), Held { behind, node_hour });
        }
        Ok(copies)
    }

    fn sites(
        planning: &Planning,
        nodes: &[NodeView],
        began: &BTreeMap<String, Began>,
        provisioned: &Sites,
    ) -> Vec<SiteView> {
        // a node that a commitment waits for is counted by the planner itself
        let awaited = |site: &str| {
            let waits = |b: &&Began| b.site == site && b.nodes.is_empty() && b.shape.is_some();
            began.values().filter(waits).count()
        };
        let configured = planning.sites.iter().map(|s| {
            let there = provisioned.nodes.get(&s.name).copied().unwrap_or(0);
            let is_shut =
                provisioned.quarantined.contains(&s.name) || provisioned.trouble.is_some();
            let quota = if is_shut {
                0
            } else {
                (planning.nodes_at_site + awaited(&s.name)).saturating_sub(there)
            };
            SiteView {
                name: s.name.clone(),
                latency_ms: s.latency_ms,
                bandwidth: Bandwidth((s.bandwidth_mib * f64::from(1 << 20)) as u64),
                provision: (provisioned.seconds.get(&s.name).copied())
                    .map_or(Seconds(s.provision_seconds), Seconds),
                quota: u32::try_from(quota).unwrap_or(u32::MAX),
            }
        });
        let mut sites: Vec<SiteView> = configured.collect();
        for site in nodes.iter().map(|n| &n.site).collect::<BTreeSet<_>>() {
            if !sites.iter().any(|s| s.name == *site) {
                sites.push(SiteView {
                    name: site.clone(),
                    latency_ms: 0.0,
                    bandwidth: Bandwidth(planning.config.bandwidth_mib.saturating_mul(1 << 20)),
                    provision: Seconds(0),
                    quota: 0, // nodes that people brought; none can be made
                });
            }
        }
        sites
    }
}

impl Demand {
    /// From what was measured, with what could not be forecast.
    fn of(
        name: &str,
        cpu: &[f64],
        memory: &[f64],
        period: Seconds,
        day: Seconds,
        limit: f64,
    ) -> (Demand, Vec<String>) {
        let calm = |values: &[f64]| values.last().is_some_and(|v| *v <= CALM * limit);
        let is_calm = calm(cpu) && calm(memory);
        let mut notes = Vec::new();
        let mut windows = |values: &[f64], word: &str| {
            outlook::windows(values, period, day).unwrap_or_else(|why| {
                notes.push(format!("node {name}, {word}: {why}: only events count"));
                Windows::default()
            })
        };
        let (cpu, memory) = (windows(cpu, "cpu"), windows(memory, "memory"));
        let risk = |w: &Windows| {
            let longest = w.lengths().last();
            longest
                .and_then(|l| w.over(l))
                .map_or(0.0, |max| max.exceed(limit))
        };
        let scarcer = if risk(&memory) > risk(&cpu) {
            &memory
        } else {
            &cpu
        };
        let demand = Demand {
            windows: scarcer.clone(),
            calm: is_calm,
            dirtied: 0.0,
            cpu,
            memory,
        };
        (demand, notes)
    }

    fn unknown() -> Demand {
        Demand {
            windows: Windows::default(),
            cpu: Windows::default(),
            memory: Windows::default(),
            calm: false,
            dirtied: 0.0,
        }
    }
}

impl Planning {
    /// A node's series from a file, if one is named for it.
    fn series(&self, node: &str, metric: &str) -> Option<std::result::Result<Vec<f64>, String>> {
        let named =
            |s: &&crate::controller::config::SeriesConfig| s.node == node && s.metric == metric;
        let source = self.config.series.iter().find(named)?;
        let read = || {
            let text = std::fs::read_to_string(&source.csv)
                .map_err(|e| format!("{}: {e}", source.csv.display()))?;
            let histories = csv::read(&text, source.column.as_deref())
                .map_err(|e| format!("{}: {e}", source.csv.display()))?;
            let samples = histories.into_values().next().unwrap_or_default();
            let series = crate::predict::Series::from_samples(&samples)
                .map_err(|e| format!("{}: {e}", source.csv.display()))?;
            Ok(series.values)
        };
        Some(read())
    }
}

/// Whether maintenance touches a node, or its site, within a time from now.
pub(super) fn maintenance(
    calendar: &Calendar,
    node: &str,
    site: Option<&str>,
    now: UnixTime,
    within: Seconds,
) -> bool {
    // an occurrence that begins just now has begun
    let until = now.after(Seconds(within.0.max(1)));
    let all = calendar.between(now, until);
    all.iter().any(|o| {
        o.event.kind == EventKind::Maintenance && o.event.touches(node, site.unwrap_or_default())
    })
}
