//! Carrying out: nodes made, copies made and removed, volumes moved, empty nodes destroyed.
//!
//! Each thing brings the fleet a step nearer to what the commitments say, and is asked for in every
//! cycle until it is there. So nothing is lost when the controller dies in between, and nothing is
//! done twice. What a person applied in mode advise goes on as in mode auto.

use super::super::ask::hash;
use super::book::{self, Began};
use super::{Controller, Nodes, Planned, Planning, Rules, now};
use crate::fleet::OperationId;
use crate::planner::{Mode, Seconds};
use crate::provision::{Kind, Stage};
use crate::store::{Store, Transaction};
use node::{ErrorKind, NodeName, Result, VolumeName};
use proto::v1::GrowNode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Copies that a plan made: only these are removed by one.
const COPIES: &str = "plan/copy/";
/// Between a volume's and a node's name in a key; in neither's.
const AT: char = '@';

#[derive(Serialize, Deserialize)]
struct Copy {
    subject: String,
}

/// What came of looking after a commitment.
enum Standing {
    /// It stands, with these nodes.
    Stands(Vec<String>),
    /// It cannot be kept.
    Broken(String),
}

impl<S: Store, N: Nodes> Controller<S, N> {
    pub(super) async fn carry_out(
        &self,
        planning: &Planning,
        rules: &Rules,
        planned: &mut Planned,
    ) -> Result<()> {
        let before = planned.commitments.clone();
        for (subject, began) in &before {
            match self.look_after(subject, began).await {
                Ok(Standing::Stands(nodes)) => {
                    if let Some(b) = planned.commitments.get_mut(subject) {
                        b.nodes = nodes;
                    }
                }
                Ok(Standing::Broken(why)) => {
                    planned.commitments.remove(subject);
                    let text = format!("{subject} will not be ready at {}: {why}", began.site);
                    self.announce("plan-broken", subject, text).await?;
                }
                // the next cycle tries again
                Err(e) => planned.notes.push(format!("{subject}: {e}")),
            }
        }
        let mut t = Transaction::default();
        book::put(&mut t, &before, &planned.commitments)?;
        self.commit(t, Vec::new()).await?;
        self.leave_for_events(rules, planned).await?;
        self.leave_for_load(planning, rules, planned).await?;
        self.come_home(planning, rules, planned).await?;
        self.remove_unwanted(&planned.commitments).await?;
        self.retire_empty(planning, rules, planned).await
    }

