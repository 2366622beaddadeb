//! The control plane as processes: a controller and a node of the shipped binary, on loopback, and
//! the command line between them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine; a hang fails by it.
const PATIENCE: Duration = Duration::from_secs(30);

fn forerun() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forerun"));
    command.stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

/// A daemon that is killed, not stopped, when the test is over or before.
struct Daemon {
    child: Child,
    ready: Value,
}

impl Daemon {
    fn start(args: &[&str]) -> Daemon {
        let mut child = forerun()
            .args(args)
            .args(["--output", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).expect("the daemon did not say that it is ready");
        Daemon { child, ready }
    }

    fn said(&self, field: &str) -> &str {
        self.ready[field].as_str().unwrap()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Killed already, perhaps.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn controller(dir: &Path, listen: &str) -> Daemon {
    let data = dir.join("controller");
    Daemon::start(&[
        "controller",
        "--listen",
        listen,
        "--data",
        data.to_str().unwrap(),
    ])
}

fn node(dir: &Path, controller: &str) -> Daemon {
    let config = dir.join("n1.toml");
    let text = format!(
        "name = \"n1\"\ndata = {:?}\ncontroller = {controller:?}\nlisten = \"127.0.0.1:0\"\n\
         replication = \"127.0.0.1:0\"\nnbd = \"127.0.0.1:0\"\n",
        dir.join("n1")
    );
    std::fs::write(&config, text).unwrap();
    Daemon::start(&["node", "--config", config.to_str().unwrap()])
}

struct Fleet<'a>(&'a str);

impl Fleet<'_> {
    fn run(&self, args: &[&str]) -> Output {
        forerun()
            .args(["--controller", self.0])
            .args(args)
            .output()
            .unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let out = self.run(&[args, &["--output", "json"]].concat());
        assert!(
            out.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        serde_json::from_slice(&out.stdout).unwrap()
    }

    fn refused(&self, args: &[&str], code: i32, words: &str) {
        let out = self.run(args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(words), "{args:?}: {said}");
        assert!(out.stdout.is_empty(), "an error is no data");
    }

    fn until(&self, args: &[&str], good: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let value = self.json(args);
            if good(&value) {
                return value;
            }
            assert!(Instant::now() < until, "{args:?} stays {value}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
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
    let dir = tempfile::tempdir().unwrap();
    let first = controller(dir.path(), "127.0.0.1:0");
    let address = first.said("listening").to_owned();
    let n1 = node(dir.path(), &address);
    let fleet = Fleet(&address);
    fleet.until(&["node-list"], |v| v[0]["alive"] == true);

    let made = fleet.run(&[
        "volume",
        "create",
        "vm1",
        "--size",
        "16M",
        "--operation-id",
        "make-vm1",
    ]);
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let again = fleet.run(&[
        "volume",
        "create",
        "vm1",
        "--size",
        "16M",
        "--operation-id",
        "make-vm1",
    ]);
    assert!(
        again.status.success(),
        "a command repeated with its id is carried out once"
    );
    // Right after it was made, as scripts do: its node tells where it is only with its next heartbeat.
    let attach = fleet.json(&["attach", "vm1"]);
    assert!(
        attach["qemu"]
            .as_str()
            .unwrap()
            .contains("reconnect-delay="),
        "{attach}"
    );
    assert_eq!(attach["uris"][1], format!("nbd://{}/vm1", n1.said("nbd")));
    fleet.refused(
        &["volume", "create", "vm1", "--size", "16M"],
        1,
        "exists already on node n1",
    );
    fleet.refused(
        &["volume", "create", "a/b", "--size", "16M"],
        2,
        "volume name \"a/b\"",
    );
    fleet.refused(&["volume", "show", "none"], 1, "there is none");
    fleet.refused(&["cutover", "vm1", "--to", "n9"], 1, "n9 has no replica");

    let listed = fleet.until(&["volume", "list"], |v| v[0]["epoch"] != 0);
    assert_eq!(listed[0]["size_bytes"], 16 << 20);
    assert_eq!(
        (&listed[0]["owner"], &listed[0]["generation"]),
        (&"n1".into(), &1.into())
    );

    first.kill();
    greets(n1.said("nbd"));
    fleet.refused(&["volume", "list"], 1, "no controller answers");

    let second = controller(dir.path(), &address);
    fleet.until(&["node-list"], |v| v[0]["alive"] == true);
    let shown = fleet.json(&["volume", "show", "vm1"]);
    assert_eq!(shown["id"], listed[0]["id"]);
    let deleted = fleet.run(&["volume", "delete", "vm1"]);
    assert!(
        deleted.status.success(),
        "{}",
        String::from_utf8_lossy(&deleted.stderr)
    );
    assert_eq!(fleet.json(&["volume", "list"]), Value::Array(Vec::new()));
    assert!(!dir.path().join("n1/volumes/vm1").exists());
    drop(second);
}
