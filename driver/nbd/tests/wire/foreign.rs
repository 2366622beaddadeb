//! Our client against everybody else's servers: a parser that only ever met our own server would
//! share its mistakes. A server that is not installed is named and passed over.

use crate::scratch::Scratch;
use nbd::client::{Client, Uri};
use nbd::codec::CommandFlags;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);
const SIZE: usize = 8 << 20;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Start a server that listens on `socket`; `None` if it is not installed.
#[allow(clippy::print_stderr)] // a test that checks less than it could must say so
fn start(tool: &str, args: &[&str], socket: &str) -> Option<Running> {
    let child = Command::new(tool).args(args).stdin(Stdio::null()).spawn();
    let running = match child {
        Ok(child) => Running(child),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("{tool} is not installed: passed over");
            return None;
        }
        Err(e) => panic!("{tool}: {e}"),
    };
    let until = Instant::now() + PATIENCE;
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < until, "{tool} does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(running)
}

fn connect(socket: &str, export: &str) -> Client {
    let uri: Uri = format!("nbd+unix:///{export}?socket={socket}")
        .parse()
        .unwrap();
    Client::connect(&uri, &["base:allocation".to_owned()], PATIENCE).unwrap()
}

/// Data, zeroes, holes, extents, errors: on any server it must look the same.
fn exercise(client: &mut Client) {
    assert_eq!(client.agreed().size, SIZE as u64);
    assert!(client.agreed().structured);
    assert_eq!(client.agreed().contexts.len(), 1);
    let data: Vec<u8> = (0..3 << 20).map(|i| (i % 253) as u8 + 1).collect();
    client.write(1 << 20, &data, true).unwrap();
    client
        .zero((2 << 20) + 512, 1 << 19, CommandFlags::NONE)
        .unwrap();
    client.flush().unwrap();
    let mut expect = vec![0; SIZE];
    expect[1 << 20..4 << 20].copy_from_slice(&data);
    expect[(2 << 20) + 512..(2 << 20) + 512 + (1 << 19)].fill(0);
    let mut back = vec![0xee; SIZE];
    client.read(0, &mut back).unwrap();
    assert!(back == expect);
    let extents = client.block_status(0, SIZE as u32, false).unwrap();
    let mut at = 0;
    for (_, len, flags) in extents {
        let end = (at + len as usize).min(SIZE);
        if flags & 2 != 0 {
            assert!(expect[at..end].iter().all(|b| *b == 0), "zeroes at {at}");
        }
        at = end;
    }
    assert!(client.read(SIZE as u64, &mut [0; 512]).is_err());
    client.read(SIZE as u64 - 512, &mut [0; 512]).unwrap();
}

#[test]
fn our_client_reads_and_writes_on_nbdkit() {
    let scratch = Scratch::new();
    let socket = scratch.path("s");
    let args = ["-f", "-U", &socket, "memory", &format!("{SIZE}")];
    let Some(_running) = start("nbdkit", &args, &socket) else {
        return;
    };
    let mut client = connect(&socket, "");
    exercise(&mut client);
    client.close().unwrap();
}

/// nbdkit's error filter fails every read: each failure is an error chunk, and none may be taken
/// for data.
#[test]
fn errors_of_nbdkit_are_errors() {
    let scratch = Scratch::new();
    let socket = scratch.path("s");
    let size = format!("{SIZE}");
    let args = [
        "-f",
        "-U",
        &socket,
        "--filter=error",
        "memory",
        &size,
        "error-pread=EIO",
        "error-pread-rate=100%",
    ];
    let Some(_running) = start("nbdkit", &args, &socket) else {
        return;
    };
    let mut client = connect(&socket, "");
    for _ in 0..10 {
        let error = client.read(0, &mut [0; 65536]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{error}");
    }
    client.write(0, &[1; 512], false).unwrap();
}

#[test]
fn our_client_reads_and_writes_on_qemu_nbd() {
    let scratch = Scratch::new();
    let socket = scratch.path("s");
    let image = scratch.path("image");
    std::fs::File::create(&image)
        .unwrap()
        .set_len(SIZE as u64)
        .unwrap();
    let args = ["-t", "-f", "raw", "-x", "disk", "-k", &socket, &image];
    let Some(_running) = start("qemu-nbd", &args, &socket) else {
        return;
    };
    let mut client = connect(&socket, "disk");
    exercise(&mut client);
    client.close().unwrap();
}
