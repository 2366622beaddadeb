//! The clients that people use, against `forerun serve`: libnbd's tools and its Python shell, QEMU's
//! tools, fio, and a file system over nbdfuse.
//!
//! Each test skips with a printed reason where its client is not installed. Those that move data run
//! in both cache modes, since the two take different ways to the disk.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

mod serving;

use serving::{Image, Serving, client, have, have_root, succeeds};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const CACHE_MODES: [&str; 2] = ["direct", "writeback"];

fn assert_same(a: &Path, b: &Path) {
    let (a_bytes, b_bytes) = (std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
    assert_eq!(a_bytes.len(), b_bytes.len(), "{a:?} and {b:?}");
    if let Some(at) = a_bytes.iter().zip(&b_bytes).position(|(a, b)| a != b) {
        panic!("{a:?} and {b:?} differ, first at byte {at}");
    }
}

#[test]
fn nbdinfo_sees_size_and_every_promise() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let image = Image::sparse(64);
    let serving = Serving::start(&image.path, &[]);
    let info: serde_json::Value =
        serde_json::from_str(&succeeds("nbdinfo", &["--json", &serving.uri()])).unwrap();
    let export = &info["exports"][0];
    assert_eq!(info["protocol"], "newstyle-fixed", "{info}");
    assert_eq!(export["export-size"], 64 * MIB, "{info}");
    for promise in [
        "can_cache",
        "can_df",
        "can_fast_zero",
        "can_flush",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
    ] {
        assert_eq!(export[promise], true, "{promise} in {info}");
    }
    assert_eq!(export["is_read_only"], false, "{info}");
    let contexts = export["contexts"].as_array().unwrap();
    assert!(
        contexts.iter().any(|c| c == "base:allocation"),
        "no base:allocation in {info}"
    );
    // 512-byte and odd requests are legal: direct I/O bounces them.
    assert!(
        export["block_size_minimum"].as_u64().unwrap() <= 512,
        "{info}"
    );
    assert_eq!(export["block_size_preferred"], 4096, "{info}");
    serving.stop();
}

#[test]
fn nbdinfo_maps_data_and_holes() {
    if !have(&["nbdinfo", "qemu-io"]) {
        return;
    }
    let image = Image::sparse(64);
    let serving = Serving::start(&image.path, &[]);
    let uri = serving.uri();
    succeeds(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 7 8M 1M", "-c", "flush", &uri],
    );
    let map: serde_json::Value =
        serde_json::from_str(&succeeds("nbdinfo", &["--json", "--map", &uri])).unwrap();
    let mut data = 0;
    let mut covered = 0;
    for extent in map.as_array().unwrap() {
        assert_eq!(extent["offset"], covered, "gap in {map}");
        let length = extent["length"].as_u64().unwrap();
        covered += length;
        if extent["type"] == 0 {
            assert!(
                extent["offset"].as_u64().unwrap() >= 8 * MIB
                    && extent["offset"].as_u64().unwrap() + length <= 9 * MIB,
                "data outside of what was written: {map}"
            );
            data += length;
        }
    }
    assert_eq!((covered, data), (64 * MIB, MIB), "{map}");
    serving.stop();
}

#[test]
fn nbdcopy_brings_back_what_it_took_there() {
    if !have(&["nbdcopy"]) {
        return;
    }
    for cache in CACHE_MODES {
        let source = Image::patterned(48, 1);
        let image = Image::sparse(48);
        let back = image.folder.path().join("back");
        let serving = Serving::start(&image.path, &["--cache", cache]);
        succeeds(
            "nbdcopy",
            &[
                "--flush",
                "--connections=4",
                source.path.to_str().unwrap(),
                &serving.uri(),
            ],
        );
        succeeds("nbdcopy", &[&serving.uri(), back.to_str().unwrap()]);
        assert_same(&source.path, &back);
        serving.stop();
        assert_same(&source.path, &image.path);
    }
}

/// Runs in nbdsh: `h` is connected. Every command with its flags, at aligned and odd places, and the
/// errors that the specification wants.
const NBDSH: &str = r#"
import errno
KiB, MiB = 1024, 1024 * 1024
assert h.get_size() == 16 * MiB
def content(offset, length):
    return bytes(h.pread(length, offset))
def refused(operation, *codes):
    try:
        operation()
    except nbd.Error as error:
        assert error.errnum in codes, (error.errnum, codes)
    else:
        raise AssertionError("was not refused")

h.pwrite(b"a" * 4096, 0)
h.pwrite(b"b" * 512, 512, nbd.CMD_FLAG_FUA)
h.pwrite(b"c" * 7, 4093)
assert content(0, 5000) == b"a" * 512 + b"b" * 512 + b"a" * (4093 - 1024) + b"c" * 7 + b"\0" * 900
h.flush()
h.cache(64 * KiB, 0)

