//! A shard with a small handler: files, sockets, short sends, messages and deadlines.

#![allow(clippy::unwrap_used)] // a test
use block::{AlignedBuf, Nanos};
use ring::{Config, Data, Done, FileId, Gather, Handler, Next, Ring, Shard};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

enum Ask {
    /// Send so many bytes at once, if the socket takes them.
    SendNow(UnixStream, usize),
    Echo(UnixStream),
    ReadFile(std::fs::File),
    /// Read, and expect another operation to end at the same time.
    ReadTogether(std::fs::File),
    Stop,
}

/// Sends back what it receives, a hundred times over; reports files it read and deadlines it saw.
struct Echo {
    report: Sender<String>,
    deadline: Option<Nanos>,
    socket: Option<FileId>,
    stop: bool,
}

const RECV: u64 = 1;
const SEND: u64 = 2;
const READ: u64 = 3;
const SEND_NOW: u64 = 4;
const REPEAT: usize = 100;

impl Handler for Echo {
    type Message = Ask;

    fn completed(&mut self, ring: &mut Ring, done: Done) {
        match (done.token, done.result, done.data) {
            (RECV, Ok(0), _) => self.report.send("closed".into()).unwrap(),
            (RECV, Ok(n), Data::Buf(buf)) => {
                let mut gather = Gather::new();
                gather.push_head(b"h");
                for _ in 0..REPEAT {
                    gather.push_payload(buf.clone(), 0..n);
                }
                ring.send(self.socket.unwrap(), gather, SEND);
            }
            (SEND, Ok(n), Data::Gather(g)) => {
                assert_eq!(n, g.bytes());
                let buf = AlignedBuf::zeroed(64 << 10);
                ring.recv(self.socket.unwrap(), buf, 0..64 << 10, false, true, RECV);
            }
            (READ, Ok(n), Data::Buf(buf)) => {
                self.report
                    .send(String::from_utf8(buf[10..10 + n].to_vec()).unwrap())
                    .unwrap();
            }
            (token, result, _) => self.report.send(format!("{token}: {result:?}")).unwrap(),
        }
    }

    fn message(&mut self, ring: &mut Ring, message: Ask) {
        match message {
            Ask::SendNow(s, bytes) => {
                let socket = ring.add_file(OwnedFd::from(s));
                let mut gather = Gather::new();
                gather.push_head(b"h");
                gather.push_payload(AlignedBuf::zeroed(bytes - 1), 0..bytes - 1);
                match ring.send_now(socket, gather, SEND_NOW) {
                    Some(gather) => self.report.send(format!("{} at once", gather.bytes())),
                    None => self.report.send("not at once".into()),
                }
                .unwrap();
            }
            Ask::Echo(s) => {
                let socket = ring.add_file(OwnedFd::from(s));
                self.socket = Some(socket);
                let buf = AlignedBuf::zeroed(64 << 10);
                ring.recv(socket, buf, 0..64 << 10, false, false, RECV);
            }
            Ask::ReadFile(f) => {
                let id = ring.add_file(OwnedFd::from(f));
                ring.read(id, 1, AlignedBuf::zeroed(4096), 10..4096, READ);
                ring.remove_file(id);
            }
            Ask::ReadTogether(f) => {
                let id = ring.add_file(OwnedFd::from(f));
                ring.read(id, 1, AlignedBuf::zeroed(4096), 10..4096, READ);
                ring.await_together(2);
            }
            Ask::Stop => self.stop = true,
        }
    }

    fn turn(&mut self, ring: &mut Ring) -> Next {
        if self.deadline.is_some_and(|d| ring.now() >= d) {
            self.deadline = None;
            self.report.send("deadline".into()).unwrap();
        }
        if self.stop { Next::Stop } else { Next::Go }
    }

    fn deadline(&self) -> Option<Nanos> {
        self.deadline
    }
}

