//! What is wrong with what a cycle is given is said by every plan for as long as it is wrong, and nothing is
//! moved to a place that cannot take it.

use super::*;
use crate::controller::{Measured, SourceConfig};
use crate::fleet::Command;
use proto::v1::{ReplicaReport, ReplicaState};

const GIB: u64 = 1 << 30;

impl Rig {
    async fn notes(&self) -> [String; 2] {
        let cycle = self.controller().cycle(None).await.unwrap();
        let asked = self.controller().plan_only().await.unwrap();
        [cycle.notes.join("\n"), asked.notes.join("\n")]
    }

    async fn events(&self, kind: &str) -> Vec<String> {
        let events = self.controller().inner.records.last_events(100).await;
        let events = events.unwrap().into_iter().filter(|e| e.kind == kind);
        events.map(|e| e.text).collect()
    }

    pub(super) async fn cutovers(&self) -> usize {
        let all = self.controller().inner.records.operations().await.unwrap();
        let is_one = |o: &&crate::fleet::Operation| matches!(o.command, Command::Cutover { .. });
        all.iter().filter(is_one).count()
    }

    fn csv_source(&mut self, rows: &str) {
        let file = self.dir.path().join("vms.csv");
        std::fs::write(&file, format!("vm,timestamp,cpu\n{rows}")).unwrap();
        self.planning.source = vec![SourceConfig {
            of: Measured::Vms,
            prometheus: None,
            csv: vec![file],
            names: BTreeMap::new(),
        }];
    }

    /// Node b at west says that so much is free; and node a of its copy of v there, if it has one.
    pub(super) fn hear_of_b(&self, free: u64, copy: Option<ReplicaState>) {
        let presence = &self.controller().inner.presence;
        let beat = HeartbeatRequest {
            name: "b".into(),
            metrics: Some(NodeMetrics {
                cpus: 8,
                memory_total_bytes: 8 * GIB,
                memory_available_bytes: 8 * GIB,
                data_total_bytes: 100 * GIB,
                data_free_bytes: free,
                ..NodeMetrics::default()
            }),
            ..HeartbeatRequest::default()
        };
        presence.heard("b".parse().unwrap(), beat);
        let replica = copy.map(|state| ReplicaReport {
            node: "b".into(),
            state: state.into(),
            ..ReplicaReport::default()
        });
        let beat = HeartbeatRequest {
            name: "a".into(),
            volumes: vec![VolumeReport {
                name: "v".into(),
                replicas: replica.into_iter().collect(),
                ..VolumeReport::default()
            }],
            ..HeartbeatRequest::default()
        };
        presence.heard("a".parse().unwrap(), beat);
    }

    /// Node b at west, to which v is to go because of maintenance that begins within a minute.
    async fn with_b(has_copy: bool) -> Rig {
        let mut rig = Rig::with(0, |_| Vec::new()).await;
        rig.planning.mode = Some(Mode::Auto);
        rig.start().await;
        let controller = rig.controller();
        let event = "[[event]]\nname = \"rack\"\nkind = \"maintenance\"\nnodes = [\"a\"]\n\
                     at = 2020-01-01T00:00:00Z\nlasts = \"1s\"\nevery = \"1m\"\n";
        controller.add_events(event).await.unwrap();
        let began = Began {
            site: "west".into(),
            nodes: vec!["b".into()],
            volumes: vec!["v".into()],
            since: now().0,
            shape: None,
            p: 1.0,
            bandwidth: 1 << 20,
        };
        let mut t = Transaction::default();
        put_node(&mut t, &a_node("b", "west")).unwrap();
        book::put(&mut t, &BTreeMap::new(), &[("a".to_owned(), began)].into()).unwrap();
        if has_copy {
            let mut v = controller.volume_named("v").await.unwrap().unwrap();
            v.replicas.push(a_replica("b"));
            put_volume(&mut t, &v.name, Some(&v)).unwrap();
        }
        controller.commit(t, Vec::new()).await.unwrap();
        rig
    }
}

/// The first cycle said it and no plan after it, although it went on for as long as the clock was wrong.
#[tokio::test]
async fn a_clock_behind_its_history_is_said_by_every_plan_and_announced_once() {
    let rig = Rig::with(0, |_| Vec::new()).await;
    let ahead = (points_to_now() + 12) * PERIOD;
    let kept = &rig.controller().planning().unwrap().kept;
    let samples = vec![sample(of_node("a"), Metric::Cpu, 1.0)];
    kept.append(ahead, ahead, samples).await.unwrap();
    for _ in 0..2 {
        for notes in rig.notes().await {
            assert!(notes.contains("clock was set back"), "{notes}");
        }
    }
    assert_eq!(rig.events("clock-wrong").await.len(), 1);
    assert!(rig.cores().iter().any(|(at, _)| *at < ahead), "it goes on");
}

