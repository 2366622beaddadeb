//! The fleet as the planner sees it.
//!
//! A subject is a node with the volumes that are at home there: those that it owns, and those that a
//! plan moved away from it and that will come back.

use super::book::Began;
use super::outlook::{self, Demand, Home, Past, Stated};
use super::{Planning, Rules, now};
use crate::controller::places::lacking;
use crate::controller::provisioning::Sites;
use crate::controller::{Controller, Nodes, places};
use crate::fleet::{Status, Volume};
use crate::planner::{
    Ask, Bandwidth, Bytes, Calendar, Distribution, EventKind, Held, Money, Need, NodeView, Prices,
    Seconds, SiteView, Subject, UnixTime,
};
use crate::predict::convergence::Convergence;
use crate::predict::requirement::Resource;
use crate::predict::{Series, csv};
use crate::store::Store;
use node::{Error, ErrorKind, NodeName, Result};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::time::Instant;

/// Demand below this share of its limit is calm.
const CALM: f64 = 0.9;
/// The quantile of predicted utilisation by which a target is judged.
const UTILISATION_QUANTILE: f64 = 0.9;
/// All that a node has.
pub(super) const CAPACITY: f64 = 1.0;

/// What a cycle looks at.
pub(super) struct View {
    pub subjects: Vec<Subject>,
    pub sites: Vec<SiteView>,
    pub nodes: Vec<NodeView>,
    /// What is needed where they go, by subject.
    pub needs: BTreeMap<String, Vec<Stated>>,
    /// When copies at each site would be ready to be moved to, by subject.
    pub promises: BTreeMap<String, BTreeMap<String, Promise>>,
    pub notes: Vec<String>,
}

/// How long a subject's volumes take to have copies at a site that a cutover can end quickly, 95 times
/// of 100, with all its bandwidth shared by them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(in crate::controller) struct Promise {
    /// None if increments would not become small: the guest has to be paced, or mirrored.
    pub seconds: Option<u64>,
    /// All that is sent until then.
    pub bytes: u64,
}

