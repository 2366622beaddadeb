//! Nodes made by real Terraform: a controller process makes one, it registers and takes a copy, it
//! is retired, and nothing of it is left. The controller is killed on the way.
//!
//! ```text
//! controller ── terraform ── forerun node (site west, in a namespace if there is one)
//!     └── node a: owns volume v ══ replication ══► the new node
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why it is skipped"
)]

#[allow(dead_code, reason = "each file uses its part")]
mod provisioned;

use provisioned::Rig;

/// Makes a small node at site west.
const GROW: [&str; 6] = ["provision", "grow", "--site", "west", "--shape", "small"];

#[test]
fn a_node_is_made_seeded_and_retired_and_nothing_of_it_is_left() {
    let Some(mut rig) = Rig::start(&[]) else {
        return;
    };
    rig.run(&[&GROW[..], &["--node", "w1", "--volume", "v"]].concat());
    let node = rig.node("w1").expect("the node has registered");
    assert_eq!(node["alive"], true);
    assert_eq!(
        (&node["site"], &node["shape"]),
        (&"west".into(), &"small".into())
    );
    assert_eq!(rig.copies(), ["w1"]);
    assert_eq!(rig.processes().len(), 1);
    assert!(rig.directory("w1").is_dir());

    // its token was for it alone, and once
    let e = rig.refused(&[&GROW[..], &["--node", "a"]].concat());
    assert!(e.contains("a node of that name has registered"), "{e}");
    rig.run(&["provision", "retire", "w1"]);
    rig.nothing_is_left_of("w1");
    let v = rig.run(&["volume", "list"]);
    assert_eq!(v[0]["owner"], "a", "{v}");
    assert_eq!(rig.in_state(), Vec::<String>::new());
}

/// A node that owns a volume must not be destroyed with it: the volume moves first.
#[test]
fn a_node_that_owns_a_volume_is_emptied_before_it_goes() {
    let Some(rig) = Rig::start(&[]) else { return };
    rig.run(&[&GROW[..], &["--node", "w1", "--volume", "v"]].concat());
    rig.run(&["cutover", "v", "--to", "w1"]);
    // another shape is another node: the volume is there before the old one goes
    rig.run(&["provision", "resize", "w1", "--shape", "large"]);
    let v = rig.run(&["volume", "list"]);
    let owner = v[0]["owner"].as_str().unwrap().to_owned();
    assert!(owner.starts_with("west-"), "{v}");
    assert_eq!(rig.node(&owner).unwrap()["shape"], "large");
    rig.nothing_is_left_of("w1");
    rig.run(&["provision", "retire", &owner]);
    let v = rig.run(&["volume", "list"]);
    assert_eq!(v[0]["owner"], "a", "{v}");
    rig.nothing_is_left_of(&owner);
}

/// A controller that is killed while Terraform runs once left a node that nobody knew, or made it
/// twice. Kill it when the operation is logged, when the node's process is there, when it has
/// registered; and while it is retired, when it is being emptied and when the process is gone.
#[test]
fn a_controller_killed_on_the_way_leaves_no_duplicate_and_no_orphan() {
    let Some(mut rig) = Rig::start(&[]) else {
        return;
    };
    type Moment = fn(&Rig) -> bool;
    let growing: [Moment; 3] = [
        |_| true,
        |r| !r.processes().is_empty(),
        |r| r.node("w").is_some(),
    ];
    let retiring: [Moment; 3] = [
        |_| true,
        |r| r.node("w").is_none_or(|n| n["draining"] == true),
        |r| r.processes().is_empty(),
    ];
    for (i, (grown, retired)) in growing.into_iter().zip(retiring).enumerate() {
        let (grow, retire) = (format!("grow-{i}"), format!("retire-{i}"));
        let asked = rig.begin(
            &[
                &GROW[..],
                &["--node", "w", "--volume", "v", "--operation-id", &grow],
            ]
            .concat(),
            &grow,
        );
        rig.until("the moment to kill comes", || grown(&rig).then_some(()));
        rig.kill_controller();
        drop(asked);
        rig.restart_controller();
        rig.run(&["operation", "watch", &grow]);
        assert_eq!(rig.processes().len(), 1, "killed at moment {i} of growing");
        assert_eq!(rig.copies(), ["w"]);

        let asked = rig.begin(
            &["provision", "retire", "w", "--operation-id", &retire],
            &retire,
        );
        rig.until("the moment to kill comes", || retired(&rig).then_some(()));
        rig.kill_controller();
        drop(asked);
        rig.restart_controller();
        rig.run(&["operation", "watch", &retire]);
        rig.nothing_is_left_of("w");
        assert_eq!(rig.copies(), Vec::<String>::new());
    }
}

