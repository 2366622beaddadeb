//! Everybody else's clients against our protocol: what they make of the handshake, of holes,
//! extents, errors and large requests. A tool that is not installed is named and passed over.

use crate::scratch::Scratch;
use crate::server::{Disk, Server};
use std::process::Command;

/// Output of a tool, which must succeed; `None` if it is not installed.
#[allow(clippy::print_stderr)] // a test that checks less than it could must say so
fn run(tool: &str, args: &[&str]) -> Option<String> {
    let output = match Command::new(tool)
        .args(args)
        // nbdsh is a script of the system's Python
        .env("PATH", "/usr/bin:/bin")
        .output()
    {
        Ok(output) => output,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("{tool} is not installed: passed over");
            return None;
        }
        Err(e) => panic!("{tool}: {e}"),
    };
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(
        output.status.success(),
        "{tool} {args:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    Some(text(&output.stdout) + &text(&output.stderr))
}

/// A disk of data, holes and a tail that is no whole block.
fn image() -> Vec<u8> {
    let mut bytes = vec![0; (8 << 20) + 512];
    for (i, b) in bytes.iter_mut().enumerate() {
        if (i / 65_536) % 3 == 1 || i >= 8 << 20 {
            *b = (i as u32).wrapping_mul(2_654_435_761) as u8 | 1;
        }
    }
    bytes
}

fn scratch(name: &str, content: &[u8]) -> (Scratch, String) {
    let dir = Scratch::new();
    let path = dir.path(name);
    std::fs::write(&path, content).unwrap();
    (dir, path)
}

#[test]
fn nbdinfo_sees_all_that_is_offered() {
    let server = Server::start(Disk::new(1 << 20));
    for uri in [&server.unix, &server.tcp] {
        let Some(text) = run("nbdinfo", &["--json", uri]) else {
            return;
        };
        for fact in [
            "\"structured\": true",
            "\"export-name\": \"disk\"",
            "\"description\": \"a disk in memory\"",
            "\"base:allocation\"",
            "\"qemu:dirty-bitmap:start\"",
            "\"can_multi_conn\": true",
            "\"can_df\": true",
            "\"can_fast_zero\": true",
            "\"can_cache\": true",
            "\"block_size_preferred\": 4096",
            "\"block_size_maximum\": 33554432",
            "\"export-size\": 1048576",
        ] {
            assert!(text.contains(fact), "{fact} in {text}");
        }
    }
    let all = server.unix.replace("/disk?", "/?");
    let Some(text) = run("nbdinfo", &["--list", &all]) else {
        return;
    };
    assert!(text.contains("export=\"disk\""), "{text}");
}

#[test]
fn nbdinfo_maps_holes_and_dirty_blocks() {
    let server = Server::start(Disk::new(1 << 20));
    let uri = server.unix.parse().unwrap();
    let mut client =
        nbd::client::Client::connect(&uri, &[], std::time::Duration::from_secs(10)).unwrap();
    client.write(65_536, &[7; 8192], false).unwrap();
    let Some(map) = run("nbdinfo", &["--map", &server.unix]) else {
        return;
    };
    let rows: Vec<Vec<&str>> = map
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0][..3], ["0", "65536", "3"], "{map}");
    assert_eq!(rows[1][..3], ["65536", "8192", "0"], "{map}");
    let context = "--map=qemu:dirty-bitmap:start";
    let Some(map) = run("nbdinfo", &[context, &server.unix]) else {
        return;
    };
    assert!(
        map.lines()
            .any(|l| l.split_whitespace().take(3).eq(["65536", "8192", "1"])),
        "{map}"
    );
}

#[test]
fn nbdcopy_brings_an_image_in_and_out() {
    let content = image();
    let (dir, path) = scratch("in", &content);
    for uri in 0..2 {
        let server = Server::start(Disk::new(content.len()));
        let uri = if uri == 0 { &server.unix } else { &server.tcp };
        let Some(_) = run("nbdcopy", &["--flush", &path, uri]) else {
            return;
        };
        assert!(server.disk.content() == content);
        let out = dir.path("out");
        run("nbdcopy", &[uri, &out]);
        assert!(std::fs::read(&out).unwrap() == content);
    }
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    let content = image();
    let (_dir, path) = scratch("in", &content);
    let server = Server::start(Disk::new(content.len()));
    let convert = [
        "convert",
        "-n",
        "-f",
        "raw",
        "-O",
        "raw",
        &path,
        &server.unix,
    ];
    let Some(_) = run("qemu-img", &convert) else {
        return;
    };
    assert!(server.disk.content() == content);
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &path, &server.unix],
    );
    let map = run(
        "qemu-img",
        &["map", "-f", "raw", "--output=json", &server.unix],
    )
    .unwrap();
    assert!(map.contains("\"start\": 65536, \"length\": 65536"), "{map}");
    run("qemu-img", &["info", "-f", "raw", &server.tcp]);
}

