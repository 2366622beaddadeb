//! Our client against our server, over unix and TCP sockets.

use crate::server::{Disk, Server};
use block::sector::{Allowed, Seen, Stamp, Verdict};
use block::{ErrorKind, VolumeId};
use nbd::client::{Arrival, Client, Replies, Uri, dial};
use nbd::codec::{Command, CommandFlags, Cookie, NbdError, RequestHeader, TransmissionFlags};
use proptest::prelude::*;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

fn connect(uri: &str) -> Client {
    let contexts = [
        "base:allocation".to_owned(),
        "qemu:dirty-bitmap:start".to_owned(),
    ];
    Client::connect(&uri.parse().unwrap(), &contexts, PATIENCE).unwrap()
}

#[test]
fn every_command_works_over_either_transport() {
    let server = Server::start(Disk::new(1 << 20));
    for uri in [&server.unix, &server.tcp] {
        let mut client = connect(uri);
        let agreed = client.agreed();
        assert_eq!(agreed.size, 1 << 20);
        assert!(agreed.structured && agreed.flags.has(TransmissionFlags::CAN_MULTI_CONN));
        assert_eq!(agreed.contexts.len(), 2);
        client.zero(0, 1 << 20, CommandFlags::NONE).unwrap();
        client.write(5000, b"hello", true).unwrap();
        let mut buf = [1; 16];
        client.read(4995, &mut buf).unwrap();
        assert_eq!(&buf, b"\0\0\0\0\0hello\0\0\0\0\0\0");
        client.flush().unwrap();
        client.cache(0, 4096).unwrap();
        let extents = client.block_status(0, 16384, false).unwrap();
        assert_eq!(
            extents,
            [(0, 4096, 3), (0, 4096, 0), (0, 8192, 3), (1, 16384, 1)]
        );
        assert_eq!(
            client.block_status(4096, 8192, true).unwrap()[0],
            (0, 4096, 0)
        );
        client.trim(4096, 4096).unwrap();
        client.read(4995, &mut buf).unwrap();
        assert_eq!(buf, [0; 16]);
        client.close().unwrap();
    }
}

#[test]
fn payloads_larger_than_any_buffer_arrive_whole() {
    let server = Server::start(Disk::new(40 << 20));
    let mut client = connect(&server.unix);
    let data: Vec<u8> = (0..40u32 << 20).map(|i| (i / 7) as u8).collect();
    client.write(0, &data, false).unwrap();
    assert!(server.disk.content() == data);
    let mut back = vec![0; data.len()];
    client.read(0, &mut back).unwrap();
    assert!(back == data);
}

#[test]
fn errors_keep_their_number_and_the_connection_goes_on() {
    let mut disk = Disk::new(1 << 20);
    disk.bad = 8192..8704;
    let server = Server::start(disk);
    let mut client = connect(&server.unix);
    let mut buf = [0; 4096];
    let error = client.read(8192, &mut buf).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    let error = client.write(8192, &buf, false).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    let error = client.write((1 << 20) - 100, &buf, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    let error = client.read(1 << 20, &mut buf).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    client.read(0, &mut buf).unwrap();
}

#[test]
fn an_export_that_is_not_there_is_said_so() {
    let server = Server::start(Disk::new(4096));
    let uri: Uri = server.unix.replace("/disk?", "/dusk?").parse().unwrap();
    let error = Client::connect(&uri, &[], PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("dusk"), "{error}");
}

#[test]
fn a_server_that_falls_silent_is_given_up_on() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let uri: Uri = format!("nbd://{}/", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let silent = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"NBDMAGIC").unwrap();
        stream
    });
    let error = Client::connect(&uri, &[], Duration::from_millis(100)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    drop(silent.join());
}

