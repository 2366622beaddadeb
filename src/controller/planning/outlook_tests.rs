//! What an outlook says, over histories made for it.

use super::*;
use crate::history::Kept;

const STEP: i64 = 300;

struct Rig {
    _dir: tempfile::TempDir,
    kept: Kept,
    learned: Learned,
}

impl Rig {
    fn new() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        Rig {
            kept: Kept::open(&dir.path().join("history"), STEP as u32, 30).unwrap(),
            learned: Learned::open(&dir.path().join("learned")).unwrap(),
            _dir: dir,
        }
    }

    fn past(&self) -> Past<'_> {
        Past {
            kept: &self.kept,
            learned: &self.learned,
            period: Seconds(STEP as u64),
            day: Seconds(86_400),
            span: 30 * 86_400,
            limit: 0.9,
        }
    }

    async fn write(&self, point: usize, samples: Vec<(String, Metric, f64)>) {
        let at = point as i64 * STEP;
        let samples = samples.into_iter().map(|(machine, metric, value)| {
            let key = Key { machine, metric };
            (key, value)
        });
        self.kept.append(at, at, samples.collect()).await.unwrap();
    }

    fn look(&self, homes: &[Home], point: usize, learn: bool) -> BTreeMap<String, Demand> {
        let now = UnixTime(point as u64 * STEP as u64);
        let threads = NonZeroUsize::new(2).unwrap();
        look(&self.past(), homes, now, threads, learn).unwrap()
    }
}

fn home(volumes: &[&str], vms: &[&str]) -> Home {
    Home {
        node: "a".into(),
        capacity: Some([8.0, 16e9]),
        volumes: volumes.iter().map(|v| (*v).to_owned()).collect(),
        vms: vms.iter().map(|v| (*v).to_owned()).collect(),
        files: [None, None],
    }
}

fn noise(i: usize) -> f64 {
    ((i * 7919) % 1009) as f64 / 1009.0 - 0.5
}

/// A node whose processors do a millicore's work for each read of its guests, and half a core besides.
async fn serve(rig: &Rig, points: std::ops::Range<usize>, reads: impl Fn(usize) -> f64) {
    for i in points {
        let each = reads(i) / 2.0;
        let mut samples = Vec::new();
        for v in ["v", "w"] {
            let of = |metric, value| (of_volume(v), metric, value);
            samples.push(of(Metric::Reads, each));
            samples.push(of(Metric::Writes, 10.0));
            samples.push(of(Metric::DiskRead, 4096.0 * each));
            samples.push(of(Metric::DiskWrite, 40_960.0));
            samples.push(of(Metric::Dirtied, 30_000.0));
        }
        let cpu = 0.5 + reads(i) / 1000.0 + 0.1 * noise(i);
        samples.push((of_node("a"), Metric::Cpu, cpu));
        samples.push((of_node("a"), Metric::Memory, 4e9));
        rig.write(i, samples).await;
    }
}

/// Guests that read three times as much as before: since then nobody has measured the processors of
/// their node, but the regression knows what such reading took.
#[tokio::test]
async fn what_is_needed_follows_the_workload_and_carries_the_residual_spread() {
    let rig = Rig::new();
    let day = |i: usize| 600.0 + 400.0 * (i as f64 / 288.0 * std::f64::consts::TAU).sin();
    serve(&rig, 0..900, day).await;
    for i in 900..1200 {
        let each = 1500.0 + 10.0 * noise(i);
        let of = |v: &str, metric, value| (of_volume(v), metric, value);
        let samples = ["v", "w"].into_iter().flat_map(|v| {
            [
                of(v, Metric::Reads, each),
                of(v, Metric::Writes, 10.0),
                of(v, Metric::DiskRead, 4096.0 * each),
                of(v, Metric::DiskWrite, 40_960.0),
            ]
        });
        rig.write(i, samples.collect()).await;
    }
    let demand = &rig.look(&[home(&["v", "w"], &[])], 1199, false)["a"];
    let cpu = &demand.needs[&Resource::Cpu];
    assert!(cpu.explained.unwrap() > 0.9, "{cpu:?}");
    let at = |q| cpu.most.quantile(q);
    assert!((3.3..3.8).contains(&at(0.5)), "3000 reads: {}", at(0.5));
    assert!(at(0.95) - at(0.05) > 0.05, "the residual spread is in it");
    let shares = demand.windows.over(Seconds(14_400)).unwrap();
    assert!(
        shares.quantile(0.5) * 8.0 < 2.0,
        "the node's own past knows nothing of it: {shares:?}"
    );
    let memory = &demand.needs[&Resource::Memory];
    assert_eq!(memory.explained, None, "it stands still");
    assert!((memory.most.quantile(0.95) / 4e9 - 1.0).abs() < 0.05);
    let dirty = &demand.needs[&Resource::DirtyRate];
    assert!((dirty.lately / 60_000.0 - 1.0).abs() < 0.01);
    assert!(!demand.needs.contains_key(&Resource::ReplicationBandwidth));
}

