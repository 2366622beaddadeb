//! How right past decisions were: each is kept with its probability until its time has passed, and
//! then with what happened. Needs that had not been said by then are counted, and the planner scores with how
//! often they come.

use super::view::CAPACITY;
use super::{Controller, Nodes, Planned, Planning, Rules, book, now};
use crate::planner::{
    Decision, EventKind, Foresight, Outcome, Outlook, Review, Score, Seconds, UnixTime,
};
use crate::store::{Store, Transaction};
use node::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

const PREDICTIONS: &str = "plan/predictions";
const NEEDS: &str = "plan/needs";
/// A probability above which a need counts as said, if the policy asks for more than that.
const LIKELY: f64 = 0.5;
/// Predictions kept: a week of one subject, a day of seven.
const KEPT: usize = 2000;

/// What was said, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Prediction {
    pub at: u64,
    /// When its time has passed.
    pub until: u64,
    pub subject: String,
    /// That load passes capacity or an announced event comes. What comes unannounced is not in it: how often
    /// it does is counted by what this did not say.
    pub p: f64,
    /// Whether a copy was kept because of it.
    pub acted: bool,
    /// Whether its load passed its capacity, maintenance began, or its volumes went elsewhere. None before its time has passed,
    /// and where nothing was measured meanwhile.
    pub happened: Option<bool>,
}

/// What came of a prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Happened {
    Nothing,
    /// Maintenance began.
    Maintenance,
    /// Volumes went elsewhere, and no plan had moved them.
    Moved,
    /// Load passed capacity.
    Overload,
}

/// Needs of a subject, as counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Needs {
    #[serde(flatten)]
    pub counted: Foresight,
    /// Whether the latest prediction's time had one: one that goes on is counted once.
    in_need: bool,
}

impl Needs {
    /// Count what came of a prediction, which had said it or not. Predictions come in the order of time, so
    /// the first that a need falls into was made about as long before as a copy takes.
    fn count(&mut self, happened: Happened, said: bool, period: Seconds) {
        self.counted.pass(period);
        let begins = !self.in_need;
        self.in_need = happened != Happened::Nothing;
        if !begins || happened == Happened::Nothing {
            return;
        }
        if happened == Happened::Overload {
            self.counted.overload(said);
        }
        if !said {
            self.counted.surprise();
        }
    }
}

/// The review as people and tools get it.
#[derive(Serialize)]
pub(super) struct Reviewed {
    /// None while no prediction's time has passed.
    pub review: Option<Review>,
    /// By subject: needs that were said in time, and that were not.
    pub needs: BTreeMap<String, Needs>,
    pub predictions: Vec<Prediction>,
}

/// The probability of what is foreseen or announced.
fn announced(score: &Score) -> f64 {
    1.0 - (1.0 - score.p_load) * (1.0 - score.p_event)
}

fn best(d: &Decision) -> Option<&Score> {
    let site = d.site.as_ref().or(d.best.as_ref())?;
    match d.sites.get(site)? {
        Outlook::Possible { score, .. } => Some(score),
        Outlook::Filtered { .. } => None,
    }
}

impl<S: Store, N: Nodes> Controller<S, N> {
    async fn record<T: Default + for<'a> Deserialize<'a>>(&self, key: &str) -> Result<T> {
        let Some(bytes) = self.inner.records.store().get(key).await? else {
            return Ok(T::default());
        };
        serde_json::from_slice(&bytes).map_err(|e| {
            Error::new(
                ErrorKind::Corrupt,
                format!("record {key} in the store: {e}"),
            )
        })
    }

    /// Needs counted so far, by subject.
    pub(super) async fn needs_counted(&self) -> Result<BTreeMap<String, Needs>> {
        self.record(NEEDS).await
    }

