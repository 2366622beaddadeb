//! Run a program in a process group of its own, with a deadline, and read its lines as they come.
//!
//! A Terraform that hangs has children that hang with it; ending only the parent leaves them. So the
//! whole group is asked to stop (SIGINT: Terraform then writes its state), and killed if it does not.

use super::failure::{Class, Failed};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Lines between the reader and whoever follows them: a follower that lags slows the program, and
/// memory stays bounded.
const LINES_IN_FLIGHT: usize = 256;
/// A longer line is cut: a plan can carry a whole file in one.
const LINE_MAX: u64 = 1 << 20;
/// What is kept of standard error, for the message.
const STDERR_KEPT: u64 = 64 << 10;
/// How long a group may take to stop before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// How long output may still come after the program has ended: something it left behind may hold
/// the pipe for ever.
const DRAIN: Duration = Duration::from_secs(1);
/// How often the program is looked at while it is silent.
const LOOK: Duration = Duration::from_millis(20);

/// How a program ended.
pub struct Ended {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// The end of what it wrote to standard error.
    pub stderr: String,
}

/// Run it. `line` sees each line of standard output.
pub fn run(
    mut command: Command,
    limit: Duration,
    mut line: impl FnMut(&str),
) -> Result<Ended, Failed> {
    let program = command.get_program().to_string_lossy().into_owned();
    let deadline = Instant::now() + limit;
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| {
            Failed::new(
                Class::Missing,
                format!(
                    "start {program}: {e}. Install Terraform 1.8 or later, or OpenTofu, or set its path"
                ),
            )
        })?;
    let (send, lines) = mpsc::sync_channel(LINES_IN_FLIGHT);
    if let Some(out) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut out = BufReader::new(out);
            loop {
                let mut bytes = Vec::new();
                match out.by_ref().take(LINE_MAX).read_until(b'\n', &mut bytes) {
                    Ok(n) if n > 0 && send.send(bytes).is_ok() => {}
                    _ => break,
                }
            }
        });
    }
    let (send_errors, errors) = mpsc::sync_channel(1);
    if let Some(mut err) = child.stderr.take() {
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            let _ = err.by_ref().take(STDERR_KEPT).read_to_end(&mut kept);
            let _ = send_errors.send(kept);
            let _ = std::io::copy(&mut err, &mut std::io::sink());
        });
    }
    let mut ended_at = None;
    loop {
        match lines.recv_timeout(LOOK) {
            Ok(bytes) => line(String::from_utf8_lossy(&bytes).trim_end()),
            Err(RecvTimeoutError::Disconnected) if ended_at.is_some() => break,
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if ended_at.is_none() && ended(&child, &program)? {
            // what it left in its group ends with it; the group's id is ours until `wait` below
            let _ = killpg(group_of(&child), Signal::SIGKILL);
            ended_at = Some(Instant::now());
        }
        if ended_at.is_some_and(|at| at.elapsed() > DRAIN) {
            break;
        }
        if ended_at.is_none() && Instant::now() > deadline {
            end_group(&mut child, &program)?;
            return Err(Failed::new(
                Class::Timeout,
                format!(
                    "{program} did not finish within {limit:?} and was ended with its children"
                ),
            ));
        }
    }
    let status = child.wait().map_err(|e| lost(&program, &e))?;
    let stderr = errors.recv_timeout(DRAIN).unwrap_or_default();
    Ok(Ended {
        code: status.code(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    })
}

fn group_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// Whether it has ended, without taking its status: its id stays taken.
fn ended(child: &Child, program: &str) -> Result<bool, Failed> {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::Pid(group_of(child)), look) {
        Ok(status) => Ok(status != WaitStatus::StillAlive),
        Err(e) => Err(lost(program, &e.into())),
    }
}

fn lost(program: &str, e: &std::io::Error) -> Failed {
    Failed::new(Class::Other, format!("wait for {program}: {e}"))
}

fn end_group(child: &mut Child, program: &str) -> Result<(), Failed> {
    let group = group_of(child);
    // the group may be gone by itself: that is what was wanted
    let _ = killpg(group, Signal::SIGINT);
    let until = Instant::now() + GRACE;
    while Instant::now() < until {
        if ended(child, program)? {
            break;
        }
        std::thread::sleep(LOOK);
    }
    let _ = killpg(group, Signal::SIGKILL);
    child.wait().map_err(|e| lost(program, &e))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut c = Command::new("/bin/sh");
        c.args(["-c", script]);
        c
    }

    #[test]
    fn lines_errors_and_the_exit_code_come_back() {
        let mut lines = Vec::new();
        let ended = run(
            sh("echo a; echo b; echo why >&2; exit 3"),
            Duration::from_secs(10),
            |l| {
                lines.push(l.to_owned());
            },
        )
        .unwrap();
        assert_eq!(
            (lines, ended.code),
            (vec!["a".to_owned(), "b".to_owned()], Some(3))
        );
        assert_eq!(ended.stderr, "why\n");
    }

    /// A hanging provisioner once outlived the Terraform that was killed for it, and held the next
    /// run's files. The deadline must reach the grandchildren.
    #[test]
    fn a_deadline_ends_the_whole_group() {
        let mut pid = String::new();
        let script = "trap '' INT; sh -c 'trap \"\" INT; echo $$; sleep 600' & wait";
        let e = run(sh(script), Duration::from_millis(300), |l| {
            pid = l.to_owned()
        })
        .err()
        .unwrap();
        assert_eq!(e.class, Class::Timeout);
        let pid: i32 = pid.parse().unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        let alive = || {
            std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "))
        };
        while alive() {
            assert!(Instant::now() < until, "grandchild {pid} is alive");
            std::thread::sleep(LOOK);
        }
    }

    #[test]
    fn an_absent_program_is_named_with_the_remedy() {
        let e = run(
            Command::new("/no/such/terraform"),
            Duration::from_secs(1),
            |_| (),
        )
        .err()
        .unwrap();
        assert_eq!(e.class, Class::Missing);
        assert!(
            e.text.contains("/no/such/terraform") && e.text.contains("Install"),
            "{e}"
        );
    }

    #[test]
    fn a_child_that_keeps_the_pipe_does_not_hold_us() {
        let begun = Instant::now();
        run(
            sh("setsid sleep 15 & echo $!"),
            Duration::from_secs(14),
            |pid| {
                assert!(pid.parse::<u32>().is_ok());
            },
        )
        .unwrap();
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
