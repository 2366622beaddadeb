//! Whole cycles of a controller in this process: its store and its history are files, its nodes have
//! said something and are not there.

use super::ingest::{of_node, of_volume};
mod apart;
mod bad_input;
mod foretold;
mod needs;
mod old_copy;
mod standing;

use super::*;
use crate::controller::records::{put_node, put_volume};
use crate::controller::{GrpcNodes, SiteConfig};
use crate::fleet::{Consistency, Node, Replica, Status, Volume};
use crate::history::{Key, Metric};
use crate::planner::{Outlook, Recommendation};
use crate::store::Embedded;
use proto::v1::{HeartbeatRequest, IoCounters, NodeMetrics, VolumeReport};

const PERIOD: i64 = 300;
const PRICES: &str = r#"
version = "1"
currency = "EUR"
[sites.west]
storage_gib_month = 0.1
egress_gib = 0.0
shapes = [
  { name = "small", cpus = 1, memory_gib = 8, storage_gib = 100, hour = 0.1 },
  { name = "medium", cpus = 2, memory_gib = 8, storage_gib = 100, hour = 0.2 },
  { name = "large", cpus = 6, memory_gib = 8, storage_gib = 100, hour = 0.4 },
  { name = "huge", cpus = 16, memory_gib = 64, storage_gib = 100, hour = 0.9 },
]
"#;

struct Rig {
    dir: tempfile::TempDir,
    planning: PlanningConfig,
    controller: Option<Controller<Embedded, GrpcNodes>>,
}

fn a_node(name: &str, site: &str) -> Node {
    Node {
        name: name.parse().unwrap(),
        site: site.into(),
        address: "127.0.0.1:1".into(),
        replication_address: "127.0.0.1:2".into(),
        nbd_address: "127.0.0.1:3".into(),
        shape: None,
        draining: false,
    }
}

fn a_replica(node: &str) -> Replica {
    Replica {
        node: node.parse().unwrap(),
        consistency: Consistency::Eventual,
        rate_bytes_per_second: 0,
    }
}

/// Points of five minutes since 1970, up to now.
fn points_to_now() -> i64 {
    now().0 as i64 / PERIOD
}

impl Rig {
    /// With what was measured at each of the last `count` points before now, the newest one last.
    async fn with(count: i64, samples: impl Fn(i64) -> Vec<(Key, f64)>) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("prices.toml"), PRICES).unwrap();
        let kept = Kept::open(&dir.path().join("history.redb"), PERIOD as u32, 30).unwrap();
        let last = points_to_now() - 1;
        for i in 0..count {
            let at = (last - count + 1 + i) * PERIOD;
            kept.append(at, at, samples(i)).await.unwrap();
        }
        drop(kept);
        let mut rig = Rig {
            dir,
            planning: PlanningConfig {
                mode: Some(Mode::Advise),
                ..PlanningConfig::default()
            },
            controller: None,
        };
        rig.start().await;
        let (name, owner) = ("v".parse().unwrap(), "a".parse().unwrap());
        let volume = Volume {
            status: Status::Ready,
            generation: 1,
            ..Volume::new(name, node::VolumeId([1; 16]), 1 << 30, owner)
        };
        let mut t = Transaction::default();
        put_node(&mut t, &a_node("a", "home")).unwrap();
        put_volume(&mut t, &volume.name, Some(&volume)).unwrap();
        rig.controller().commit(t, Vec::new()).await.unwrap();
        rig
    }

    async fn start(&mut self) {
        self.controller = None; // as SIGKILL does, the files are as they are
        let config = Config {
            data: self.dir.path().into(),
            prices: Some(self.dir.path().join("prices.toml")),
            planning: Some(self.planning.clone()),
            site: vec![SiteConfig::at("west")],
            provision: Some(crate::controller::ProvisionConfig::default()),
            ..Config::default()
        };
        let store = Embedded::open(&self.dir.path().join("store.redb")).unwrap();
        let controller = Controller::start(store, GrpcNodes::default(), &config);
        self.controller = Some(controller.await.unwrap());
        self.hear(0);
    }

    fn controller(&self) -> &Controller<Embedded, GrpcNodes> {
        self.controller.as_ref().unwrap()
    }

    /// A heartbeat of node a, that has counted so many reads of its volume.
    fn hear(&self, reads: u64) {
        let beat = HeartbeatRequest {
            name: "a".into(),
            metrics: Some(NodeMetrics {
                cpus: 8,
                cpu_permille: 100,
                memory_total_bytes: 8 << 30,
                memory_available_bytes: 6 << 30,
                ..NodeMetrics::default()
            }),
            volumes: vec![VolumeReport {
                name: "v".into(),
                io: Some(IoCounters {
                    reads,
                    ..IoCounters::default()
                }),
                ..VolumeReport::default()
            }],
            ..HeartbeatRequest::default()
        };
        let presence = &self.controller().inner.presence;
        presence.heard("a".parse().unwrap(), beat);
    }

    /// A heartbeat of node a, to which a site is so far.
    fn hear_distance(&self, site: &str, micros: u32) {
        let beat = HeartbeatRequest {
            name: "a".into(),
            latencies: vec![proto::v1::PeerLatency {
                node: format!("site/{site}"),
                micros,
            }],
            ..HeartbeatRequest::default()
        };
        let presence = &self.controller().inner.presence;
        presence.heard("a".parse().unwrap(), beat);
    }

    /// A plan sent v to node b at west because of maintenance of its home a, where it left what `left` says.
    async fn send_away(&self, left: impl FnOnce(&mut Volume)) {
        let controller = self.controller();
        let mut v = controller.volume_named("v").await.unwrap().unwrap();
        v.owner = "b".parse().unwrap();
        left(&mut v);
        let mut t = Transaction::default();
        put_node(&mut t, &a_node("b", "west")).unwrap();
        put_volume(&mut t, &v.name, Some(&v)).unwrap();
        controller.commit(t, Vec::new()).await.unwrap();
        let away = away::Away {
            home: "a".into(),
            to: "b".into(),
            cause: away::Cause::Event,
            since: now(),
            early: 0,
        };
        controller.put_away(&v.name, Some(&away)).await.unwrap();
    }

    /// What is in the history of node a's processors.
    fn cores(&self) -> Vec<(i64, f64)> {
        let kept = &self.controller().planning().unwrap().kept;
        let span = crate::history::Span {
            from: 0,
            to: i64::MAX,
            step: PERIOD as u32,
        };
        let is_it = |key: &Key| key.machine == of_node("a") && key.metric == Metric::Cpu;
        let mut found = kept.walk(span, is_it).unwrap();
        found.next().map_or(Vec::new(), |found| found.unwrap().1)
    }
}

