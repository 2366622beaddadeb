//! A disk that fails, under `forerun serve` and under a node: an image on nbdfuse, whose server is told by
//! files when to fail, and a file system on it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

mod faulty_disk;
mod fleet_processes;
mod serving;

use faulty_disk::{BadDisk, BadFileSystem, can_run, forget_cached};
use fleet_processes::{Fleet, PATIENCE, VOLUME, Who};
use node::client::Client;
use proto::v1::{ReplicaState, VolumeRole};
use serving::{Serving, client};

const MIB: u64 = 1 << 20;

/// Whether a client's call succeeds; if not it must be with EIO.
fn succeeds(serving: &Serving, call: &str) -> bool {
    let output = client("nbdsh", &["-u", &serving.uri(), "-c", call]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() || said.contains("Input/output error"),
        "{call}: {said}"
    );
    output.status.success()
}

/// What the disk cannot do now hurts the request that asked for it, and nothing after it.
#[test]
fn an_io_error_hurts_that_io_only() {
    if !can_run() {
        return;
    }
    for cache in ["direct", "writeback"] {
        let disk = BadDisk::new();
        let serving = Serving::start(&disk.image(), &["--cache", cache]);
        let read = "assert h.pread(4096, 1 << 20) == bytearray(4096)";
        assert!(
            !disk.failing("read", || succeeds(&serving, read)),
            "{cache}"
        );
        assert!(succeeds(&serving, read), "{cache}");
        let write = "h.pwrite(b'x' * 4096, 8192); h.flush()";
        if cache == "direct" {
            // Through the page cache a failed write shows at the sync: the other test.
            let only = "h.pwrite(b'x' * 4096, 8192)";
            assert!(
                !disk.failing("write", || succeeds(&serving, only)),
                "{cache}"
            );
        }
        assert!(succeeds(&serving, write), "{cache}");
        serving.stop();
    }
}

/// After a failed fdatasync the kernel may have dropped what it could not write, and the next fdatasync
/// succeeds all the same. PostgreSQL lost data to that in 2018: it tried again, was told that all was
/// well, and forgot its log. So the volume stops, though the disk works again, until it is opened anew.
#[test]
fn a_failed_sync_stops_the_volume_for_good() {
    if !can_run() {
        return;
    }
    for cache in ["direct", "writeback"] {
        let disk = BadDisk::new();
        let serving = Serving::start(&disk.image(), &["--cache", cache]);
        let write = "h.pwrite(b'x' * 4096, 0)";
        let flush = "h.pwrite(b'y' * 4096, 0); h.flush()";
        assert!(succeeds(&serving, flush), "{cache}: a good disk");
        assert!(
            !disk.failing("flush", || succeeds(&serving, flush)),
            "{cache}"
        );
        for call in [flush, write, "h.pread(4096, 0)", "h.flush()"] {
            assert!(
                !succeeds(&serving, call),
                "{cache}: {call} on a poisoned volume"
            );
        }
        assert!(
            serving.log().contains("fdatasync failed"),
            "{}",
            serving.log()
        );
        drop(serving);
        let serving = Serving::start(&disk.image(), &["--cache", cache]);
        assert!(succeeds(&serving, flush), "{cache}: opened anew");
        serving.stop();
    }
}

/// After a failed sync the pages that could not be written are clean, and the kernel serves them for as
/// long as it has room. A server that was started again read from them what no disk had, and its next sync
/// succeeded; then the pages went, and with them what a client had read and flushed.
#[test]
fn what_a_failed_sync_dropped_is_not_served_from_memory() {
    let Some(bad) = BadFileSystem::new(8, None) else {
        return;
    };
    let image = bad.path().join("image");
    std::fs::write(&image, vec![b'a'; MIB as usize]).unwrap();
    std::fs::File::open(&image).unwrap().sync_all().unwrap();
    let serving = Serving::start(&image, &["--cache", "writeback"]);
    let write = "h.pwrite(b'b' * 4096, 0); h.flush()";
    assert!(!bad.disk.failing("write", || succeeds(&serving, write)));
    drop(serving);
    let serving = Serving::start(&image, &["--cache", "writeback"]);
    let had = "assert h.pread(4096, 0) == b'a' * 4096; h.flush()";
    assert!(succeeds(&serving, had), "read what the disk does not have");
    assert!(succeeds(&serving, write), "opened anew");
    serving.stop();
    forget_cached(&image);
    assert_eq!(std::fs::read(&image).unwrap()[..4096], [b'b'; 4096]);
}

fn owned(fleet: &Fleet) {
    fleet.until("a owns the volume", || {
        (fleet.role(Who::Source)? == VolumeRole::Owner).then_some(())
    });
}

/// The same under a node's metadata. The promise that an area may differ was not written; after a restart
/// it was read from the kernel's memory, counted as durable, and the data that it covers was written. Then
/// the power went: the replica differed there, and nobody knew.
#[test]
fn an_intent_that_a_failed_sync_dropped_is_made_durable_before_its_data() {
    let mut fleet = Fleet::start();
    let Some(bad) = fleet.move_home(Who::Source, |home| BadFileSystem::new(64, Some(home))) else {
        return;
    };
    fleet.run(&["volume", "create", VOLUME, "--size", "16M", "--node", "a"]);
    let guest = |fleet: &Fleet| Client::connect(&fleet.uri("a", VOLUME), &[], PATIENCE).unwrap();
    guest(&fleet).write(0, &[1; 4096], true).unwrap();
    fleet.run(&["replica", "add", VOLUME, "--to", "b"]);
    // From here on nothing is replicated.
    fleet.kill(Who::Target);
    let far = 8 * MIB;
    let refused = bad
        .disk
        .failing("write", || guest(&fleet).write(far, &[2; 4096], true));
    assert!(refused.is_err(), "an intent could not be written");
    fleet.kill(Who::Source);
    fleet.restart(Who::Source);
    owned(&fleet);
    guest(&fleet).write(far, &[3; 4096], true).unwrap();
    fleet.kill(Who::Source);
    forget_cached(&fleet.volume("a", VOLUME).join("meta"));
    fleet.restart(Who::Source);
    fleet.restart(Who::Target);
    fleet.until("the replica has the same bytes", || {
        (fleet.replica()?.state() == ReplicaState::Consistent).then_some(())?;
        let [a, b] = ["a", "b"].map(|n| {
            let image = fleet.volume(n, VOLUME).join("image");
            std::fs::read(image).unwrap()
        });
        (a == b && a[far as usize] == 3).then_some(())
    });
    fleet.terminate(Who::Source);
}