    /// Keep what this plan says, and find out about earlier ones.
    pub(super) async fn predict(
        &self,
        planning: &Planning,
        rules: &Rules,
        planned: &Planned,
        t: &mut Transaction,
    ) -> Result<()> {
        let mut all: Vec<Prediction> = self.record(PREDICTIONS).await?;
        let mut needs = self.needs_counted().await?;
        self.see_who_moved(planning).await?;
        let at = now();
        let likely = rules.policy.utilisation_probability.min(LIKELY);
        let period = Seconds(planning.config.period_seconds);
        for p in all
            .iter_mut()
            .filter(|p| p.happened.is_none() && p.until <= at.0)
        {
            let Some(happened) = self.happened(planning, rules, p).await? else {
                continue;
            };
            p.happened = Some(happened != Happened::Nothing);
            let counted = needs.entry(p.subject.clone()).or_default();
            counted.count(happened, p.p > likely, period);
        }
        let known: BTreeSet<String> = (self.inner.records.nodes().await?.into_iter())
            .map(|n| n.name.to_string())
            .collect();
        needs.retain(|subject, _| known.contains(subject));
        t.write
            .push((NEEDS.to_owned(), Some(book::encode(&needs)?)));
        // what cannot be found out any more says nothing
        all.retain(|p| p.happened.is_some() || p.until > at.0);
        for d in &planned.plan.decisions {
            // a cycle that is run again says nothing new
            let period = period.0;
            let is_said = |p: &Prediction| p.subject == d.subject && p.at / period == at.0 / period;
            if let Some(score) = best(d).filter(|_| !all.iter().any(is_said)) {
                let horizon = score.lead + Seconds(rules.policy.cycle_seconds);
                all.push(Prediction {
                    at: at.0,
                    until: at.after(horizon).0,
                    subject: d.subject.clone(),
                    p: announced(score),
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

    /// Whose volumes went elsewhere since the last cycle, although no plan moved them.
    async fn see_who_moved(&self, planning: &Planning) -> Result<()> {
        let away = self.away().await?;
        let volumes = self.inner.records.volumes().await?;
        let home = |v: &crate::fleet::Volume| {
            let away = away.get(v.name.as_str());
            let home = away.map_or(v.owner.as_str(), |a| &a.home);
            (v.name.to_string(), home.to_owned())
        };
        let homes: BTreeMap<String, String> = volumes.iter().map(home).collect();
        let mut seen = planning.seen();
        let before = std::mem::replace(&mut seen.homes, homes);
        let moved: Vec<String> = before
            .into_iter()
            .filter(|(volume, home)| seen.homes.get(volume).is_some_and(|now| now != home))
            .map(|(_, home)| home)
            .collect();
        seen.moved
            .extend(moved.into_iter().map(|home| (home, now())));
        Ok(())
    }

    /// What came of a prediction; none where nothing was measured.
    async fn happened(
        &self,
        planning: &Planning,
        rules: &Rules,
        p: &Prediction,
    ) -> Result<Option<Happened>> {
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
            return Ok(Some(Happened::Maintenance));
        }
        let seen = planning.seen();
        if (seen.moved.get(&p.subject)).is_some_and(|at| (from..=to).contains(at)) {
            return Ok(Some(Happened::Moved));
        }
        let loads = seen.loads.get(&p.subject).into_iter().flatten();
        let inside = loads.filter(|(at, _)| (from..=to).contains(at));
        let most = inside.map(|(_, share)| *share).reduce(f64::max);
        Ok(most.map(|most| match most > CAPACITY {
            true => Happened::Overload,
            false => Happened::Nothing,
        }))
    }

    pub(super) async fn reviewed(&self) -> Result<Reviewed> {
        let predictions: Vec<Prediction> = self.record(PREDICTIONS).await?;
        let known = predictions.iter().filter_map(|p| {
            Some(Outcome {
                p: p.p,
                acted: p.acted,
                happened: p.happened?,
            })
        });
        Ok(Reviewed {
            review: Review::of(&known.collect::<Vec<_>>()),
            needs: self.needs_counted().await?,
            predictions,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_need_counts_once_however_long_it_lasts_and_by_its_first_prediction() {
        use Happened::{Maintenance, Moved, Nothing, Overload};
        let mut needs = Needs::default();
        let mut count = |happened, said| {
            needs.count(happened, said, Seconds(300));
            let c = needs.counted;
            (c.foreseen, c.missed, c.surprises)
        };
        assert_eq!(count(Nothing, true), (0, 0, 0));
        assert_eq!(count(Overload, false), (0, 1, 1));
        // by now everybody says so
        assert_eq!(count(Overload, true), (0, 1, 1));
        assert_eq!(count(Nothing, false), (0, 1, 1));
        assert_eq!(count(Overload, true), (1, 1, 1));
        assert_eq!(count(Nothing, false), (1, 1, 1));
        // maintenance that was announced in time is no news about forecasts
        assert_eq!(count(Maintenance, true), (1, 1, 1));
        assert_eq!(count(Nothing, false), (1, 1, 1));
        assert_eq!(count(Moved, false), (1, 1, 2));
        assert_eq!(needs.counted.seconds, 9 * 300);
    }
}
