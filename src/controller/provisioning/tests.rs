//! Emptying a node while volumes are kept apart.

use super::show::Latest;
use super::world::Site;
use super::*;
use crate::controller::records::{put_node, put_volume};
use crate::controller::{GrpcNodes, PlanningConfig};
use crate::fleet::{Command, Consistency, Node, Replica, Status, Volume};
use crate::provision::World;
use crate::store::Embedded;
use proto::v1::{HeartbeatRequest, NodeMetrics};

const GIB: u64 = 1 << 30;

struct Rig {
    _dir: tempfile::TempDir,
    controller: Controller<Embedded, GrpcNodes>,
    site: Site<Embedded, GrpcNodes>,
}

impl Rig {
    /// Nodes with so much room, and volumes at their owners with their copies. Those of one list are db-1 and db-2.
    async fn with(nodes: &[(&str, u64)], volumes: &[(&str, &str, &[&str])]) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            data: dir.path().into(),
            planning: Some(PlanningConfig {
                apart: vec![["db-1", "db-2"].map(str::to_owned).to_vec()],
                ..PlanningConfig::default()
            }),
            ..Config::default()
        };
        let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
        let controller = Controller::start(store, GrpcNodes::default(), &config);
        let controller = controller.await.unwrap();
        let mut t = Transaction::default();
        for (name, room) in nodes {
            let node = Node {
                name: name.parse().unwrap(),
                site: "west".into(),
                address: "127.0.0.1:1".into(),
                replication_address: "127.0.0.1:2".into(),
                nbd_address: "127.0.0.1:3".into(),
                shape: None,
                draining: false,
            };
            put_node(&mut t, &node).unwrap();
            let beat = HeartbeatRequest {
                name: (*name).into(),
                metrics: Some(NodeMetrics {
                    data_total_bytes: 100 * GIB,
                    data_free_bytes: room * GIB,
                    ..NodeMetrics::default()
                }),
                ..HeartbeatRequest::default()
            };
            controller.inner.presence.heard(node.name, beat);
        }
        for (i, (name, owner, copies)) in (1..).zip(volumes) {
            let replica = |node: &&str| Replica {
                node: node.parse().unwrap(),
                consistency: Consistency::Eventual,
                rate_bytes_per_second: 0,
            };
            let (name, owner) = (name.parse().unwrap(), owner.parse().unwrap());
            let v = Volume {
                status: Status::Ready,
                generation: 1,
                replicas: copies.iter().map(replica).collect(),
                ..Volume::new(name, node::VolumeId([i; 16]), GIB, owner)
            };
            put_volume(&mut t, &v.name, Some(&v)).unwrap();
        }
        controller.commit(t, Vec::new()).await.unwrap();
        let listening = "127.0.0.1:1".parse().unwrap();
        let site = Site::new(&controller, &config, listening, Latest::default());
        Rig {
            _dir: dir,
            controller,
            site,
        }
    }

    async fn drain(&self, ignore_apart: bool) -> Result<bool> {
        let retire = Operation::new("r", Kind::Retire, "west", "a", Vec::new(), 0);
        let retire = Operation {
            ignore_apart,
            ..retire
        };
        self.site.drain(&retire).await
    }

    /// The copies that were begun: of which volume, where.
    async fn begun(&self) -> BTreeMap<String, String> {
        let all = self.controller.inner.records.operations().await.unwrap();
        let begun = all.into_iter().filter_map(|o| match o.command {
            Command::AddReplica { volume, node, .. } => {
                Some((volume.to_string(), node.to_string()))
            }
            _ => None,
        });
        begun.collect()
    }
}

/// The roomiest node took what was kept apart from a volume there.
#[tokio::test]
async fn what_is_kept_apart_does_not_meet_where_a_node_is_emptied() {
    let volumes: [(&str, &str, &[&str]); 2] = [("db-1", "a", &[]), ("db-2", "b", &[])];
    let rig = Rig::with(&[("a", 90), ("b", 90), ("c", 20)], &volumes).await;
    assert!(!rig.drain(false).await.unwrap());
    assert_eq!(rig.begun().await, [("db-1".into(), "c".into())].into());
    // an existing copy beside the other one is no refuge either
    let volumes: [(&str, &str, &[&str]); 2] = [("db-1", "a", &["b"]), ("db-2", "b", &[])];
    let rig = Rig::with(&[("a", 90), ("b", 90), ("c", 20)], &volumes).await;
    assert!(!rig.drain(false).await.unwrap());
    assert_eq!(rig.begun().await, [("db-1".into(), "c".into())].into());
}

#[tokio::test]
async fn two_of_a_list_leave_one_node_for_two() {
    let volumes: [(&str, &str, &[&str]); 3] =
        [("db-1", "a", &[]), ("db-2", "a", &[]), ("web", "a", &[])];
    let rig = Rig::with(&[("a", 90), ("b", 90), ("c", 20)], &volumes).await;
    assert!(!rig.drain(false).await.unwrap());
    // and once more, with the copies still on their way
    assert!(!rig.drain(false).await.unwrap());
    let places = ["b", "c", "b"].map(str::to_owned);
    let names = ["db-1", "db-2", "web"].map(str::to_owned);
    assert_eq!(rig.begun().await, names.into_iter().zip(places).collect());
}

/// Where there is no other place it stays, with the reason, until somebody says that it may go; nothing else stays
/// because of it.
#[tokio::test]
async fn what_has_no_place_apart_stays_and_says_so_until_a_person_insists() {
    let volumes: [(&str, &str, &[&str]); 3] =
        [("db-1", "a", &[]), ("db-2", "b", &[]), ("web", "a", &[])];
    let rig = Rig::with(&[("a", 90), ("b", 90)], &volumes).await;
    let e = rig.drain(false).await.unwrap_err().to_string();
    assert!(e.contains("kept apart from (db-1, db-2)"), "{e}");
    assert!(
        e.contains("forerun provision retire a --ignore-apart"),
        "{e}"
    );
    assert_eq!(rig.begun().await, [("web".into(), "b".into())].into());
    assert!(!rig.drain(true).await.unwrap());
    assert_eq!(rig.begun().await["db-1"], "b");
}
