//! One planning cycle: every subject against every site, and what to do about it.
//!
//! A subject is something that may have to go elsewhere: a node that may run out of capacity or go
//! into maintenance, with the volumes that would move. For each site the cheapest way to have a
//! warm copy there is scored: on a node that exists if one passes the filters, else on a new one.
//! The best score is compared with the triggers; [`Commitments`] make the answer steady.

use super::calendar::{Calendar, EventKind};
use super::commitment::{Commitment, Commitments};
use super::opening::Opening;
use super::place::{Ask, NodeView, Rejection, Reservations, choose};
use super::policy::{Mode, Policy};
use super::prices::{Prices, SitePrices};
use super::score::{Move, Score, Urgency, Windows};
use super::shape::{Need, Recommendation, recommend};
use super::unit::{Bandwidth, Bytes, Money, Seconds, UnixTime};
use serde::Serialize;
use std::collections::BTreeMap;

mod keeping;

use keeping::{Kept, Rent};

/// A site that could take copies.
#[derive(Clone, Debug)]
pub struct SiteView {
    /// Its name, as in the price table.
    pub name: String,
    /// Round trip from the subjects' sites.
    pub latency_ms: f64,
    /// Bandwidth that seeding may use.
    pub bandwidth: Bandwidth,
    /// How long a new node takes, from measurement.
    pub provision: Seconds,
    /// How many nodes may still be made there.
    pub quota: u32,
    /// Why none can be made there, if not for the quota.
    pub shut: Option<String>,
}

/// Something that may have to go elsewhere.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its name: a node.
    pub name: String,
    /// Where it is.
    pub site: String,
    /// Forecast of its demand's maximum over windows.
    pub windows: Windows,
    /// What the demand must not pass.
    pub capacity: f64,
    /// Share of the times at which it does that this subject has to leave: others may go instead.
    pub leaves: f64,
    /// Needs a second that nothing announces.
    pub unannounced: f64,
    /// Times a second that its load drives it out, as far as it was seen.
    pub overloads: f64,
    /// Share of its needs by load that no forecast announces in time, if that is known of it.
    pub missed_share: Option<f64>,
    /// The volumes that would move.
    pub moving: Vec<Ask>,
    /// What they need where they go.
    pub need: Need,
    /// What they are expected to write in a second, which copies of them must be sent.
    pub dirty_rate: Bandwidth,
    /// Sites that have copies of all of them.
    pub copies: BTreeMap<String, Held>,
    /// Since when its demand has been observed well below capacity with nothing of it elsewhere;
    /// `None` while it is not so.
    pub idle_since: Option<UnixTime>,
    /// Round trips from it by site, where they were measured; the larger of this and the site's own
    /// counts.
    pub site_latency_ms: BTreeMap<String, f64>,
    /// Round trips from it by node, where they were measured.
    pub node_latency_ms: BTreeMap<String, f64>,
}

/// Copies of all of a subject's volumes at one site.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Held {
    /// How far behind they are.
    pub behind: Bytes,
    /// The nodes that they are on, one for each volume.
    pub nodes: Vec<String>,
}

/// Everything that a cycle looks at.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The time of the cycle.
    pub now: UnixTime,
    /// What may have to move.
    pub subjects: &'a [Subject],
    /// Where it could go.
    pub sites: &'a [SiteView],
    /// Nodes that exist.
    pub nodes: &'a [NodeView],
    /// Known events.
    pub calendar: &'a Calendar,
    /// What things cost.
    pub prices: &'a Prices,
    /// What the operator wants.
    pub policy: &'a Policy,
}

/// No copy is kept for an event farther away than this.
const LOOK_AHEAD: Seconds = Seconds(7 * 86_400);

/// Why something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// The score pays.
    Score,
    /// Predicted utilisation passes its limit.
    Utilisation,
    /// An announced event comes.
    Event,
}

/// How a site would have its copy.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The site has it already.
    Warm,
    /// On these nodes, one for each volume.
    Existing(Vec<String>),
    /// On a new node of this shape, which holds the copies until something runs there.
    New(Box<Recommendation>),
}

