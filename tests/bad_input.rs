//! What must not harm: wrong images, places that cannot be written, sockets that are taken, disks that
//! are full, and clients that say anything. Each gets a clear error that names the thing and what to do
//! about it, and everybody else is served on.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

mod serving;

use serving::mount::LoopMount;
use serving::raw::{COMMAND_READ, COMMAND_WRITE, OPTION_EXPORT_NAME, OPTION_GO, Raw};
use serving::{Image, Random, Serving, forerun, have, have_root, succeeds};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

/// Runs `forerun serve` with arguments that it must refuse; returns what it said.
fn refused(arguments: &[&str]) -> String {
    let mut child = Command::new(forerun())
        .arg("serve")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > Duration::from_secs(10) {
            child.kill().unwrap();
            panic!("serves {arguments:?}, which it must refuse");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    // 2 is for a command line that makes no sense; these are in order, and cannot be carried out.
    assert_eq!(code, Some(1), "{arguments:?}: {said}");
    assert!(
        !said.contains("panicked") && !said.contains("Os {"),
        "no message for a user: {said}"
    );
    said
}

/// The message names each of these, whatever its letters' case.
fn assert_names(said: &str, wanted: &[&str]) {
    for word in wanted {
        assert!(
            said.to_lowercase().contains(&word.to_lowercase()),
            "{word:?} is not in: {said}"
        );
    }
}

/// The default export still answers: reads its first block and writes its last.
fn assert_serves(serving: &Serving, image: &Path) {
    let mut raw = Raw::negotiated(serving.socket());
    raw.request(COMMAND_READ, 0, 512);
    assert_eq!(raw.reply(), Some(0));
    raw.receive::<512>().expect("data");
    let last = std::fs::metadata(image).unwrap().len() - 4096;
    raw.request(COMMAND_WRITE, last, 512);
    raw.send(&[9; 512]);
    assert_eq!(raw.reply(), Some(0));
}

#[test]
fn an_image_that_is_not_there_says_how_to_make_one() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("nothing");
    let socket = folder.path().join("sock");
    let (image, socket) = (image.to_str().unwrap(), socket.to_str().unwrap());
    let said = refused(&[image, "--socket", socket]);
    assert_names(&said, &[image, "--create"]);
}

#[test]
fn an_image_without_a_byte_or_that_is_a_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sock");
    let socket = socket.to_str().unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, b"").unwrap();
    let empty = empty.to_str().unwrap();
    assert_names(&refused(&[empty, "--socket", socket]), &[empty, "empty"]);
    let path = folder.path().to_str().unwrap();
    assert_names(&refused(&[path, "--socket", socket]), &[path, "directory"]);
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sock");
    // Nobody, root included, makes files here.
    let image = "/proc/self/forerun-image";
    let said = refused(&[
        image,
        "--create",
        "16M",
        "--socket",
        socket.to_str().unwrap(),
    ]);
    assert_names(&said, &[image]);

    let disk = Image::sparse(8);
    let socket = "/proc/self/forerun-socket";
    let said = refused(&[disk.path.to_str().unwrap(), "--socket", socket]);
    assert_names(&said, &[socket]);
}

#[test]
fn create_never_touches_an_image_that_is_there() {
    let image = Image::patterned(8, 1);
    let before = std::fs::read(&image.path).unwrap();
    let socket = image.folder.path().join("sock");
    let path = image.path.to_str().unwrap();
    let said = refused(&[
        path,
        "--create",
        "16M",
        "--socket",
        socket.to_str().unwrap(),
    ]);
    assert_names(&said, &[path, "exists"]);
    assert!(std::fs::read(&image.path).unwrap() == before);
}

#[test]
fn a_busy_socket_is_left_to_its_owner_and_a_stale_one_is_taken() {
    let image = Image::sparse(8);
    let other = Image::sparse(8);
    let serving = Serving::start(&image.path, &[]);
    let socket = serving.socket().to_str().unwrap().to_owned();
    let said = refused(&[other.path.to_str().unwrap(), "--socket", &socket]);
    assert_names(&said, &[&socket, "busy"]);
    assert_serves(&serving, &image.path);

    // What a killed server leaves behind is in nobody's way.
    let stale = image.folder.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let again = Serving::start_at(&other.path, &stale, &[]);
    assert_serves(&again, &other.path);
}

#[test]
fn a_busy_port_is_named() {
    let image = Image::sparse(8);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = refused(&[image.path.to_str().unwrap(), "--listen", &address]);
    assert_names(&said, &[&address, "in use"]);
}

/// Two servers that write one image destroy it: each takes the other's blocks for unchanged.
#[test]
fn one_image_is_served_once() {
    let image = Image::sparse(8);
    let serving = Serving::start(&image.path, &[]);
    let socket = image.folder.path().join("second");
    let path = image.path.to_str().unwrap();
    let said = refused(&[path, "--socket", socket.to_str().unwrap()]);
    assert_names(&said, &[path, "in use"]);
    assert_serves(&serving, &image.path);
}

