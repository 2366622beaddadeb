//! Volumes that a plan moved away from home, because of an event or of load there, and that come back.

use super::view::maintenance;
use super::{Controller, Nodes, Planned, Planning, PlanningConfig, Rules, book, now};
use crate::fleet::Volume;
use crate::planner::{EventKind, Relief, Seconds, UnixTime};
use crate::store::{Store, Transaction};
use node::{NodeName, Result, VolumeName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const AWAY: &str = "plan/away/";

/// Where a volume is at home while it is elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Away {
    pub home: String,
    /// Where it was moved to.
    pub to: String,
    /// Why.
    #[serde(default)]
    pub cause: Cause,
    /// Since when.
    #[serde(default)]
    pub since: UnixTime,
    /// So many seconds before an event it left.
    #[serde(default)]
    pub early: u64,
}

/// Why a volume is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Cause {
    /// Maintenance at home.
    #[default]
    Event,
    /// Load at home.
    Load,
}

/// The longest that a promise brings a departure forward: beyond it increments do not become small, and the
/// cutover paces the guest.
const EARLY_MOST: u64 = 3600;

/// How long before an event volumes leave that converge within so many seconds, if that is known.
fn early(cycle_seconds: u64, converge_within: Option<u64>) -> Seconds {
    let converges = converge_within.unwrap_or(0).min(EARLY_MOST);
    Seconds(cycle_seconds.saturating_mul(2).saturating_add(converges))
}

impl<S: Store, N: Nodes> Controller<S, N> {
    pub(super) async fn away(&self) -> Result<BTreeMap<String, Away>> {
        self.planning_records(AWAY).await
    }

    pub(super) async fn put_away(&self, volume: &VolumeName, away: Option<&Away>) -> Result<()> {
        let mut t = Transaction::default();
        let bytes = away.map(book::encode).transpose()?;
        t.write.push((format!("{AWAY}{volume}"), bytes));
        self.commit(t, Vec::new()).await?;
        Ok(())
    }

    pub(super) async fn volume_named(&self, name: &str) -> Result<Option<Volume>> {
        let found = self.inner.records.volume(&name.parse()?).await?;
        Ok(found.map(|r| r.record))
    }

    /// Volumes leave for their copies so early that they are away when maintenance of their home begins: as
    /// long as the measured convergence promises and a cycle, before a cycle in which nobody looks.
    pub(super) async fn leave_for_events(
        &self,
        rules: &Rules,
        planned: &mut Planned,
    ) -> Result<()> {
        let at = now();
        for (subject, began) in &planned.commitments {
            let promise = planned.promises.get(subject);
            let promise = promise.and_then(|p| p.get(&began.site)?.seconds);
            let early = early(rules.policy.cycle_seconds, promise);
            let events = rules.calendar.between(at, at.after(early));
            let home: NodeName = subject.parse()?;
            let site = self.inner.records.node(&home).await?.map(|n| n.site);
            let event = events.iter().find(|o| {
                o.event.kind == EventKind::Maintenance
                    && o.event
                        .touches(subject, site.as_deref().unwrap_or_default())
            });
            let Some(event) = event else { continue };
            if began.nodes.is_empty() {
                planned.notes.push(format!(
                    "{} should leave {subject} because of {}: its node at {} is not there yet",
                    began.volumes.join(", "),
                    event.event.name,
                    began.site
                ));
            }
            for (volume, to) in began.volumes.iter().zip(&began.nodes) {
                let Some(v) = self.volume_named(volume).await? else {
                    continue;
                };
                let to: NodeName = to.parse()?;
                if v.owner != home || v.operation.is_some() {
                    continue;
                }
                if let Some(why) = self.is_no_refuge(rules, &v, &to).await? {
                    planned.notes.push(format!(
                        "{volume} should leave {subject} for {to} because of {}: {why}",
                        event.event.name
                    ));
                    continue;
                }
                let away = Away {
                    home: subject.clone(),
                    to: to.to_string(),
                    cause: Cause::Event,
                    since: at,
                    early: early.0,
                };
                self.put_away(&v.name, Some(&away)).await?;
                self.move_to(&v, &to).await?;
                let text = format!(
                    "{volume} leaves {subject} for {to} because of {}",
                    event.event.name
                );
                self.announce("plan-moves", to.as_str(), text).await?;
            }
        }
        Ok(())
    }

