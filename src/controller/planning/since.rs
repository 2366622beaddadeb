//! Since when nodes have been calm or empty, over a restart of the controller: otherwise what is idle would be
//! paid for from the beginning after each.

use super::{Controller, Nodes, Planning, Rules, book, now};
use crate::planner::{Seconds, UnixTime};
use crate::store::{Store, Transaction};
use node::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One record, which a cycle writes with the rest.
const SINCE: &str = "plan/since";
/// Cycles that a controller may have been away: in a longer time nobody saw whether a node was calm.
const UNSEEN: u64 = 3;

/// What was observed last, and when.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Since {
    pub at: UnixTime,
    pub idle: BTreeMap<String, UnixTime>,
    pub empty: BTreeMap<String, UnixTime>,
}

impl Since {
    /// Whether nothing can have been missed between then and now.
    fn is_fresh(&self, now: UnixTime, rules: &Rules) -> bool {
        let cycles = rules.policy.cycle_seconds.saturating_mul(UNSEEN);
        let unseen = Seconds(rules.policy.idle_seconds.max(cycles));
        self.at <= now && now.since(self.at) <= unseen
    }
}

impl<S: Store, N: Nodes> Controller<S, N> {
    /// Once in a process: what the one before it observed.
    pub(super) async fn remember(&self, planning: &Planning, rules: &Rules) -> Result<()> {
        if planning.seen().remembered {
            return Ok(());
        }
        let found = self.planning_records::<Since>(SINCE).await?.remove("");
        let mut seen = planning.seen();
        seen.remembered = true;
        if let Some(since) = found.filter(|s| s.is_fresh(now(), rules)) {
            seen.idle_since = since.idle;
            seen.empty_since = since.empty;
        }
        Ok(())
    }

    /// For the next process.
    pub(super) async fn put_since(&self, planning: &Planning) -> Result<()> {
        let since = {
            let seen = planning.seen();
            Since {
                at: now(),
                idle: seen.idle_since.clone(),
                empty: seen.empty_since.clone(),
            }
        };
        let mut t = Transaction::default();
        t.write.push((SINCE.into(), Some(book::encode(&since)?)));
        self.commit(t, Vec::new()).await?;
        Ok(())
    }
}
