//! The whole cycle with real processes: forecast and calendar, a plan, a node made by Terraform, its
//! copy seeded, the move before the event, the way home, and the idle node destroyed.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why it is skipped"
)]

#[allow(dead_code, reason = "each file uses its part")]
mod provisioned;

use provisioned::Rig;
use serde_json::Value;

const POLICY: &str = "
value_of_second = 0.1
expected_stay_seconds = 60
expected_hold_seconds = 60
minimum_hold_seconds = 5
idle_seconds = 4
event_margin_seconds = 10
";

/// Seconds from now, as a calendar has them.
fn at(seconds: i64) -> String {
    let out = std::process::Command::new("date")
        .args([
            "-u",
            "-d",
            &format!("{seconds} seconds"),
            "+%Y-%m-%dT%H:%M:%SZ",
        ])
        .output()
        .unwrap();
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

fn owner(rig: &Rig) -> String {
    let v = rig.run(&["volume", "list"]);
    v[0]["owner"].as_str().unwrap().to_owned()
}

fn decision(rig: &Rig) -> Value {
    rig.run(&["plan"])["decisions"][0].clone()
}

#[test]
fn a_volume_is_elsewhere_before_maintenance_and_comes_home_after_it() {
    let Some(mut rig) = Rig::planning("auto", POLICY) else {
        return;
    };
    assert_eq!(decision(&rig)["action"], "nothing");
    let begins = at(60);
    let add = [
        "calendar",
        "add",
        "rack",
        "--kind",
        "maintenance",
        "--node",
        "a",
        "--lasts",
        "20s",
    ];
    rig.run(&[&add[..], &["--at", &begins]].concat());
    assert_eq!(rig.run(&["calendar", "list"])[0]["name"], "rack");

    // a node is made in time, which the score says in a line that adds up
    let plan = rig.until("the plan commits to a site", || {
        let plan = rig.run(&["plan"]);
        plan["commitments"]["a"].is_object().then_some(plan)
    });
    let line = plan["decisions"][0]["line"].as_str().unwrap();
    assert!(line.starts_with("west: P "), "{line}");
    let triggers = plan["decisions"][0]["triggers"].to_string();
    assert!(triggers.contains("event"), "{triggers}");
    assert_eq!(plan["commitments"]["a"]["shape"], "small");
    // a controller that dies now knows what it has begun
    rig.kill_controller();
    rig.restart_controller();
    rig.until("the volume is moved", || (owner(&rig) != "a").then_some(()));
    let west = owner(&rig);
    assert!(west.starts_with("west-"), "{west}");
    assert_eq!(rig.processes().len(), 1);

    rig.until("it comes home", || (owner(&rig) == "a").then_some(()));
    rig.until("the idle node goes", || {
        rig.processes().is_empty().then_some(())
    });
    rig.until("its record goes", || {
        rig.node(&west).is_none().then_some(())
    });
    rig.nothing_is_left_of(&west);
    assert_eq!(rig.run(&["plan"])["commitments"], serde_json::json!({}));

    let kinds: Vec<String> = rig
        .lines(&["events"])
        .iter()
        .map(|e| e["kind"].as_str().unwrap().to_owned())
        .collect();
    for kind in ["plan-decided", "plan-moves", "plan-retires"] {
        assert!(kinds.iter().any(|k| k == kind), "no {kind} in {kinds:?}");
    }
    let review = rig.run(&["plan", "--review"])["review"].clone();
    assert!(review["count"].as_u64().unwrap() > 0, "{review}");
    assert_eq!(review["caught"], 1.0, "{review}");
}

#[test]
fn load_that_nears_capacity_is_foreseen_and_advice_is_not_carried_out() {
    let Some(rig) = Rig::planning("advise", POLICY) else {
        return;
    };
    // a day of 288 samples with an hour of overload, and now is three samples before it
    let day = |i: usize| if i % 288 >= 270 { 1.2 } else { 0.3 };
    rig.load(&(0..288 * 5 - 21).map(day).collect::<Vec<_>>());
    let d = rig.until("load is foreseen", || {
        let d = decision(&rig);
        (d["action"] == "provision").then_some(d)
    });
    let triggers = d["triggers"].to_string();
    assert!(triggers.contains("utilisation"), "{d}");
    std::thread::sleep(std::time::Duration::from_secs(3));
    let plan = rig.run(&["plan"]);
    assert_eq!(
        plan["commitments"],
        serde_json::json!({}),
        "advice binds nobody"
    );
    assert_eq!(rig.processes().len(), 0);
    // it says what should be done when the load is there
    rig.load(&(0..288 * 5 - 10).map(day).collect::<Vec<_>>());
    let notes = rig.until("it is advised", || {
        let notes = rig.run(&["plan"])["notes"].to_string();
        notes.contains("should leave a").then_some(notes)
    });
    assert!(notes.contains("no copies of them are ready"), "{notes}");
    rig.load(&(0..288 * 5 - 21).map(day).collect::<Vec<_>>());
    // until somebody says so
    rig.run(&["plan", "--apply"]);
    let plan = rig.run(&["plan"]);
    assert_eq!(plan["commitments"]["a"]["site"], "west");
    rig.until("the node comes", || {
        (rig.processes().len() == 1).then_some(())
    });
}

/// A copy was ready, the load passed the limit, and the disk stayed where it was until somebody cut it
/// over.
#[test]
fn a_volume_leaves_an_overloaded_node_for_its_copy_and_comes_home_when_it_is_calm() {
    let Some(rig) = Rig::planning("auto", POLICY) else {
        return;
    };
    let day = |i: usize| if i % 288 >= 270 { 1.2 } else { 0.3 };
    let until = |samples: usize| (0..samples).map(day).collect::<Vec<_>>();
    // twelve samples before the overload: it is foreseen, and none too soon
    rig.load(&until(288 * 5 - 30));
    let west = rig.until("its copy is there", || {
        let plan = rig.run(&["plan"]);
        let node = plan["commitments"]["a"]["nodes"][0].as_str()?.to_owned();
        let states = rig.run(&["volume", "list"])[0]["replicas"].to_string();
        states.contains("consistent").then_some(node)
    });
    // the overload is there
    rig.load(&until(288 * 5 - 10));
    rig.until("it leaves", || (owner(&rig) == west).then_some(()));
    // not calm for long enough yet, then it is
    rig.load(&[0.3; 300]);
    rig.until("it comes home", || (owner(&rig) == "a").then_some(()));
    let said = rig.lines(&["events"]);
    let moves: Vec<&str> = said
        .iter()
        .filter(|e| e["kind"] == "plan-moves")
        .filter_map(|e| e["text"].as_str())
        .collect();
    assert_eq!(moves.len(), 2, "{moves:?}");
    let why = moves[0];
    assert!(
        why.contains("it used 1.20 of") || why.contains("runs out"),
        "{why}"
    );
    assert!(moves[1].contains("comes home"), "{moves:?}");
}

#[test]
fn bad_input_has_a_reason_or_a_stated_fallback() {
    let Some(rig) = Rig::planning("auto", POLICY) else {
        return;
    };
    let notes = || rig.run(&["plan"])["notes"].to_string();
    rig.load(&[]);
    assert!(notes().contains("what the node says counts"), "{}", notes());
    rig.load(&[f64::NAN; 50]);
    assert!(notes().contains("no finite value"), "{}", notes());
    rig.load(&[0.5; 100]); // constant
    assert_eq!(decision(&rig)["action"], "nothing");
    let e = rig.refused(&[
        "calendar", "add", "x", "--kind", "spike", "--node", "a", "--at", "soon", "--lasts", "1h",
    ]);
    assert!(e.contains("no time"), "{e}");
    let e = rig.refused(&["calendar", "remove", "x"]);
    assert!(e.contains("none that was added"), "{e}");

    // maintenance of the only node, and nowhere to go: it says so and moves nothing
    rig.spoil_prices("version = \"2\"\ncurrency = \"EUR\"\n[sites]\n");
    let begins = at(5);
    rig.run(&[
        "calendar",
        "add",
        "rack",
        "--kind",
        "maintenance",
        "--node",
        "a",
        "--lasts",
        "20s",
        "--at",
        &begins,
    ]);
    let d = decision(&rig);
    assert_eq!(d["action"], "stuck", "{d}");
    assert!(
        d["line"].as_str().unwrap().contains("no prices for site"),
        "{d}"
    );
    std::thread::sleep(std::time::Duration::from_secs(8));
    assert_eq!(owner(&rig), "a");
    rig.spoil_prices("version = ");
    let e = rig.refused(&["plan"]);
    assert!(e.contains("prices.toml"), "{e}");
}
