//! Needs that nothing had announced are counted, and the planner knows.

use super::review::Prediction;
use super::*;
use std::time::{Duration, Instant};

/// Node a was calm for a day and ran out of processors three periods ago; before each of the last ten periods
/// it was said with this probability.
async fn rig(said: f64) -> Rig {
    let calm = 285;
    let rig = Rig::with(288, |i| {
        let cores = if i < calm { 1.0 } else { 9.0 };
        vec![
            sample(of_node("a"), Metric::Cpu, cores),
            sample(of_node("a"), Metric::Memory, f64::from(1 << 30)),
        ]
    })
    .await;
    let last = points_to_now() - 1;
    let predictions = (4..14)
        .rev()
        .map(|i| prediction((last - i) * PERIOD + 10, said));
    put(&rig, predictions.collect()).await;
    rig
}

fn prediction(at: i64, p: f64) -> Prediction {
    Prediction {
        at: at as u64,
        until: at as u64 + 2 * PERIOD as u64,
        subject: "a".into(),
        p,
        acted: false,
        happened: None,
    }
}

async fn put(rig: &Rig, predictions: Vec<Prediction>) {
    let mut t = Transaction::default();
    let bytes = book::encode(&predictions).unwrap();
    t.write.push(("plan/predictions".into(), Some(bytes)));
    rig.controller().commit(t, Vec::new()).await.unwrap();
}

async fn counted(rig: &Rig) -> crate::planner::Foresight {
    let all = rig.controller().needs_counted().await.unwrap();
    all.get("a").map(|n| n.counted).unwrap_or_default()
}

async fn line(rig: &Rig) -> String {
    let planned = rig.controller().plan_only().await.unwrap();
    planned.plan.decisions[0].line.clone()
}

#[tokio::test]
async fn an_overload_that_nobody_foresaw_raises_the_rate_that_is_planned_with() {
    let mut rig = rig(0.02).await;
    assert!(!line(&rig).await.contains("unannounced"));
    rig.controller().cycle(None).await.unwrap();
    let before = counted(&rig).await;
    assert_eq!(
        (before.foreseen, before.missed, before.surprises),
        (0, 1, 1)
    );
    assert!(
        line(&rig).await.contains("unannounced 0.0"),
        "{}",
        line(&rig).await
    );
    // another cycle has nothing to add, and another process knows it too
    rig.controller().cycle(None).await.unwrap();
    rig.start().await;
    assert_eq!(counted(&rig).await, before);
    assert!(
        line(&rig).await.contains("unannounced 0.0"),
        "{}",
        line(&rig).await
    );
}

#[tokio::test]
async fn an_overload_that_was_said_in_time_does_not() {
    let rig = rig(0.9).await;
    rig.controller().cycle(None).await.unwrap();
    let counted = counted(&rig).await;
    assert_eq!(
        (counted.foreseen, counted.missed, counted.surprises),
        (1, 0, 0)
    );
    assert!(!line(&rig).await.contains("unannounced"));
}

/// A person, or a failover, takes a volume elsewhere.
#[tokio::test]
async fn a_volume_that_leaves_without_a_plan_is_a_need_that_nothing_announced() {
    let rig = Rig::with(0, |_| Vec::new()).await;
    let controller = rig.controller();
    controller.cycle(None).await.unwrap();
    let mut v = controller.volume_named("v").await.unwrap().unwrap();
    v.owner = "b".parse().unwrap();
    let mut t = Transaction::default();
    put_node(&mut t, &a_node("b", "west")).unwrap();
    put_volume(&mut t, &v.name, Some(&v)).unwrap();
    controller.commit(t, Vec::new()).await.unwrap();
    let now = now().0 as i64;
    put(&rig, vec![prediction(now - 2 * PERIOD + 3, 0.01)]).await;
    let began = Instant::now();
    while counted(&rig).await.surprises == 0 {
        controller.cycle(None).await.unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "it is not counted"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let counted = counted(&rig).await;
    assert_eq!((counted.missed, counted.surprises), (0, 1));
}