    /// Why a volume cannot be moved to a node now, if it cannot.
    pub(super) async fn is_no_refuge(
        &self,
        rules: &Rules,
        v: &Volume,
        to: &NodeName,
    ) -> Result<Option<String>> {
        let Some(node) = self.inner.records.node(to).await? else {
            return Ok(Some("it is not registered".into()));
        };
        let alive = self.inner.presence.word(to).is_some_and(|w| w.alive);
        let cycle = Seconds(rules.policy.cycle_seconds);
        Ok(if !alive {
            Some("it sends no heartbeats".into())
        } else if node.draining {
            Some("it is being emptied".into())
        } else if maintenance(&rules.calendar, to.as_str(), Some(&node.site), now(), cycle) {
            Some("maintenance touches it too".into())
        } else if !self.is_consistent(v, to) {
            Some("its copy is not complete yet".into())
        } else {
            None
        })
    }

    /// Volumes whose home is there again, with no maintenance near, come back; or where they stay away, what
    /// they left there goes.
    pub(super) async fn come_home(
        &self,
        planning: &Planning,
        rules: &Rules,
        planned: &mut Planned,
    ) -> Result<()> {
        for (volume, away) in self.away().await? {
            let name: VolumeName = volume.parse()?;
            let Some(v) = self.volume_named(&volume).await? else {
                self.put_away(&name, None).await?; // deleted meanwhile
                continue;
            };
            let home: NodeName = away.home.parse()?;
            let settled = v.operation.is_none();
            if v.owner.as_str() != away.to {
                // it is home, or a person took it elsewhere: where it is now is its home. Before the
                // cutover has begun it is still where it was
                if settled && !self.is_due_away(rules, &away).await? {
                    self.put_away(&name, None).await?;
                }
                continue;
            }
            let relief = planned.relief.get(&away.home);
            let calm = match away.cause {
                Cause::Event => !matches!(relief, Some(Relief::Leave(_))),
                Cause::Load => relief == Some(&Relief::Return),
            };
            let PlanningConfig {
                return_home,
                remove_old_copy,
                ..
            } = planning.config;
            if !(return_home || remove_old_copy)
                || !calm
                || !settled
                || self.is_due_away(rules, &away).await?
            {
                continue;
            }
            let alive = self.inner.presence.word(&home).is_some_and(|w| w.alive);
            if !return_home {
                // a node that is silent is not asked, or the volume would be busy until it is back
                if alive && self.drop_copy(&v, &home).await? {
                    self.put_away(&name, None).await?;
                }
                continue;
            }
            if !alive {
                planned.notes.push(format!(
                    "{volume} waits for its home {home}, which is silent"
                ));
                continue;
            }
            match self.have_copy(&v, &home, 0).await {
                Ok(true) => {
                    self.move_to(&v, &home).await?;
                    let text = format!("{volume} comes home to {home} from {}", away.to);
                    self.announce("plan-moves", home.as_str(), text).await?;
                }
                Ok(false) => {}
                Err(e) => planned
                    .notes
                    .push(format!("{volume} cannot come home: {e}")),
            }
        }
        Ok(())
    }

    /// Whether maintenance of a node is under way, or so near that leaving again would come first.
    async fn is_due_away(&self, rules: &Rules, away: &Away) -> Result<bool> {
        let home = &away.home;
        let site = (self.inner.records.node(&home.parse()?).await?).map(|n| n.site);
        let policy = &rules.policy;
        let near = (policy.event_margin_seconds).max(policy.cycle_seconds);
        let near = Seconds(near.max(away.early));
        Ok(maintenance(
            &rules.calendar,
            home,
            site.as_deref(),
            now(),
            near,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cycle before the last one in which there is time finds the event, and what is promised nearly
    /// always is enough for the move.
    #[test]
    fn volumes_leave_two_cycles_and_what_the_move_takes_before_an_event() {
        assert_eq!(early(300, None), Seconds(600));
        assert_eq!(early(300, Some(40)), Seconds(640));
        assert_eq!(early(300, Some(u64::MAX)), Seconds(600 + EARLY_MOST));
    }
}
