//! Anti-affinity: volumes that must not fail together, such as the copies that a database keeps of itself, are
//! kept on nodes of their own. What holds one of a list, as its owner or as a replica, is no place for another.

use crate::fleet::Volume;
use crate::planner::Ask;

/// Close to each of these volumes what holds another of its list.
pub(super) fn keep_apart(asks: &mut [Ask], lists: &[Vec<String>], volumes: &[Volume]) {
    for ask in asks {
        for list in lists.iter().filter(|l| l.contains(&ask.volume)) {
            // those that look for a place in the same cycle
            ask.group = Some(list.join(", "));
            let is_other = |v: &&Volume| {
                let name = v.name.as_str();
                name != ask.volume && list.iter().any(|l| l == name)
            };
            let others = volumes.iter().filter(is_other);
            let holders = others.flat_map(|v| v.replicas.iter().map(|r| &r.node).chain([&v.owner]));
            ask.avoid.extend(holders.map(ToString::to_string));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Consistency, Replica};

    #[test]
    fn what_holds_one_of_a_list_is_closed_to_another_and_not_to_itself() {
        let copy = |node: &str| Replica {
            node: node.parse().unwrap(),
            consistency: Consistency::Eventual,
            rate_bytes_per_second: 0,
        };
        let volume = |name: &str, owner: &str, copies: &[&str]| {
            let (name, owner) = (name.parse().unwrap(), owner.parse().unwrap());
            Volume {
                replicas: copies.iter().map(|n| copy(n)).collect(),
                ..Volume::new(name, node::VolumeId([1; 16]), 4096, owner)
            }
        };
        let volumes = [
            volume("db-1", "a", &["b"]),
            volume("db-2", "c", &["d"]),
            volume("web", "e", &[]),
        ];
        let ask = |name: &str| Ask {
            volume: name.into(),
            ..Ask::default()
        };
        let mut asks = [ask("db-1"), ask("web")];
        let lists = [vec!["db-1".to_owned(), "db-2".to_owned()]];
        keep_apart(&mut asks, &lists, &volumes);
        assert_eq!(asks[0].avoid, ["d", "c"]);
        assert_eq!(asks[0].group.as_deref(), Some("db-1, db-2"));
        assert_eq!((asks[1].avoid.len(), &asks[1].group), (0, &None));
    }
}