fn sample(machine: String, metric: Metric, value: f64) -> (Key, f64) {
    (Key { machine, metric }, value)
}

fn host(planned: &Planned) -> &Recommendation {
    match &planned.plan.decisions[0].sites["west"] {
        Outlook::Possible {
            host: Some(host), ..
        } => host,
        other => panic!("no host at west: {other:?}"),
    }
}

/// What a plan says, without when.
fn said(planned: &Planned) -> serde_json::Value {
    let mut said = serde_json::to_value(planned).unwrap();
    said["at"] = serde_json::Value::Null;
    said
}

#[tokio::test]
async fn a_controller_that_is_killed_keeps_its_history_and_makes_the_same_plan() {
    // a job of an hour takes nearly all of the processors each day, and now is half an hour before it
    let mut rig = Rig::with(5 * 288 - 18, |i| {
        let cores = if i % 288 >= 276 { 7.9 } else { 1.0 };
        vec![
            sample(of_node("a"), Metric::Cpu, cores),
            sample(of_node("a"), Metric::Memory, f64::from(1 << 30)),
        ]
    })
    .await;
    loop {
        let point = points_to_now();
        let first = said(&rig.controller().cycle(None).await.unwrap());
        let sampled = rig.cores();
        assert!(sampled.len() as i64 >= 5 * 288 - 17, "{}", sampled.len());
        // run again it adds nothing and says the same
        let again = said(&rig.controller().cycle(None).await.unwrap());
        rig.start().await;
        let other = said(&rig.controller().cycle(None).await.unwrap());
        let after = rig.cores();
        if points_to_now() != point {
            continue; // five minutes passed meanwhile
        }
        assert_eq!(again, first);
        assert_eq!(other, first);
        assert_eq!(after, sampled);
        let line = first["decisions"][0]["line"].as_str().unwrap();
        assert!(line.contains("load 0."), "{line}");
        assert_eq!(first["notes"], serde_json::json!([]), "{first}");
        let triggers = first["decisions"][0]["triggers"].to_string();
        assert!(triggers.contains("utilisation"), "{first}");
        return;
    }
}