/// They were passed over in silence.
#[tokio::test]
async fn samples_of_times_to_come_are_said_and_those_before_count() {
    let mut rig = Rig::with(0, |_| Vec::new()).await;
    let now = points_to_now() * PERIOD;
    let row = |i: i64| format!("v,{},1.5\n", now + i * PERIOD);
    rig.csv_source(&(-20..=12).map(row).collect::<String>());
    rig.start().await;
    for notes in rig.notes().await {
        assert!(
            notes.contains("vms.csv: 1") && notes.contains("samples are of times that come in"),
            "{notes}"
        );
    }
    let kept = &rig.controller().planning().unwrap().kept;
    let span = crate::history::Span {
        from: 0,
        to: i64::MAX,
        step: PERIOD as u32,
    };
    let is_it = |key: &Key| key.machine == ingest::of_vm("v");
    let found = kept.walk(span, is_it).unwrap().next().unwrap().unwrap().1;
    assert!((20..=22).contains(&found.len()), "{found:?}");
}

/// `forerun plan` said nothing of it: only the plan of the cycle that had asked did.
#[tokio::test]
async fn a_source_that_cannot_be_read_is_said_by_every_plan() {
    let mut rig = Rig::with(0, |_| Vec::new()).await;
    rig.csv_source("");
    std::fs::remove_file(rig.dir.path().join("vms.csv")).unwrap();
    rig.start().await;
    for notes in rig.notes().await {
        assert!(notes.contains("vms.csv"), "{notes}");
        assert!(notes.contains("it is asked again"), "{notes}");
    }
}

#[tokio::test]
async fn a_node_without_room_gets_no_copy_and_no_volume() {
    let rig = Rig::with_b(false).await;
    rig.hear_of_b(GIB / 2, None);
    rig.controller().cycle(None).await.unwrap();
    let broken = rig.events("plan-broken").await;
    assert_eq!(broken.len(), 1, "{broken:?}");
    assert!(
        broken[0].contains("it takes 1.0 GiB and 0.5 are free there"),
        "{broken:?}"
    );
    assert_eq!(rig.controller().began().await.unwrap(), BTreeMap::new());
    assert_eq!(rig.cutovers().await, 0);
}

/// A copy that is not whole, or on a node that is silent, is no place to go: the volume stays, and the plan
/// says why. Once both are in order it goes.
#[tokio::test]
async fn a_volume_goes_only_to_a_whole_copy_on_a_node_that_answers() {
    let rig = Rig::with_b(true).await;
    for notes in rig.notes().await {
        assert!(notes.contains("it sends no heartbeats"), "{notes}");
    }
    rig.hear_of_b(50 * GIB, Some(ReplicaState::Seeding));
    for notes in rig.notes().await {
        assert!(notes.contains("its copy is not complete yet"), "{notes}");
    }
    assert_eq!(rig.cutovers().await, 0);
    rig.hear_of_b(50 * GIB, Some(ReplicaState::Consistent));
    rig.notes().await;
    assert_eq!(rig.cutovers().await, 1);
    assert_eq!(rig.events("plan-moves").await.len(), 1);
}

/// Maintenance was over while the node's load was above its limit: the volume came home, and left again in the
/// next cycle because of the load.
#[tokio::test]
async fn a_volume_does_not_come_home_to_a_node_that_is_overloaded() {
    let mut rig = Rig::with(288, |i| {
        let cores = if i < 285 { 1.0 } else { 9.6 };
        vec![
            sample(of_node("a"), Metric::Cpu, cores),
            sample(of_node("a"), Metric::Memory, f64::from(1 << 30)),
        ]
    })
    .await;
    rig.planning.mode = Some(Mode::Auto);
    rig.start().await;
    let controller = rig.controller();
    rig.send_away(|v| v.replicas.push(a_replica("a"))).await;
    let beat = |name: &str, permille| {
        let replica = ReplicaReport {
            node: "a".into(),
            state: ReplicaState::Consistent.into(),
            ..ReplicaReport::default()
        };
        let beat = HeartbeatRequest {
            name: name.into(),
            metrics: Some(NodeMetrics {
                cpus: 8,
                cpu_permille: permille,
                memory_total_bytes: 8 * GIB,
                memory_available_bytes: 6 * GIB,
                ..NodeMetrics::default()
            }),
            volumes: vec![VolumeReport {
                name: "v".into(),
                replicas: vec![replica],
                ..VolumeReport::default()
            }],
            ..HeartbeatRequest::default()
        };
        let presence = &rig.controller().inner.presence;
        presence.heard(name.parse().unwrap(), beat);
    };
    beat("a", 1200);
    beat("b", 100);
    controller.cycle(None).await.unwrap();
    assert_eq!(
        rig.cutovers().await,
        0,
        "{:?}",
        rig.events("plan-moves").await
    );
    // the same with a load that is calm by now
    let kept = &controller.planning().unwrap().kept;
    for i in 0..3 {
        let at = (points_to_now() - i) * PERIOD;
        let samples = vec![sample(of_node("a"), Metric::Cpu, 1.0)];
        kept.append(at, at + PERIOD, samples).await.unwrap();
    }
    beat("a", 100);
    beat("b", 100);
    controller.cycle(None).await.unwrap();
    assert_eq!(rig.cutovers().await, 1);
}
