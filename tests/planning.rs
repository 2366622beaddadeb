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
    assert!(
        notes.contains("no copies of them are being made"),
        "{notes}"
    );
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
    // the other node's load is that of this machine, which may be as busy as it can be
    let policy = format!("{POLICY}utilisation_limit = 1.0\n");
    let Some(rig) = Rig::planning("auto", &policy) else {
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

/// The history of every volume and node was there, and only the plan could look at it.
#[test]
fn what_the_controller_measures_is_foretold_on_request() {
    let Some(rig) = Rig::planning("advise", POLICY) else {
        return;
    };
    let e = rig.refused(&["forecast", "ghost"]);
    assert!(e.contains("there is no volume, no node"), "{e}");
    let e = rig.refused(&["forecast", "v", "--metric", "colour"]);
    assert!(e.contains("no such metric"), "{e}");
    let told = rig.until("enough is measured of the volume", || {
        let asked = ["forecast", "v", "--metric", "writes", "--horizon", "6"];
        let e = match rig.tried(&asked) {
            Ok(told) => return Some(told),
            Err(e) => e,
        };
        let early = ["are needed", "not measured yet", "no samples"];
        assert!(early.iter().any(|word| e.contains(word)), "{e}");
        None
    });
    assert_eq!(told["series"], "volume/v, writes");
    assert_eq!(told["step_seconds"], 1);
    assert_eq!(told["quantiles"]["0.9"].as_array().unwrap().len(), 6);
    assert!(told["window_max"]["0.95"].is_number() && told["chosen"].is_string());
    let node = rig.run(&["forecast", "a", "--horizon", "3"]);
    assert_eq!(node["series"], "node/a, cpu");
    let busy = node["quantiles"]["0.5"][2].as_f64().unwrap();
    assert!(busy > 0.0, "{node}");
}

/// Maintenance of node a, in so many seconds.
fn announce(rig: &Rig, seconds: i64) {
    let begins = at(seconds);
    let words = "calendar add rack --kind maintenance --node a --lasts 30s --at";
    let words: Vec<&str> = words.split(' ').chain([begins.as_str()]).collect();
    rig.run(&words);
}

/// No cutover was ever begun, and the volume is where it was.
fn nothing_moved(rig: &Rig) {
    let all = rig.run(&["operation", "list"]);
    let mut all = all.as_array().unwrap().iter();
    assert!(all.all(|o| o["command"] != "cutover"));
    assert_eq!(owner(rig), "a");
}

/// A program in place of Terraform that does this first.
fn terraform_that(dir: &std::path::Path, first: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let program = dir.join("terraform");
    let script = format!("#!/bin/sh\n{first}\nexec terraform \"$@\"\n");
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("terraform = {program:?}")
}

/// The plan spoke of a quota that was used up, whatever the reason.
#[test]
fn a_plan_for_which_terraform_is_absent_or_refused_says_so_and_moves_nothing() {
    let absent = ["terraform = \"/no/such/terraform\""];
    let Some(rig) = Rig::planning_with("auto", POLICY, &absent) else {
        return;
    };
    announce(&rig, 10);
    let stuck = |rig: &Rig| {
        let d = decision(rig);
        (d["action"] == "stuck").then(|| d["line"].to_string())
    };
    let line = rig.until("it is stuck", || stuck(&rig));
    assert!(line.contains("there is no /no/such/terraform"), "{line}");
    let told = rig.until("it is told", || {
        let events = rig.lines(&["events"]);
        let told = events.iter().filter(|e| e["kind"] == "plan-stuck");
        let told: Vec<String> = told.map(|e| e["text"].to_string()).collect();
        (!told.is_empty()).then_some(told)
    });
    assert_eq!(told.len(), 1, "each cycle told it: {told:?}");
    nothing_moved(&rig);
    drop(rig);

    let dir = tempfile::tempdir().unwrap();
    let refuses = "[ \"$1\" != apply ] || { echo 'VcpuLimitExceeded: no quota' >&2; exit 1; }";
    let program = terraform_that(dir.path(), refuses);
    let Some(rig) = Rig::planning_with("auto", POLICY, &[&program]) else {
        return;
    };
    announce(&rig, 10);
    let line = rig.until("it is stuck", || stuck(&rig));
    assert!(line.contains("quarantined because"), "{line}");
    assert!(line.contains("end-quarantine west"), "{line}");
    let events = rig.lines(&["events"]);
    let broken = events.iter().find(|e| e["kind"] == "plan-broken").unwrap();
    let text = broken["text"].as_str().unwrap();
    assert!(text.contains("VcpuLimitExceeded"), "{text}");
    assert_eq!(rig.processes().len(), 0);
    nothing_moved(&rig);
}

/// Maintenance comes, Terraform stands still in its apply, and there is no place to go: the plan says so and
/// leaves the volume where it is. When Terraform answers again the node is made.
#[test]
fn a_plan_that_waits_for_a_terraform_that_hangs_says_so_and_moves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let flag = dir.path().join("hangs");
    std::fs::write(&flag, "").unwrap();
    let hangs = format!("[ \"$1\" = apply ] && [ -f {flag:?} ] && exec sleep 600");
    let program = terraform_that(dir.path(), &hangs);
    let Some(rig) = Rig::planning_with("auto", POLICY, &[&program, "apply_seconds = 10"]) else {
        return;
    };
    announce(&rig, 8);
    rig.until("it is said", || {
        let notes = rig.run(&["plan"])["notes"].to_string();
        notes
            .contains("v should leave a because of rack: its node at west is not there yet")
            .then_some(())
    });
    nothing_moved(&rig);
    std::fs::remove_file(&flag).unwrap();
    rig.until("it is made", || (rig.processes().len() == 1).then_some(()));
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
