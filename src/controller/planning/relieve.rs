//! Volumes leave for their copies when their home runs out of capacity, one in each cycle: what each
//! takes of the node is not known, and the next sample says whether it was enough.

use super::away::{Away, Cause};
use super::{Controller, Nodes, Planned, Planning, Rules, now};
use crate::planner::{Pressure, Relief, Subject};
use crate::store::Store;
use node::{NodeName, Result};
use std::collections::BTreeMap;

impl<S: Store, N: Nodes> Controller<S, N> {
    /// What each subject's load drives its volumes to, where it does.
    pub(super) async fn relief(
        &self,
        planning: &Planning,
        rules: &Rules,
        subjects: &[Subject],
    ) -> Result<BTreeMap<String, Relief>> {
        let away = self.away().await?;
        let seen = planning.seen();
        let looked = subjects.iter().map(|s| {
            let left = (away.values())
                .filter(|a| a.home == s.name && a.cause == Cause::Load)
                .map(|a| a.since)
                .max();
            let pressure = Pressure {
                observed: seen.loads.get(&s.name).map_or(&[], Vec::as_slice),
                windows: &s.windows,
                capacity: s.capacity,
                left,
            };
            (s.name.clone(), Relief::of(now(), &pressure, &rules.policy))
        });
        Ok(looked.filter(|(_, r)| *r != Relief::Stay).collect())
    }

    /// Of each subject that runs out of capacity, one volume leaves for its copy.
    pub(super) async fn leave_for_load(
        &self,
        planning: &Planning,
        rules: &Rules,
        planned: &mut Planned,
    ) -> Result<()> {
        for (subject, relief) in planned.relief.clone() {
            let Relief::Leave(why) = relief else { continue };
            let Some(began) = planned.commitments.get(&subject).cloned() else {
                planned.notes.push(format!(
                    "volumes should leave {subject} because {why}: no copies of them are being made"
                ));
                continue;
            };
            if began.nodes.is_empty() {
                planned.notes.push(format!(
                    "volumes should leave {subject} because {why}: their node at {} is not there yet",
                    began.site
                ));
            }
            let home: NodeName = subject.parse()?;
            for (volume, to) in began.volumes.iter().zip(&began.nodes) {
                let Some(v) = self.volume_named(volume).await? else {
                    continue;
                };
                if v.operation.is_some() {
                    break; // it is on its way: whether that is enough shows when it is there
                }
                if v.owner != home {
                    continue;
                }
                let to: NodeName = to.parse()?;
                if let Some(not) = self.is_no_relief(planning, rules, &v, &to).await? {
                    planned.notes.push(format!(
                        "{volume} should leave {subject} for {to} because {why}: {not}"
                    ));
                    continue;
                }
                let away = Away {
                    home: subject.clone(),
                    to: to.to_string(),
                    cause: Cause::Load,
                    since: now(),
                    early: 0,
                };
                self.put_away(&v.name, Some(&away)).await?;
                self.move_to(&v, &to).await?;
                let text = format!("{volume} leaves {subject} for {to} because {why}");
                self.announce("plan-moves", to.as_str(), text).await?;
                break;
            }
        }
        Ok(())
    }

    /// Why a node cannot take a volume because of load, if it cannot.
    async fn is_no_relief(
        &self,
        planning: &Planning,
        rules: &Rules,
        v: &crate::fleet::Volume,
        to: &NodeName,
    ) -> Result<Option<String>> {
        if let Some(why) = self.is_no_refuge(rules, v, to).await? {
            return Ok(Some(why));
        }
        let limit = super::view::CAPACITY * rules.policy.utilisation_limit;
        let seen = planning.seen();
        let load = seen.loads.get(to.as_str()).and_then(|l| l.last());
        Ok(load
            .filter(|(_, load)| *load > limit)
            .map(|(_, load)| format!("it uses {load:.2} itself, the limit is {limit:.2}")))
    }
}
