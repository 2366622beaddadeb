//! The cycle: every few minutes look at the fleet, forecast, plan, write the plan down and, if the
//! mode says so, carry it out.
//!
//! ```text
//! heartbeats, sources ─► history ─► forecast ──┐
//! calendar (file, API) ────────────────────────┼─► planner::plan ─► one transaction: plan,
//! prices, policy (files, read anew) ───────────┤                    commitments, predictions
//! nodes, volumes, copies ──────────────────────┘                              │
//!                            grow, replica add, cutover, retire ◄── carry ◄───┘
//! ```
//!
//! The history, and what forecasts learned from it, are files beside the store: a controller that is
//! killed makes the same plan when it is there again. What is begun is read from the commitments and not from
//! the plan that made them: a controller that dies after the transaction finds them and goes on. The mode says
//! whose plans commit to something and give it up: every plan's (auto), or those that a person applied. Commitments
//! are carried out in every mode.

mod apart;
mod away;
mod book;
mod carry;
mod foretell;
mod ingest;
mod outlook;
mod relieve;
mod review;
mod service;
mod since;
mod view;

use super::config::{Config, PlanningConfig, SiteConfig};
use super::provisioning::read_prices;
use super::records::Happening;
use super::{Controller, Nodes, unix_ms};
use crate::history::{Kept, Learned};
use crate::planner::{
    Action, Calendar, Commitments, Input, Mode, Plan, Policy, Prices, Relief, Trigger, UnixTime,
    plan,
};
use crate::store::{Store, Transaction};
use book::Began;
use node::{Error, ErrorKind, Result};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The planning of one controller.
pub(super) struct Planning {
    config: PlanningConfig,
    sites: Vec<SiteConfig>,
    prices: Option<std::path::PathBuf>,
    /// The most nodes at a site; none can be made where provisioning is not configured.
    nodes_at_site: usize,
    kept: Kept,
    learned: Arc<Learned>,
    sources: Vec<ingest::Told>,
    seen: Mutex<Seen>,
    /// One cycle at a time: the timer's and one that somebody asked for.
    cycle: tokio::sync::Mutex<()>,
}

/// What was observed.
#[derive(Default)]
struct Seen {
    ingested: ingest::Ingested,
    clock_trouble: Option<String>,
    /// Who should be ready elsewhere and cannot, and why: told once until it is over.
    stuck: BTreeSet<String>,
    /// What the last cycle wanted to carry out and could not.
    held_up: Vec<String>,
    lap: Lap,
    /// Where each volume was at home in the last cycle, and when volumes left a node last that no plan moved.
    homes: BTreeMap<String, String>,
    moved: BTreeMap<String, UnixTime>,
    /// What nodes used lately, as shares of the scarcer thing; read from the history in each cycle.
    loads: BTreeMap<String, Vec<(UnixTime, f64)>>,
    /// Whether what the process before observed was read.
    remembered: bool,
    /// Since when a subject has been calm, and a provisioned node empty; kept in the store.
    idle_since: BTreeMap<String, UnixTime>,
    empty_since: BTreeMap<String, UnixTime>,
    trouble: String,
}

/// What the parts of the last cycle took.
#[derive(Clone, Copy, Default)]
pub(super) struct Lap {
    pub ingest: Duration,
    pub samples: usize,
    pub forecast: Duration,
}

/// A plan with what a person should know of how it was made.
#[derive(Serialize)]
pub(super) struct Planned {
    #[serde(flatten)]
    pub plan: Plan,
    /// Fallbacks, each in a sentence.
    pub notes: Vec<String>,
    /// What the volumes of each subject need where they go.
    pub needs: BTreeMap<String, Vec<outlook::Stated>>,
    /// How long copies of them take at each site.
    pub promises: BTreeMap<String, BTreeMap<String, view::Promise>>,
    /// What the load of each subject drives its volumes to, where it does.
    pub relief: BTreeMap<String, Relief>,
    /// What stands since earlier plans.
    pub commitments: BTreeMap<String, Began>,
}

/// What one cycle goes by, read anew each time so that a change needs no restart.
struct Rules {
    policy: Policy,
    prices: Prices,
    calendar: Calendar,
}

