//! What the NBD codec costs: requests parsed and checked, replies encoded, with nothing around them.
//!
//!     cargo bench --bench codec
//!
//! A window of 4 KiB requests lies in one buffer, as one large receive brings it; the payload of a
//! write is copied to where it belongs.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints"
)]

mod stopwatch;

use nbd::codec::{Command, CommandFlags, Cookie, REPLY_HEAD_MAX, RequestHeader};
use nbd::session::{Request, Session, Step};
use nbd::{Export, Negotiated};
use std::hint::black_box;
use stopwatch::measure;

const DEPTH: u32 = 32;
const PAYLOAD: u32 = 4096;

fn session() -> Session {
    Session::new(&Negotiated {
        requested: String::new(),
        export: Export::new("bench", 1 << 40),
        structured: true,
        contexts: Vec::new(),
    })
}

fn window(command: Command) -> Vec<u8> {
    let mut bytes = Vec::new();
    for i in 0..u64::from(DEPTH) {
        let header = RequestHeader {
            flags: CommandFlags::NONE,
            command,
            cookie: Cookie(i),
            offset: i * 1_048_576,
            len: PAYLOAD,
        };
        bytes.extend(header.encode());
        if command == Command::Write {
            bytes.extend([7; PAYLOAD as usize]);
        }
    }
    bytes
}

/// Understand everything that lies in `input`; `each` gets the requests.
fn consume(session: &mut Session, mut input: &[u8], mut each: impl FnMut(&mut Session, Request)) {
    let mut buffer = [0; PAYLOAD as usize];
    let mut request = None;
    loop {
        match session.next(&mut input) {
            Step::Request(r) if r.op == nbd::session::Op::Write => request = Some(r),
            Step::Request(r) => each(session, r),
            Step::Payload { .. } => {
                assert_eq!(session.take_payload(&mut input, &mut buffer), 0);
                // nobody reads it, and the copy would be left out
                black_box(&mut buffer);
                each(session, request.take().unwrap());
            }
            Step::NeedMore => return,
            step => panic!("{step:?}"),
        }
    }
}

fn main() {
    let mut head = [0; REPLY_HEAD_MAX];
    let (reads, writes) = (window(Command::Read), window(Command::Write));
    let mut reader = session();
    measure("read: request in, head of its reply out", DEPTH, || {
        consume(&mut reader, &reads, |session, request| {
            session.read_head(&request, &mut head);
            session.release(request.charge());
        });
    });
    let mut writer = session();
    measure("write of 4 KiB: request in, reply out", DEPTH, || {
        consume(&mut writer, &writes, |session, request| {
            session.outcome(&request, Ok(()), &mut head);
            session.release(request.charge());
        });
    });
}
