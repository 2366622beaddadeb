//! A server of a disk in memory, made of the crate's parts in the way a shard uses them, but
//! blocking and with a thread for each connection.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::ops::Range;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use crate::scratch::Scratch;
use nbd::accept::{Accepted, HANDSHAKE_DEADLINE, accept};
use nbd::codec::{REPLY_HEAD_MAX, TransmissionFlags};
use nbd::session::{Answer, Op, Request, Session, Step};
use nbd::status::{DIRTY, HOLE, STATUS_BYTES_MAX, ZERO, describe};
use nbd::{Export, Exports, MetaContext};

const BLOCK: usize = 4096;

pub struct Disk {
    bytes: Mutex<Vec<u8>>,
    dirty: Mutex<Vec<bool>>,
    /// Reads and writes that touch this fail with EIO.
    pub bad: Range<u64>,
    pub read_only: bool,
    pub plain: bool,
}

impl Disk {
    pub fn new(size: usize) -> Disk {
        Disk {
            bytes: Mutex::new(vec![0; size]),
            dirty: Mutex::new(vec![false; size.div_ceil(BLOCK)]),
            bad: 0..0,
            read_only: false,
            plain: false,
        }
    }

    pub fn content(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    /// Lose everything, as a disk does that acknowledged too early.
    pub fn forget(&self) {
        self.bytes.lock().unwrap().fill(0);
    }

    fn change(&self, request: &Request, f: impl FnOnce(&mut [u8])) -> Result<(), i32> {
        self.check(request)?;
        let span = span(request);
        f(&mut self.bytes.lock().unwrap()[span.clone()]);
        self.dirty.lock().unwrap()[span.start / BLOCK..span.end.div_ceil(BLOCK)].fill(true);
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), i32> {
        let span = span(request);
        let (from, to) = (span.start as u64, span.end as u64);
        if from < self.bad.end && self.bad.start < to {
            return Err(5);
        }
        Ok(())
    }

    fn extents(&self, request: &Request, context: &MetaContext) -> Vec<(u64, u32)> {
        let bytes = self.bytes.lock().unwrap();
        let dirty = self.dirty.lock().unwrap();
        let span = span(request);
        let mut at = span.start;
        let mut extents = Vec::new();
        while at < span.end {
            let end = ((at / BLOCK + 1) * BLOCK).min(span.end);
            let block = at / BLOCK * BLOCK..(at / BLOCK * BLOCK + BLOCK).min(bytes.len());
            let flags = match context {
                MetaContext::Allocation if bytes[block].iter().all(|b| *b == 0) => HOLE | ZERO,
                MetaContext::Dirty(_) if dirty[at / BLOCK] => DIRTY,
                _ => 0,
            };
            extents.push(((end - at) as u64, flags));
            at = end;
        }
        extents
    }
}

fn span(request: &Request) -> Range<usize> {
    request.offset as usize..request.offset as usize + request.len as usize
}

impl Exports for Disk {
    fn names(&self) -> Vec<String> {
        vec!["disk".to_owned()]
    }