/// A site as seen for one subject.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outlook {
    /// It can be done so, at this score.
    Possible {
        /// How.
        way: Way,
        /// What it is worth.
        score: Score,
        /// The shape on which what moves would run, if the site sells one so large.
        host: Option<Box<Recommendation>>,
    },
    /// It cannot be done.
    Filtered {
        /// Why, in a sentence.
        why: String,
    },
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Make a node, then seed.
    Provision,
    /// Seed a node that exists.
    Seed,
    /// Go on keeping the copy.
    Keep,
    /// The copy was idle long enough: give it up.
    Release,
    /// Nothing.
    Nothing,
    /// It should be done and cannot: no site passes the filters.
    Stuck,
}

/// What the cycle says about one subject.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    /// The subject.
    pub subject: String,
    /// What to do.
    pub action: Action,
    /// Where.
    pub site: Option<String>,
    /// Why.
    pub triggers: Vec<Trigger>,
    /// Where it would be done, if anything were.
    pub best: Option<String>,
    /// Every site, by name.
    pub sites: BTreeMap<String, Outlook>,
    /// The score's sum, or why there is none.
    pub line: String,
}

/// A cycle's result.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// When.
    pub at: UnixTime,
    /// By which prices.
    pub prices: String,
    /// In which currency.
    pub currency: String,
    /// How far it goes.
    pub mode: Mode,
    /// One for each subject.
    pub decisions: Vec<Decision>,
}

impl Plan {
    /// The decisions that are to be carried out now: none unless the mode is auto.
    pub fn to_carry_out(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter().filter(|d| {
            self.mode == Mode::Auto
                && matches!(d.action, Action::Provision | Action::Seed | Action::Release)
        })
    }
}

/// Plan. The commitments are those of the last cycle and become those of this one.
pub fn plan(input: &Input<'_>, commitments: &mut Commitments) -> Plan {
    let mut cycle = Cycle {
        input,
        taken: Reservations::default(),
        promised: BTreeMap::new(),
        quota: input
            .sites
            .iter()
            .map(|s| (s.name.clone(), if s.shut.is_none() { s.quota } else { 0 }))
            .collect(),
        opening: Opening::of(input),
        rent: None,
    };
    cycle.reserve_promised(commitments);
    cycle.rent = Some(cycle.rents(commitments));
    let decisions = input
        .subjects
        .iter()
        .map(|s| cycle.decide(s, commitments))
        .collect();
    Plan {
        at: input.now,
        prices: input.prices.version.clone(),
        currency: input.prices.currency.clone(),
        mode: input.policy.mode,
        decisions,
    }
}

struct Cycle<'a> {
    input: &'a Input<'a>,
    taken: Reservations,
    /// What subjects came into this cycle with. Its own promise stands in nobody's way.
    promised: BTreeMap<String, Commitment>,
    quota: BTreeMap<String, u32>,
    /// Which sites take copies before others.
    opening: Opening<'a>,
    /// Who pays for nodes that were bought; none while that is being found out, and they are free.
    rent: Option<Rent>,
}