impl<S: Store, N: Nodes> Controller<S, N> {
    pub(super) async fn view(
        &self,
        planning: &Planning,
        rules: &Rules,
        began: &BTreeMap<String, Began>,
        learn: bool,
    ) -> Result<View> {
        let volumes = self.inner.records.volumes().await?;
        let away = self.away().await?;
        let mut notes = Vec::new();
        let mut nodes = places::of(self, &[]).await?;
        self.price_bought(&mut nodes, &rules.prices).await?;
        let mut at_home: BTreeMap<String, Vec<&Volume>> = BTreeMap::new();
        for v in volumes.iter().filter(|v| v.status == Status::Ready) {
            let home = away
                .get(v.name.as_str())
                .map_or(v.owner.as_str(), |a| &a.home);
            at_home.entry(home.to_owned()).or_default().push(v);
        }
        let homes = self.homes(planning, &nodes, &at_home, &mut notes);
        let started = Instant::now();
        let mut demands = Self::demands(planning, rules, homes, learn).await?;
        planning.seen().lap.forecast = started.elapsed();
        notes.extend(demands.values().flat_map(|d| d.notes.clone()));
        let quantile = rules.policy.shape_quantile;
        let needs = (demands.iter())
            .filter(|(_, d)| !d.needs.is_empty())
            .map(|(home, d)| (home.clone(), d.stated(quantile)));
        let needs = needs.collect();
        planning.seen().loads = (demands.iter_mut())
            .map(|(home, d)| (home.clone(), std::mem::take(&mut d.recent)))
            .collect();
        let hold = Seconds(rules.policy.expected_hold_seconds);
        for n in &mut nodes {
            let demand = demands.get(&n.name);
            if let Some(max) = demand.and_then(|d| d.windows.over(hold)) {
                n.utilisation = max.quantile(UTILISATION_QUANTILE);
            }
        }
        let counted = self.needs_counted().await?;
        let holders = self.holders(&volumes).await?;
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
            let demand = demand.unwrap_or_default();
            let mut subject = self.subject(node, mine, demand, idle, &nodes, rules)?;
            let counted = counted.get(home).map(|n| n.counted).unwrap_or_default();
            subject.unannounced = counted.unforeseen();
            subject.overloads = counted.overloads();
            subject.missed_share = Some(counted.missed_share(rules.policy.missed_share));
            self.keep_apart(&mut subject.moving, &holders);
            subjects.push(subject);
        }
        let provisioned = self.provisioned_sites().await?;
        notes.extend(provisioned.trouble.clone());
        let sites = Self::sites(planning, &nodes, began, &provisioned);
        let promises = (subjects.iter())
            .map(|s| (s.name.clone(), self.promises(s, &sites)))
            .filter(|(_, promises)| !promises.is_empty())
            .collect();
        Ok(View {
            promises,
            subjects,
            sites,
            nodes,
            needs,
            notes,
        })
    }

    /// What can be promised of each site; nothing before guests' habits are known.
    fn promises(&self, subject: &Subject, sites: &[SiteView]) -> BTreeMap<String, Promise> {
        let others = sites.iter().filter(|site| site.name != subject.site);
        let promises = others.filter_map(|site| {
            let share = site.bandwidth.0 / subject.moving.len().max(1) as u64;
            let mut all = Promise {
                seconds: Some(0),
                bytes: 0,
            };
            for ask in &subject.moving {
                let name = ask.volume.parse().ok()?;
                let heat = &self.inner.presence.heat;
                // of copies that are there together the last byte behind counts for each
                let copies = subject.copies.get(&site.name);
                let bytes = copies.map_or(ask.bytes, |c| c.behind.min(ask.bytes));
                match heat.convergence(&name, bytes.0, share)? {
                    Convergence::Within { seconds, bytes } => {
                        all.seconds = all.seconds.map(|s| s.max(seconds.ceil() as u64));
                        all.bytes = all.bytes.saturating_add(bytes as u64);
                    }
                    Convergence::Never => all.seconds = None,
                }
            }
            Some((site.name.clone(), all))
        });
        promises.collect()
    }

    /// Every node with what its forecast is made of.
    fn homes(
        &self,
        planning: &Planning,
        nodes: &[NodeView],
        at_home: &BTreeMap<String, Vec<&Volume>>,
        notes: &mut Vec<String>,
    ) -> Vec<Home> {
        let mut homes = Vec::new();
        for n in nodes {
            let mut file = |word: &str| match planning.series(&n.name, word)? {
                Ok(series) => Some(series),
                Err(e) => {
                    let name = &n.name;
                    notes.push(format!(
                        "node {name}, {word}: {e}; what the node says counts"
                    ));
                    None
                }
            };
            let files = [file("cpu"), file("memory")];
            let volumes: Vec<String> = (at_home.get(&n.name).into_iter().flatten())
                .map(|v| v.name.to_string())
                .collect();
            let vm_of = |v: &String| {
                let mut sources = planning.sources.iter();
                sources.find_map(|s| s.vm_of(v).map(str::to_owned))
            };
            let vms: Option<Vec<String>> = volumes.iter().map(vm_of).collect();
            let word = (n.name.parse().ok()).and_then(|name| self.inner.presence.word(&name));
            homes.push(Home {
                node: n.name.clone(),
                capacity: word
                    .map(|w| {
                        [
                            f64::from(w.metrics.cpus),
                            w.metrics.memory_total_bytes as f64,
                        ]
                    })
                    .filter(|c| c.iter().all(|c| *c > 0.0)),
                vms: vms.unwrap_or_default(),
                volumes,
                files,
            });
        }
        homes
    }

    /// What is forecast of every node, made beside what answers nodes and people.
    async fn demands(
        planning: &Planning,
        rules: &Rules,
        homes: Vec<Home>,
        learn: bool,
    ) -> Result<BTreeMap<String, Demand>> {
        let (kept, learned) = (planning.kept.clone(), planning.learned.clone());
        let period = Seconds(planning.config.period_seconds);
        let day = Seconds(planning.config.day_seconds);
        let span = planning.kept_seconds();
        let limit = CAPACITY * rules.policy.utilisation_limit;
        let at = now();
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let looked = tokio::task::spawn_blocking(move || {
            let past = Past {
                kept: &kept,
                learned: &learned,
                period,
                day,
                span,
                limit,
            };
            outlook::look(&past, &homes, at, threads, learn)
        });
        looked.await.map_err(|e| {
            Error::new(
                ErrorKind::Broken,
                format!("forecast the nodes' demand: {e}"),
            )
        })?
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
        if all_here && !closed && demand.is_some_and(|d| is_calm(d, rules)) {
            Some(*seen.idle_since.entry(home.to_owned()).or_insert_with(now))
        } else {
            seen.idle_since.remove(home);
            None
        }
    }

    fn subject(
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
        // of which nothing is known, all that there is may be needed
        let needed = |resource: Resource, all: f64, unit: f64| {
            let need = demand.needs.get(&resource).map(|n| &n.most);
            need.map_or(Distribution::certain(CAPACITY * all), |n| {
                n.scaled(1.0 / unit)
            })
        };
        let memory_gib = Bytes(metrics.memory_total_bytes).gib();
        let dirtied = demand
            .needs
            .get(&Resource::DirtyRate)
            .map_or(0.0, |n| n.lately);
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
        for (site, far) in self.inner.presence.sites_from(&name) {
            let ms = far.as_secs_f64() * 1e3;
            let nearest = site_latency_ms.entry(site).or_insert(ms);
            *nearest = nearest.min(ms);
        }
        Ok(Subject {
            name: node.name.clone(),
            site: node.site.clone(),
            capacity: CAPACITY,
            leaves: 1.0,
            unannounced: 0.0,
            overloads: 0.0,
            missed_share: None,
            need: Need {
                cpus: needed(Resource::Cpu, f64::from(metrics.cpus), 1.0),
                memory_gib: needed(Resource::Memory, memory_gib, f64::from(1 << 30)),
                storage: mine.iter().map(|v| Bytes(v.size_bytes)).sum(),
            },
            windows: demand.windows,
            dirty_rate: Bandwidth(dirtied as u64),
            moving: mine
                .iter()
                .map(|v| Ask {
                    volume: v.name.to_string(),
                    bytes: Bytes(v.size_bytes),
                    avoid: avoid.clone(),
                    ..Ask::default()
                })
                .collect(),
            copies: self.copies(mine, nodes),
            idle_since,
            site_latency_ms,
            node_latency_ms,
        })
    }

    /// Sites that have a copy of each of these volumes.
    fn copies(&self, mine: &[&Volume], nodes: &[NodeView]) -> BTreeMap<String, Held> {
        let sites: BTreeSet<&str> = nodes.iter().map(|n| n.site.as_str()).collect();
        let mut copies = BTreeMap::new();
        for site in sites {
            let here = |n: &NodeName| nodes.iter().any(|v| v.name == n.as_str() && v.site == site);
            let mut behind = Some(Bytes(0));
            let mut holders = Vec::new();
            for v in mine {
                let said = self.inner.presence.report(&v.owner, v.name.as_str());
                let lacking = if here(&v.owner) {
                    holders.push(v.owner.to_string());
                    Some(0)
                } else {
                    v.replicas.iter().find(|r| here(&r.node)).map(|r| {
                        holders.push(r.node.to_string());
                        lacking(said.as_ref().map(|s| &s.0), r.node.as_str(), v.size_bytes)
                    })
                };
                behind = behind
                    .zip(lacking)
                    .map(|(b, l)| Bytes(b.0.saturating_add(l)));
            }
            let Some(behind) = behind else { continue };
            let held = Held {
                behind,
                nodes: holders,
            };
            copies.insert(site.to_owned(), held);
        }
        copies
    }

    /// What nodes cost an hour that were bought, and so go when nothing is on them any more.
    async fn price_bought(&self, nodes: &mut [NodeView], prices: &Prices) -> Result<()> {
        for bought in self.inner.records.nodes().await? {
            let hour = bought.shape.as_ref().and_then(|shape| {
                let shapes = &prices.site(&bought.site).ok()?.shapes;
                shapes.iter().find(|s| s.name == *shape).map(|s| s.hour)
            });
            let view = nodes.iter_mut().find(|n| n.name == bought.name.as_str());
            if let (Some(hour), Some(view)) = (hour, view) {
                view.hour = Money(hour);
            }
        }
        Ok(())
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
            let quarantined = provisioned.quarantined.get(&s.name).map(|why| {
                format!(
                    "the site is quarantined because {why}: look, then `forerun provision \
                     end-quarantine {}`",
                    s.name
                )
            });
            let makes_none = (planning.nodes_at_site == 0)
                .then(|| "this controller makes none: it has no [provision] table".to_owned());
            let quota = (planning.nodes_at_site + awaited(&s.name)).saturating_sub(there);
            SiteView {
                name: s.name.clone(),
                latency_ms: s.latency_ms,
                bandwidth: Bandwidth((s.bandwidth_mib * f64::from(1 << 20)) as u64),
                provision: (provisioned.seconds.get(&s.name).copied())
                    .map_or(Seconds(s.provision_seconds), Seconds),
                quota: u32::try_from(quota).unwrap_or(u32::MAX),
                shut: provisioned.trouble.clone().or(quarantined).or(makes_none),
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
                    quota: 0,
                    shut: Some("nodes are not made there: it is no [[site]]".into()),
                });
            }
        }
        sites
    }
}

