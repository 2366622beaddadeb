//! Small worlds whose right answer is known.

use super::super::{
    Bandwidth, Bytes, Calendar, Money, Policy, Prices, Seconds, SiteView, UnixTime,
};
use super::*;

const DAY: usize = 288;

/// Two VMs on one node; one works from 10 to 12 every day and is then too much for the node.
fn world(days: usize) -> World {
    let steps = days * DAY;
    let vm = |name: &str, cpu: Vec<f64>, gib: f64| Vm {
        name: name.into(),
        home: 0,
        cpu,
        writes: vec![1000.0; steps],
        cpus: 1.0,
        memory_gib: 2.0,
        disk: Bytes::from_gib(gib),
    };
    let busy = (0..steps).map(|t| {
        if (120..144).contains(&(t % DAY)) {
            60.0
        } else {
            5.0
        }
    });
    World {
        start: UnixTime(0),
        step: Seconds(300),
        warm_up: 3 * DAY,
        steps,
        vms: vec![
            vm("busy", busy.collect(), 20.0),
            vm("calm", vec![50.0; steps], 40.0),
        ],
        nodes: vec![HomeNode {
            name: "h".into(),
            capacity: 100.0,
        }],
        sites: vec![SiteView {
            name: "east".into(),
            latency_ms: 1.0,
            bandwidth: Bandwidth(100 << 20),
            provision: Seconds(120),
            quota: 10,
            shut: None,
        }],
        prices: Prices::parse(
            r#"
            version = "1"
            currency = "USD"
            [sites.east]
            storage_gib_month = 0.1
            egress_gib = 0.01
            shapes = [{ name = "m", cpus = 8, memory_gib = 64, storage_gib = 500, hour = 0.1 }]"#,
        )
        .unwrap(),
        calendar: Calendar::parse(
            "[[event]]\nname = \"patch\"\nkind = \"maintenance\"\nnodes = [\"h\", \"busy\", \"calm\"]\n\
             at = 1970-01-05T02:00:00Z\nlasts = \"1h\"\nevery = \"3d\"",
        )
        .unwrap(),
        surprises: Calendar::default(),
    }
}

fn forerun(w: &World) -> Tally {
    let policy = Policy {
        minimum_hold_seconds: 1800,
        ..Policy::default()
    };
    run(w, &mut Forerun::new(w, Recent { day: DAY }, policy), 0.01)
}

#[test]
fn a_daily_overload_and_a_calendar_are_met_with_warm_copies() {
    let w = world(10);
    let nothing = run(&w, &mut Nothing, 0.01);
    // seven days of one VM, and both VMs on days 4 and 7
    assert_eq!((nothing.migrations, nothing.warm), (7 + 4, 0));
    let oracle = run(&w, &mut Oracle::new(&w, &nothing.departures, 1.0), 0.01);
    assert_eq!((oracle.migrations, oracle.warm), (11, 11));
    assert_eq!(oracle.delay_cost, 0.0);
    let ours = forerun(&w);
    assert_eq!(ours.migrations, 11);
    assert!(ours.warm_share >= 0.8, "{ours:?}");
    assert!(
        ours.seeded_bytes as f64 <= 1.5 * oracle.seeded_bytes as f64,
        "{ours:?} {oracle:?}"
    );
    let recent = run(&w, &mut MostRecent::default(), 0.01);
    assert!(
        recent.warm < ours.warm || recent.cost > ours.cost,
        "{recent:?} {ours:?}"
    );
}

#[test]
fn the_same_weeks_give_the_same_accounts() {
    let w = world(6);
    let accounts = |t: Tally| {
        (
            t.migrations,
            t.warm,
            t.seeded_bytes,
            t.cost.to_bits(),
            t.churn,
        )
    };
    assert_eq!(accounts(forerun(&w)), accounts(forerun(&w)));
}

#[test]
fn nobody_leaves_a_quiet_node_and_nothing_is_paid() {
    let mut w = world(5);
    w.vms[0].cpu.fill(5.0);
    w.calendar = Calendar::default();
    let t = forerun(&w);
    assert_eq!((t.migrations, t.seeded_bytes, t.churn), (0, 0, 0));
    assert!(t.cost == 0.0 && t.node_hours == 0.0);
}

/// Copies that filled one node were charged as the largest host that is sold, with all its processors.
#[test]
fn copies_beyond_one_node_take_another_of_the_same() {
    let mut w = world(4);
    let hour = |w: &World, vms: &[usize]| w.standby_hour(0, &vms.iter().copied().collect()).0;
    assert!((hour(&w, &[0, 1]) - 0.1).abs() < 1e-9, "500 GiB are sold");
    w.vms[0].disk = Bytes::from_gib(300.0);
    w.vms[1].disk = Bytes::from_gib(300.0);
    assert!((hour(&w, &[0, 1]) - 0.2).abs() < 1e-9);
    assert_eq!(hour(&w, &[]), 0.0);
    let view = w.standby(0, &[0, 1].into()).unwrap();
    assert!(
        view.free >= Bytes::from_gib(300.0),
        "room for one more: {view:?}"
    );
    assert_eq!(view.hour, Money(0.2));
}

#[test]
fn where_waiting_costs_nothing_and_nothing_is_sent_nothing_is_kept() {
    let mut w = world(10);
    w.calendar = Calendar::default();
    let policy = Policy {
        value_of_second: 0.0,
        value_of_move: 0.0,
        utilisation_probability: 1.0,
        open_score: 0.0,
        minimum_hold_seconds: 1800,
        ..Policy::default()
    };
    let nothing = run(&w, &mut Nothing, 0.0);
    let ours = run(&w, &mut Forerun::new(&w, Recent { day: DAY }, policy), 0.0);
    assert_eq!(ours.migrations, nothing.migrations);
    assert!(ours.cost <= nothing.cost + 1e-9, "{ours:?} {nothing:?}");
}
