//! A process of the product that stays: it says in one line of JSON when it is ready, and ends with the test.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub struct Daemon {
    child: Child,
    /// Open, or a daemon that says more would fail.
    _stdout: BufReader<ChildStdout>,
    ready: Value,
}

impl Daemon {
    /// What it logs goes to the end of `log`.
    pub fn start(mut command: Command, log: &Path) -> Daemon {
        let log = File::options().create(true).append(true).open(log).unwrap();
        let mut child = command
            .args(["--output", "json"])
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).expect("the daemon did not say that it is ready");
        Daemon {
            child,
            _stdout: stdout,
            ready,
        }
    }

    /// An address that it said.
    pub fn said(&self, field: &str) -> SocketAddr {
        self.ready[field].as_str().unwrap().parse().unwrap()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(mut self, patience: Duration) -> ExitStatus {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        let until = Instant::now() + patience;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not end on SIGTERM");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // SIGKILL: what a test ends is never asked to tidy up.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
