//! What the plan stands by, as the store has it.

use super::view::View;
use super::{Controller, Nodes};
use crate::planner::{Action, Commitment, Commitments, Outlook, Plan, UnixTime, Way};
use crate::store::{Store, Transaction};
use node::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const BEGAN: &str = "plan/began/";
/// Records read at a time.
const PAGE: usize = 1000;

/// A commitment, with all that carrying it out needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::controller) struct Began {
    /// Where.
    pub site: String,
    /// On which nodes, one for each volume; empty until a new one is there.
    pub nodes: Vec<String>,
    /// The volumes that are to have a copy.
    pub volumes: Vec<String>,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// The shape of the node that is to be made, if one is.
    pub shape: Option<String>,
    /// The probability that it was decided by.
    pub p: f64,
    /// Bytes a second that its seeding may take in all.
    pub bandwidth: u64,
}

impl Began {
    pub fn commitment(&self) -> Commitment {
        Commitment {
            site: self.site.clone(),
            nodes: self.nodes.clone(),
            since: UnixTime(self.since),
        }
    }
}

/// What stands after a plan: what stood before and is kept, and what the plan opened.
pub(super) fn after(
    mut before: BTreeMap<String, Began>,
    kept: &Commitments,
    plan: &Plan,
    view: &View,
) -> BTreeMap<String, Began> {
    let mut after = BTreeMap::new();
    for (subject, commitment) in kept.iter() {
        let known = before
            .remove(subject)
            .filter(|b| b.commitment() == *commitment);
        let opened = || {
            let d = plan.decisions.iter().find(|d| d.subject == subject)?;
            let Outlook::Possible { way, score, .. } = d.sites.get(&commitment.site)? else {
                return None;
            };
            let moving = &view.subjects.iter().find(|s| s.name == subject)?.moving;
            let site = view.sites.iter().find(|s| s.name == commitment.site)?;
            Some(Began {
                site: commitment.site.clone(),
                nodes: commitment.nodes.clone(),
                volumes: moving.iter().map(|a| a.volume.clone()).collect(),
                since: commitment.since.0,
                shape: match way {
                    Way::New(r) if d.action == Action::Provision => Some(r.shape.name.clone()),
                    _ => None,
                },
                p: score.p,
                bandwidth: site.bandwidth.0,
            })
        };
        if let Some(began) = known.or_else(opened) {
            after.insert(subject.to_owned(), began);
        }
    }
    after
}

/// Write what changed between two sets of commitments.
pub(super) fn put(
    t: &mut Transaction,
    before: &BTreeMap<String, Began>,
    after: &BTreeMap<String, Began>,
) -> Result<()> {
    for subject in before.keys().filter(|s| !after.contains_key(*s)) {
        t.write.push((format!("{BEGAN}{subject}"), None));
    }
    for (subject, began) in after.iter().filter(|(s, b)| before.get(*s) != Some(b)) {
        t.write
            .push((format!("{BEGAN}{subject}"), Some(encode(began)?)));
    }
    Ok(())
}

pub(super) fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|e| Error::new(ErrorKind::Broken, format!("write a planning record: {e}")))
}

impl<S: Store, N: Nodes> Controller<S, N> {
    /// What stands.
    pub(super) async fn began(&self) -> Result<BTreeMap<String, Began>> {
        self.planning_records(BEGAN).await
    }

    /// Every record under a prefix, by the rest of its key.
    pub(super) async fn planning_records<T: DeserializeOwned>(
        &self,
        prefix: &str,
    ) -> Result<BTreeMap<String, T>> {
        let mut all = BTreeMap::new();
        let mut after: Option<String> = None;
        loop {
            let store = self.inner.records.store();
            let page = store.scan(prefix, after.as_deref(), PAGE).await?;
            let more = page.len() == PAGE;
            for (key, bytes) in page {
                let record = serde_json::from_slice(&bytes).map_err(|e| {
                    Error::new(
                        ErrorKind::Corrupt,
                        format!("record {key} in the store: {e}"),
                    )
                })?;
                all.insert(key[prefix.len()..].to_owned(), record);
                after = Some(key);
            }
            if !more {
                return Ok(all);
            }
        }
    }
}