#[test]
fn qemu_io_writes_verifies_zeroes_and_discards() {
    let server = Server::start(Disk::new(8 << 20));
    let script = [
        "write -P 0xcd 4096 65536",
        "read -P 0xcd 4096 65536",
        "write -f -P 0xab 100k 7k",
        "read -P 0xab 100k 7k",
        "write -z 8k 4k",
        "read -P 0 8k 4k",
        "write -z -u 16k 4k",
        "read -P 0 16k 4k",
        "discard 32k 8k",
        "aio_write -P 0x11 1M 2M",
        "aio_write -P 0x22 4M 2M",
        "aio_flush",
        "read -P 0x11 1M 2M",
        "read -P 0x22 4M 2M",
        "flush",
    ];
    let mut args = vec!["-f", "raw"];
    for command in script {
        args.extend(["-c", command]);
    }
    args.push(&server.unix);
    let Some(text) = run("qemu-io", &args) else {
        return;
    };
    assert!(!text.contains("failed"), "{text}");
    let bytes = server.disk.content();
    assert!(bytes[1 << 20..3 << 20].iter().all(|b| *b == 0x11));
    assert!(bytes[8192..12288].iter().all(|b| *b == 0));
}

/// fio's nbd engine writes blocks with checksums, many at once, and reads them back.
#[test]
fn fio_verifies_what_it_wrote() {
    let server = Server::start(Disk::new(8 << 20));
    let uri = format!("--uri={}", server.unix);
    let scratch = Scratch::new();
    let state = format!("--aux-path={}", scratch.path(""));
    let args = [
        "--name=x",
        "--ioengine=nbd",
        &uri,
        &state,
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=32",
        "--size=8M",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
    ];
    let Some(text) = run("fio", &args) else {
        return;
    };
    assert!(text.contains("err= 0"), "{text}");
}

/// libnbd lets a script be impolite: strict mode off sends what a careful client would not.
#[test]
fn nbdsh_gets_the_errors_of_the_specification() {
    let mut disk = Disk::new(1 << 20);
    disk.bad = 8192..8704;
    let server = Server::start(disk);
    let script = r#"
import errno
h.set_strict_mode(0)
def fails(number, f):
    try:
        f()
    except nbd.Error as e:
        assert e.errnum == number, (e.errnum, number, str(e))
        return
    raise AssertionError("no error")
end = 1 << 20
fails(errno.EINVAL, lambda: h.pread(512, end))
fails(errno.ENOSPC, lambda: h.pwrite(b"x" * 512, end))
fails(errno.ENOSPC, lambda: h.zero(4096, end - 512))
fails(errno.EINVAL, lambda: h.trim(4096, end - 512))
fails(errno.EINVAL, lambda: h.cache(4096, end))
fails(errno.EIO, lambda: h.pread(4096, 8192))
fails(errno.EINVAL, lambda: h.pread(512, 0, nbd.CMD_FLAG_NO_HOLE))
fails(errno.EINVAL, lambda: h.pwrite(b"x" * 512, 0, nbd.CMD_FLAG_DF))
h.pwrite(b"y" * 512, 512, nbd.CMD_FLAG_FUA)
assert h.pread(512, 512) == b"y" * 512
h.zero(512, 512, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
assert h.pread(512, 512, nbd.CMD_FLAG_DF) == bytes(512)
h.flush()
h.shutdown()
"#;
    run("nbdsh", &["-u", &server.unix, "-c", script]);
}

/// Options out of order, unknown contexts, listing twice: libnbd's option mode drives a
/// negotiation step by step.
#[test]
fn nbdsh_negotiates_step_by_step() {
    let server = Server::start(Disk::new(1 << 20));
    let script = format!(
        r#"
h.set_opt_mode(True)
h.connect_unix("{}")
names = []
h.opt_list(lambda name, description: names.append(name))
assert names == ["disk"], names
h.set_export_name("none such")
try:
    h.opt_info()
    raise AssertionError("no error")
except nbd.Error:
    pass
h.set_export_name("disk")
h.opt_info()
assert h.get_size() == 1 << 20
contexts = []
h.opt_list_meta_context(lambda name: contexts.append(name))
assert contexts == ["base:allocation", "qemu:dirty-bitmap:start"], contexts
h.add_meta_context("base:allocation")
h.add_meta_context("x-unknown:context")
h.opt_go()
assert h.can_meta_context("base:allocation")
assert not h.can_meta_context("x-unknown:context")
assert h.get_structured_replies_negotiated()
h.shutdown()
"#,
        server.socket
    );
    run("nbdsh", &["-c", &script]);
}

/// Clients of an older world: EXPORT_NAME, no structured replies, no contexts, and an export that
/// can only be read and written.
#[test]
fn nbdsh_without_any_extension_still_has_a_disk() {
    let mut disk = Disk::new(1 << 20);
    disk.plain = true;
    let server = Server::start(disk);
    let script = format!(
        r#"
h.set_request_structured_replies(False)
h.set_handshake_flags(0)
h.set_export_name("disk")
h.connect_unix("{}")
assert not h.get_structured_replies_negotiated()
assert h.get_size() == 1 << 20
h.pwrite(b"z" * 65536, 100)
assert h.pread(65536, 100) == b"z" * 65536
assert not h.can_flush() and not h.can_trim()
h.shutdown()
"#,
        server.socket
    );
    run("nbdsh", &["-c", &script]);
}