#[tokio::test]
async fn the_processors_of_measured_vms_count_before_those_of_their_host() {
    let rig = Rig::new();
    for i in 0..200 {
        let vm = |vm: &str, metric, value| (of_vm(vm), metric, value);
        let samples = vec![
            (of_node("a"), Metric::Cpu, 7.0),
            (of_node("a"), Metric::Memory, 12e9),
            vm("web", Metric::Cpu, 1.0),
            vm("db", Metric::Cpu, 2.0),
            vm("web", Metric::Memory, 1e9),
            vm("db", Metric::Memory, 3e9),
        ];
        rig.write(i, samples).await;
    }
    let cores = |home: Home| {
        let demand = &rig.look(&[home], 199, false)["a"];
        demand.needs[&Resource::Cpu].most.quantile(0.95)
    };
    let near = |found: f64, wanted: f64| (found / wanted - 1.0).abs() < 0.05;
    let both = cores(home(&["v", "w"], &["web", "db"]));
    assert!(near(both, 3.0), "{both}");
    let twice = cores(home(&["v", "w"], &["web", "web"]));
    assert!(near(twice, 1.0), "two disks of one VM: {twice}");
    let unknown = cores(home(&["v", "w"], &["web", "ghost"]));
    assert!(near(unknown, 7.0), "{unknown}");
}

#[tokio::test]
async fn a_daily_peak_is_foreseen_by_windows_that_reach_it() {
    let rig = Rig::new();
    let peak = |i: usize| if i % 288 >= 270 { 7.6 } else { 1.6 };
    let now = 288 * 6 + 262;
    for i in 0..=now {
        let samples = vec![
            (of_node("a"), Metric::Cpu, peak(i)),
            (of_node("a"), Metric::Memory, 1e9),
        ];
        rig.write(i, samples).await;
    }
    let demand = &rig.look(&[home(&[], &[])], now, false)["a"];
    let exceed = |steps: u64| {
        let most = demand.windows.over(Seconds(steps * STEP as u64)).unwrap();
        most.exceed(0.8)
    };
    assert!(exceed(36) > 0.8, "{}", exceed(36));
    assert!(exceed(6) < 0.3, "{}", exceed(6));
    assert_eq!(demand.newest.map(|n| n.map(|n| n < 0.25)), [Some(true); 2]);
}

/// Gaps, a time sampled twice, counters that began anew (no sample then), a level that shifts: and a
/// process that ends after any cycle. Another process finds the same files and foresees the same.
#[tokio::test]
async fn a_cycle_that_is_run_again_or_elsewhere_foresees_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let kept = Kept::open(&dir.path().join("history"), STEP as u32, 30).unwrap();
        let learned = Learned::open(&dir.path().join("learned")).unwrap();
        (kept, learned)
    };
    let value = |i: usize| {
        let level = if i > 500 { 4.0 } else { 1.0 };
        level + (i % 48) as f64 / 48.0
    };
    let homes = [home(&[], &[])];
    let told = |rig: &Rig, point| {
        let first = rig.look(&homes, point, true);
        let again = rig.look(&homes, point, true);
        let say = |d: &BTreeMap<String, Demand>| {
            let d = &d["a"];
            format!("{:?} {:?} {:?}", d.windows, d.needs, d.notes)
        };
        assert_eq!(say(&first), say(&again), "at {point}");
        say(&first)
    };
    let (kept, learned) = open();
    let mut rig = Rig {
        _dir: tempfile::tempdir().unwrap(),
        kept,
        learned,
    };
    for i in 0..600 {
        if i % 17 == 3 || (300..330).contains(&i) {
            continue; // not measured
        }
        let samples = vec![
            (of_node("a"), Metric::Cpu, value(i)),
            (of_node("a"), Metric::Memory, 1e9 * value(i)),
        ];
        rig.write(i, samples.clone()).await;
        if i % 50 == 0 {
            rig.write(i, samples).await;
        }
        if i >= 560 {
            let before = told(&rig, i);
            if i % 10 == 0 {
                drop(rig);
                let (kept, learned) = open();
                rig = Rig {
                    _dir: tempfile::tempdir().unwrap(),
                    kept,
                    learned,
                };
                assert_eq!(told(&rig, i), before, "another process at {i}");
            }
        }
    }
}

#[tokio::test]
async fn too_little_and_too_old_a_history_is_named() {
    let rig = Rig::new();
    let notes = |point| {
        rig.look(&[home(&[], &[])], point, false)["a"]
            .notes
            .join("\n")
    };
    assert!(notes(100).contains("no samples"), "{}", notes(100));
    for i in 0..5 {
        rig.write(i, vec![(of_node("a"), Metric::Cpu, 1.0)]).await;
    }
    assert!(
        notes(4).contains("5 points and 12 are needed"),
        "{}",
        notes(4)
    );
    for i in 5..20 {
        rig.write(i, vec![(of_node("a"), Metric::Cpu, 1.0)]).await;
    }
    let week = 8 * 288;
    assert!(notes(week).contains("are needed"), "{}", notes(week));
}
