//! A disk that fails, under `forerun serve`: an image on nbdfuse, whose server is told by files when to
//! fail.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

mod faulty_disk;
mod serving;

use faulty_disk::{BadDisk, can_run};
use serving::{Serving, client};

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
