//! The gate between plan and apply: a plan is carried out only if it does what was asked and no
//! more, and costs no more than it may.

use super::failure::{Class, Failed};
use super::workspace::NodeSpec;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a plan may do.
#[derive(Clone, Debug, Default)]
pub struct Allowance {
    /// Nodes that may be destroyed. Any other that the plan would destroy stops it.
    pub destroy: BTreeSet<String>,
    /// Nodes that serve. They are never made again and never swept, whatever the state says.
    pub keep: BTreeSet<String>,
    /// The most nodes that a site may have.
    pub nodes: usize,
    /// The most that all of a site's nodes may cost in an hour.
    pub hour: f64,
}

/// What a plan does, by node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Made.
    pub create: BTreeSet<String>,
    /// Destroyed.
    pub destroy: BTreeSet<String>,
    /// Changed in place.
    pub update: BTreeSet<String>,
    /// Resources that belong to no node and go away.
    pub site_wide_destroy: BTreeSet<String>,
    /// Whether anything changes at all, site-wide resources included.
    pub any: bool,
}

/// `terraform show -json` of a plan or a state: only what is judged here.
#[derive(Deserialize)]
pub(super) struct ShownPlan {
    #[serde(default)]
    resource_changes: Vec<ResourceChange>,
}

#[derive(Deserialize)]
struct ResourceChange {
    address: String,
    /// The key of `for_each`: the node's name, wherever the resource stands.
    index: Option<serde_json::Value>,
    mode: String,
    change: Change,
}

#[derive(Deserialize)]
struct Change {
    actions: Vec<String>,
}

impl ShownPlan {
    pub(super) fn changes(&self) -> Changes {
        let mut changes = Changes::default();
        for r in self.resource_changes.iter().filter(|r| r.mode == "managed") {
            let has = |action: &str| r.change.actions.iter().any(|a| a == action);
            if !["create", "delete", "update", "forget"]
                .into_iter()
                .any(has)
            {
                continue;
            }
            changes.any = true;
            let gone = has("delete") || has("forget");
            match r.index.as_ref().and_then(|i| i.as_str()) {
                None if gone => {
                    changes.site_wide_destroy.insert(r.address.clone());
                }
                None => {}
                Some(node) => {
                    let node = node.to_owned();
                    if gone {
                        changes.destroy.insert(node.clone());
                    }
                    if has("create") {
                        changes.create.insert(node);
                    } else if has("update") {
                        changes.update.insert(node);
                    }
                }
            }
        }
        changes
    }
}

/// Judge a plan.
///
/// # Errors
/// It destroys what was not to be destroyed, changes a node in place, or passes a limit.
pub fn gate(
    site: &str,
    changes: &Changes,
    wanted: &BTreeMap<String, NodeSpec>,
    allow: &Allowance,
) -> Result<(), Failed> {
    let refuse = |why: String| {
        Err(Failed::new(
            Class::Gate,
            format!("plan for site {site} refused: {why}"),
        ))
    };
    if let Some(node) = changes.destroy.difference(&allow.destroy).next() {
        return refuse(format!(
            "it would destroy node {node}, which is not being retired"
        ));
    }
    if let Some(resource) = changes
        .site_wide_destroy
        .iter()
        .next()
        .filter(|_| !wanted.is_empty())
    {
        return refuse(format!(
            "it would destroy {resource}, which the site's nodes share"
        ));
    }
    if let Some(node) = changes.update.iter().next() {
        return refuse(format!(
            "it would change node {node} in place, and no provisioner runs then: what the node runs \
             would not change. Replace it: a new node, seed, cut over, retire"
        ));
    }
    if let Some(node) = changes.create.iter().find(|n| !wanted.contains_key(*n)) {
        return refuse(format!("it would make node {node}, which nobody asked for"));
    }
    if let Some(node) = changes.create.intersection(&allow.keep).next() {
        return refuse(format!(
            "it would make node {node}, which serves already: the state has lost it. Import it into \
             the state, or retire it"
        ));
    }
    if wanted.len() > allow.nodes {
        return refuse(format!(
            "{} nodes, the quota is {}",
            wanted.len(),
            allow.nodes
        ));
    }
    let hour: f64 = wanted.values().map(|n| n.hour).sum();
    if !changes.create.is_empty() && hour > allow.hour {
        return refuse(format!(
            "its nodes cost {hour:.4} an hour, the limit is {:.4}",
            allow.hour
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn spec(hour: f64) -> NodeSpec {
        NodeSpec {
            shape: "s".into(),
            hour,
            config: PathBuf::from("/c"),
        }
    }

    fn shown(changes: &[(&str, &str, &[&str])]) -> Changes {
        let list: Vec<_> = changes
            .iter()
            .map(|(address, index, actions)| {
                serde_json::json!({"address": address, "mode": "managed", "change": {"actions": actions},
                    "index": (!index.is_empty()).then_some(*index)})
            })
            .collect();
        let plan = serde_json::json!({ "resource_changes": list });
        serde_json::from_value::<ShownPlan>(plan).unwrap().changes()
    }

    fn judge(changes: &Changes, wanted: &[&str], destroy: &[&str]) -> Result<(), String> {
        let wanted = wanted.iter().map(|n| ((*n).into(), spec(0.1))).collect();
        let allow = Allowance {
            destroy: destroy.iter().map(|n| (*n).into()).collect(),
            keep: ["serving".to_owned()].into(),
            nodes: 2,
            hour: 0.25,
        };
        gate("east", changes, &wanted, &allow).map_err(|e| e.text)
    }

    #[test]
    fn what_was_asked_passes() {
        let plan = shown(&[
            ("x[\"a\"]", "a", &["create"]),
            ("x[\"b\"]", "b", &["no-op"]),
        ]);
        assert!(plan.any && judge(&plan, &["a", "b"], &[]).is_ok());
        let gone = shown(&[("x[\"a\"]", "a", &["delete"])]);
        assert!(judge(&gone, &["b"], &["a"]).is_ok());
        assert!(!shown(&[("x[\"b\"]", "b", &["no-op"])]).any);
    }

    #[test]
    fn what_was_not_asked_is_refused_and_says_what() {
        let refused = |plan: &Changes, wanted: &[&str], says: &str| {
            let e = judge(plan, wanted, &[]).unwrap_err();
            assert!(e.contains(says), "{e}");
        };
        refused(
            &shown(&[("x", "a", &["delete"])]),
            &["b"],
            "not being retired",
        );
        // a replacement destroys too
        refused(
            &shown(&[("x", "a", &["delete", "create"])]),
            &["a"],
            "not being retired",
        );
        refused(
            &shown(&[("x", "a", &["update"])]),
            &["a"],
            "no provisioner runs",
        );
        refused(&shown(&[("x", "c", &["create"])]), &["a"], "nobody asked");
        refused(
            &shown(&[("x", "serving", &["create"])]),
            &["serving"],
            "state has lost it",
        );
        refused(&shown(&[("net", "", &["delete"])]), &["a"], "share");
        refused(
            &shown(&[("x", "a", &["create"])]),
            &["a", "b", "c"],
            "quota",
        );
        let dear: BTreeMap<_, _> = [("a".to_owned(), spec(9.0))].into();
        let allow = Allowance {
            nodes: 1,
            hour: 1.0,
            ..Allowance::default()
        };
        let e = gate("east", &shown(&[("x", "a", &["create"])]), &dear, &allow).unwrap_err();
        assert!(e.text.contains("an hour") && e.class == Class::Gate, "{e}");
    }
}