/// A guest reads four times as much as it did when its node's processors were last measured. What it
/// needs elsewhere is known by regression only: its node's past says one core, and a small host.
#[tokio::test]
async fn the_recommended_shape_is_that_of_the_workload() {
    let (all, unmeasured) = (1200, 300);
    let rig = Rig::with(all, |i| {
        let noise = ((i * 7919) % 1009) as f64 / 1009.0 - 0.5;
        let rise = (i as f64 / 288.0 * std::f64::consts::TAU).sin();
        let is_measured = i < all - unmeasured;
        let reads = match is_measured {
            true => 600.0 + 300.0 * rise,
            false => 4000.0,
        };
        let mut samples = vec![
            sample(of_volume("v"), Metric::Reads, reads),
            sample(of_volume("v"), Metric::Writes, 5.0),
            sample(of_volume("v"), Metric::DiskRead, reads * 4096.0),
            sample(of_volume("v"), Metric::DiskWrite, 20_480.0),
        ];
        if is_measured {
            let cores = 0.05 + reads / 1000.0 + 0.02 * noise;
            samples.push(sample(of_node("a"), Metric::Cpu, cores));
            samples.push(sample(of_node("a"), Metric::Memory, f64::from(1 << 30)));
        }
        samples
    })
    .await;
    let planned = rig.controller().plan_only().await.unwrap();
    let host = host(&planned);
    assert_eq!(host.shape.name, "large", "{host:?}");
    assert!((4.0..5.0).contains(&host.cpus), "{host:?}");
    assert!((host.memory_gib - 1.0).abs() < 0.1, "{host:?}");
    let cpu = planned.needs["a"].iter().find(|n| n.resource == "cpu");
    let cpu = cpu.unwrap();
    assert_eq!((cpu.from, cpu.quantile), ("workload", 0.95));
    assert!((cpu.amount - host.cpus).abs() < 1e-9, "{cpu:?}");
}

#[tokio::test]
async fn what_guests_do_comes_from_heartbeats_into_the_history_once_in_a_period() {
    let rig = Rig::with(0, |_| Vec::new()).await;
    let (controller, planning) = (rig.controller(), rig.controller().planning().unwrap());
    controller.ingest(planning).await.unwrap();
    let cores = rig.cores();
    assert!(
        (cores[0].1 - 0.8).abs() < 1e-3,
        "a tenth of eight: {cores:?}"
    );
    assert_eq!(cores[0].0 % PERIOD, 0);
    controller.ingest(planning).await.unwrap();
    if rig.cores() != cores {
        assert_eq!(rig.cores().len(), 2, "five minutes passed meanwhile");
    }
}

/// Nobody stated how far the site is, and it has no node: what the node measured decides.
#[tokio::test]
async fn a_site_that_its_nodes_find_too_far_away_is_no_choice() {
    let rig = Rig::with(0, |_| Vec::new()).await;
    let west = async || {
        let planned = rig.controller().plan_only().await.unwrap();
        planned.plan.decisions[0].sites["west"].clone()
    };
    rig.hear_distance("west", 20_000);
    assert!(matches!(west().await, Outlook::Possible { .. }));
    rig.hear_distance("west", 80_000);
    let Outlook::Filtered { why } = west().await else {
        panic!("it is possible");
    };
    assert!(why.contains("80.0 ms away"), "{why}");
}

/// After each restart a calm node was calm from the beginning again, and its copy and the node that held it were
/// paid for once more as long as the policy says.
#[tokio::test]
async fn since_when_a_node_is_calm_outlives_the_controller_but_not_a_long_absence() {
    let calm = |_| {
        let memory = f64::from(1 << 30);
        vec![
            sample(of_node("a"), Metric::Cpu, 1.0),
            sample(of_node("a"), Metric::Memory, memory),
        ]
    };
    let mut rig = Rig::with(288, calm).await;
    rig.controller().cycle(None).await.unwrap();
    let idle_since = |rig: &Rig| {
        let planning = rig.controller().planning().unwrap();
        planning.seen().idle_since.get("a").copied().unwrap()
    };
    let first = idle_since(&rig);
    rig.start().await;
    rig.controller().plan_only().await.unwrap();
    assert_eq!(idle_since(&rig), first);

    let long = UnixTime(now().0 - 5000);
    let put = async |rig: &Rig, at: u64| {
        let since = since::Since {
            at: UnixTime(at),
            idle: BTreeMap::from([("a".into(), long)]),
            empty: BTreeMap::new(),
        };
        let mut t = Transaction::default();
        let bytes = book::encode(&since).unwrap();
        t.write.push(("plan/since".into(), Some(bytes)));
        rig.controller().commit(t, Vec::new()).await.unwrap();
    };
    for (at, is_kept) in [
        (now().0 - 100, true),
        (now().0 - 4000, false),
        (now().0 + 500, false),
    ] {
        put(&rig, at).await;
        rig.start().await;
        rig.controller().cycle(None).await.unwrap();
        assert_eq!(idle_since(&rig) == long, is_kept, "{at}");
    }
}
