//! What copies are worth that are there, and who pays for the nodes that are there only for them.
//!
//! ```text
//! every subject: worth of its copy, nodes free ─► Upkeep: worth of all on each node
//!                                                        │ share of its price
//! every subject: worth of its copy, less its share ◄─────┘
//! ```

use super::super::commitment::Commitments;
use super::super::place::NodeView;
use super::super::prices::SitePrices;
use super::super::score::{self, Move, Score};
use super::super::shape::recommend;
use super::super::unit::{Money, Seconds};
use super::super::upkeep::Upkeep;
use super::{Cycle, Held, LOOK_AHEAD, SiteView, Subject, Way, with_increments};
use std::collections::BTreeSet;

/// A copy that is there.
pub(super) struct Kept<'a> {
    pub subject: &'a Subject,
    pub site: &'a SiteView,
    pub prices: &'a SitePrices,
    pub held: &'a Held,
    /// Having it for as long as one is expected to be kept, with all of it to be sent.
    pub anew: Move,
}

/// What copies are worth on the nodes that were bought.
#[derive(Default)]
pub(super) struct Rent {
    /// At its best moment, to those that are there.
    kept: Upkeep,
    /// Over the time for which a copy is expected to be kept, to one that would come.
    lasting: Upkeep,
}

impl Cycle<'_> {
    /// What each subject's copy is worth where it is, or would be, if nodes were free.
    pub(super) fn rents(&self, commitments: &Commitments) -> Rent {
        let mut rent = Rent::default();
        if self.input.nodes.iter().all(|n| n.hour.0 == 0.0) {
            return rent;
        }
        for subject in self.input.subjects {
            let outlooks = self.outlooks(subject);
            let committed = commitments.get(&subject.name);
            let best = self.best(subject, committed, &outlooks);
            let Some((site, way, score)) = best else {
                continue;
            };
            match (way, subject.copies.get(site)) {
                (Way::Warm, Some(held)) => {
                    let hourly = score.hourly();
                    self.pays(&mut rent.kept, subject, &held.nodes, hourly);
                    if let Some(copy) = self.kept_at(subject, site, held) {
                        let lasting = self.kept_for(self.input.policy.hold(), &copy);
                        self.pays(&mut rent.lasting, subject, &held.nodes, lasting.hourly());
                    }
                }
                (Way::Existing(nodes), _) => {
                    self.pays(&mut rent.lasting, subject, nodes, score.hourly());
                }
                _ => {}
            }
        }
        rent
    }

    fn pays(&self, upkeep: &mut Upkeep, subject: &Subject, nodes: &[String], worth: Money) {
        let bought = self.bought(nodes);
        let each = Money(worth.0 / bought.len().max(1) as f64);
        for node in bought {
            upkeep.worth(&node.name, &subject.name, each);
        }
    }

    /// Of these nodes, those that go when no copy is on them.
    fn bought(&self, names: &[String]) -> Vec<&NodeView> {
        let names: BTreeSet<&String> = names.iter().collect();
        (self.input.nodes.iter())
            .filter(|n| n.hour.0 > 0.0 && names.contains(&n.name))
            .collect()
    }

    /// The score of a copy that is there, with its share of the nodes that it is on.
    fn as_tenant(&self, score: Score, subject: &Subject, nodes: &[String]) -> Score {
        match &self.rent {
            Some(rent) => self.with_rent(score, subject, nodes, &[&rent.kept]),
            None => score,
        }
    }

    /// The score of one that would come. It pays its share of a node that stays, for those that are on it
    /// now or for all that would be there for long.
    pub(super) fn as_newcomer(&self, score: Score, subject: &Subject, nodes: &[String]) -> Score {
        match &self.rent {
            Some(rent) => self.with_rent(score, subject, nodes, &[&rent.kept, &rent.lasting]),
            None => score,
        }
    }

    fn with_rent(
        &self,
        score: Score,
        subject: &Subject,
        nodes: &[String],
        tenants: &[&Upkeep],
    ) -> Score {
        let bought = self.bought(nodes);
        let worth = Money(score.hourly().0 / bought.len().max(1) as f64);
        let share = |n: &&NodeView| {
            let shares = tenants
                .iter()
                .map(|t| t.share(&n.name, n.hour, &subject.name, worth).0);
            shares.fold(n.hour.0, f64::min)
        };
        let hour: f64 = bought.iter().map(share).sum();
        let node = Money(hour * score.time().hours());
        score.with_node(node)
    }

    /// What keeping a copy is worth: the best an hour over the times for which it could be kept, each a
    /// window that is forecast or the time to an event.
    pub(super) fn keeping(&self, copy: &Kept<'_>) -> Score {
        let subject = copy.subject;
        let cycle = self.input.policy.cycle();
        let for_cycle = self.kept_for(cycle, copy);
        let (ahead, _) = self.events(subject, LOOK_AHEAD);
        let lead = for_cycle.lead;
        let holds = (subject.windows.lengths()).map(|w| Seconds(w.0.saturating_sub(lead.0)));
        let best = (holds.chain(ahead.iter().map(|e| e.0)))
            .map(|hold| self.kept_for(hold.max(cycle), copy))
            .fold(for_cycle, |best, score| {
                if score.hourly() > best.hourly() {
                    score
                } else {
                    best
                }
            });
        self.as_tenant(best, subject, &copy.held.nodes)
    }

    /// A subject's copy at the site of that name.
    fn kept_at<'a>(&'a self, subject: &'a Subject, site: &str, held: &'a Held) -> Option<Kept<'a>> {
        let site = self.input.sites.iter().find(|s| s.name == site)?;
        let prices = self.input.prices.site(&site.name).ok()?;
        let host = recommend(&subject.need, prices, self.input.policy.shape_quantile);
        Some(Kept {
            anew: self.a_move(subject, site, prices, host.as_ref()),
            subject,
            site,
            prices,
            held,
        })
    }

    /// What keeping a copy for so long is worth, if its node is free.
    fn kept_for(&self, hold: Seconds, copy: &Kept<'_>) -> Score {
        let policy = self.input.policy;
        let (subject, prices) = (copy.subject, copy.prices);
        let mut it = Move {
            hold,
            kept: Some(score::Kept {
                again: prices.egress(copy.anew.bytes),
                missed_share: subject.missed_share.unwrap_or(policy.missed_share),
            }),
            ..copy.anew
        };
        if !self.bought(&copy.held.nodes).is_empty() {
            it.provision = copy.site.provision;
        }
        let lead = it.provision + it.bandwidth.time_for(it.bytes);
        // the probability is that of the lead and the hold, so both are paid for
        it.storage = prices.storage(it.bytes, lead + hold);
        it.egress = prices.egress(with_increments(copy.held.behind, subject, lead + hold));
        self.score(subject, &it, hold)
    }
}
