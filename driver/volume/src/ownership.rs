//! Who may acknowledge writes: two durable records, relinquish and then activate.
//!
//! ```text
//!   source, generation g                     target
//!   Owner { g }                              Standby
//!   freeze, drain, last epoch E committed
//!   Relinquished { g+1 → target, E } durable
//!                 ── activate(g+1, E) ─────► Owner { g+1 } durable, gate opens
//! ```
//!
//! Between the two records nobody owns the volume; never do two. Generations only grow: each node
//! keeps the highest that it has seen, durable before it answers, and refuses lower ones. An owner
//! that sees a higher one has been replaced and steps down.

use block::{Epoch, Error, ErrorKind, Generation, NodeName, Result};
use std::fmt;

/// This node's part, as its durable record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// May acknowledge writes.
    Owner {
        /// In this generation.
        generation: Generation,
        /// The epoch that it took over.
        since: Epoch,
    },
    /// Holds a copy, or is about to.
    Standby,
    /// Gave the volume away; only the target can go on, or this node in a later generation if the target is gone.
    Relinquished {
        /// The generation that the target is to take.
        generation: Generation,
        /// Who is to take it.
        to: NodeName,
        /// The image here is exactly this epoch, and durable.
        epoch: Epoch,
    },
}

/// What an ownership call means in the state it finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It happened before: answer again.
    Again,
    /// Take it.
    Take,
}

impl Role {
    /// Whether this node may acknowledge writes.
    #[must_use]
    pub fn is_owner(&self) -> bool {
        matches!(self, Role::Owner { .. })
    }

    pub(crate) fn activate(&self, seen: Generation, g: Generation, epoch: Epoch) -> Result<Step> {
        match self {
            Role::Owner { generation, since } if *generation == g && *since == epoch => {
                Ok(Step::Again)
            }
            _ if g <= seen => Err(fenced("activate", g, seen)),
            Role::Owner { generation, .. } => Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "activate generation {g}: this node owns the volume already, in generation \
                     {generation}; relinquish it first"
                ),
            )),
            Role::Standby | Role::Relinquished { .. } => Ok(Step::Take),
        }
    }

    pub(crate) fn relinquish(
        &self,
        seen: Generation,
        to: &NodeName,
        g: Generation,
        epoch: Epoch,
    ) -> Result<Step> {
        match self {
            Role::Relinquished {
                generation,
                to: node,
                epoch: at,
            } if *generation == g && node == to && *at == epoch => Ok(Step::Again),
            Role::Owner { .. } if g <= seen => Err(fenced("relinquish to", g, seen)),
            Role::Owner { .. } => Ok(Step::Take),
            _ => Err(Error::new(
                ErrorKind::NotOwner,
                format!("relinquish to {to} for generation {g}: {self}"),
            )),
        }
    }
}

pub(crate) fn fenced(what: &str, g: Generation, seen: Generation) -> Error {
    Error::new(
        ErrorKind::Fenced,
        format!(
            "{what} generation {g}: generation {seen} was seen here; whoever sent this is a former \
             owner"
        ),
    )
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Owner { generation, .. } => write!(f, "owner in generation {generation}"),
            Role::Standby => write!(f, "standby"),
            Role::Relinquished {
                generation,
                to,
                epoch,
            } => write!(
                f,
                "relinquished to {to} at epoch {epoch} for generation {generation}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(i: u8) -> NodeName {
        format!("n{i}").parse().unwrap()
    }

    proptest! {
        /// Three nodes, calls in any order and repeated: nobody owns in a generation that another
        /// owned in, and what a node has seen never falls.
        #[test]
        fn a_generation_has_one_owner(calls in prop::collection::vec(
            (0usize..3, 0usize..3, 0u64..4, any::<bool>()), 1..80)
        ) {
            let mut roles = [
                Role::Owner { generation: Generation(1), since: Epoch(0) }, Role::Standby, Role::Standby,
            ];
            let mut seen = [Generation(1), Generation(0), Generation(0)];
            let mut owners = std::collections::BTreeMap::from([(1u64, 0usize)]);
            let mut offers = Vec::new();
            for (i, to, pick, relinquish) in calls {
                if relinquish {
                    let next = Generation(seen[i].0 + pick);
                    let to_name = node(to as u8);
                    if roles[i].relinquish(seen[i], &to_name, next, Epoch(1)).is_ok() {
                        roles[i] = Role::Relinquished { generation: next, to: to_name, epoch: Epoch(1) };
                        seen[i] = seen[i].max(next);
                        offers.push((to, next));
                    }
                } else if let Some((to, g)) = offers.get(pick as usize % offers.len().max(1)).copied()
                    && let Ok(Step::Take) = roles[to].activate(seen[to], g, Epoch(1))
                {
                    roles[to] = Role::Owner { generation: g, since: Epoch(1) };
                    prop_assert!(g > seen[to]);
                    seen[to] = g;
                    let first = *owners.entry(g.0).or_insert(to);
                    prop_assert_eq!(first, to, "two owners in generation {}", g);
                }
                let now = roles.iter().filter(|r| r.is_owner()).count();
                prop_assert!(now <= 1, "two owners at once");
            }
        }
    }
}