impl Cycle<'_> {
    /// What earlier cycles promised and nodes do not report yet still takes its room.
    fn reserve_promised(&mut self, commitments: &Commitments) {
        for subject in self.input.subjects {
            let Some(c) = commitments.get(&subject.name) else {
                continue;
            };
            self.promised.insert(subject.name.clone(), c.clone());
            if subject.copies.contains_key(&c.site) {
                continue; // it is there: what the node reports as free knows of it
            }
            for (ask, name) in subject.moving.iter().zip(&c.nodes) {
                if let Some(node) = self.input.nodes.iter().find(|n| n.name == *name) {
                    self.taken.reserve(node, ask);
                }
            }
            if c.nodes.is_empty() {
                let left = self.quota.entry(c.site.clone()).or_default();
                *left = left.saturating_sub(1);
            }
        }
    }

    fn outlooks(&self, subject: &Subject) -> BTreeMap<String, Outlook> {
        (self.input.sites.iter())
            .filter(|s| s.name != subject.site)
            .map(|s| (s.name.clone(), self.outlook(subject, s)))
            .collect()
    }

    fn decide(&mut self, subject: &Subject, commitments: &mut Commitments) -> Decision {
        let policy = self.input.policy;
        let outlooks = self.outlooks(subject);
        let committed = commitments.get(&subject.name).cloned();
        let best = self.best(subject, committed.as_ref(), &outlooks);
        let floor = committed
            .as_ref()
            .map_or(policy.open_score, |_| policy.close_score);
        let triggers = self.triggers(subject, best, floor);

        let (action, site) = match (&committed, best) {
            (Some(c), Some((site, _, _))) if c.site == site => {
                if triggers.is_empty() && c.may_go(subject.idle_since, self.input.now, policy) {
                    commitments.release(&subject.name);
                    (Action::Release, Some(site.to_owned()))
                } else {
                    (Action::Keep, Some(site.to_owned()))
                }
            }
            (_, Some((site, way, _))) if !triggers.is_empty() => {
                let action = match way {
                    Way::New(_) => Action::Provision,
                    Way::Existing(_) => Action::Seed,
                    Way::Warm => Action::Keep,
                };
                if policy.mode != Mode::ForecastOnly {
                    self.commit(subject, site, way, commitments);
                }
                (action, Some(site.to_owned()))
            }
            (_, None) if !triggers.is_empty() => (Action::Stuck, None),
            _ => (Action::Nothing, None),
        };
        let line = match best {
            Some((site, _, score)) => format!("{site}: {}", score.line()),
            None => no_site(&outlooks),
        };
        let best = best.map(|b| b.0.to_owned());
        Decision {
            subject: subject.name.clone(),
            action,
            site,
            triggers,
            best,
            sites: outlooks,
            line,
        }
    }

    /// The site that is committed to, unless it became impossible: switching costs a second baseline. Else the
    /// one that scores best, of all only if none of those that are open can.
    fn best<'o>(
        &self,
        subject: &Subject,
        committed: Option<&Commitment>,
        outlooks: &'o BTreeMap<String, Outlook>,
    ) -> Best<'o> {
        (committed.and_then(|c| possible(outlooks, &c.site)))
            .or_else(|| best_of(outlooks, |site| self.opening.is_open(subject, site)))
            .or_else(|| best_of(outlooks, |_| true))
    }

    fn commit(&mut self, subject: &Subject, site: &str, way: &Way, to: &mut Commitments) {
        let nodes = match way {
            Way::Existing(nodes) => {
                for (ask, name) in subject.moving.iter().zip(nodes) {
                    if let Some(node) = self.input.nodes.iter().find(|n| n.name == *name) {
                        self.taken.reserve(node, ask);
                    }
                }
                nodes.clone()
            }
            Way::New(_) => {
                let left = self.quota.entry(site.to_owned()).or_default();
                *left = left.saturating_sub(1);
                Vec::new()
            }
            Way::Warm => (subject.copies.get(site)).map_or(Vec::new(), |held| held.nodes.clone()),
        };
        to.open(
            &subject.name,
            Commitment {
                site: site.to_owned(),
                nodes,
                since: self.input.now,
            },
        );
    }

    /// A site for a subject: filtered, or the cheapest way with its score.
    fn outlook(&self, subject: &Subject, site: &SiteView) -> Outlook {
        let input = self.input;
        let prices = match input.prices.site(&site.name) {
            Ok(prices) => prices,
            Err(e) => return Outlook::Filtered { why: e.to_string() },
        };
        let measured = subject.site_latency_ms.get(&site.name);
        let latency_ms = measured.map_or(site.latency_ms, |ms| ms.max(site.latency_ms));
        if latency_ms > input.policy.latency_ms_limit {
            return filtered(format!(
                "{latency_ms:.1} ms away, the limit is {:.1}",
                input.policy.latency_ms_limit
            ));
        }
        let whole = subject.size();
        if self.touched(&site.name, input.policy.hold()) {
            return filtered("goes into maintenance itself while the copy would be kept".into());
        }
        let policy = input.policy;
        let host = recommend(&subject.need, prices, policy.shape_quantile);
        let mut it = self.a_move(subject, site, prices, host.as_ref());
        if it.bandwidth.time_for(whole).0 == u64::MAX {
            return filtered("no bandwidth to it".into());
        }
        if let Some(held) = subject.copies.get(&site.name) {
            return Outlook::Possible {
                way: Way::Warm,
                score: self.keeping(&Kept {
                    subject,
                    site,
                    prices,
                    held,
                    anew: it,
                }),
                host: host.map(Box::new),
            };
        }
        let promised = (self.promised.get(&subject.name)).filter(|c| c.site == site.name);
        let way = match self.on_existing(subject, site, promised) {
            Ok(nodes) => Way::Existing(nodes),
            Err(_) if self.quota_left(&site.name, promised) == 0 => {
                let why = site.shut.as_deref();
                return filtered(format!(
                    "no node there has room, and {}",
                    why.unwrap_or("the quota for new ones is used up")
                ));
            }
            Err(_) => {
                let standby = Need::standby(subject.need.storage);
                match recommend(&standby, prices, policy.shape_quantile) {
                    Some(r) if host.is_some() => {
                        it.provision = site.provision;
                        it.node = r.shape.price(policy.hold());
                        Way::New(Box::new(r))
                    }
                    _ => return filtered("sells no node that is large enough".into()),
                }
            }
        };
        let score = self.score(subject, &it, policy.cycle());
        let score = match &way {
            Way::Existing(nodes) => self.as_newcomer(score, subject, nodes),
            _ => score,
        };
        Outlook::Possible {
            way,
            score,
            host: host.map(Box::new),
        }
    }

    /// A move to a node that is there, with a copy for as long as one is expected to be kept.
    fn a_move(
        &self,
        subject: &Subject,
        site: &SiteView,
        prices: &SitePrices,
        host: Option<&Recommendation>,
    ) -> Move {
        let policy = self.input.policy;
        let whole = subject.size();
        Move {
            provision: Seconds(0),
            bytes: whole,
            bandwidth: site.bandwidth,
            node: Money(0.0),
            storage: prices.storage(whole, policy.hold()),
            egress: prices.egress(with_increments(whole, subject, policy.hold())),
            hold: policy.hold(),
            kept: None,
            host: host.map_or(Money(0.0), |h| h.shape.price(policy.stay())),
        }
    }

    fn score(&self, subject: &Subject, it: &Move, slack: Seconds) -> Score {
        let lead = it.provision + it.bandwidth.time_for(it.bytes);
        let (events, load) = self.events(subject, lead + slack);
        let urgency = Urgency {
            windows: &subject.windows,
            capacity: subject.capacity / load,
            leaves: subject.leaves,
            events: &events,
            unannounced: subject.unannounced,
            value_of_second: Money(self.input.policy.value_of_second),
            value_of_move: Money(self.input.policy.value_of_move),
        };
        Score::of(it, &urgency, slack)
    }

    /// New nodes that a site can still have, with the one that is on its way for this subject.
    fn quota_left(&self, site: &str, promised: Option<&Commitment>) -> u32 {
        let left = self.quota.get(site).copied().unwrap_or(0);
        let its_own = promised.is_some_and(|c| c.nodes.is_empty());
        left.saturating_add(u32::from(its_own))
    }

    fn on_existing(
        &self,
        subject: &Subject,
        site: &SiteView,
        promised: Option<&Commitment>,
    ) -> Result<Vec<String>, Vec<Rejection>> {
        if let Some(c) = promised {
            let there = |name: &String| {
                let mut nodes = self.input.nodes.iter();
                nodes.any(|n| n.name == *name && n.available)
            };
            if c.nodes.len() == subject.moving.len() && c.nodes.iter().all(there) {
                return Ok(c.nodes.clone()); // their room was taken when it was decided
            }
        }
        let nodes: Vec<NodeView> = self
            .input
            .nodes
            .iter()
            .filter(|n| n.site == site.name)
            .cloned()
            .map(|mut n| {
                let measured = subject.node_latency_ms.get(&n.name).copied();
                n.latency_ms = measured.unwrap_or(n.latency_ms).max(site.latency_ms);
                n
            })
            .collect();
        let mut taken = self.taken.clone();
        let limits = self.input.policy.limits();
        subject
            .moving
            .iter()
            .map(|ask| choose(ask, &nodes, &limits, &mut taken).map(|c| c.node))
            .collect()
    }

    /// Maintenance ahead of a subject, and what spikes within `horizon` multiply its demand with. A
    /// spike counts in full whatever its probability: too much room is the cheaper mistake.
    fn events(&self, subject: &Subject, horizon: Seconds) -> (Vec<(Seconds, f64)>, f64) {
        let now = self.input.now;
        let mut ahead = Vec::new();
        let mut load = 1.0f64;
        for o in self.input.calendar.between(now, now.after(horizon)) {
            if !o.event.touches(&subject.name, &subject.site) {
                continue;
            }
            match o.event.kind {
                EventKind::Maintenance => ahead.push((o.start.since(now), o.event.probability)),
                EventKind::Spike => load = load.max(o.event.load),
            }
        }
        (ahead, load)
    }

    /// Whether maintenance of a whole site falls within `horizon`.
    fn touched(&self, site: &str, horizon: Seconds) -> bool {
        let now = self.input.now;
        (self.input.calendar.between(now, now.after(horizon)).iter()).any(|o| {
            o.event.kind == EventKind::Maintenance && o.event.site.as_deref() == Some(site)
        })
    }

    fn triggers(&self, subject: &Subject, best: Best<'_>, floor: f64) -> Vec<Trigger> {
        let policy = self.input.policy;
        let score = best.map(|b| b.2);
        let lead = score.map_or(Seconds(0), |s| s.lead);
        let horizon = lead + policy.cycle();
        let mut triggers = Vec::new();
        if score.is_some_and(|s| s.total.0 >= floor && s.p > 0.0) {
            triggers.push(Trigger::Score);
        }
        let (_, load) = self.events(subject, horizon);
        let limit = subject.capacity * policy.utilisation_limit / load;
        if (subject.windows.over(horizon))
            .is_some_and(|max| subject.leaves * max.exceed(limit) > policy.utilisation_probability)
        {
            triggers.push(Trigger::Utilisation);
        }
        let margin = horizon + Seconds(policy.event_margin_seconds);
        if self.must_begin(subject, best.map(|b| b.0), margin) {
            triggers.push(Trigger::Event);
        }
        triggers
    }

    /// Whether maintenance ahead is so near that a copy has to begin, which takes `lead` alone: what
    /// else has to leave because of it shares the bandwidth.
    fn must_begin(&self, subject: &Subject, site: Option<&str>, lead: Seconds) -> bool {
        let input = self.input;
        let site = input.sites.iter().find(|s| Some(s.name.as_str()) == site);
        let ahead = input
            .calendar
            .between(input.now, input.now.after(LOOK_AHEAD));
        (ahead.iter())
            .filter(|o| o.event.kind == EventKind::Maintenance)
            .filter(|o| o.event.touches(&subject.name, &subject.site))
            .any(|o| {
                let others = (input.subjects.iter())
                    .filter(|s| s.name != subject.name && o.event.touches(&s.name, &s.site));
                let sent = site.map_or(Seconds(0), |site| {
                    site.bandwidth
                        .time_for(others.map(|s| s.lacks(&site.name)).sum())
                });
                o.start.since(input.now) <= lead + sent
            })
    }
}

