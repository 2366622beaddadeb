//! Whole cycles: triggers, quota, hysteresis.

use super::*;
use crate::planner::Distribution;
use proptest::prelude::*;

fn prices() -> Prices {
    Prices::parse(
        r#"
        version = "7"
        currency = "USD"
        [sites.east]
        storage_gib_month = 0.1
        egress_gib = 0.01
        shapes = [
          { name = "m", cpus = 4, memory_gib = 16, storage_gib = 500, hour = 0.2 },
          { name = "s", cpus = 2, memory_gib = 8, storage_gib = 500, hour = 0.15 },
        ]
        [sites.west]
        storage_gib_month = 0.1
        egress_gib = 0.01
        shapes = [{ name = "m", cpus = 4, memory_gib = 16, storage_gib = 500, hour = 0.1 }]
        "#,
    )
    .unwrap()
}

fn site(name: &str) -> SiteView {
    SiteView {
        name: name.into(),
        latency_ms: 5.0,
        bandwidth: Bandwidth(100 << 20),
        provision: Seconds(60),
        quota: 1,
        shut: None,
    }
}

/// A subject whose demand passes its capacity of 100 with probability `p` in any window.
fn subject(name: &str, p: f64) -> Subject {
    let max = Distribution::new([(0.0, 0.0), (1.0 - p, 100.0), (1.0, 200.0)]).unwrap();
    Subject {
        name: name.into(),
        site: "home".into(),
        windows: Windows::new(vec![(Seconds(3600), max)]),
        capacity: 100.0,
        leaves: 1.0,
        unannounced: 0.0,
        overloads: 0.0,
        missed_share: None,
        moving: vec![Ask {
            volume: format!("{name}-disk"),
            bytes: Bytes::from_gib(10.0),
            ..Ask::default()
        }],
        need: Need {
            cpus: Distribution::certain(2.0),
            memory_gib: Distribution::certain(8.0),
            storage: Bytes::from_gib(10.0),
        },
        dirty_rate: Bandwidth(0),
        copies: BTreeMap::new(),
        idle_since: None,
        site_latency_ms: BTreeMap::new(),
        node_latency_ms: BTreeMap::new(),
    }
}

struct World {
    now: u64,
    subjects: Vec<Subject>,
    sites: Vec<SiteView>,
    nodes: Vec<NodeView>,
    calendar: Calendar,
    policy: Policy,
    kept: Commitments,
}

impl World {
    fn new(subjects: Vec<Subject>) -> World {
        World {
            now: 1_000_000,
            subjects,
            sites: vec![site("east"), site("west")],
            nodes: vec![],
            calendar: Calendar::default(),
            policy: Policy {
                mode: Mode::Auto,
                value_of_second: 0.1,
                ..Policy::default()
            },
            kept: Commitments::default(),
        }
    }

    fn plan(&mut self) -> Plan {
        let input = Input {
            now: UnixTime(self.now),
            subjects: &self.subjects,
            sites: &self.sites,
            nodes: &self.nodes,
            calendar: &self.calendar,
            prices: &prices(),
            policy: &self.policy,
        };
        plan(&input, &mut self.kept)
    }
}

