//! A proxy in front of an export that writes down what passes: every write with its bytes, every
//! zeroing, trim and flush, each when it was submitted and when it was answered, in one order.
//!
//! ```text
//!   nbdfuse ═══ recorder ═══ forerun serve         one thread a connection
//!                  │
//!                  ▼
//!   Submitted(7, write …)  Submitted(8, write …)  Completed(8)  Completed(7)
//!   Submitted(9, flush)    Completed(9)           Marked(3): transaction 3 was acknowledged
//! ```
//!
//! A request is written down before it goes on, an answer before the guest has it, and a mark when it
//! is heard of. So whatever the log shows as done before a mark had been done before the
//! acknowledgement was heard, and a replay that keeps this order promises no more than was promised.

use nbd::accept::{Accepted, HANDSHAKE_DEADLINE, accept};
use nbd::client::{Client, Uri};
use nbd::codec::{CommandFlags, REPLY_HEAD_MAX};
use nbd::session::{Answer, Op, Request, Session, Step};
use nbd::{Export, Exports};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// A request that changes the volume, or makes changes durable.
#[derive(Clone, Debug)]
pub struct Asked {
    pub op: Op,
    pub fua: bool,
    pub offset: u64,
    pub len: u64,
    /// What a write writes.
    pub bytes: Arc<[u8]>,
}

#[derive(Clone, Debug)]
pub enum Event {
    Submitted(u64, Asked),
    Completed(u64),
    Marked(u64),
}

/// What was written down so far, shared by the connections and by whoever marks.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Event>>>);

impl Log {
    /// A transaction was acknowledged.
    pub fn mark(&self, number: u64) {
        self.0.lock().unwrap().push(Event::Marked(number));
    }

    pub fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    fn submitted(&self, request: &Request, bytes: &[u8]) -> u64 {
        let mut events = self.0.lock().unwrap();
        let id = events.len() as u64;
        events.push(Event::Submitted(
            id,
            Asked {
                op: request.op,
                fua: request.fua,
                offset: request.offset,
                len: u64::from(request.len),
                bytes: bytes.into(),
            },
        ));
        id
    }

    fn completed(&self, id: u64) {
        self.0.lock().unwrap().push(Event::Completed(id));
    }
}

/// The proxy's socket. Its threads end with their connections.
pub struct Recorder {
    pub log: Log,
    pub socket: PathBuf,
}

struct One(u64);

impl Exports for One {
    fn names(&self) -> Vec<String> {
        vec![String::new()]
    }

    fn find(&self, _: &str) -> Option<Export> {
        Some(Export::new("", self.0))
    }
}

impl Recorder {
    /// Listen at `socket` and pass on to `uri`.
    pub fn start(uri: &str, socket: &Path) -> Recorder {
        let uri: Uri = uri.parse().unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        let recorder = Recorder {
            log: Log::default(),
            socket: socket.to_owned(),
        };
        let log = recorder.log.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, uri) = (log.clone(), uri.clone());
                std::thread::spawn(move || serve(&log, &uri, stream.unwrap()));
            }
        });
        recorder
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }
}

fn serve(log: &Log, uri: &Uri, stream: UnixStream) {
    let mut back = Client::connect(uri, &[], PATIENCE).unwrap();
    let exports = One(back.agreed().size);
    stream.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let accepted = runtime.block_on(async {
        let stream = tokio::net::UnixStream::from_std(stream).unwrap();
        accept(stream, &exports, HANDSHAKE_DEADLINE).await
    });
    if let Ok(accepted) = accepted {
        // A client that goes away in the middle is the end of its connection and no failure.
        let _ = pass(log, &mut back, accepted);
    }
}

fn pass(log: &Log, back: &mut Client, accepted: Accepted) -> std::io::Result<()> {
    let mut session = Session::new(&accepted.agreed);
    let mut socket = File::from(accepted.socket);
    let mut buffer = vec![0; 128 << 10];
    let mut received = accepted.surplus;
    let mut write = None;
    loop {
        let mut input = &received[..];
        loop {
            match session.next(&mut input) {
                Step::NeedMore => break,
                Step::Full => unreachable!("requests are released one by one"),
                Step::Request(r) if r.op == Op::Write => write = Some(r),
                Step::Request(r) => perform(log, back, &mut session, &r, &[], &mut socket)?,
                Step::Payload { .. } => {
                    let r: Request = write.take().unwrap();
                    let mut payload = vec![0; r.len as usize];
                    let mut missing = session.take_payload(&mut input, &mut payload);
                    while missing > 0 {
                        let at = payload.len() - missing as usize;
                        let n = socket.read(&mut payload[at..])?;
                        if n == 0 {
                            return Ok(());
                        }
                        missing = session.payload_landed(n as u32);
                    }
                    perform(log, back, &mut session, &r, &payload, &mut socket)?;
                }
                Step::Answer(a) => {
                    let mut head = [0; REPLY_HEAD_MAX];
                    let n = session.answer(&a, &mut head);
                    socket.write_all(&head[..n])?;
                    session.release(Answer::CHARGE);
                }
                Step::Disconnect | Step::Broken(_) => return Ok(()),
            }
        }
        let n = socket.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        received.clear();
        received.extend(&buffer[..n]);
    }
}

fn perform(
    log: &Log,
    back: &mut Client,
    session: &mut Session,
    r: &Request,
    payload: &[u8],
    socket: &mut File,
) -> std::io::Result<()> {
    let mut head = [0; REPLY_HEAD_MAX];
    if let Op::Read { .. } = r.op {
        let mut content = vec![0; r.len as usize];
        back.read(r.offset, &mut content).unwrap();
        let n = session.read_head(r, &mut head);
        socket.write_all(&head[..n])?;
        socket.write_all(&content)?;
    } else {
        let id = log.submitted(r, payload);
        let len = u64::from(r.len);
        let done = match r.op {
            Op::Write => back.write(r.offset, payload, r.fua),
            Op::Flush => back.flush(),
            Op::Trim => back.trim(r.offset, len),
            Op::Zero { no_hole, .. } => {
                let keep = if no_hole {
                    CommandFlags::NO_HOLE
                } else {
                    CommandFlags::NONE
                };
                back.zero(r.offset, len, keep)
            }
            Op::Read { .. } | Op::Cache | Op::BlockStatus { .. } => {
                unreachable!("the kernel does not ask for {r:?}")
            }
        };
        // On a good disk nothing fails, and a log with failures would mean something else.
        done.and_then(|()| if r.fua { back.flush() } else { Ok(()) })
            .unwrap();
        log.completed(id);
        let n = session.outcome(r, Ok(()), &mut head);
        socket.write_all(&head[..n])?;
    }
    session.release(r.charge());
    Ok(())
}
