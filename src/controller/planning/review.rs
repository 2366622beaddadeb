//! How right past decisions were: each is kept with its probability until its time has passed, and
//! then with what happened.

use super::{Controller, Nodes, Planned, Planning, Rules, book, now};
use crate::planner::{Decision, EventKind, Outcome, Outlook, Review, Score, Seconds, UnixTime};
use crate::store::{Store, Transaction};
use node::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

const PREDICTIONS: &str = "plan/predictions";
/// Predictions kept: a week of one subject, a day of seven.
const KEPT: usize = 2000;
/// All that a node has.
const CAPACITY: f64 = 1.0;

/// What was said, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Prediction {
    pub at: u64,
    /// When its time has passed.
    pub until: u64,
    pub subject: String,
    pub p: f64,
    /// Whether a copy was kept because of it.
    pub acted: bool,
    /// Whether its load passed its capacity, or maintenance began. None before its time has passed,
    /// and where nothing was measured meanwhile.
    pub happened: Option<bool>,
}

/// The review as people and tools get it.
#[derive(Serialize)]
pub(super) struct Reviewed {
    /// None while no prediction's time has passed.
    pub review: Option<Review>,
    pub predictions: Vec<Prediction>,
}

fn best(d: &Decision) -> Option<&Score> {
    let possible = d.sites.iter().filter_map(|(site, o)| match o {
        Outlook::Possible { score, .. } => Some((site, score)),
        Outlook::Filtered { .. } => None,
    });
    let chosen = possible
        .clone()
        .find(|(site, _)| Some(*site) == d.site.as_ref());
    let best = possible.max_by(|a, b| a.1.total.0.total_cmp(&b.1.total.0));
    chosen.or(best).map(|(_, score)| score)
}

impl<S: Store, N: Nodes> Controller<S, N> {
    async fn predictions(&self) -> Result<Vec<Prediction>> {
        let Some(bytes) = self.inner.records.store().get(PREDICTIONS).await? else {
            return Ok(Vec::new());
        };
        serde_json::from_slice(&bytes).map_err(|e| {
            Error::new(
                ErrorKind::Corrupt,
                format!("record {PREDICTIONS} in the store: {e}"),
            )
        })
    }

    /// Keep what this plan says, and find out about earlier ones.
    pub(super) async fn predict(
        &self,
        planning: &Planning,
        rules: &Rules,
        planned: &Planned,
        t: &mut Transaction,
    ) -> Result<()> {
        let mut all = self.predictions().await?;
        let at = now();
        for p in all
            .iter_mut()
            .filter(|p| p.happened.is_none() && p.until <= at.0)
        {
            p.happened = self.happened(planning, rules, p).await?;
        }
        // what cannot be found out any more says nothing
        all.retain(|p| p.happened.is_some() || p.until > at.0);
        for d in &planned.plan.decisions {
            // a cycle that is run again says nothing new
            let period = planning.config.period_seconds;
            let is_said = |p: &Prediction| p.subject == d.subject && p.at / period == at.0 / period;
            if let Some(score) = best(d).filter(|_| !all.iter().any(is_said)) {
                let horizon = score.lead + Seconds(rules.policy.cycle_seconds);
                all.push(Prediction {
                    at: at.0,
                    until: at.after(horizon).0,
                    subject: d.subject.clone(),
                    p: score.p,
                    acted: planned.commitments.contains_key(&d.subject),
                    happened: None,
                });
            }
        }
        let surplus = all.len().saturating_sub(KEPT);
        all.drain(..surplus);
        t.write
            .push((PREDICTIONS.to_owned(), Some(book::encode(&all)?)));
        Ok(())
    }

    async fn happened(
        &self,
        planning: &Planning,
        rules: &Rules,
        p: &Prediction,
    ) -> Result<Option<bool>> {
        let (from, to) = (UnixTime(p.at), UnixTime(p.until));
        let site = self
            .inner
            .records
            .node(&p.subject.parse()?)
            .await?
            .map(|n| n.site);
        let came = rules.calendar.between(from, to).iter().any(|o| {
            o.event.kind == EventKind::Maintenance
                && o.start >= from
                && o.event
                    .touches(&p.subject, site.as_deref().unwrap_or_default())
        });
        if came {
            return Ok(Some(true));
        }
        let seen = planning.seen();
        let loads = seen.loads.get(&p.subject).into_iter().flatten();
        let inside = loads.filter(|(at, _)| (from..=to).contains(at));
        let most = inside.map(|(_, share)| *share).reduce(f64::max);
        Ok(most.map(|most| most > CAPACITY))
    }

    pub(super) async fn reviewed(&self) -> Result<Reviewed> {
        let predictions = self.predictions().await?;
        let known = predictions.iter().filter_map(|p| {
            Some(Outcome {
                p: p.p,
                acted: p.acted,
                happened: p.happened?,
            })
        });
        Ok(Reviewed {
            review: Review::of(&known.collect::<Vec<_>>()),
            predictions,
        })
    }
}