fn spawn() -> (Shard<Ask>, std::sync::mpsc::Receiver<String>) {
    let (report, reports) = channel();
    let config = Config {
        name: "test-shard".into(),
        cpu: Some(0),
    };
    let shard = Shard::spawn(config, move |ring, _| {
        Ok(Echo {
            report,
            deadline: Some(ring.now() + Duration::from_millis(20)),
            socket: None,
            stop: false,
        })
    })
    .unwrap();
    (shard, reports)
}

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn a_send_larger_than_the_socket_buffer_arrives_whole() {
    let (shard, reports) = spawn();
    let (mut mine, theirs) = UnixStream::pair().unwrap();
    shard
        .mailbox()
        .send(Ask::Echo(theirs))
        .map_err(|_| ())
        .unwrap();
    let sent: Vec<u8> = (0..60_000u32).map(|i| (i % 251) as u8).collect();
    mine.write_all(&sent).unwrap();
    // The reader is slow, so the shard's send blocks in the middle more than once.
    let mut got = vec![0u8; 1];
    mine.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"h");
    std::thread::sleep(Duration::from_millis(50));
    let first = {
        let mut first = vec![0u8; 1000];
        mine.read_exact(&mut first).unwrap();
        first
    };
    assert_eq!(first, sent[..1000]);
    drop(mine);
    // The peer is gone while bytes wait: an error, not a hang.
    loop {
        let said = reports.recv_timeout(PATIENCE).unwrap();
        if said.starts_with("2: Err") || said.starts_with("closed") {
            break;
        }
    }
    shard.mailbox().send(Ask::Stop).map_err(|_| ()).unwrap();
    shard.join().unwrap();
}

#[test]
fn what_a_socket_takes_is_sent_at_once_and_the_rest_later() {
    let (shard, reports) = spawn();
    let say = || loop {
        let said = reports.recv_timeout(PATIENCE).unwrap();
        if said != "deadline" {
            return said;
        }
    };
    let ask = |socket, bytes| {
        let ask = Ask::SendNow(socket, bytes);
        shard.mailbox().send(ask).map_err(|_| ()).unwrap();
    };
    let (mut mine, theirs) = UnixStream::pair().unwrap();
    ask(theirs, 1000);
    assert_eq!(say(), "1000 at once");
    mine.read_exact(&mut [0; 1000]).unwrap();

    // Larger than any socket buffer.
    const LARGE: usize = 16 << 20;
    let (mut mine, theirs) = UnixStream::pair().unwrap();
    ask(theirs, LARGE);
    assert_eq!(say(), "not at once");
    let mut got = vec![1; LARGE];
    mine.read_exact(&mut got).unwrap();
    assert_eq!((got[0], got[1], got[LARGE - 1]), (b'h', 0, 0));
    assert_eq!(say(), format!("4: Ok({LARGE})"));

    let (mine, theirs) = UnixStream::pair().unwrap();
    drop(mine);
    ask(theirs, 1000);
    assert_eq!(say(), "not at once");
    assert_eq!(say(), format!("4: Err({})", libc::EPIPE));
    shard.mailbox().send(Ask::Stop).map_err(|_| ()).unwrap();
    shard.join().unwrap();
}

#[test]
fn deadlines_come_without_traffic_and_a_file_may_be_removed_at_once() {
    let (shard, reports) = spawn();
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap(), "deadline");
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"xhello").unwrap();
    shard
        .mailbox()
        .send(Ask::ReadFile(file))
        .map_err(|_| ())
        .unwrap();
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap(), "hello");
    shard.mailbox().send(Ask::Stop).map_err(|_| ()).unwrap();
    shard.join().unwrap();
}

#[test]
fn what_was_expected_to_end_together_and_did_not_is_not_waited_for() {
    let (shard, reports) = spawn();
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap(), "deadline");
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"xhello").unwrap();
    let asked = std::time::Instant::now();
    let ask = Ask::ReadTogether(file);
    shard.mailbox().send(ask).map_err(|_| ()).unwrap();
    // Nothing else is under way, so without its own limit the wait would go on until the next message.
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap(), "hello");
    let took = asked.elapsed();
    assert!(took < Duration::from_millis(900), "{took:?}");
    shard.mailbox().send(Ask::Stop).map_err(|_| ()).unwrap();
    shard.join().unwrap();
}

#[test]
fn a_shard_that_stops_with_a_receive_in_flight_does_not_hang() {
    let (shard, _reports) = spawn();
    let (mine, theirs) = UnixStream::pair().unwrap();
    shard
        .mailbox()
        .send(Ask::Echo(theirs))
        .map_err(|_| ())
        .unwrap();
    shard.mailbox().send(Ask::Stop).map_err(|_| ()).unwrap();
    shard.join().unwrap();
    drop(mine);
}
