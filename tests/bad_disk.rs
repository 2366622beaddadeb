//! A disk that fails, under `forerun serve`: an image on nbdfuse, whose server is told by files when to
//! fail.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

mod serving;

use serving::{Serving, client, have};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const START: Duration = Duration::from_secs(20);

/// An image whose reads, writes and flushes fail while there is a file of that name in its folder.
struct BadDisk {
    folder: tempfile::TempDir,
    fuse: Child,
}

impl BadDisk {
    fn new() -> BadDisk {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        std::fs::File::create(at.join("data"))
            .unwrap()
            .set_len(4 << 20)
            .unwrap();
        std::fs::create_dir(at.join("mount")).unwrap();
        let t = at.display();
        let fails = |what| format!("if [ -e {t}/{what} ]; then echo EIO told to >&2; exit 1; fi; ");
        let fuse = Command::new("nbdfuse")
            .arg(at.join("mount"))
            .args(["--command", "nbdkit", "-s", "eval", "get_size=echo 4M"])
            .args(["can_write=exit 0", "can_flush=exit 0"])
            .arg(format!(
                "pread={}dd if={t}/data skip=$4 count=$3 iflag=count_bytes,skip_bytes",
                fails("read")
            ))
            .arg(format!(
                "pwrite={}dd of={t}/data seek=$4 conv=notrunc oflag=seek_bytes",
                fails("write")
            ))
            .arg(format!("flush={}true", fails("flush")))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let disk = BadDisk { folder, fuse };
        let began = Instant::now();
        while !disk.image().exists() {
            assert!(began.elapsed() < START, "nbdfuse does not mount");
            std::thread::sleep(Duration::from_millis(10));
        }
        disk
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("mount/nbd")
    }

    /// Run `f` while `what` fails.
    fn failing<T>(&self, what: &str, f: impl FnOnce() -> T) -> T {
        let told = self.folder.path().join(what);
        std::fs::write(&told, "").unwrap();
        let result = f();
        std::fs::remove_file(&told).unwrap();
        result
    }
}

impl Drop for BadDisk {
    fn drop(&mut self) {
        let mount = self.folder.path().join("mount");
        let _ = Command::new("fusermount3").arg("-u").arg(&mount).status();
        let _ = self.fuse.kill();
        let _ = self.fuse.wait();
    }
}

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

fn can_run() -> bool {
    if !Path::new("/dev/fuse").exists() {
        eprintln!("skipped: no /dev/fuse");
        return false;
    }
    have(&["nbdfuse", "nbdkit", "nbdsh", "fusermount3"])
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