/// Somebody shrinks the file under a running server: what is gone is an error, and the rest is served.
#[test]
fn an_image_cut_short_while_served_fails_only_where_it_is_missing() {
    for cache in ["direct", "writeback"] {
        let image = Image::patterned(16, 2);
        let serving = Serving::start(&image.path, &["--cache", cache]);
        let mut raw = Raw::negotiated(serving.socket());
        std::fs::File::options()
            .write(true)
            .open(&image.path)
            .unwrap()
            .set_len(8 << 20)
            .unwrap();
        raw.request(COMMAND_READ, 12 << 20, 4096);
        assert_eq!(raw.reply(), Some(EIO), "{cache}");
        raw.request(COMMAND_READ, 4 << 20, 512);
        assert_eq!(raw.reply(), Some(0), "{cache}");
        raw.receive::<512>().expect("data");
    }
}

/// The file system below is full: the write that finds no room says so, reads and overwrites go on,
/// and once there is room writes do too.
#[test]
fn a_full_disk_fails_the_write_that_needs_room_and_no_other() {
    if !have(&["mkfs.ext4", "mount", "qemu-io"]) || !have_root() {
        return;
    }
    let host = Image::sparse(24);
    succeeds("mkfs.ext4", &["-q", "-F", host.path.to_str().unwrap()]);
    let Some(mounted) = LoopMount::new(&host.path, None) else {
        return;
    };
    for cache in ["direct", "writeback"] {
        let image = mounted.path().join("image");
        std::fs::File::create(&image)
            .unwrap()
            .set_len(64 << 20)
            .unwrap();
        let serving = Serving::start(&image, &["--cache", cache]);
        let mut raw = Raw::negotiated(serving.socket());
        let mut full_at = None;
        for mib in 0..64u64 {
            raw.request(COMMAND_WRITE, mib << 20, 1 << 20);
            raw.send(&vec![7; 1 << 20]);
            match raw.reply() {
                Some(0) => {}
                Some(ENOSPC) => {
                    full_at = Some(mib);
                    break;
                }
                other => panic!("{cache}: {other:?} at {mib} MiB:\n{}", serving.log()),
            }
        }
        let full_at = full_at.expect("24 MiB hold no 64");
        assert!(full_at > 4, "{cache}: full at {full_at} MiB");
        raw.request(COMMAND_READ, 0, 512);
        assert_eq!(raw.reply(), Some(0), "{cache}");
        assert_eq!(raw.receive::<512>(), Some([7; 512]));
        raw.request(COMMAND_WRITE, 0, 512);
        raw.send(&[8; 512]);
        assert_eq!(raw.reply(), Some(0), "{cache}: an overwrite needs no room");
        serving.stop();
        std::fs::remove_file(&image).unwrap();
    }
}