impl Subject {
    /// All that would move.
    pub(super) fn size(&self) -> Bytes {
        self.moving.iter().map(|a| a.bytes).sum()
    }

    /// What a site lacks of it.
    fn lacks(&self, site: &str) -> Bytes {
        (self.copies.get(site)).map_or_else(|| self.size(), |held| held.behind)
    }
}

/// What the volumes are expected to write while copies of them are kept.
fn with_increments(bytes: Bytes, subject: &Subject, hold: Seconds) -> Bytes {
    Bytes(
        bytes
            .0
            .saturating_add(subject.dirty_rate.0.saturating_mul(hold.0)),
    )
}

fn filtered(why: String) -> Outlook {
    Outlook::Filtered { why }
}

type Best<'a> = Option<(&'a str, &'a Way, &'a Score)>;

fn possible<'a>(outlooks: &'a BTreeMap<String, Outlook>, site: &str) -> Best<'a> {
    match outlooks.get_key_value(site) {
        Some((site, Outlook::Possible { way, score, .. })) => Some((site, way, score)),
        _ => None,
    }
}

fn best_of(outlooks: &BTreeMap<String, Outlook>, at: impl Fn(&str) -> bool) -> Best<'_> {
    outlooks
        .keys()
        .filter(|site| at(site))
        .filter_map(|site| possible(outlooks, site))
        .reduce(|a, b| if b.2.total.0 > a.2.total.0 { b } else { a })
}

fn no_site(outlooks: &BTreeMap<String, Outlook>) -> String {
    let reasons: Vec<String> = outlooks
        .iter()
        .filter_map(|(site, o)| match o {
            Outlook::Filtered { why } => Some(format!("{site} {why}")),
            Outlook::Possible { .. } => None,
        })
        .collect();
    if reasons.is_empty() {
        "no other site is known".into()
    } else {
        format!("no site: {}", reasons.join("; "))
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
