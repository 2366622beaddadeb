//! Which site takes copies before others. A node is cheaper the more copies are on it, so new ones come where
//! one is. The first is bought where all that may be needed is cheapest over a month: a score looks as far as one copy
//! is expected to be kept, but a node that others follow to stays for longer.
//!
//! ```text
//! month = hosts for the moves + for each subject the cheaper of { keeping a copy, sending at each move }
//!         + nodes for the copies
//! ```

use super::calendar::{EventKind, Occurrence};
use super::plan::{Input, SiteView, Subject};
use super::prices::SitePrices;
use super::shape::{Need, recommend};
use super::unit::{Bytes, Money, Seconds};
use std::collections::BTreeSet;

/// What it costs to send everything there is small beside what it costs to have it there for so long.
const MONTH: Seconds = Seconds(30 * 86_400);

/// The sites that come before others.
pub(super) struct Opening<'a> {
    /// Sites with nodes that take copies.
    with_nodes: BTreeSet<&'a str>,
    /// Where the first node is bought, for those that have no node elsewhere.
    first: Option<&'a str>,
}

impl<'a> Opening<'a> {
    pub(super) fn of(input: &Input<'a>) -> Opening<'a> {
        let with_nodes = input.nodes.iter().filter(|n| n.available);
        let with_nodes: BTreeSet<&str> = with_nodes.map(|n| n.site.as_str()).collect();
        let mut opening = Opening {
            with_nodes,
            first: None,
        };
        if input.subjects.iter().any(|s| opening.has_none_for(s)) {
            opening.first = opening.cheapest(input);
        }
        opening
    }

    /// Whether a subject's copies come to this site before they come to others.
    pub(super) fn is_open(&self, subject: &Subject, site: &str) -> bool {
        self.with_nodes.contains(site) || self.has_none_for(subject) && self.first == Some(site)
    }

    fn has_none_for(&self, subject: &Subject) -> bool {
        self.with_nodes.iter().all(|site| *site == subject.site)
    }

    /// Of the sites that have no node and may have one, the one at which it would cost least to have all that
    /// look for a place for a month.
    fn cheapest(&self, input: &Input<'a>) -> Option<&'a str> {
        let ahead = (input.calendar).between(input.now, input.now.after(MONTH));
        let months: Vec<Month<'_>> = (input.subjects.iter())
            .filter(|s| self.has_none_for(s))
            .map(|s| Month::of(input, s, &ahead))
            .collect();
        let all = months.iter().map(|m| m.subject.size()).sum();
        let is_choice = |s: &&SiteView| {
            s.shut.is_none() && s.quota > 0 && !self.with_nodes.contains(s.name.as_str())
        };
        let priced = input.sites.iter().filter(is_choice).filter_map(|site| {
            let prices = input.prices.site(&site.name).ok()?;
            let each: f64 = months.iter().map(|m| m.price(input, site, prices).0).sum();
            let nodes = standby_hour(all, prices)?.0 * MONTH.hours();
            Some((each + nodes, site.name.as_str()))
        });
        let best = priced.min_by(|a, b| a.0.total_cmp(&b.0));
        best.map(|(_, site)| site)
    }
}

/// What a subject is expected to need in a month.
struct Month<'a> {
    subject: &'a Subject,
    /// How often it leaves.
    moves: f64,
    /// How often of these nothing announces it.
    missed: f64,
}

impl<'a> Month<'a> {
    fn of(input: &Input<'_>, subject: &'a Subject, ahead: &[Occurrence<'_>]) -> Month<'a> {
        let announced = ahead.iter().filter(|o| {
            let is_one = o.event.kind == EventKind::Maintenance;
            is_one && o.event.touches(&subject.name, &subject.site)
        });
        let unannounced = subject.unannounced * MONTH.0 as f64;
        let load = subject.overloads * MONTH.0 as f64;
        let missed_share = subject.missed_share.unwrap_or(input.policy.missed_share);
        Month {
            subject,
            moves: announced.count() as f64 + unannounced + load,
            missed: unannounced + load * missed_share,
        }
    }

    fn price(&self, input: &Input<'_>, site: &SiteView, prices: &SitePrices) -> Money {
        let policy = input.policy;
        let size = self.subject.size();
        let once = prices.egress(size).0;
        let lead = site.bandwidth.time_for(size).0 as f64;
        let wait = policy.value_of_move + policy.value_of_second * lead;
        let written = Bytes(self.subject.dirty_rate.0.saturating_mul(MONTH.0));
        let kept = once + prices.storage(size, MONTH).0 + prices.egress(written).0;
        let sent = self.moves * once;
        let host = recommend(&self.subject.need, prices, policy.shape_quantile);
        let host = host.map_or(0.0, |h| h.shape.price(policy.stay()).0);
        let copies = if kept < sent + self.missed * wait {
            kept
        } else {
            sent
        };
        Money(self.moves * host + copies)
    }
}

/// The price of an hour of as many nodes of one shape as bear copies of so much.
fn standby_hour(all: Bytes, prices: &SitePrices) -> Option<Money> {
    let need = Need::standby(Bytes(0));
    let bears = prices.shapes.iter().filter(|s| {
        s.storage_gib > 0.0
            && s.cpus >= need.cpus.quantile(1.0)
            && s.memory_gib >= need.memory_gib.quantile(1.0)
    });
    let hours = bears.map(|s| s.hour * (all.gib() / s.storage_gib).ceil().max(1.0));
    hours.min_by(f64::total_cmp).map(Money)
}