h.pwrite(b"z" * 256 * KiB, MiB)
h.zero(64 * KiB, MiB)
h.zero(64 * KiB, MiB + 64 * KiB, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.trim(64 * KiB, MiB + 128 * KiB)
assert content(MiB, 192 * KiB) == b"\0" * 192 * KiB
assert content(MiB + 192 * KiB, 64 * KiB) == b"z" * 64 * KiB
h.zero(100, MiB + 200 * KiB + 3)
assert content(MiB + 200 * KiB, 110) == b"zzz" + b"\0" * 100 + b"z" * 7

extents = []
h.block_status(16 * MiB, 0, lambda context, offset, entries, error: extents.extend(entries))
assert sum(extents[::2]) == 16 * MiB, extents
one = []
h.block_status(16 * MiB, 0, lambda context, offset, entries, error: one.extend(entries), nbd.CMD_FLAG_REQ_ONE)
assert len(one) == 2 and one[0] <= 16 * MiB, one

chunks = []
into = h.pread_structured(128 * KiB, MiB + 128 * KiB,
    lambda data, offset, status, error: chunks.append((offset, len(data), status)), nbd.CMD_FLAG_DF)
assert len(chunks) == 1 and chunks[0][:2] == (MiB + 128 * KiB, 128 * KiB), chunks

h.set_strict_mode(0)
refused(lambda: h.pread(4096, 16 * MiB), errno.EINVAL)
refused(lambda: h.pread(4096, 16 * MiB - 512), errno.EINVAL)
refused(lambda: h.pwrite(b"x" * 4096, 16 * MiB), errno.ENOSPC)
refused(lambda: h.zero(4096, 2**63), errno.ENOSPC, errno.EINVAL)
refused(lambda: h.trim(4096, 16 * MiB), errno.EINVAL, errno.ENOSPC)
refused(lambda: h.pwrite(b"x" * 512, 0, 1 << 9), errno.EINVAL)
assert content(0, 512) == b"a" * 512, "after all refusals the connection serves on"
"#;

#[test]
fn nbdsh_finds_every_command_and_its_errors() {
    if !have(&["nbdsh"]) {
        return;
    }
    for cache in CACHE_MODES {
        let image = Image::sparse(16);
        let serving = Serving::start(&image.path, &["--cache", cache]);
        succeeds(
            "nbdsh",
            &["--base-allocation", "-u", &serving.uri(), "-c", NBDSH],
        );
        serving.stop();
    }
}

/// A FLUSH on one connection covers what another was told is written.
#[test]
fn a_flush_covers_every_connection() {
    if !have(&["nbdsh"]) {
        return;
    }
    let image = Image::sparse(16);
    let serving = Serving::start(&image.path, &["--cache", "writeback"]);
    let script = format!(
        "
import nbd
other = nbd.NBD()
other.connect_uri({:?})
for i in range(64):
    h.pwrite(bytes([i + 1]) * 4096, i * 4096)
    other.flush()
    assert bytes(other.pread(4096, i * 4096)) == bytes([i + 1]) * 4096, i
",
        serving.uri()
    );
    succeeds("nbdsh", &["-u", &serving.uri(), "-c", &script]);
    serving.stop();
}

#[test]
fn qemu_img_converts_and_compares() {
    if !have(&["qemu-img"]) {
        return;
    }
    for cache in CACHE_MODES {
        let source = Image::patterned(32, 2);
        let image = Image::sparse(32);
        let serving = Serving::start(&image.path, &["--cache", cache]);
        let uri = serving.uri();
        let source_path = source.path.to_str().unwrap();
        succeeds(
            "qemu-img",
            &["convert", "-n", "-f", "raw", "-O", "raw", source_path, &uri],
        );
        succeeds(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", source_path, &uri],
        );
        let info = succeeds("qemu-img", &["info", "--output=json", "-f", "raw", &uri]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["virtual-size"], 32 * MIB);
        serving.stop();
        assert_same(&source.path, &image.path);
    }
}

#[test]
fn qemu_io_verifies_patterns() {
    if !have(&["qemu-io"]) {
        return;
    }
    for cache in CACHE_MODES {
        let image = Image::sparse(32);
        let serving = Serving::start(&image.path, &["--cache", cache]);
        let uri = serving.uri();
        let commands = [
            "aio_write -P 0x11 0 4M",
            "aio_write -P 0x22 4M 4M",
            "aio_flush",
            "write -P 0x33 -f 1M 512",
            "write -z -u 2M 1M",
            "write -z 3M 64k",
            "discard 5M 1M",
            "read -P 0x11 0 1M",
            "read -P 0x33 1M 512",
            "read -P 0x11 1049088 512",
            "read -P 0 2M 1088k",
            "read -P 0x22 4M 1M",
            "read -P 0 5M 1M",
            "read -P 0x22 6M 2M",
            "read -P 0 8M 24M",
        ];
        let mut arguments = vec!["-f", "raw"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(&uri);
        let said = succeeds("qemu-io", &arguments);
        assert!(
            !said.contains("Pattern verification failed") && !said.contains("failed:"),
            "{said}"
        );
        serving.stop();
    }
}

#[test]
fn fio_verifies_what_it_wrote_at_depth() {
    if !have(&["fio"]) {
        return;
    }
    for cache in CACHE_MODES {
        let image = Image::sparse(64);
        let serving = Serving::start(&image.path, &["--cache", cache]);
        let uri = format!("--uri={}", serving.uri());
        succeeds(
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &uri,
                "--rw=randwrite",
                "--bsrange=512-128k",
                "--bs_unaligned=0",
                "--size=64m",
                "--io_size=64m",
                "--iodepth=32",
                "--fsync=64",
                "--verify=crc32c",
                "--do_verify=1",
                "--verify_fatal=1",
                "--randseed=7",
            ],
        );
        serving.stop();
    }
}

#[test]
fn a_file_system_lives_on_it_through_nbdfuse() {
    if !have(&["nbdfuse", "mkfs.ext4", "e2fsck", "fusermount3"]) || !have_root() {
        return;
    }
    if !Path::new("/dev/fuse").exists() {
        eprintln!("skipped: this machine has no /dev/fuse");
        return;
    }
    let image = Image::sparse(64);
    let serving = Serving::start(&image.path, &[]);
    let mount = Mounted::new(&serving.uri());
    let disk = mount.folder.path().join("nbd");
    let disk = disk.to_str().unwrap();
    succeeds("mkfs.ext4", &["-q", "-F", disk]);
    succeeds("e2fsck", &["-fn", disk]);
    // A kernel's own file system on top, where loop devices exist.
    let tree = tempfile::tempdir().unwrap();
    let tree_path = tree.path().to_str().unwrap();
    let mounted = client("mount", &["-o", "loop", disk, tree_path]);
    if mounted.status.success() {
        let source = Image::patterned(8, 3);
        let copy = tree.path().join("copy");
        std::fs::copy(&source.path, &copy).unwrap();
        succeeds("sync", &["-f", copy.to_str().unwrap()]);
        assert_same(&source.path, &copy);
        succeeds("umount", &[tree_path]);
        succeeds("e2fsck", &["-fn", disk]);
    } else {
        eprintln!(
            "without the mount: {}",
            String::from_utf8_lossy(&mounted.stderr)
        );
    }
    drop(mount);
    serving.stop();
    succeeds("e2fsck", &["-fn", image.path.to_str().unwrap()]);
}

/// An nbdfuse mount: the export as the file `nbd` in a folder.
struct Mounted {
    folder: tempfile::TempDir,
    process: std::process::Child,
}

impl Mounted {
    fn new(uri: &str) -> Mounted {
        let folder = tempfile::tempdir().unwrap();
        let process = Command::new("nbdfuse")
            .arg(folder.path())
            .arg(uri)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut mounted = Mounted { folder, process };
        let began = Instant::now();
        while !mounted.folder.path().join("nbd").exists() {
            let ended = mounted.process.try_wait().unwrap();
            assert!(
                ended.is_none() && began.elapsed() < Duration::from_secs(20),
                "nbdfuse does not mount {uri} ({ended:?})"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        mounted
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("fusermount3")
            .arg("-u")
            .arg(self.folder.path())
            .status();
        let _ = self.process.wait();
    }
}

#[test]
fn a_read_only_export_is_read_and_never_written() {
    if !have(&["nbdinfo", "nbdsh"]) {
        return;
    }
    let image = Image::patterned(8, 4);
    let before = std::fs::read(&image.path).unwrap();
    let serving = Serving::start(&image.path, &["--read-only"]);
    let info: serde_json::Value =
        serde_json::from_str(&succeeds("nbdinfo", &["--json", &serving.uri()])).unwrap();
    assert_eq!(info["exports"][0]["is_read_only"], true, "{info}");
    let script = "
import errno
h.set_strict_mode(0)
for attempt in (lambda: h.pwrite(b'x' * 4096, 0), lambda: h.zero(4096, 0), lambda: h.trim(4096, 0)):
    try:
        attempt()
    except nbd.Error as error:
        assert error.errnum == errno.EPERM, error
    else:
        raise AssertionError('was not refused')
h.pread(4096, 0)
";
    succeeds("nbdsh", &["-u", &serving.uri(), "-c", script]);
    serving.stop();
    assert!(std::fs::read(&image.path).unwrap() == before);
}

#[test]
fn an_export_has_the_name_that_it_was_given_and_no_other() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let image = Image::sparse(8);
    let serving = Serving::start(&image.path, &["--export", "web-01"]);
    let listed = succeeds("nbdinfo", &["--list", "--json", &serving.uri()]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["exports"][0]["export-name"], "web-01", "{listed}");
    succeeds("nbdinfo", &["--size", &serving.uri_of("web-01")]);
    for stranger in ["web-02", "../web-01", "web-01/"] {
        let refused = client("nbdinfo", &["--size", &serving.uri_of(stranger)]);
        assert!(
            !refused.status.success(),
            "export {stranger:?} was opened: {refused:?}"
        );
    }
    serving.stop();
}