    fn find(&self, name: &str) -> Option<Export> {
        if !name.is_empty() && name != "disk" {
            return None;
        }
        let mut export = Export::new("disk", self.bytes.lock().unwrap().len() as u64);
        export.description = "a disk in memory".to_owned();
        export.checkpoints = vec!["start".to_owned()];
        if self.plain {
            export.flags = TransmissionFlags::HAS_FLAGS;
        }
        Some(if self.read_only {
            export.read_only()
        } else {
            export
        })
    }
}

/// A server that runs for the rest of the test.
pub struct Server {
    pub disk: Arc<Disk>,
    pub unix: String,
    pub tcp: String,
    pub socket: String,
    _scratch: Scratch,
}

impl Server {
    pub fn start(disk: Disk) -> Server {
        let disk = Arc::new(disk);
        let scratch = Scratch::new();
        let socket = scratch.path("nbd.sock");
        let unix = UnixListener::bind(&socket).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            unix: format!("nbd+unix:///disk?socket={socket}"),
            tcp: format!("nbd://{}/disk", tcp.local_addr().unwrap()),
            disk: Arc::clone(&disk),
            socket,
            _scratch: scratch,
        };
        let shelf = Arc::clone(&disk);
        std::thread::spawn(move || {
            for stream in unix.incoming() {
                let disk = Arc::clone(&shelf);
                let stream = stream.unwrap();
                stream.set_nonblocking(true).unwrap();
                std::thread::spawn(move || {
                    let accepted = runtime().block_on(async {
                        let stream = tokio::net::UnixStream::from_std(stream).unwrap();
                        accept(stream, &*disk, HANDSHAKE_DEADLINE).await
                    });
                    if let Ok(accepted) = accepted {
                        let _ = serve(&disk, accepted);
                    }
                });
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let disk = Arc::clone(&disk);
                let stream = stream.unwrap();
                stream.set_nonblocking(true).unwrap();
                std::thread::spawn(move || {
                    let accepted = runtime().block_on(async {
                        let stream = tokio::net::TcpStream::from_std(stream).unwrap();
                        accept(stream, &*disk, HANDSHAKE_DEADLINE).await
                    });
                    if let Ok(accepted) = accepted {
                        let _ = serve(&disk, accepted);
                    }
                });
            }
        });
        server
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn serve(disk: &Disk, accepted: Accepted) -> std::io::Result<()> {
    let mut session = Session::new(&accepted.agreed);
    let mut socket = File::from(accepted.socket);
    let mut buffer = vec![0; 128 << 10];
    let mut received = accepted.surplus;
    let mut out = Vec::new();
    let mut write: Option<(Request, Vec<u8>)> = None;
    loop {
        let mut input = &received[..];
        loop {
            match session.next(&mut input) {
                Step::NeedMore => break,
                Step::Full => unreachable!("replies are released as they are made"),
                Step::Request(r) if r.op == Op::Write => {
                    write = Some((r, vec![0; r.len as usize]));
                }
                Step::Request(r) => perform(disk, &mut session, &r, &mut out),
                Step::Payload { .. } => {
                    let (r, mut payload) = write.take().unwrap();
                    let mut missing = session.take_payload(&mut input, &mut payload);
                    while missing > 0 {
                        let at = payload.len() - missing as usize;
                        let n = socket.read(&mut payload[at..])?;
                        if n == 0 {
                            return Ok(());
                        }
                        missing = session.payload_landed(n as u32);
                    }
                    let outcome = disk.change(&r, |b| b.copy_from_slice(&payload));
                    reply(&mut session, &r, outcome, &mut out);
                }
                Step::Answer(a) => {
                    let mut head = [0; REPLY_HEAD_MAX];
                    let n = session.answer(&a, &mut head);
                    out.extend(&head[..n]);
                    session.release(Answer::CHARGE);
                }
                Step::Disconnect | Step::Broken(_) => return socket.write_all(&out),
            }
        }
        socket.write_all(&out)?;
        out.clear();
        let n = socket.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        received.clear();
        received.extend(&buffer[..n]);
    }
}

fn reply(session: &mut Session, r: &Request, outcome: Result<(), i32>, out: &mut Vec<u8>) {
    let mut head = [0; REPLY_HEAD_MAX];
    let n = session.outcome(r, outcome, &mut head);
    out.extend(&head[..n]);
    session.release(r.charge());
}

fn perform(disk: &Disk, session: &mut Session, r: &Request, out: &mut Vec<u8>) {
    match r.op {
        Op::Read { .. } => {
            if let Err(e) = disk.check(r) {
                return reply(session, r, Err(e), out);
            }
            let bytes = disk.bytes.lock().unwrap();
            let data = &bytes[span(r)];
            let mut head = [0; REPLY_HEAD_MAX];
            let zero = data.iter().all(|b| *b == 0);
            match session.hole(r, &mut head) {
                Some(n) if zero => out.extend(&head[..n]),
                _ => {
                    let n = session.read_head(r, &mut head);
                    out.extend(&head[..n]);
                    out.extend(data);
                }
            }
            session.release(r.charge());
        }
        Op::Zero { .. } | Op::Trim => {
            let outcome = disk.change(r, |b| b.fill(0));
            reply(session, r, outcome, out);
        }
        Op::BlockStatus { .. } => {
            let contexts = session.contexts().to_vec();
            for (id, context) in contexts.iter().enumerate() {
                let mut chunk = vec![0; STATUS_BYTES_MAX];
                let extents = disk.extents(r, context);
                let done = id + 1 == contexts.len();
                let n = describe(r, id as u32, done, extents, &mut chunk);
                out.extend(&chunk[..n]);
            }
            session.release(r.charge());
        }
        Op::Flush | Op::Cache => reply(session, r, Ok(()), out),
        Op::Write => unreachable!("a write has its payload first"),
    }
}
