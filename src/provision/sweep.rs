//! What Terraform does not know of. A run that is killed after a node has started and before the
//! state was written leaves a node that nobody will ever destroy. Every local node carries a tag in
//! its environment, so it can be found; the same is done with resource tags in a cloud.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The variable that tags a node: FLEET/SITE/NODE.
pub const NODE_TAG: &str = "FORERUN_NODE";
/// The variable that tags a Terraform run and all that it starts, except nodes: FLEET/SITE.
pub const RUN_TAG: &str = "FORERUN_RUN";

/// A tagged process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its process id.
    pub pid: i32,
    /// The tag's value.
    pub tag: String,
}

/// Processes whose environment has `variable` with a value that begins with `prefix`. Those of
/// other users cannot be read, and are not ours.
#[must_use]
pub fn tagged(variable: &str, prefix: &str) -> Vec<Found> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter_map(|pid| tag_of(pid, variable).map(|tag| Found { pid, tag }))
        .filter(|f| f.tag.starts_with(prefix))
        .collect()
}

fn tag_of(pid: i32, variable: &str) -> Option<String> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    environment.split(|b| *b == 0).find_map(|entry| {
        let value = entry
            .strip_prefix(variable.as_bytes())?
            .strip_prefix(b"=")?;
        String::from_utf8(value.to_vec()).ok()
    })
}

/// Kill it, unless the id belongs to somebody else by now.
pub fn end(found: &Found, variable: &str) {
    if tag_of(found.pid, variable).as_deref() == Some(&found.tag) {
        // it may have ended by itself in between, which is as good
        let _ = kill(Pid::from_raw(found.pid), Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_tagged_process_is_found_by_its_prefix_and_ended() {
        let fleet = format!("sweep-test-{}", std::process::id());
        let tag = format!("{fleet}/east/a");
        let mut child = Command::new("sleep")
            .arg("600")
            .env(NODE_TAG, &tag)
            .spawn()
            .unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
        let found = loop {
            let found = tagged(NODE_TAG, &format!("{fleet}/"));
            // until it has become `sleep` it still has this test's environment
            if !found.is_empty() || std::time::Instant::now() > until {
                break found;
            }
        };
        let pid = child.id().cast_signed();
        assert_eq!(found, [Found { pid, tag }]);
        assert_eq!(tagged(NODE_TAG, &format!("{fleet}-other/")), []);
        end(&found[0], NODE_TAG);
        assert!(!child.wait().unwrap().success());
    }
}
