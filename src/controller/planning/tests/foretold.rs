//! What the controller foretells of its volumes, VMs and nodes, asked as the command line asks.

use super::*;
use crate::history::Metric::{Cpu, DiskWrite, Memory, Writes};
use crate::planner::Seconds;
use crate::predict::Told;
use proto::v1::{ForecastRequest, ForecastResponse};

const HOURLY: i64 = 12;

/// A volume that is written to for ten minutes of each hour, a VM and a node of the same names that stand still.
async fn rig() -> Rig {
    Rig::with(4 * 288, |i| {
        let job = if (points_to_now() - 4 * 288 + i) % HOURLY < 2 {
            8e6
        } else {
            1e3
        };
        vec![
            sample(of_volume("v"), DiskWrite, job),
            sample(ingest::of_vm("web"), Cpu, 2.0),
            sample(ingest::of_vm("v"), Cpu, 3.0),
            sample(of_node("a"), Cpu, 4.0),
        ]
    })
    .await
}

async fn ask(rig: &Rig, name: &str, metric: &str, steps: u32) -> Result<(Told, ForecastResponse)> {
    let request = ForecastRequest {
        name: name.into(),
        metric: metric.into(),
        steps,
    };
    let answer = rig.controller().answer_forecast(request).await?;
    Ok((serde_json::from_str(&answer.json).unwrap(), answer))
}

#[tokio::test]
async fn a_volumes_hourly_job_is_foretold_from_what_was_measured() {
    let rig = rig().await;
    let (told, answer) = ask(&rig, "v", "", 24).await.unwrap();
    assert_eq!(told.series, "volume/v, disk-write");
    assert_eq!((told.step_seconds, answer.unit.as_str()), (300, "bytes/s"));
    let median = &told.quantiles["0.5"];
    assert_eq!(median.len(), 24);
    let high = median.iter().filter(|v| **v > 4e6).count();
    assert_eq!(high, 4, "two of twelve: {median:?}");
    assert!(
        (told.window_max["0.9"] / 8e6 - 1.0).abs() < 0.05,
        "{told:?}"
    );
    // one that is measured no more is said to be
    assert!(
        answer.notes.iter().all(|n| n.contains("gaps filled")),
        "{:?}",
        answer.notes
    );
}

#[tokio::test]
async fn a_name_means_a_volume_before_a_vm_before_a_node_unless_it_says_which() {
    let rig = rig().await;
    for (name, metric, series, value) in [
        ("web", "", "vm/web, cpu", 2.0),
        ("vm/v", "", "vm/v, cpu", 3.0),
        ("a", "cpu", "node/a, cpu", 4.0),
        ("node/a", "", "node/a, cpu", 4.0),
    ] {
        let (told, _) = ask(&rig, name, metric, 6).await.unwrap();
        assert_eq!(told.series, series);
        let most = told.window_max["0.95"];
        assert!((most / value - 1.0).abs() < 1e-3, "{name}: {most}");
    }
}

#[tokio::test]
async fn what_cannot_be_foretold_is_refused_with_the_remedy() {
    let mut rig = rig().await;
    let refused = async |rig: &Rig, name: &str, metric: &str, steps, says: &str| {
        let e = ask(rig, name, metric, steps).await.unwrap_err();
        assert!(e.to_string().contains(says), "{e}");
    };
    refused(
        &rig,
        "ghost",
        "",
        6,
        "no volume, no node and no measured VM",
    )
    .await;
    refused(
        &rig,
        "vm/ghost",
        "",
        6,
        "no volume, no node and no measured VM",
    )
    .await;
    refused(&rig, "../v", "", 6, "no volume, no node and no measured VM").await;
    refused(
        &rig,
        "v",
        "colour",
        6,
        "no such metric; there is disk-write",
    )
    .await;
    refused(
        &rig,
        "v",
        "reads",
        6,
        "it was not measured yet; there is disk-write",
    )
    .await;
    refused(&rig, "v", "", 0, "ask for 1 to 2016").await;
    refused(&rig, "v", "", 2017, "ask for 1 to 2016").await;
    // nine samples of the writes, which are fewer than any forecast needs
    let kept = &rig.controller().planning().unwrap().kept;
    for i in 1..10 {
        let at = (points_to_now() - i) * PERIOD;
        let samples = vec![sample(of_volume("v"), Writes, 5.0)];
        kept.append(at, at + PERIOD, samples).await.unwrap();
    }
    refused(
        &rig,
        "v",
        "writes",
        6,
        "12 are needed; a sample comes every 300 s",
    )
    .await;
    // and of a controller that keeps no history
    rig.controller = None;
    let store = Embedded::open(&rig.dir.path().join("store.redb")).unwrap();
    let config = Config::default();
    let bare = Controller::start(store, GrpcNodes::default(), &config);
    rig.controller = Some(bare.await.unwrap());
    refused(&rig, "v", "", 6, "keeps no history").await;
}

/// What the command line printed of a node was forecast from nothing, and not what its plan went by.
#[tokio::test]
async fn a_nodes_load_is_foretold_from_what_its_plans_learned() {
    let rig = Rig::with(6 * 288, |i| {
        let noise = ((i * 7919) % 1009) as f64 / 1009.0;
        let job = if i % 29 < 3 { 2.0 } else { 0.0 };
        vec![
            sample(of_node("a"), Cpu, 2.0 + noise + job),
            sample(of_node("a"), Memory, 1e9),
        ]
    })
    .await;
    rig.controller().cycle(None).await.unwrap();
    let planning = rig.controller().planning().unwrap();
    let planned = |steps: u64| {
        let past = outlook::Past {
            kept: &planning.kept,
            learned: &planning.learned,
            period: Seconds(PERIOD as u64),
            day: Seconds(86_400),
            span: planning.kept_seconds(),
            limit: 0.9,
        };
        let home = outlook::Home {
            node: "a".into(),
            capacity: Some([8.0, 8e9]),
            volumes: Vec::new(),
            vms: Vec::new(),
            files: [None, None],
        };
        let threads = std::num::NonZeroUsize::MIN;
        let seen = outlook::look(&past, &[home], now(), threads, false).unwrap();
        let most = seen["a"].windows.over(Seconds(steps * PERIOD as u64));
        8.0 * most.unwrap().quantile(0.9)
    };
    for steps in [6, 48] {
        let (most, told) = loop {
            let point = points_to_now();
            let (told, answer) = ask(&rig, "a", "", steps).await.unwrap();
            let most = planned(steps.into());
            assert!(answer.notes.iter().all(|n| !n.contains("plans")));
            if point == points_to_now() {
                break (most, told.window_max["0.9"]); // both of the same sample
            }
        };
        assert!((most / told - 1.0).abs() < 1e-9, "{most} {told}");
    }
    let (before, _) = ask(&rig, "a", "", 48).await.unwrap();
    planning.learned.write(&[], &Default::default()).unwrap();
    let (after, _) = ask(&rig, "a", "", 48).await.unwrap();
    assert_ne!(before.quantiles, after.quantiles, "it was learned anew");
    let (_, other) = ask(&rig, "a", "", 47).await.unwrap();
    let says = "plans look 6, 12, 48, 96, 192 steps ahead";
    assert!(other.notes[0].starts_with(says), "{:?}", other.notes);
}