fn read<T>(
    path: Option<&Path>,
    what: &str,
    parse: impl Fn(&str) -> std::result::Result<T, crate::planner::Invalid>,
) -> Result<Option<T>> {
    let Some(path) = path else { return Ok(None) };
    let asked = format!("read the {what} {}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(asked.clone(), e))?;
    let parsed = parse(&text).map_err(|e| Error::new(ErrorKind::Invalid, format!("{asked}: {e}")));
    parsed.map(Some)
}

impl Planning {
    /// With its history, in the controller's data directory. None where the configuration has no
    /// planning.
    pub fn open(config: &Config) -> Result<Option<Planning>> {
        let Some(planning) = config.planning.clone() else {
            return Ok(None);
        };
        let step = u32::try_from(planning.period_seconds).unwrap_or(u32::MAX);
        // a day of the history's file has 288 samples
        let days = u64::from(planning.history_days) * planning.day_seconds;
        let days = days.div_ceil(288 * planning.period_seconds);
        let sources = planning.source.iter().map(ingest::Told::new);
        Ok(Some(Planning {
            sites: config.site.clone(),
            prices: config.prices.clone(),
            nodes_at_site: config.provision.as_ref().map_or(0, |p| p.nodes),
            kept: Kept::open(
                &config.data.join("history.redb"),
                step,
                u32::try_from(days).unwrap_or(u32::MAX),
            )?,
            learned: Arc::new(Learned::open(&config.data.join("forecasts.redb"))?),
            sources: sources.collect::<Result<_>>()?,
            seen: Mutex::default(),
            config: planning,
            cycle: tokio::sync::Mutex::default(),
        }))
    }

    pub(super) fn kept(&self) -> &Kept {
        &self.kept
    }

    pub(super) fn lap(&self) -> Lap {
        self.seen().lap
    }

    /// How far back the history goes.
    fn kept_seconds(&self) -> i64 {
        (u64::from(self.config.history_days) * self.config.day_seconds) as i64
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn period(&self) -> Duration {
        Duration::from_secs(self.config.period_seconds)
    }

    /// The events of the calendar file.
    fn calendar_file(&self) -> Result<Vec<crate::planner::Event>> {
        let file = read(self.config.calendar.as_deref(), "calendar", Calendar::parse)?;
        Ok(file.unwrap_or_default().into_events())
    }

    fn rules(&self, stored: Vec<crate::planner::Event>) -> Result<Rules> {
        let mut policy =
            read(self.config.policy.as_deref(), "policy", Policy::parse)?.unwrap_or_default();
        policy.mode = self.config.mode.unwrap_or(policy.mode);
        policy.cycle_seconds = self.config.period_seconds;
        let mut events = self.calendar_file()?;
        events.extend(stored);
        Ok(Rules {
            policy,
            prices: read_prices(self.prices.as_deref())?,
            calendar: Calendar::of(events),
        })
    }
}

/// The time as the planner takes it.
fn now() -> UnixTime {
    UnixTime(unix_ms() / 1000)
}

impl<S: Store, N: Nodes> Controller<S, N> {
    pub(super) fn planning(&self) -> Result<&Planning> {
        self.inner.planning.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "this controller does not plan: give its configuration a [planning] table, or plan \
                 from files with `forerun plan --fleet FILE --prices FILE`",
            )
        })
    }

    /// Sample and plan for as long as the controller lives.
    pub(super) async fn keep_planning(self) {
        let Ok(planning) = self.planning() else {
            return;
        };
        let mut tick = tokio::time::interval(planning.period());
        // a cycle that took too long is not made up for
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let trouble = match self.cycle(None).await {
                Ok(_) => String::new(),
                Err(e) => e.to_string(),
            };
            let before = std::mem::replace(&mut planning.seen().trouble, trouble.clone());
            if !trouble.is_empty() && trouble != before {
                tracing::warn!("no plan: {trouble}");
                if let Err(e) = self.announce("plan-failed", "", trouble).await {
                    tracing::warn!("{e}");
                }
            }
        }
    }

    /// One cycle: sample, plan, write down, carry out. With `mode`, as if that were the mode.
    pub(super) async fn cycle(&self, mode: Option<Mode>) -> Result<Planned> {
        let planning = self.planning()?;
        let _one = planning.cycle.lock().await;
        let began = Instant::now();
        self.ingest(planning).await?;
        planning.seen().lap.ingest = began.elapsed();
        let mut rules = planning.rules(self.calendar_events().await?)?;
        rules.policy.mode = mode.unwrap_or(rules.policy.mode);
        self.remember(planning, &rules).await?;
        let mut planned = self.plan_by(planning, &rules, true).await?;
        let acts = rules.policy.mode == Mode::Auto;
        self.write_down(planning, &rules, &mut planned, acts)
            .await?;
        let said = planned.notes.len();
        self.carry_out(planning, &rules, &mut planned).await?;
        planning.seen().held_up = planned.notes[said..].to_vec();
        self.put_since(planning).await?;
        Ok(planned)
    }

    /// A plan as of now, which changes nothing.
    pub(super) async fn plan_only(&self) -> Result<Planned> {
        let planning = self.planning()?;
        let _one = planning.cycle.lock().await;
        let rules = planning.rules(self.calendar_events().await?)?;
        self.remember(planning, &rules).await?;
        let mut planned = self.plan_by(planning, &rules, false).await?;
        // what it would begin is in its decisions; here stands what was begun
        planned.commitments = self.began().await?;
        planned
            .notes
            .extend(planning.seen().held_up.iter().cloned());
        Ok(planned)
    }

    /// A plan; with `learn`, forecasts learn from what has happened since the last one.
    async fn plan_by(&self, planning: &Planning, rules: &Rules, learn: bool) -> Result<Planned> {
        let began = self.began().await?;
        let view = self.view(planning, rules, &began, learn).await?;
        let mut kept = Commitments::default();
        for (subject, b) in &began {
            kept.open(subject, b.commitment());
        }
        let input = Input {
            now: now(),
            subjects: &view.subjects,
            sites: &view.sites,
            nodes: &view.nodes,
            calendar: &rules.calendar,
            prices: &rules.prices,
            policy: &rules.policy,
        };
        let plan = plan(&input, &mut kept);
        let relief = self.relief(planning, rules, &view.subjects).await?;
        let commitments = book::after(began, &kept, &plan, &view);
        let mut notes = view.notes;
        notes.extend(planning.troubles());
        notes.extend(apart::meetings(&commitments, &planning.config.apart));
        Ok(Planned {
            plan,
            notes,
            needs: view.needs,
            promises: view.promises,
            relief,
            commitments,
        })
    }

    /// The plan, what it commits to and what it predicts, in one transaction.
    async fn write_down(
        &self,
        planning: &Planning,
        rules: &Rules,
        planned: &mut Planned,
        acts: bool,
    ) -> Result<()> {
        let mut t = Transaction::default();
        let mut happenings = Vec::new();
        if acts {
            let before = self.began().await?;
            for d in planned.plan.to_carry_out() {
                let action = format!("{:?}", d.action).to_lowercase();
                happenings.push(Happening {
                    kind: "plan-decided",
                    node: d.subject.clone(),
                    volume: String::new(),
                    text: format!("{action} for {}: {}", d.subject, d.line),
                });
            }
            book::put(&mut t, &before, &planned.commitments)?;
        } else {
            // nobody said yes to it, so what stood before stands
            planned.commitments = self.began().await?;
        }
        let all = planned.plan.decisions.iter();
        let stuck = all.filter(|d| d.action == Action::Stuck);
        let names = stuck.clone().map(|d| d.subject.clone()).collect();
        let before = std::mem::replace(&mut planning.seen().stuck, names);
        for d in stuck.filter(|d| !before.contains(&d.subject)) {
            let text = format!(
                "{} should be ready elsewhere and cannot: {}",
                d.subject, d.line
            );
            tracing::warn!("plan: {text}");
            // load comes and goes; an announced event is what somebody has to act on
            if !d.triggers.contains(&Trigger::Event) {
                continue;
            }
            happenings.push(Happening {
                kind: "plan-stuck",
                node: d.subject.clone(),
                volume: String::new(),
                text,
            });
        }
        self.put_plan(&mut t, planned).await?;
        self.predict(planning, rules, planned, &mut t).await?;
        self.commit(t, happenings).await?;
        Ok(())
    }

    async fn put_plan(&self, t: &mut Transaction, planned: &Planned) -> Result<()> {
        const PLANS: &str = "plan/at/";
        /// A day of five minutes.
        const KEPT: usize = 288;
        let bytes = book::encode(planned)?;
        let key = format!("{PLANS}{:020}", planned.plan.at.0);
        let store = self.inner.records.store();
        let all = store.scan(PLANS, None, KEPT + 1).await?;
        if all.len() > KEPT {
            t.write.push((all[0].0.clone(), None));
        }
        t.write.push((key, Some(bytes)));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