/// Whether the newest of what a node uses is well below its limit.
fn is_calm(demand: &Demand, rules: &Rules) -> bool {
    let limit = CALM * CAPACITY * rules.policy.utilisation_limit;
    demand.newest.iter().all(|n| n.is_some_and(|n| n <= limit))
}

impl Planning {
    /// A node's series from a file, if one is named for it.
    pub(super) fn series(
        &self,
        node: &str,
        metric: &str,
    ) -> Option<std::result::Result<Series, String>> {
        let named =
            |s: &&crate::controller::config::SeriesConfig| s.node == node && s.metric == metric;
        let source = self.config.series.iter().find(named)?;
        let read = || {
            let text = std::fs::read_to_string(&source.csv)
                .map_err(|e| format!("{}: {e}", source.csv.display()))?;
            let histories = csv::read(&text, source.column.as_deref())
                .map_err(|e| format!("{}: {e}", source.csv.display()))?;
            let samples = histories.into_values().next().unwrap_or_default();
            let mut series = Series::from_samples(&samples)
                .map_err(|e| format!("{}: {e}", source.csv.display()))?;
            // a sample is a period, whatever its stamps say
            let samples_a_day = self.config.day_seconds / self.config.period_seconds;
            let day = samples_a_day.saturating_mul(series.step_seconds.into());
            series.day_seconds = u32::try_from(day).unwrap_or(u32::MAX);
            Ok(series)
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
