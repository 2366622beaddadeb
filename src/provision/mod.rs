//! Provisioning: nodes are made and destroyed by Terraform, and nothing is ever made twice or
//! forgotten, whenever the controller dies.
//!
//! ```text
//! decision ─► operation in the log (what shall be) ─► plan -out ─► gate ─► apply -json ─┐
//!                    ▲                                                                  │
//!                    │            node registers with its one-time token ◄── node ◄─────┘
//!                    └── step done ◄─ seed ◄─┘
//! ```
//!
//! What *shall* be is in the store before anything is touched: the node's record. What *is* stands
//! in Terraform's state, which Terraform keeps in the same store through [`Backend`]. What neither
//! knows, because a process was killed in between, carries a tag and is swept. Every step of an
//! operation brings the world to what the records say, so any step may be repeated.

mod backend;
mod failure;
mod gate;
mod lifecycle;
mod process;
mod progress;
mod record;
mod sweep;
mod terraform;
mod token;
mod workspace;

pub use backend::{Backend, Holder};
pub use failure::{Backoff, Class, Failed};
pub use gate::{Allowance, Changes, gate};
pub use lifecycle::{Lifecycle, Rules, World};
pub use progress::Progress;
pub use record::{Kind, NodeRecord, NodeState, Operation, Stage, Step};
pub use sweep::{Found, tagged};
pub use terraform::{Limits, Terraform};
pub use token::TokenKey;
pub use workspace::{Module, NodeSpec};

use std::collections::BTreeMap;

/// Whatever makes and destroys nodes at a site.
pub trait Provisioner: Send + Sync {
    /// Bring the site to exactly these nodes, within what is allowed.
    fn converge(
        &self,
        site: &str,
        wanted: &BTreeMap<String, NodeSpec>,
        allow: &Allowance,
        report: &(dyn Fn(Progress) + Send + Sync),
    ) -> impl Future<Output = Result<Changes, Failed>> + Send;

    /// Whether the site differs from what was last applied. Changes nothing.
    fn drifted(&self, site: &str) -> impl Future<Output = Result<bool, Failed>> + Send;
}