/// Two nodes on one directory would each own its volumes.
#[test]
fn a_data_directory_has_one_node() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let config = folder.path().join("node.toml");
    let mut text = format!("name = \"a\"\ndata = {data:?}\n");
    for place in ["listen", "replication", "nbd"] {
        text += &format!("{place} = \"127.0.0.1:0\"\n");
    }
    std::fs::write(&config, text).unwrap();
    let node = |log: Stdio| {
        Command::new(forerun())
            .args(["node", "--config", config.to_str().unwrap()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    };
    let mut first = node(Stdio::null());
    let began = Instant::now();
    while !data.join("node.lock").exists() || !data.join("nbd.sock").exists() {
        assert!(began.elapsed() < Duration::from_secs(20), "no node starts");
        std::thread::sleep(Duration::from_millis(10));
    }
    let second = node(Stdio::piped()).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    let still_runs = first.try_wait().unwrap().is_none();
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert_names(&said, &[data.to_str().unwrap(), &first.id().to_string()]);
    assert!(still_runs, "the first node was harmed");
}

#[test]
fn a_breach_of_the_handshake_ends_that_connection_only() {
    let image = Image::sparse(8);
    let serving = Serving::start(&image.path, &[]);

    let mut flags = Raw::connect(serving.socket());
    flags.send(&0xffff_ffff_u32.to_be_bytes());
    assert!(flags.is_closed(), "unknown client flags");

    let mut magic = Raw::connect(serving.socket());
    magic.send(&3u32.to_be_bytes());
    magic.send(b"IHAVENOT\0\0\0\x03\0\0\0\0");
    assert!(magic.is_closed(), "wrong option magic");

    let mut name = Raw::connect(serving.socket());
    name.send(&3u32.to_be_bytes());
    name.option(OPTION_EXPORT_NAME, b"no such export");
    assert!(name.is_closed(), "unknown export by EXPORT_NAME");

    let mut huge = Raw::connect(serving.socket());
    huge.send(&3u32.to_be_bytes());
    huge.send(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff");
    huge.send(&[0; 4096]);
    huge.0.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(huge.is_closed(), "an option of 4 GiB");

    // GO whose name is longer than its data, then an option that nobody knows: both are answered.
    let mut go = Raw::connect(serving.socket());
    go.send(&3u32.to_be_bytes());
    go.option(OPTION_GO, b"\0\0\xff\xffx\0\0");
    let reply = go.receive::<20>().expect("an answer");
    assert_eq!(reply[12..16], 0x8000_0003_u32.to_be_bytes(), "ERR_INVALID");
    let length = u32::from_be_bytes(reply[16..20].try_into().unwrap());
    for _ in 0..length {
        go.receive::<1>().expect("the message");
    }
    go.option(0x7777, b"?");
    let reply = go.receive::<20>().expect("an answer");
    assert_eq!(reply[12..16], 0x8000_0001_u32.to_be_bytes(), "ERR_UNSUP");

    assert_serves(&serving, &image.path);
    serving.stop();
}

#[test]
fn a_bad_request_is_an_error_and_a_bad_stream_is_the_end() {
    let image = Image::sparse(8);
    let serving = Serving::start(&image.path, &[]);

    let mut raw = Raw::negotiated(serving.socket());
    raw.request(77, 0, 0);
    assert_eq!(raw.reply(), Some(EINVAL), "an unknown command");
    raw.request(COMMAND_READ, 8 << 20, 512);
    assert_eq!(raw.reply(), Some(EINVAL), "a read past the end");
    raw.request(COMMAND_READ, u64::MAX - 100, 4096);
    assert_eq!(raw.reply(), Some(EINVAL), "an offset that overflows");
    raw.request(COMMAND_WRITE, (8 << 20) - 512, 4096);
    raw.send(&[1; 4096]);
    assert_eq!(raw.reply(), Some(ENOSPC), "a write past the end");
    raw.request(COMMAND_READ, 0, 512);
    assert_eq!(raw.reply(), Some(0), "and the connection serves on");

    // A payload of 4 GiB is either refused or the end, and costs no memory.
    let mut huge = Raw::negotiated(serving.socket());
    let before = resident(serving.pid());
    huge.request(COMMAND_WRITE, 0, u32::MAX);
    huge.send(&vec![0; 1 << 20]);
    huge.0.shutdown(std::net::Shutdown::Write).unwrap();
    let _ = huge.is_closed();
    let grown = resident(serving.pid()).saturating_sub(before);
    assert!(grown < 64 << 20, "the server grew by {grown} bytes");

    let mut magic = Raw::negotiated(serving.socket());
    magic.send(&[0x42; 28]);
    assert!(magic.is_closed(), "wrong request magic");

    // Gone in the middle of its payload: nothing of it may be left behind in anybody's way.
    let mut gone = Raw::negotiated(serving.socket());
    gone.request(COMMAND_WRITE, 0, 1 << 20);
    gone.send(&[1; 5000]);
    drop(gone);

    assert_serves(&serving, &image.path);
    serving.stop();
}

/// The bytes of a process that are in memory.
fn resident(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: u64 = statm
        .split_whitespace()
        .nth(1)
        .and_then(|p| p.parse().ok())
        .unwrap();
    pages * 4096
}

/// Bytes without sense at every stage of a connection, while another client works.
#[test]
fn noise_harms_nobody() {
    const SEED: u64 = 20_240_607;
    const CONNECTIONS: u64 = 300;
    let image = Image::sparse(8);
    let mut serving = Serving::start(&image.path, &[]);
    let mut random = Random(SEED);
    let mut witness = Raw::negotiated(serving.socket());
    for turn in 0..CONNECTIONS {
        let mut raw = match turn % 3 {
            0 => Raw::connect(serving.socket()),
            1 => {
                let mut raw = Raw::connect(serving.socket());
                raw.send(&3u32.to_be_bytes());
                raw.send(b"IHAVEOPT");
                raw
            }
            _ => {
                // Reads only, so that noise after the header is no legal write.
                let mut raw = Raw::negotiated(serving.socket());
                raw.request(COMMAND_READ, random.next(), random.next() as u32);
                raw
            }
        };
        let noise: Vec<u8> = (0..random.next() % 200)
            .map(|_| random.next() as u8)
            .collect();
        raw.send(&noise);
        drop(raw);
        witness.request(COMMAND_READ, 4096, 512);
        assert_eq!(witness.reply(), Some(0), "seed {SEED}, turn {turn}");
        witness.receive::<512>().expect("data");
    }
    assert!(serving.is_alive(), "{}", serving.log());
    serving.stop();
}

/// Clients that connect and then say nothing: they are shown the door, and until then cost nobody
/// else anything.
#[test]
fn silent_clients_do_not_keep_others_out() {
    let image = Image::sparse(8);
    let serving = Serving::start(&image.path, &[]);
    let mut silent: Vec<Raw> = (0..64).map(|_| Raw::connect(serving.socket())).collect();
    let began = Instant::now();
    assert_serves(&serving, &image.path);
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "took {:?} beside silent clients",
        began.elapsed()
    );
    let first = silent.first_mut().unwrap();
    assert!(first.is_closed(), "a silent handshake has 10 seconds");
    serving.stop();
}