/// Two threads and a full window: stamped writes out at once, each receipt matched to its request
/// by cookie, then every sector judged by what was acknowledged.
#[test]
fn a_pipelined_client_keeps_its_requests_apart() {
    const COUNT: u64 = 2000;
    let volume = VolumeId([3; 16]);
    let server = Server::start(Disk::new(COUNT as usize * 512));
    let (mut sender, mut receiver) = connect(&server.unix).split();
    let counter = std::thread::spawn(move || {
        (0..COUNT)
            .filter(|_| receiver.receive().unwrap().result.is_ok())
            .count()
    });
    let mut sector = [0; 512];
    for lba in 0..COUNT {
        Stamp {
            volume,
            lba,
            sequence: lba + 1,
        }
        .encode(&mut sector);
        let none = CommandFlags::NONE;
        while let Err(e) = sender.send(Command::Write, none, lba * 512, 512, &sector) {
            assert_eq!(e.kind(), ErrorKind::Busy, "{e}");
            std::thread::yield_now();
        }
    }
    assert_eq!(counter.join().unwrap(), COUNT as usize);
    let (mut sender, mut receiver) = connect(&server.unix).split();
    let mut asked = HashMap::new();
    for lba in (0..COUNT).step_by(40) {
        let cookie = sender
            .send(Command::Read, CommandFlags::NONE, lba * 512, 512, &[])
            .unwrap();
        asked.insert(cookie, lba);
    }
    while !asked.is_empty() {
        let receipt = receiver.receive().unwrap();
        assert_eq!(receipt.result, Ok(()));
        let lba = asked.remove(&receipt.cookie).unwrap();
        let allowed = Allowed {
            acknowledged: lba + 1,
            submitted: lba + 1,
            zero: false,
        };
        let seen = Seen::in_sector(receipt.data[..].try_into().unwrap());
        assert_eq!(seen.judge(volume, lba, allowed), Verdict::Right);
    }
}

#[test]
fn a_read_only_export_refuses_writes_and_serves_reads() {
    let mut disk = Disk::new(4096);
    disk.read_only = true;
    let server = Server::start(disk);
    let mut client = connect(&server.unix);
    let error = client.write(0, &[1], false).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(NbdError::Perm.errno()));
    client.read(0, &mut [0; 512]).unwrap();
}

/// A shard that forwards takes the socket and speaks for itself.
#[test]
fn a_dialled_socket_is_ready_for_requests() {
    let server = Server::start(Disk::new(1 << 20));
    let (agreed, socket) = dial(&server.tcp.parse().unwrap(), &[], PATIENCE).unwrap();
    let mut socket = std::fs::File::from(socket);
    let mut replies = Replies::new(agreed.structured);
    let request = RequestHeader {
        flags: CommandFlags::NONE,
        command: Command::Flush,
        cookie: Cookie(17),
        offset: 0,
        len: 0,
    };
    assert!(replies.expect(&request));
    socket.write_all(&request.encode()).unwrap();
    let mut reply = [0; 16];
    socket.read_exact(&mut reply).unwrap();
    let done = Arrival::Done {
        cookie: Cookie(17),
        result: Ok(()),
    };
    assert_eq!(replies.next(&mut &reply[..]), done);
}

#[derive(Clone, Debug)]
enum Action {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    Read(u64, usize),
}

fn any_action() -> impl Strategy<Value = Action> {
    let at = 0u64..60_000;
    prop_oneof![
        (at.clone(), proptest::collection::vec(any::<u8>(), 1..5000))
            .prop_map(|(at, data)| Action::Write(at, data)),
        (at.clone(), 1u64..5000).prop_map(|(at, n)| Action::Zero(at, n)),
        (at, 1usize..5000).prop_map(|(at, n)| Action::Read(at, n)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_disk_over_the_wire_is_a_disk(
        actions in proptest::collection::vec(any_action(), 1..60),
    ) {
        let server = Server::start(Disk::new(65_536));
        let mut client = connect(&server.unix);
        let mut model = vec![0u8; 65_536];
        for action in actions {
            match action {
                Action::Write(at, data) => {
                    client.write(at, &data, false).unwrap();
                    model[at as usize..][..data.len()].copy_from_slice(&data);
                }
                Action::Zero(at, n) => {
                    client.zero(at, n, CommandFlags::NONE).unwrap();
                    model[at as usize..][..n as usize].fill(0);
                }
                Action::Read(at, n) => {
                    let mut buf = vec![0xaa; n];
                    client.read(at, &mut buf).unwrap();
                    prop_assert_eq!(&buf[..], &model[at as usize..][..n]);
                }
            }
        }
    }
}