/// East is cheap to send to and dear to keep copies at. A score looks a few hours ahead, so the first node was
/// made there, and each later copy went wherever it scored best, to a node of its own.
#[test]
fn the_first_node_is_made_where_a_month_is_cheapest_and_others_follow() {
    let table = |storage: f64, egress: f64| {
        format!(
            "storage_gib_month = {storage}\negress_gib = {egress}\n\
             shapes = [{{ name = \"m\", cpus = 4, memory_gib = 16, storage_gib = 500, hour = 0.1 }}]\n"
        )
    };
    let (east, west) = (table(1.0, 0.01), table(0.01, 0.09));
    let prices =
        format!("version = \"1\"\ncurrency = \"USD\"\n[sites.east]\n{east}[sites.west]\n{west}");
    let prices = Prices::parse(&prices).unwrap();
    let often = |name: &str| Subject {
        unannounced: 1e-5,
        ..subject(name, 0.5)
    };
    let mut w = World::new(vec![often("a")]);
    let decided = |w: &mut World| {
        let input = Input {
            now: UnixTime(w.now),
            subjects: &w.subjects,
            sites: &w.sites,
            nodes: &w.nodes,
            calendar: &w.calendar,
            prices: &prices,
            policy: &w.policy,
        };
        let plan = plan(&input, &mut Commitments::default());
        let d = plan.decisions.last().unwrap().clone();
        let total = |site: &str| match &d.sites[site] {
            Outlook::Possible { score, .. } => score.total,
            Outlook::Filtered { .. } => Money(f64::MIN),
        };
        let scores_best = match total("east") > total("west") {
            true => "east",
            false => "west",
        };
        (d.site.unwrap(), scores_best)
    };
    assert_eq!(decided(&mut w), ("west".into(), "east"));
    // a node at home is no place for it
    w.nodes.push(NodeView {
        name: "a".into(),
        site: "home".into(),
        available: true,
        ..NodeView::default()
    });
    assert_eq!(decided(&mut w), ("west".into(), "east"));
    // the next one follows to where a node is, even one without room
    let node = |site: &str| NodeView {
        name: format!("{site}-1"),
        site: site.into(),
        available: true,
        hour: Money(0.1),
        ..NodeView::default()
    };
    w.nodes.push(node("west"));
    assert_eq!(decided(&mut w), ("west".into(), "east"));
    w.nodes[1] = node("east");
    assert_eq!(decided(&mut w).0, "east");
    // where none can be made another site is better than none
    w.nodes.pop();
    w.sites[1].quota = 0;
    assert_eq!(decided(&mut w).0, "east");
}

#[test]
fn a_likely_overload_gets_a_node_at_the_cheaper_site() {
    let mut w = World::new(vec![subject("a", 0.9), subject("calm", 0.001)]);
    let plan = w.plan();
    let d = &plan.decisions[0];
    assert_eq!(
        (d.action, d.site.as_deref()),
        (Action::Provision, Some("west"))
    );
    assert!(
        d.triggers.contains(&Trigger::Score) && d.line.starts_with("west: P 0.9"),
        "{}",
        d.line
    );
    assert_eq!(plan.decisions[1].action, Action::Nothing);
    assert_eq!(plan.to_carry_out().count(), 1);
}

#[test]
fn modes_go_no_further_than_they_say() {
    let mut w = World::new(vec![subject("a", 0.9)]);
    w.policy.mode = Mode::Advise;
    assert_eq!(w.plan().to_carry_out().count(), 0);
    let mut w = World::new(vec![subject("a", 0.9)]);
    w.policy.mode = Mode::ForecastOnly;
    assert_eq!(w.plan().decisions[0].action, Action::Provision);
    assert_eq!(w.kept, Commitments::default());
}

#[test]
fn a_site_about_to_be_closed_is_no_refuge() {
    let mut w = World::new(vec![subject("a", 0.9)]);
    w.calendar = Calendar::parse(
        "[[event]]\nname = \"closing\"\nkind = \"maintenance\"\nsite = \"west\"\n\
         at = 1970-01-12T15:00:00Z\nlasts = \"2h\"",
    )
    .unwrap();
    assert_eq!(w.plan().decisions[0].site.as_deref(), Some("east"));
}

#[test]
fn an_announced_event_is_met_in_time_even_if_it_does_not_pay() {
    let mut w = World::new(vec![subject("a", 0.001)]);
    w.policy.value_of_second = 0.0001;
    w.calendar = Calendar::parse(
        "[[event]]\nname = \"power\"\nkind = \"maintenance\"\nnodes = [\"a\"]\n\
         at = 1970-01-12T15:00:00Z\nlasts = \"2h\"", // 1,004,400
    )
    .unwrap();
    // lead: 60 s and 10 GiB at 100 MiB/s; then the cycle and the margin
    let latest = 1_004_400 - (60 + 103) - 300 - 900;
    w.now = latest - 10;
    assert_eq!(w.plan().decisions[0].action, Action::Nothing);
    w.now = latest + 10;
    let d = &w.plan().decisions[0];
    assert_eq!(
        (d.action, d.triggers.as_slice()),
        (Action::Provision, &[Trigger::Event][..])
    );
}

