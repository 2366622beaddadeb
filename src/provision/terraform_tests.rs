//! Real Terraform, offline: the built-in module with a stand-in for the node.

use super::*;
use crate::store::Embedded;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::Instant;

const TERRAFORM: &str = "terraform";
const SITE: &str = "east";
/// Stays, as a node does.
const STAYS: &str = "exec sleep 600";

struct Rig {
    dir: tempfile::TempDir,
    fleet: String,
    terraform: Terraform<Embedded>,
    backend: Backend<Embedded>,
    heard: Arc<Mutex<Vec<Progress>>>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        for f in sweep::tagged(NODE_TAG, &format!("{}/", self.fleet)) {
            sweep::end(&f, NODE_TAG);
        }
    }
}

fn script(path: &Path, body: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A fleet whose node program does `node`. `wrap` is a Terraform to run in place of the real one.
async fn rig(node: &str, wrap: Option<&str>, limits: Limits) -> Option<Rig> {
    if Command::new(TERRAFORM).arg("version").output().is_err() {
        #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
        {
            eprintln!("skipped: there is no terraform on this machine");
        }
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("node");
    script(&binary, node);
    let program = match wrap {
        Some(body) => {
            let path = dir.path().join("terraform");
            script(&path, body);
            path
        }
        None => TERRAFORM.into(),
    };
    let store = Arc::new(Embedded::open(&dir.path().join("db")).unwrap());
    let backend = Backend::new(store, "secret-of-the-state");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = backend.clone().router();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let fleet = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
    let terraform = Terraform::new(
        program,
        dir.path().join("sites"),
        fleet.clone(),
        Module::Local {
            binary,
            netns: BTreeMap::new(),
        },
        limits,
        backend.clone(),
        address,
        "secret-of-the-state".into(),
    );
    Some(Rig {
        dir,
        fleet,
        terraform,
        backend,
        heard: Arc::default(),
    })
}

fn limits(tries: u32) -> Limits {
    Limits {
        lock: Duration::from_secs(1),
        plan: Duration::from_secs(120),
        apply: Duration::from_secs(120),
        backoff: Backoff {
            first: Duration::from_millis(10),
            longest: Duration::from_millis(10),
            tries,
        },
    }
}

fn specs(shape: &str, names: &[&str]) -> BTreeMap<String, NodeSpec> {
    let spec = |n: &&str| {
        let spec = NodeSpec {
            shape: shape.into(),
            hour: 0.1,
            config: format!("/etc/{n}.toml").into(),
        };
        ((*n).to_owned(), spec)
    };
    names.iter().map(spec).collect()
}

fn allow(destroy: &[&str]) -> Allowance {
    Allowance {
        destroy: destroy.iter().map(|n| (*n).into()).collect(),
        nodes: 3,
        hour: 1.0,
        ..Allowance::default()
    }
}

impl Rig {
    async fn converge(
        &self,
        wanted: &BTreeMap<String, NodeSpec>,
        allow: &Allowance,
    ) -> Result<Changes, Failed> {
        let heard = self.heard.clone();
        let report = move |p| heard.lock().unwrap().push(p);
        self.terraform.converge(SITE, wanted, allow, &report).await
    }

    /// The nodes that run, by name; one killed a moment ago may still be on its way out.
    fn running(&self) -> Vec<String> {
        let prefix = format!("{}/{SITE}/", self.fleet);
        let all = sweep::tagged(NODE_TAG, &prefix).into_iter();
        let mut names: Vec<_> = all.map(|f| f.tag[prefix.len()..].to_owned()).collect();
        names.sort();
        names
    }

    fn becomes(&self, names: &[&str]) {
        let until = Instant::now() + Duration::from_secs(5);
        while self.running() != names {
            assert!(
                Instant::now() < until,
                "running {:?}, not {names:?}",
                self.running()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn provisioner_said(&self) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        let notes = heard.iter().filter_map(|p| match p {
            Progress::Note { text, .. } => Some(text.clone()),
            _ => None,
        });
        notes.collect()
    }
}

#[tokio::test]
async fn nodes_come_stay_and_go() {
    let Some(r) = rig(STAYS, None, limits(1)).await else {
        return;
    };
    let changes = r
        .converge(&specs("s", &["a", "b"]), &allow(&[]))
        .await
        .unwrap();
    assert_eq!(changes.create.len(), 2);
    r.becomes(&["a", "b"]);
    let heard = r.heard.lock().unwrap().clone();
    assert!(heard.iter().any(|p| matches!(p, Progress::Planned { .. })));
    assert_eq!(
        heard
            .iter()
            .filter(|p| matches!(p, Progress::Finished { .. }))
            .count(),
        2
    );
    let again = r
        .converge(&specs("s", &["a", "b"]), &allow(&[]))
        .await
        .unwrap();
    assert!(!again.any);
    let state = String::from_utf8(r.backend.state(SITE).await.unwrap().unwrap()).unwrap();
    assert!(state.contains("/etc/a.toml") && !state.contains("secret-of-the-state"));
    // who is not being retired is not destroyed
    let e = r
        .converge(&specs("s", &["a"]), &allow(&[]))
        .await
        .unwrap_err();
    assert_eq!(e.class, Class::Gate);
    r.becomes(&["a", "b"]);
    r.converge(&specs("s", &["a"]), &allow(&["b"]))
        .await
        .unwrap();
    r.becomes(&["a"]);
    assert_eq!(r.backend.holder(SITE).await.unwrap(), None);
}

/// A create that fails is tainted, and when it is destroyed its destroy provisioner does not run:
/// whatever the create had started by then stayed for ever. It must be found by its tag.
#[tokio::test]
async fn a_failed_create_is_tainted_and_what_it_started_is_swept() {
    // the node leaves something behind and ends at once
    let Some(r) = rig("sleep 600 & exit 1", None, limits(1)).await else {
        return;
    };
    let e = r
        .converge(&specs("s", &["a"]), &allow(&["a"]))
        .await
        .unwrap_err();
    assert!(e.text.contains("ended at once"), "{e}");
    r.becomes(&[]);
    let [whole, tainted] = r.terraform.in_state(SITE).await.unwrap();
    assert!(
        whole.is_empty() && tainted.contains("a"),
        "{whole:?} {tainted:?}"
    );
    r.heard.lock().unwrap().clear();
    let gone = r.converge(&specs("s", &[]), &allow(&["a"])).await.unwrap();
    assert!(gone.destroy.contains("a"));
    assert_eq!(
        r.provisioner_said(),
        Vec::<String>::new(),
        "a destroy provisioner ran"
    );
    assert_eq!(
        r.terraform.in_state(SITE).await.unwrap(),
        [BTreeSet::new(), BTreeSet::new()]
    );
}

/// An in-place change runs no provisioner, so a node kept its old shape while the state said the
/// new one. Every change of a node must be a replacement, and one of a node that serves is refused.
#[tokio::test]
async fn a_change_of_shape_is_a_replacement_never_in_place() {
    let Some(r) = rig(STAYS, None, limits(1)).await else {
        return;
    };
    r.converge(&specs("small", &["a"]), &allow(&[]))
        .await
        .unwrap();
    let before = sweep::tagged(NODE_TAG, &r.fleet);
    let e = r
        .converge(&specs("large", &["a"]), &allow(&[]))
        .await
        .unwrap_err();
    assert!(e.text.contains("destroy node a"), "{e}");
    assert_eq!(sweep::tagged(NODE_TAG, &r.fleet), before);
    let changes = r
        .converge(&specs("large", &["a"]), &allow(&["a"]))
        .await
        .unwrap();
    assert!(
        changes.update.is_empty() && changes.destroy.contains("a") && changes.create.contains("a")
    );
    r.becomes(&["a"]);
    assert_ne!(sweep::tagged(NODE_TAG, &r.fleet), before);
}

#[tokio::test]
async fn a_module_that_changes_a_node_in_place_is_refused() {
    let Some(r) = rig(STAYS, None, limits(1)).await else {
        return;
    };
    let small = specs("small", &["a"]);
    r.terraform.prepare(SITE, &small).await.unwrap();
    let dir = r.terraform.site_directory(SITE);
    let edit = |file: &str, from: &str, to: &str| {
        let text = std::fs::read_to_string(dir.join(file)).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(dir.join(file), text.replace(from, to)).unwrap();
    };
    edit(
        "main.tf.json",
        "\"triggers_replace\": \"${each.value}\"",
        "\"triggers_replace\": \"never\"",
    );
    r.terraform.plan(SITE, &|_| ()).await.unwrap();
    r.terraform.apply(SITE, &|_| ()).await.unwrap();
    edit("nodes.tfvars.json", "small", "large");
    let changes = r.terraform.plan(SITE, &|_| ()).await.unwrap();
    assert!(changes.update.contains("a"), "{changes:?}");
    let e = gate(SITE, &changes, &small, &allow(&[])).unwrap_err();
    assert!(e.text.contains("no provisioner runs"), "{e}");
}

/// Terraform was killed after the node had started and before the state was written: the node was
/// in no state, the next run made a second one, and the first was never destroyed.
#[tokio::test]
async fn a_killed_apply_leaves_one_node_in_the_end() {
    let kills = r#"
        if [ "$1" = apply ] && [ ! -f killed ]; then
            terraform "$@" & run=$!
            until [ -f nodes/a/node.pid ]; do sleep 0.01; done
            kill -STOP $run
            until tr '\0' '\n' </proc/$(cat nodes/a/node.pid)/environ | grep FORERUN_NODE >orphan
            do sleep 0.01; done
            kill -9 $run
            touch killed
            exit 137
        fi
        exec terraform "$@""#;
    let Some(r) = rig(STAYS, Some(kills), limits(2)).await else {
        return;
    };
    let changes = r
        .converge(&specs("s", &["a"]), &allow(&["a"]))
        .await
        .unwrap();
    assert!(changes.create.contains("a"));
    let dir = r.terraform.site_directory(SITE);
    let orphan = std::fs::read_to_string(dir.join("orphan")).unwrap();
    assert!(orphan.contains("FORERUN_NODE"), "the first node never ran");
    r.becomes(&["a"]);
    let pid = std::fs::read_to_string(dir.join("nodes/a/node.pid")).unwrap();
    let found = sweep::tagged(NODE_TAG, &r.fleet);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].pid.to_string(), pid.trim());
    let retried = |p: &Progress| matches!(p, Progress::Retrying { .. });
    assert_eq!(
        r.heard
            .lock()
            .unwrap()
            .iter()
            .filter(|p| retried(p))
            .count(),
        1
    );
}

/// A saved plan describes one state. Applied to a later one it once destroyed what had been made in
/// between; Terraform refuses it, and the answer is to plan again.
#[tokio::test]
async fn a_stale_plan_is_refused() {
    let Some(r) = rig(STAYS, None, limits(1)).await else {
        return;
    };
    r.terraform
        .prepare(SITE, &specs("s", &["a"]))
        .await
        .unwrap();
    r.terraform.plan(SITE, &|_| ()).await.unwrap();
    let plan = r.terraform.site_directory(SITE).join(PLAN);
    let kept = std::fs::read(&plan).unwrap();
    r.terraform.apply(SITE, &|_| ()).await.unwrap();
    std::fs::write(&plan, kept).unwrap();
    let e = r.terraform.apply(SITE, &|_| ()).await.unwrap_err();
    assert_eq!(e.class, Class::StalePlan, "{e}");
    assert!(e.class.may_pass());
}

/// Without a time-out for the lock a run fails the moment it meets another; with it, it waits, and
/// says who holds it. A lock that a person holds is never broken.
#[tokio::test]
async fn a_held_lock_is_waited_for_and_never_broken() {
    let Some(r) = rig(STAYS, None, limits(1)).await else {
        return;
    };
    let info =
        br#"{"ID":"l1","Operation":"console","Who":"olga@desk","Created":"2026-11-20T10:00:00Z"}"#;
    let locked = r.backend.lock(SITE, "olga".into(), info).await.unwrap();
    assert_eq!(locked.status().as_u16(), 200);
    let begun = Instant::now();
    let e = r
        .converge(&specs("s", &["a"]), &allow(&[]))
        .await
        .unwrap_err();
    assert_eq!(e.class, Class::Locked);
    assert!(
        e.text.contains("olga@desk") && begun.elapsed() >= Duration::from_secs(1),
        "{e}"
    );
    assert_eq!(r.backend.holder(SITE).await.unwrap().unwrap().user, "olga");
    assert!(r.backend.release(SITE, "olga").await.unwrap());
    r.converge(&specs("s", &["a"]), &allow(&[])).await.unwrap();
}

#[tokio::test]
async fn drift_is_seen_and_nothing_changed() {
    let Some(r) = rig(STAYS, None, limits(1)).await else {
        return;
    };
    r.terraform
        .prepare(SITE, &specs("s", &["a"]))
        .await
        .unwrap();
    let dir = r.terraform.site_directory(SITE);
    // an output stands for what a provider would read back
    std::fs::write(
        dir.join("probe.tf"),
        "output \"probe\" { value = file(\"probe.txt\") }",
    )
    .unwrap();
    std::fs::write(dir.join("probe.txt"), "as applied").unwrap();
    r.terraform.plan(SITE, &|_| ()).await.unwrap();
    r.terraform.apply(SITE, &|_| ()).await.unwrap();
    assert!(!r.terraform.drifted(SITE).await.unwrap());
    let state = r.backend.state(SITE).await.unwrap();
    std::fs::write(dir.join("probe.txt"), "somebody was here").unwrap();
    assert!(r.terraform.drifted(SITE).await.unwrap());
    assert_eq!(r.backend.state(SITE).await.unwrap(), state);
}

#[tokio::test]
async fn a_terraform_that_hangs_or_is_absent_is_an_error_in_bounded_time() {
    let hasty = Limits {
        plan: Duration::from_millis(300),
        ..limits(1)
    };
    let Some(r) = rig(STAYS, Some("sleep 600"), hasty).await else {
        return;
    };
    let e = r
        .converge(&specs("s", &["a"]), &allow(&[]))
        .await
        .unwrap_err();
    assert_eq!(e.class, Class::Timeout);
    std::fs::remove_file(r.dir.path().join("terraform")).unwrap();
    let e = r
        .converge(&specs("s", &["a"]), &allow(&[]))
        .await
        .unwrap_err();
    assert_eq!(e.class, Class::Missing);
}

/// A Terraform that stood still in the middle of an apply, with the lock in its hand and a node half made.
/// Ended without its children it went on later, and its lock kept everybody else out.
#[tokio::test]
async fn an_apply_that_hangs_is_ended_with_its_children_and_its_lock_is_freed() {
    let hangs = r#"
        if [ "$1" = apply ] && [ ! -f hung ]; then
            trap '' INT
            terraform "$@" & run=$!
            until [ -f nodes/a/node.pid ]; do sleep 0.01; done
            kill -STOP $run
            echo $run >hung
            wait
        fi
        exec terraform "$@""#;
    let hasty = Limits {
        apply: Duration::from_secs(10),
        ..limits(1)
    };
    let Some(r) = rig(STAYS, Some(hangs), hasty).await else {
        return;
    };
    let e = r
        .converge(&specs("s", &["a"]), &allow(&["a"]))
        .await
        .unwrap_err();
    assert_eq!(e.class, Class::Timeout, "{e}");
    let dir = r.terraform.site_directory(SITE);
    let hung = std::fs::read_to_string(dir.join("hung")).unwrap();
    let stat = format!("/proc/{}/stat", hung.trim());
    let until = Instant::now() + Duration::from_secs(10);
    while std::fs::read_to_string(&stat).is_ok_and(|s| !s.contains(") Z ")) {
        assert!(Instant::now() < until, "the real Terraform is there still");
        std::thread::sleep(Duration::from_millis(20));
    }
    // the lock that it held stands in nobody's way, and what it began is not there twice
    r.converge(&specs("s", &["a"]), &allow(&["a"]))
        .await
        .unwrap();
    r.becomes(&["a"]);
}

/// The example for a real cloud cannot be run here; what can be checked is.
#[test]
fn the_aws_example_is_formatted_and_takes_what_is_given() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/terraform/aws");
    let variables = std::fs::read_to_string(dir.join("variables.tf")).unwrap();
    for name in ["fleet", "site", "nodes"] {
        assert!(
            variables.contains(&format!("variable \"{name}\"")),
            "{name}"
        );
    }
    match Command::new(TERRAFORM)
        .args(["fmt", "-check"])
        .arg(&dir)
        .output()
    {
        Ok(checked) => assert!(checked.status.success(), "{checked:?}"),
        #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
        Err(_) => eprintln!("skipped: there is no terraform on this machine"),
    }
}
