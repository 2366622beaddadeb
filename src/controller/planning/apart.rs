//! Anti-affinity: volumes that must not fail together, such as the copies that a database keeps of itself, are
//! kept on nodes of their own. What holds one of a list, as its owner or as a replica, or is about to, is no place
//! for another: not when a copy is planned, and not when a node is emptied.

use super::book::Began;
use crate::controller::{Controller, Nodes};
use crate::fleet::{Command, Volume};
use crate::planner::Ask;
use crate::store::Store;
use node::Result;
use std::collections::{BTreeMap, BTreeSet};

/// By volume that is in a list: the nodes that hold it or are to.
pub(in crate::controller) type Holders = BTreeMap<String, BTreeSet<String>>;

impl<S: Store, N: Nodes> Controller<S, N> {
    /// The lists of volumes that are kept apart.
    fn apart(&self) -> &[Vec<String>] {
        let planning = self.inner.planning.as_ref();
        planning.map_or(&[], |p| &p.config.apart)
    }

    /// Who holds what is in a list.
    pub(in crate::controller) async fn holders(&self, volumes: &[Volume]) -> Result<Holders> {
        let mut holders = Holders::new();
        let is_listed =
            |v: &&Volume| (self.apart().iter().flatten()).any(|name| name == v.name.as_str());
        for v in volumes.iter().filter(is_listed) {
            let mut on: BTreeSet<String> = (v.replicas.iter().map(|r| &r.node))
                .chain([&v.owner])
                .map(ToString::to_string)
                .collect();
            if let Some(id) = &v.operation
                && let Some(known) = self.inner.records.operation(id).await?
                && let Command::AddReplica { node, .. } = known.record.command
            {
                on.insert(node.to_string());
            }
            holders.insert(v.name.to_string(), on);
        }
        Ok(holders)
    }

    /// Close to each of these volumes what holds another of its list.
    pub(in crate::controller) fn keep_apart(&self, asks: &mut [Ask], holders: &Holders) {
        keep_apart(asks, self.apart(), holders);
    }
}

fn keep_apart(asks: &mut [Ask], lists: &[Vec<String>], holders: &Holders) {
    for ask in asks {
        for list in lists.iter().filter(|l| l.contains(&ask.volume)) {
            // those that look for a place in the same cycle
            ask.group = Some(list.join(", "));
            let others = list.iter().filter(|name| **name != ask.volume);
            let nodes = others.filter_map(|name| holders.get(name)).flatten();
            ask.avoid.extend(nodes.cloned());
        }
    }
}

/// What commitments put on one node although it is in one list, each in a sentence: a new node takes all that is
/// at home on the one that it stands in for.
pub(super) fn meetings(began: &BTreeMap<String, Began>, lists: &[Vec<String>]) -> Vec<String> {
    let mut notes = Vec::new();
    for (subject, b) in began {
        if b.nodes.is_empty() && b.shape.is_none() {
            continue; // the copies are there already
        }
        for list in lists {
            let mut on: BTreeMap<Option<&String>, Vec<&str>> = BTreeMap::new();
            for (i, volume) in b.volumes.iter().enumerate() {
                if list.contains(volume) {
                    on.entry(b.nodes.get(i)).or_default().push(volume);
                }
            }
            for (node, together) in on.into_iter().filter(|(_, all)| all.len() > 1) {
                let place = node.map_or(format!("the new node at {}", b.site), |n| {
                    format!("node {n} at {}", b.site)
                });
                notes.push(format!(
                    "{} are to be apart and {place} takes them together, because all are at home on {subject}: \
                     move all but one of them to other nodes, and copies follow",
                    together.join(", ")
                ));
            }
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> Vec<String> {
        ["db-1", "db-2"].map(str::to_owned).to_vec()
    }

    #[test]
    fn what_holds_one_of_a_list_is_closed_to_another_and_not_to_itself() {
        let on = |nodes: &[&str]| nodes.iter().map(|n| (*n).to_owned()).collect();
        let holders = Holders::from([
            ("db-1".into(), on(&["a", "b"])),
            ("db-2".into(), on(&["c", "d"])),
        ]);
        let ask = |name: &str| Ask {
            volume: name.into(),
            ..Ask::default()
        };
        let mut asks = [ask("db-1"), ask("web")];
        keep_apart(&mut asks, &[list()], &holders);
        assert_eq!(asks[0].avoid, ["c", "d"]);
        assert_eq!(asks[0].group.as_deref(), Some("db-1, db-2"));
        assert_eq!((asks[1].avoid.len(), &asks[1].group), (0, &None));
    }

    /// A new node took both in silence.
    #[test]
    fn two_of_a_list_that_one_node_takes_are_said() {
        let began = |nodes: &[&str], shape: Option<&str>| Began {
            site: "west".into(),
            nodes: nodes.iter().map(|n| (*n).to_owned()).collect(),
            volumes: ["db-1", "web", "db-2"].map(str::to_owned).to_vec(),
            since: 0,
            shape: shape.map(str::to_owned),
            p: 1.0,
            bandwidth: 1,
        };
        let said = |b| meetings(&BTreeMap::from([("a".to_owned(), b)]), &[list()]);
        let new = said(began(&[], Some("small")));
        assert_eq!(new.len(), 1);
        let says = "db-1, db-2 are to be apart and the new node at west takes them together";
        assert!(new[0].starts_with(says), "{new:?}");
        assert!(said(began(&["n", "n", "n"], Some("small")))[0].contains("node n at west"));
        assert_eq!(said(began(&["n", "n", "m"], None)), [""; 0]);
        assert_eq!(said(began(&[], None)), [""; 0]);
    }
}
