//! Where a copy goes, among nodes that exist: filters first, then the nearest, calmest, roomiest
//! and best spread. Room is reserved when the choice is made, not when the copy begins: otherwise
//! every choice of one cycle finds the same empty node and they all pile up there.

use super::unit::{Bytes, Money};
use serde::Serialize;
use std::collections::BTreeMap;

/// A node as the planner sees it.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Its site.
    pub site: String,
    /// What fails together with it: a rack, a power feed.
    pub domain: String,
    /// It answers and is not being emptied.
    pub available: bool,
    /// Round trip from where the volume is now.
    pub latency_ms: f64,
    /// Predicted utilisation, 0 to 1, at the plan's quantile.
    pub utilisation: f64,
    /// All of its storage.
    pub total: Bytes,
    /// What is free of it, as the node reported.
    pub free: Bytes,
    /// Anti-affinity groups that have a volume there, and how many.
    pub groups: BTreeMap<String, u32>,
    /// What an hour of it costs, if it goes when nothing is on it any more; zero if it stays anyway.
    pub hour: Money,
}

/// A copy that looks for a place.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// The volume.
    pub volume: String,
    /// Room that it takes.
    pub bytes: Bytes,
    /// Volumes of one group never share a node.
    pub group: Option<String>,
    /// Failure domains in which the volume has a copy already, or that an event touches.
    pub avoid_domains: Vec<String>,
    /// Nodes and sites that are no choice: where it is, and what an event touches.
    pub avoid: Vec<String>,
}

/// What a target must respect.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Farther than this is no choice.
    pub latency_ms: f64,
    /// Predicted utilisation above which a node takes nothing more.
    pub utilisation: f64,
    /// Share of a node's storage that stays free, for staging and growth.
    pub spare: f64,
}

/// Why a node is no choice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rejection {
    /// The node.
    pub node: String,
    /// In a few words.
    pub why: String,
}

/// A chosen node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// The node.
    pub node: String,
    /// Its site.
    pub site: String,
    /// What was compared, each 0 (best) to 1, and added up.
    pub terms: Terms,
}

/// The four things that a target is judged by; the smallest sum wins.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Terms {
    /// Latency as a share of its limit.
    pub proximity: f64,
    /// Predicted utilisation as a share of its limit.
    pub load: f64,
    /// Share of storage in use, with what is reserved.
    pub room: f64,
    /// Share of this cycle's choices that went to its site.
    pub spread: f64,
}

impl Terms {
    fn sum(&self) -> f64 {
        self.proximity + self.load + self.room + self.spread
    }
}

/// Promises made and not yet visible in what nodes report.
#[derive(Clone, Debug, Default)]
pub struct Reservations {
    by_node: BTreeMap<String, Bytes>,
    groups: BTreeMap<(String, String), u32>,
    by_site: BTreeMap<String, u32>,
}

impl Reservations {
    /// Bytes promised on a node.
    #[must_use]
    pub fn on(&self, node: &str) -> Bytes {
        self.by_node.get(node).copied().unwrap_or_default()
    }

    /// Promise room on a node for a copy that was decided earlier and is not yet there.
    pub fn reserve(&mut self, node: &NodeView, ask: &Ask) {
        let promised = self.by_node.entry(node.name.clone()).or_default();
        *promised = Bytes(promised.0.saturating_add(ask.bytes.0));
        *self.by_site.entry(node.site.clone()).or_default() += 1;
        if let Some(group) = &ask.group {
            *self
                .groups
                .entry((node.name.clone(), group.clone()))
                .or_default() += 1;
        }
    }

    fn site_share(&self, site: &str) -> f64 {
        let all: u32 = self.by_site.values().sum();
        let here = self.by_site.get(site).copied().unwrap_or(0);
        if all == 0 {
            0.0
        } else {
            f64::from(here) / f64::from(all)
        }
    }
}

/// The best node for `ask`, with its room reserved; or why each is no choice.
///
/// # Errors
/// No node passes the filters.
pub fn choose(
    ask: &Ask,
    nodes: &[NodeView],
    limits: &Limits,
    reservations: &mut Reservations,
) -> Result<Choice, Vec<Rejection>> {
    let mut rejections = Vec::new();
    let mut best: Option<(&NodeView, Terms)> = None;
    for node in nodes {
        if let Some(why) = refuse(ask, node, limits, reservations) {
            rejections.push(Rejection {
                node: node.name.clone(),
                why,
            });
            continue;
        }
        let used = (node.total.0 - node.free.0.min(node.total.0))
            .saturating_add(reservations.on(&node.name).0);
        let terms = Terms {
            proximity: share(node.latency_ms, limits.latency_ms),
            load: share(node.utilisation, limits.utilisation),
            room: share(used as f64, node.total.0 as f64),
            spread: reservations.site_share(&node.site),
        };
        let better = best.as_ref().is_none_or(|(b, t)| {
            (terms.sum(), &node.name).partial_cmp(&(t.sum(), &b.name))
                == Some(std::cmp::Ordering::Less)
        });
        if better {
            best = Some((node, terms));
        }
    }
    let Some((node, terms)) = best else {
        return Err(rejections);
    };
    reservations.reserve(node, ask);
    Ok(Choice {
        node: node.name.clone(),
        site: node.site.clone(),
        terms,
    })
}

fn share(of: f64, whole: f64) -> f64 {
    if whole > 0.0 {
        (of / whole).clamp(0.0, 1.0)
    } else {
        0.0
    }
}

fn refuse(ask: &Ask, node: &NodeView, limits: &Limits, taken: &Reservations) -> Option<String> {
    let hosts_group = |group: &String| {
        node.groups.get(group).copied().unwrap_or(0) > 0
            || taken
                .groups
                .contains_key(&(node.name.clone(), group.clone()))
    };
    let spare = Bytes((node.total.0 as f64 * limits.spare) as u64);
    let room = (node.free.0)
        .saturating_sub(taken.on(&node.name).0)
        .saturating_sub(spare.0);
    if !node.available {
        Some("does not answer or is being emptied".into())
    } else if ask.avoid.contains(&node.name) || ask.avoid.contains(&node.site) {
        Some("the volume is there, one that is kept apart from it, or an event touches it".into())
    } else if ask.avoid_domains.contains(&node.domain) {
        Some(format!("failure domain {} is taken", node.domain))
    } else if let Some(group) = ask.group.as_ref().filter(|g| hosts_group(g)) {
        Some(format!("has a volume of anti-affinity group {group}"))
    } else if node.latency_ms > limits.latency_ms {
        Some(format!(
            "{:.1} ms away, the limit is {:.1}",
            node.latency_ms, limits.latency_ms
        ))
    } else if node.utilisation > limits.utilisation {
        Some(format!(
            "predicted utilisation {:.2}, the limit is {:.2}",
            node.utilisation, limits.utilisation
        ))
    } else if room < ask.bytes.0 {
        Some(format!(
            "room for {:.1} GiB after reservations and spare, {:.1} needed",
            Bytes(room).gib(),
            ask.bytes.gib()
        ))
    } else {
        None
    }
}

#[cfg(test)]
#[path = "place_tests.rs"]
mod tests;
