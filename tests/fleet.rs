//! The control plane as processes: a controller and nodes of the shipped binary, on loopback, and the
//! command line between them.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

mod fleet_processes;

use fleet_processes::scene::Scene;
use fleet_processes::{Fleet, PATIENCE, VOLUME, Who};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

fn refused(fleet: &Fleet, args: &[&str], code: i32, words: &str) {
    let out = fleet.output(args);
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
    assert!(said.contains(words), "{args:?}: {said}");
    assert!(out.stdout.is_empty(), "an error is no data");
}

/// The first bytes of an NBD server: enough to see that guests are still served.
fn greets(nbd: &str) {
    let mut stream = TcpStream::connect(nbd).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut magic = [0; 8];
    stream.read_exact(&mut magic).unwrap();
    assert_eq!(&magic, b"NBDMAGIC");
    stream.write_all(&[0; 4]).unwrap();
}

#[test]
fn volumes_come_and_go_and_a_killed_controller_is_not_missed() {
    let mut fleet = Fleet::start();
    let make = ["volume", "create", "vm1", "--size", "16M"];
    let once = ["--node", "a", "--operation-id", "make-vm1"];
    let once = [&make[..], &once].concat();
    fleet.run(&once);
    // A command repeated with its id is carried out once.
    fleet.run(&once);
    // Right after it was made, as scripts do: its node tells where it is only with its next heartbeat.
    let attach = fleet.run(&["attach", "vm1"]);
    let qemu = attach["qemu"].as_str().unwrap();
    assert!(qemu.contains("reconnect-delay="), "{attach}");
    let uri = attach["uris"][1].as_str().unwrap();
    let nbd = uri.strip_prefix("nbd://").unwrap();
    let nbd = nbd.strip_suffix("/vm1").unwrap();
    greets(nbd);
    refused(&fleet, &make, 1, "exists already on node a");
    let bad_name = ["volume", "create", "a/b", "--size", "16M"];
    refused(&fleet, &bad_name, 2, "use 1 to 128 letters");
    refused(&fleet, &["volume", "show", "none"], 1, "there is none");
    let nowhere = ["cutover", "vm1", "--to", "n9"];
    refused(&fleet, &nowhere, 1, "n9 has no replica");

    let listed = fleet.until("the node tells of its volume", || {
        Some(fleet.run(&["volume", "list"])).filter(|v| v[0]["epoch"] != 0)
    });
    assert_eq!(listed[0]["size_bytes"], 16 << 20);
    assert_eq!(
        (&listed[0]["owner"], &listed[0]["generation"]),
        (&"a".into(), &1.into())
    );

    fleet.kill(Who::Controller);
    greets(nbd);
    refused(&fleet, &["volume", "list"], 1, "no controller answers");

    fleet.restart(Who::Controller);
    fleet.until("node a is alive", || {
        let said = fleet.run(&["node-list"]);
        let mut nodes = said.as_array()?.iter();
        nodes.find(|n| n["name"] == "a" && n["alive"] == true)?;
        Some(())
    });
    let shown = fleet.run(&["volume", "show", "vm1"]);
    assert_eq!(shown["id"], listed[0]["id"]);
    fleet.run(&["volume", "delete", "vm1"]);
    assert_eq!(fleet.run(&["volume", "list"]), Value::Array(Vec::new()));
    assert!(!fleet.volume("a", "vm1").exists());
}

/// After each restart a controller knew nothing of what guests write, copied baselines from end to end and
/// promised nothing until it had learned it again.
#[test]
fn a_controller_that_is_started_again_knows_what_guests_write() {
    const WINDOW: Duration = Duration::from_secs(10);
    let mut scene = Scene::start(100);
    let fleet = &mut scene.fleet;
    let folder = fleet.volume("controller", VOLUME);
    let folder = folder.parent().unwrap().parent().unwrap().to_owned();
    let file = folder.join("habits").join(VOLUME);
    for _ in 0..6 {
        // a window has to pass in which it heard of writes, and on a busy machine more
        std::thread::sleep(WINDOW * 3 / 2);
        fleet.terminate(Who::Controller);
        if file.exists() {
            break;
        }
        fleet.restart(Who::Controller);
    }
    assert!(file.metadata().unwrap().len() > 100, "nothing was kept");
    fleet.restart(Who::Controller);
    let log = std::fs::read_to_string(folder.with_extension("log")).unwrap();
    let restored = "the habits of 1 volumes' guests are known";
    assert!(log.contains(restored), "{log}");
    scene
        .load
        .take()
        .unwrap()
        .check(&scene.fleet.uri("a", VOLUME));
}