    /// Bring one commitment a step further.
    async fn look_after(&self, subject: &str, began: &Began) -> Result<Standing> {
        if let (true, Some(shape)) = (began.nodes.is_empty(), &began.shape) {
            return self.look_after_node(subject, began, shape).await;
        }
        let share = began.bandwidth / began.volumes.len().max(1) as u64;
        for (volume, node) in began.volumes.iter().zip(&began.nodes) {
            let (volume, node): (VolumeName, NodeName) = (volume.parse()?, node.parse()?);
            let known = self.inner.records.node(&node).await?;
            if known.is_none_or(|n| n.draining) {
                return Ok(Standing::Broken(format!(
                    "node {node} is gone or being emptied"
                )));
            }
            let Some(v) = self.inner.records.volume(&volume).await? else {
                continue; // deleted meanwhile
            };
            let v = v.record;
            if v.owner != node && v.replica_on(&node).is_none() {
                // written before it is made, so that a copy which nobody remembers cannot be
                let mut t = Transaction::default();
                let copy = book::encode(&Copy {
                    subject: subject.to_owned(),
                })?;
                t.write
                    .push((format!("{COPIES}{volume}{AT}{node}"), Some(copy)));
                self.commit(t, Vec::new()).await?;
            }
            match self.have_copy(&v, &node, share.max(1)).await {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::NoSpace => {
                    return Ok(Standing::Broken(e.to_string()));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(Standing::Stands(began.nodes.clone()))
    }

    /// A node that is to be made: begun once, and its copies once it is there.
    async fn look_after_node(&self, subject: &str, began: &Began, shape: &str) -> Result<Standing> {
        let since = began.since.to_string();
        let id: OperationId = hash(&["grow", subject, &began.site, &since]).parse()?;
        let grow = GrowNode {
            site: began.site.clone(),
            shape: shape.to_owned(),
            node: String::new(),
            volumes: Vec::new(), // seeded by the plan, within its bandwidth
        };
        let operation = match self.grow(&id, &grow).await {
            Ok(operation) => operation,
            Err(e) => return Ok(Standing::Broken(e.to_string())),
        };
        Ok(match operation.stage {
            Stage::Done => Standing::Stands(vec![operation.node; began.volumes.len()]),
            Stage::Running => Standing::Stands(Vec::new()),
            Stage::Undoing | Stage::Failed => Standing::Broken(operation.error.unwrap_or_default()),
        })
    }

    /// Copies that a plan made and none stands by any more.
    async fn remove_unwanted(&self, began: &BTreeMap<String, Began>) -> Result<()> {
        let copies: BTreeMap<String, Copy> = self.planning_records(COPIES).await?;
        for key in copies.keys() {
            let Some((volume, node)) = key.split_once(AT) else {
                continue; // no such key is ever written
            };
            let is_wanted = |b: &Began| {
                let mut places = b.volumes.iter().zip(&b.nodes);
                places.any(|(v, n)| v == volume && n == node)
            };
            if began.values().any(is_wanted) {
                continue;
            }
            let name: NodeName = node.parse()?;
            let known = self.inner.records.volume(&volume.parse()?).await?;
            let gone = match known.map(|r| r.record) {
                None => true,
                Some(v) if v.owner == name => false, // it is in use
                Some(v) if v.operation.is_some() => false,
                Some(v) => self.drop_copy(&v, &name).await?,
            };
            if gone {
                let mut t = Transaction::default();
                t.write.push((format!("{COPIES}{key}"), None));
                self.commit(t, Vec::new()).await?;
            }
        }
        Ok(())
    }

    /// Nodes that were bought, and on which nothing has been for as long as the policy says. No commitment
    /// speaks of them, so somebody has to.
    async fn retire_empty(
        &self,
        planning: &Planning,
        rules: &Rules,
        planned: &mut Planned,
    ) -> Result<()> {
        let Ok(provisioning) = self.provisioning() else {
            return Ok(());
        };
        let volumes = self.inner.records.volumes().await?;
        let operations = provisioning.lifecycle.operations().await?;
        for n in self.inner.records.nodes().await? {
            let name = n.name.as_str();
            if n.shape.is_none() {
                continue;
            }
            let holds = volumes.iter().any(|v| {
                v.owner == n.name || v.replica_on(&n.name).is_some() || v.is_left_on(&n.name)
            });
            let mut awaited = planned.commitments.values().flat_map(|b| &b.nodes);
            let is_awaited = awaited.any(|m| m == name);
            let is_changing = operations
                .iter()
                .any(|o| o.next().is_some() && o.touches(name));
            let since = {
                let mut seen = planning.seen();
                if holds || is_awaited || is_changing {
                    seen.empty_since.remove(name);
                    continue;
                }
                *seen.empty_since.entry(name.to_owned()).or_insert_with(now)
            };
            if now().since(since) < Seconds(rules.policy.idle_seconds) {
                continue;
            }
            let idle = now().since(since).0;
            if rules.policy.mode != Mode::Auto {
                planned.notes.push(format!(
                    "node {name} has been empty for {idle} s: `forerun plan --apply` retires it"
                ));
                continue;
            }
            let id: OperationId = hash(&["retire", name, &since.0.to_string()]).parse()?;
            let retired = self.retire(&id, name, false).await?;
            debug_assert_eq!(retired.kind, Kind::Retire);
            let text = format!("node {name} has been empty for {idle} s and is retired");
            self.announce("plan-retires", name, text).await?;
        }
        Ok(())
    }
}
