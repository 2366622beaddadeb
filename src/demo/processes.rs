//! The demo's controller and nodes: children of this process, in a directory of their own, on
//! loopback, gone when the demo is over.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use node::{Error, ErrorKind, Result};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

/// A daemon says where it listens within this time, or something is wrong with it.
const START: Duration = Duration::from_secs(10);
/// A daemon that was asked to stop is given this long.
const STOP: Duration = Duration::from_secs(5);

/// A daemon of this same binary.
pub struct Daemon {
    name: String,
    child: Child,
    /// Kept open: a daemon that printed another line would be killed by a closed pipe.
    _stdout: BufReader<ChildStdout>,
    /// What it said when it was ready.
    pub ready: serde_json::Value,
}

impl Daemon {
    /// Start one and wait until it says, in one line of JSON, that it is ready. Its log goes to
    /// `DIR/NAME.log`.
    pub async fn start(name: &str, dir: &Path, args: &[&str]) -> Result<Daemon> {
        let asked = format!("start {name}");
        let io = |e| Error::io(asked.clone(), e);
        let log = dir.join(format!("{name}.log"));
        let program = std::env::current_exe().map_err(io)?;
        let mut child = Command::new(program)
            .args(args)
            .args(["--output", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).map_err(io)?)
            .kill_on_drop(true)
            .spawn()
            .map_err(io)?;
        let broken = |why: String| {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            Error::new(
                ErrorKind::Broken,
                format!("{asked}: {why}. Its log says:\n{}", said.trim_end()),
            )
        };
        let stdout = child
            .stdout
            .take()
            .ok_or_else(|| broken("it has no output".into()))?;
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        tokio::time::timeout(START, stdout.read_line(&mut line))
            .await
            .map_err(|_| broken(format!("it was not ready after {START:?}")))?
            .map_err(|e| broken(e.to_string()))?;
        let ready = serde_json::from_str(&line).map_err(|_| broken("it ended at once".into()))?;
        Ok(Daemon {
            name: name.to_owned(),
            child,
            _stdout: stdout,
            ready,
        })
    }

    /// A text field of what it said.
    pub fn said(&self, field: &str) -> Result<String> {
        let value = self.ready.get(field).and_then(|v| v.as_str());
        value.map(str::to_owned).ok_or_else(|| {
            Error::new(
                ErrorKind::Protocol,
                format!("{} did not say its {field:?}", self.name),
            )
        })
    }

    /// Ask it to stop, and see that it does.
    pub async fn stop(mut self) -> Result<()> {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            kill(Pid::from_raw(pid), Signal::SIGTERM)
                .map_err(|e| Error::errno(format!("stop {}", self.name), e as i32))?;
        }
        match tokio::time::timeout(STOP, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(Error::new(
                ErrorKind::Broken,
                format!("stop {}: it ended with {status}", self.name),
            )),
            Ok(Err(e)) => Err(Error::io(format!("wait for {}", self.name), e)),
            // Dropping the child kills it.
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                format!(
                    "stop {}: it did not end within {STOP:?} and was killed",
                    self.name
                ),
            )),
        }
    }
}