#[test]
fn quota_is_taken_at_decision_time() {
    let mut w = World::new((0..4).map(|i| subject(&format!("s{i}"), 0.9)).collect());
    let actions: Vec<Action> = w.plan().decisions.iter().map(|d| d.action).collect();
    use Action::{Provision, Stuck};
    assert_eq!(actions, [Provision, Provision, Stuck, Stuck]);
    // nothing has come up yet: the promises still hold in the next cycle
    let again: Vec<Action> = w.plan().decisions.iter().map(|d| d.action).collect();
    assert!(!again.contains(&Provision), "{again:?}");
}

#[test]
fn a_missing_price_closes_the_site_with_the_remedy() {
    let mut w = World::new(vec![subject("a", 0.9)]);
    w.sites = vec![site("north")];
    let d = &w.plan().decisions[0];
    assert_eq!(d.action, Action::Stuck);
    assert!(d.line.contains("add [sites.north]"), "{}", d.line);
}

/// A consolidation that followed its forecast once evicted thousands of times a day. A forecast
/// that trembles around the threshold must lead to one opening, and to a release only after the
/// hold and after idleness was seen.
#[test]
fn a_trembling_forecast_does_not_churn() {
    let mut w = World::new(vec![subject("a", 0.0)]);
    let mut actions = Vec::new();
    for cycle in 0..200u64 {
        w.now += 300;
        let copies = std::mem::take(&mut w.subjects[0].copies);
        let p = if cycle % 2 == 0 { 0.5 } else { 0.001 };
        w.subjects[0] = subject("a", p);
        w.subjects[0].copies = copies;
        w.subjects[0].idle_since = Some(UnixTime(0));
        let d = w.plan().decisions.remove(0);
        match d.action {
            Action::Provision => {
                let held = Held {
                    behind: Bytes(0),
                    nodes: vec![],
                };
                w.subjects[0].copies.insert(d.site.unwrap(), held);
            }
            Action::Release => {
                w.subjects[0].copies.clear();
            }
            _ => {}
        }
        actions.push(d.action);
    }
    let count = |a| actions.iter().filter(|x| **x == a).count();
    // 200 cycles are 60,000 s: at most one change an hour of minimum hold each way
    assert!(
        count(Action::Provision) <= 17,
        "{}",
        count(Action::Provision)
    );
    assert!(count(Action::Release) <= count(Action::Provision));
}

proptest! {
    #[test]
    fn promises_never_exceed_room_or_quota(
        ps in prop::collection::vec(0.0f64..0.95, 1..8),
        quota in 0u32..3, free_gib in prop::collection::vec(0.0f64..60.0, 0..4),
    ) {
        let mut w = World::new(ps.iter().enumerate().map(|(i, p)| subject(&format!("s{i}"), *p)).collect());
        w.sites.iter_mut().for_each(|s| s.quota = quota);
        w.nodes = free_gib.iter().enumerate().map(|(i, gib)| NodeView {
            name: format!("n{i}"), site: if i % 2 == 0 { "east" } else { "west" }.into(),
            available: true, total: Bytes::from_gib(60.0), free: Bytes::from_gib(*gib),
            ..NodeView::default()
        }).collect();
        for _ in 0..3 {
            w.plan();
            w.now += 300;
        }
        for n in &w.nodes {
            let copies = w.kept.iter().filter(|(_, c)| c.nodes.contains(&n.name)).count();
            prop_assert!(copies as f64 * 10.0 <= (n.free.gib() - 6.0).max(0.0) + 1e-6);
        }
        for s in &w.sites {
            let new = w.kept.iter().filter(|(_, c)| c.site == s.name && c.nodes.is_empty()).count();
            prop_assert!(new <= quota as usize);
        }
    }
}

