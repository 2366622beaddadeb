//! Increments through NBD from `forerun serve --state`: what changed since a checkpoint, also after the
//! server was killed.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

mod serving;

use serving::{Image, Serving, forerun, have, succeeds};
use std::path::Path;
use std::process::Command;

const MIB: u64 = 1 << 20;
const AREA: u64 = 4 * MIB;

/// What the server says changed, as `start..end`.
fn dirty(serving: &Serving, checkpoint: &str) -> Vec<(u64, u64)> {
    let map = format!("--map=qemu:dirty-bitmap:{checkpoint}");
    let said = succeeds("nbdinfo", &["--json", &map, &serving.uri()]);
    let extents: Vec<serde_json::Value> = serde_json::from_str(&said).unwrap();
    let number = |e: &serde_json::Value, key| e[key].as_u64().unwrap();
    let dirty = extents.iter().filter(|e| number(e, "type") == 1);
    dirty
        .map(|e| {
            (
                number(e, "offset"),
                number(e, "offset") + number(e, "length"),
            )
        })
        .collect()
}

fn write(serving: &Serving, command: &str) {
    succeeds("qemu-io", &["-f", "raw", "-c", command, &serving.uri()]);
}

fn options(state: &Path) -> [&str; 4] {
    ["--state", state.to_str().unwrap(), "--checkpoint", "monday"]
}

/// A backup tool asks for what changed since its last backup. While the server runs the answer is exact
/// to the block; after SIGKILL it is whole areas, and never less than what was written.
#[test]
fn a_checkpoint_outlives_a_killed_server() {
    if !have(&["nbdinfo", "qemu-io"]) {
        return;
    }
    let image = Image::sparse(64);
    let state = image.folder.path().join("state");
    let serving = Serving::start(&image.path, &options(&state));
    assert_eq!(dirty(&serving, "monday"), []);
    write(&serving, "write 8M 4k");
    write(&serving, "write 20M 12k");
    let exact = [(8 * MIB, 8 * MIB + 4096), (20 * MIB, 20 * MIB + 12288)];
    assert_eq!(dirty(&serving, "monday"), exact);

    drop(serving); // SIGKILL
    let both = [&options(&state)[..], &["--checkpoint", "tuesday"]].concat();
    let serving = Serving::start(&image.path, &both);
    let areas = [(8 * MIB, 8 * MIB + AREA), (20 * MIB, 20 * MIB + AREA)];
    assert_eq!(dirty(&serving, "monday"), areas);
    assert_eq!(dirty(&serving, "tuesday"), [], "begins now");
    write(&serving, "write 40M 4k");
    let since = [(40 * MIB, 40 * MIB + 4096)];
    assert_eq!(dirty(&serving, "tuesday"), since);
    assert_eq!(dirty(&serving, "monday"), [&areas[..], &since].concat());
    serving.stop();

    // The checkpoints are in the file: they need not be named again.
    let serving = Serving::start(&image.path, &["--state", state.to_str().unwrap()]);
    for (offset, end) in [areas[0], areas[1], since[0]] {
        let covered = |&(o, e): &(u64, u64)| o <= offset && end <= e;
        assert!(
            dirty(&serving, "monday").iter().any(covered),
            "{offset}..{end}"
        );
    }
    serving.stop();
}

/// The state of one image says nothing about another: taken for it, what differs would look clean.
#[test]
fn the_state_of_another_image_is_refused() {
    let (image, other) = (Image::sparse(16), Image::sparse(16));
    let state = image.folder.path().join("state");
    Serving::start(&image.path, &options(&state)).stop();
    let output = Command::new(forerun())
        .arg("serve")
        .arg(&other.path)
        .args(["--socket", other.folder.path().join("s").to_str().unwrap()])
        .args(options(&state))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("belongs to the image") && said.contains("--state"),
        "{said}"
    );
}