#[test]
fn a_node_is_made_in_the_namespace_that_its_site_names() {
    let Some(net) = provisioned::Namespaces::make() else {
        return;
    };
    let Some(rig) = Rig::start_in(&net) else {
        return;
    };
    rig.run(&[&GROW[..], &["--node", "w1"]].concat());
    let node = rig.node("w1").expect("the node has registered");
    assert!(
        node["address"]
            .as_str()
            .unwrap()
            .starts_with(provisioned::WEST),
        "{node}"
    );
    let pid = rig.processes()[0];
    let of = |name: &str| std::fs::metadata(format!("/run/netns/{name}"));
    use std::os::unix::fs::MetadataExt;
    let inside = std::fs::metadata(format!("/proc/{pid}/ns/net"))
        .unwrap()
        .ino();
    assert_eq!(inside, of(&net.west).unwrap().ino());
    rig.run(&["provision", "retire", "w1"]);
    rig.nothing_is_left_of("w1");
}

#[test]
fn what_cannot_be_made_is_refused_with_the_reason() {
    let Some(rig) = Rig::start(&[]) else { return };
    let refused = |args: &[&str], says: &str| {
        let e = rig.refused(&[&["provision"], args].concat());
        assert!(e.contains(says), "{e}");
    };
    refused(
        &["grow", "--site", "mars", "--shape", "small"],
        "no [[site]] of that name",
    );
    refused(
        &["grow", "--site", "bare", "--shape", "small"],
        "no prices for site bare",
    );
    refused(
        &["grow", "--site", "west", "--shape", "huge"],
        "there is small, large",
    );
    refused(&[&GROW[1..], &["--volume", "w"]].concat(), "no such volume");
    refused(&["retire", "a"], "not made by provisioning");
}

#[test]
fn a_terraform_that_is_absent_or_out_of_quota_is_an_error_and_leaves_nothing() {
    let Some(rig) = Rig::start(&["terraform = \"/no/such/terraform\""]) else {
        return;
    };
    let e = rig.refused(&GROW);
    assert!(e.contains("there is no /no/such/terraform"), "{e}");
    assert_eq!(
        rig.run(&["operation", "list", "--running"]),
        serde_json::json!([])
    );
    drop(rig);

    // apply fails as a cloud's does that gives no more
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("terraform");
    let script = "#!/bin/sh\n[ \"$1\" != apply ] || { echo 'VcpuLimitExceeded: no quota' >&2; exit 1; }\n\
                  exec terraform \"$@\"\n";
    std::fs::write(&program, script).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let named = format!("terraform = {program:?}");
    let Some(rig) = Rig::start(&[&named]) else {
        return;
    };
    let e = rig.refused(&GROW);
    assert!(e.contains("VcpuLimitExceeded"), "{e}");
    assert_eq!(rig.processes().len(), 0);
    // nothing more there until somebody has looked
    let e = rig.refused(&GROW);
    assert!(e.contains("quarantined"), "{e}");
    rig.run(&["provision", "end-quarantine", "west"]);
    let e = rig.refused(&GROW);
    assert!(e.contains("VcpuLimitExceeded"), "{e}");
}

/// Somebody changes by hand what Terraform made. The built-in module reads nothing back, so an output stands for
/// what a provider would.
#[test]
fn what_others_changed_at_a_site_is_told_once() {
    let Some(rig) = Rig::start(&["drift_seconds = 1"]) else {
        return;
    };
    let site = rig.site();
    std::fs::create_dir_all(&site).unwrap();
    let probe = "output \"probe\" { value = file(\"probe.txt\") }";
    std::fs::write(site.join("probe.tf"), probe).unwrap();
    std::fs::write(site.join("probe.txt"), "as it was made").unwrap();
    rig.run(&[&GROW[..], &["--node", "w1"]].concat());
    let told = || {
        let events = rig.lines(&["events"]);
        events
            .iter()
            .filter(|e| e["kind"] == "site-drifted")
            .count()
    };
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(told(), 0, "nothing has changed");
    std::fs::write(site.join("probe.txt"), "somebody was here").unwrap();
    rig.until("the drift is told", || (told() > 0).then_some(()));
    assert_eq!(
        rig.node("w1").unwrap()["alive"],
        true,
        "and nothing is done"
    );
    assert_eq!(told(), 1);
}