/// A copy at rest used to be priced as a host for everything that it may ever receive: keeping copies
/// cost four times what it needed to, and all were given up between two events.
#[test]
fn a_node_for_copies_is_as_small_as_their_room_allows_and_the_host_is_shown_beside_it() {
    let mut w = World::new(vec![subject("a", 0.9)]);
    w.subjects[0].need.cpus = Distribution::certain(4.0);
    let plan = w.plan();
    let Some(Outlook::Possible {
        way: Way::New(node),
        host: Some(host),
        ..
    }) = plan.decisions[0].sites.get("east")
    else {
        panic!("{plan:?}");
    };
    assert_eq!((node.cpus, node.storage_gib), (1.0, 10.0));
    assert_eq!((host.cpus, host.storage_gib), (4.0, 10.0));
    assert!(node.shape.hour < host.shape.hour, "{node:?} {host:?}");
}

#[test]
fn increments_count_where_sending_is_dear() {
    let line = |rate| {
        let mut w = World::new(vec![subject("a", 0.9)]);
        w.subjects[0].dirty_rate = Bandwidth(rate);
        match &w.plan().decisions[0].sites["east"] {
            Outlook::Possible { score, .. } => score.egress.0,
            Outlook::Filtered { why } => panic!("{why}"),
        }
    };
    assert!(line(1 << 20) > line(0));
}

/// A node on its way once took the last of its site's quota away from the subject that it was for,
/// which then opened a second site.
#[test]
fn what_is_on_its_way_is_waited_for_even_if_it_was_the_last_that_could_be_had() {
    let mut w = World::new(vec![subject("a", 0.9)]);
    w.nodes.clear();
    let first = w.plan().decisions.remove(0);
    assert_eq!(first.action, Action::Provision);
    let second = w.plan().decisions.remove(0);
    assert_eq!((second.action, second.site), (Action::Keep, first.site));
}

/// Copies that each pay nothing for their node, because the others keep it open, once kept a node for
/// each other that all of them together were not worth.
#[test]
fn a_bought_node_goes_when_all_copies_on_it_are_not_worth_it_and_stays_when_they_are() {
    let actions = |copies: usize| -> Vec<Action> {
        let mut w = World::new(vec![]);
        w.policy.value_of_second = 0.0;
        w.policy.value_of_move = 3.0;
        w.nodes = vec![NodeView {
            name: "n".into(),
            site: "west".into(),
            available: true,
            total: Bytes::from_gib(500.0),
            free: Bytes::from_gib(400.0),
            hour: Money(0.2),
            ..NodeView::default()
        }];
        for i in 0..copies {
            let mut s = subject(&format!("s{i}"), 0.0);
            // worth some 0.1 an hour
            s.unannounced = 1e-5;
            s.idle_since = Some(UnixTime(0));
            let held = Held {
                behind: Bytes(0),
                nodes: vec!["n".into()],
            };
            s.copies.insert("west".into(), held);
            let since = Commitment {
                site: "west".into(),
                nodes: vec!["n".into()],
                since: UnixTime(0),
            };
            w.kept.open(&s.name, since);
            w.subjects.push(s);
        }
        w.plan().decisions.iter().map(|d| d.action).collect()
    };
    assert_eq!(actions(1), [Action::Release]);
    assert_eq!(actions(4), [Action::Keep; 4]);
}

/// Each disk of a node took a few minutes, and was begun a few minutes before the node's maintenance:
/// all of them together took an hour.
#[test]
fn what_one_event_drives_out_together_begins_early_enough_for_all() {
    let mut w = World::new((0..3).map(|i| subject(&format!("s{i}"), 0.001)).collect());
    w.sites = vec![site("west")];
    w.sites[0].quota = 3;
    w.policy.value_of_second = 0.0001;
    w.calendar = Calendar::parse(
        "[[event]]\nname = \"power\"\nkind = \"maintenance\"\nnodes = [\"s0\", \"s1\"]\n\
         at = 1970-01-12T15:00:00Z\nlasts = \"2h\"", // 1,004,400
    )
    .unwrap();
    // 60 s, twice 10 GiB at 100 MiB/s; then the cycle and the margin
    let latest = 1_004_400 - (60 + 2 * 103) - 300 - 900;
    w.now = latest - 10;
    assert_eq!(w.plan().decisions[0].action, Action::Nothing);
    w.now = latest + 10;
    let actions: Vec<Action> = w.plan().decisions.iter().map(|d| d.action).collect();
    use Action::{Nothing, Provision};
    assert_eq!(actions, [Provision, Provision, Nothing]);
}
