//! The session against cut streams, every refusal of the specification, and greedy clients.

use super::*;
use crate::codec::{
    Chunk, ChunkHeader, PAYLOAD_MAX, REPLY_HEAD_MAX, SimpleReply, TransmissionFlags,
};
use crate::export::Export;
use proptest::prelude::*;

const SIZE: u64 = 1 << 30;

fn agreed(structured: bool) -> Negotiated {
    let mut export = Export::new("vm1", SIZE);
    if structured {
        export.flags = export.flags | TransmissionFlags::SEND_DF;
    }
    Negotiated {
        requested: String::new(),
        export,
        structured,
        contexts: if structured {
            vec![MetaContext::Allocation]
        } else {
            vec![]
        },
    }
}

fn header(command: Command, offset: u64, len: u32) -> RequestHeader {
    RequestHeader {
        flags: CommandFlags::NONE,
        command,
        cookie: Cookie(0xfeed),
        offset,
        len,
    }
}

/// Feed one header (and a payload, if it is a refused write's) and return the one event.
fn one(session: &mut Session, header: RequestHeader) -> Step {
    let bytes = header.encode();
    let mut input = &bytes[..];
    let step = session.next(&mut input);
    assert!(input.is_empty());
    step
}

fn refused(session: &mut Session, header: RequestHeader) -> NbdError {
    match one(session, header) {
        Step::Answer(a) => {
            assert_eq!(a.cookie, header.cookie);
            session.release(Answer::CHARGE);
            a.error.unwrap()
        }
        other => panic!("{other:?}"),
    }
}

#[derive(Debug, PartialEq)]
enum Event {
    Request(Request, Vec<u8>),
    Answer(Answer),
    Ended(Step),
}

/// Run a stream through a session in pieces of the given lengths, releasing everything at once.
fn run(stream: &[u8], mut cuts: impl Iterator<Item = usize>) -> Vec<Event> {
    let mut session = Session::new(&agreed(true));
    let mut events = Vec::new();
    let mut payload: Option<(Request, Vec<u8>)> = None;
    let mut rest = stream;
    while !rest.is_empty() {
        let n = cuts.next().unwrap_or(rest.len()).clamp(1, rest.len());
        let (mut input, later) = rest.split_at(n);
        rest = later;
        loop {
            match session.next(&mut input) {
                Step::NeedMore => break,
                Step::Full => panic!("everything is released at once"),
                Step::Request(r) => {
                    session.release(r.charge());
                    if r.op == Op::Write {
                        payload = Some((r, vec![0; r.len as usize]));
                    } else {
                        events.push(Event::Request(r, vec![]));
                    }
                }
                Step::Payload { .. } if input.is_empty() => break,
                Step::Payload { .. } => {
                    let (r, mut buf) = payload.take().unwrap();
                    if session.take_payload(&mut input, &mut buf) == 0 {
                        events.push(Event::Request(r, buf));
                    } else {
                        payload = Some((r, buf));
                    }
                }
                Step::Answer(a) => {
                    session.release(Answer::CHARGE);
                    events.push(Event::Answer(a));
                }
                end => {
                    events.push(Event::Ended(end));
                    return events;
                }
            }
        }
    }
    events
}

fn any_stream() -> impl Strategy<Value = Vec<u8>> {
    let request = (0u16..9, 0u16..32, any::<u64>(), 0..SIZE + 4096, 0u32..3000);
    proptest::collection::vec(request, 0..40).prop_map(|requests| {
        let mut stream = Vec::new();
        for (command, flags, cookie, offset, len) in requests {
            let h = RequestHeader {
                flags: CommandFlags(flags),
                command: Command::from_wire(if command == 2 { 1 } else { command }),
                cookie: Cookie(cookie),
                offset,
                len,
            };
            stream.extend(h.encode());
            if h.command == Command::Write {
                stream.extend((0..len).map(|i| (i as u8).wrapping_add(cookie as u8)));
            }
        }
        stream
    })
}

proptest! {
    #[test]
    fn a_stream_means_the_same_however_it_is_cut(
        stream in any_stream(),
        cuts in proptest::collection::vec(1usize..5000, 0..2000),
    ) {
        let whole = run(&stream, std::iter::empty());
        prop_assert_eq!(&run(&stream, cuts.into_iter()), &whole);
        prop_assert_eq!(&run(&stream, std::iter::repeat(1)), &whole);
    }

    #[test]
    fn garbage_ends_the_session_and_nothing_else(stream: Vec<u8>) {
        let events = run(&stream, std::iter::empty());
        let magic = stream.get(..4) == Some(&[0x25, 0x60, 0x95, 0x13]);
        if stream.len() >= REQUEST_BYTES && !magic {
            prop_assert!(matches!(events[..], [Event::Ended(Step::Broken(Breach::Magic(_)))]));
        }
    }

    #[test]
    fn a_request_that_is_yielded_lies_inside_the_export(
        command in 0u16..9, flags: u16, offset: u64, len: u32,
    ) {
        let mut session = Session::new(&agreed(true));
        let mut h = header(Command::from_wire(command), offset, len);
        h.flags = CommandFlags(flags);
        let mut input = &h.encode()[..];
        if let Step::Request(r) = session.next(&mut input) {
            let mut other = Session::new(&agreed(true));
            let again = Request { cookie: Cookie(1), ..r };
            prop_assert_eq!(
                other.next(&mut &r.header(Cookie(1)).encode()[..]),
                Step::Request(again),
                "forwarded, it is the same request"
            );
            prop_assert!(r.offset.checked_add(u64::from(r.len)).unwrap() <= SIZE);
            prop_assert!(r.len > 0 || r.op == Op::Flush);
            prop_assert!(r.charge().0 <= PAYLOAD_MAX);
        }
    }
}

#[test]
fn past_the_end_is_enospc_for_writes_and_einval_for_the_rest() {
    let mut s = Session::new(&agreed(true));
    let past = SIZE - 512;
    assert_eq!(
        refused(&mut s, header(Command::Read, past, 513)),
        NbdError::Inval
    );
    assert_eq!(
        refused(&mut s, header(Command::Trim, past, 1024)),
        NbdError::Inval
    );
    assert_eq!(
        refused(&mut s, header(Command::Cache, past, 1024)),
        NbdError::Inval
    );
    assert_eq!(
        refused(&mut s, header(Command::BlockStatus, past, 1024)),
        NbdError::Inval
    );
    assert_eq!(
        refused(&mut s, header(Command::WriteZeroes, past, 1024)),
        NbdError::NoSpc
    );
    assert_eq!(
        refused(&mut s, header(Command::Read, u64::MAX, 2)),
        NbdError::Inval,
        "an offset whose end does not fit in 64 bits"
    );
    assert!(matches!(
        one(&mut s, header(Command::Read, past, 512)),
        Step::Request(_)
    ));
}

/// A client that gets the reply to a write before it has sent all of the payload takes it for a
/// reply to nothing and drops the connection. The refusal waits until the payload is through.
#[test]
fn a_refused_write_is_answered_after_its_payload_and_the_stream_goes_on() {
    let mut s = Session::new(&agreed(false));
    let write = header(Command::Write, SIZE, 4096);
    assert_eq!(one(&mut s, write), Step::NeedMore);
    let zeroes = [0u8; 4095];
    assert_eq!(s.next(&mut &zeroes[..]), Step::NeedMore);
    let mut tail = vec![0u8];
    tail.extend(header(Command::Flush, 0, 0).encode());
    let mut input = &tail[..];
    match s.next(&mut input) {
        Step::Answer(a) => assert_eq!(a.error, Some(NbdError::NoSpc)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        s.next(&mut input),
        Step::Request(Request { op: Op::Flush, .. })
    ));
}

/// 32 MiB is what any client may send, a little more is a mistake that is told, and 0xffffffff is
/// no request: reading four gigabytes only to throw them away would be the attack.
#[test]
fn an_oversized_write_is_skipped_within_a_bound_and_past_it_the_connection_ends() {
    let mut s = Session::new(&agreed(false));
    assert!(matches!(
        one(&mut s, header(Command::Write, 0, PAYLOAD_MAX)),
        Step::Request(_)
    ));
    let mut s = Session::new(&agreed(false));
    assert_eq!(
        one(&mut s, header(Command::Write, 0, PAYLOAD_MAX + 1)),
        Step::NeedMore
    );
    let piece = vec![0u8; PAYLOAD_MAX as usize];
    assert_eq!(s.next(&mut &piece[..]), Step::NeedMore);
    assert!(matches!(
        s.next(&mut &[0u8][..]),
        Step::Answer(Answer {
            error: Some(NbdError::Inval),
            ..
        })
    ));
    let mut s = Session::new(&agreed(false));
    let end = Step::Broken(Breach::PayloadTooLong(u32::MAX));
    assert_eq!(one(&mut s, header(Command::Write, 0, u32::MAX)), end);
    assert_eq!(
        s.next(&mut &[0u8; 64][..]),
        end,
        "nothing is read after the end"
    );
    assert_eq!(
        refused(
            &mut Session::new(&agreed(false)),
            header(Command::Read, 0, u32::MAX)
        ),
        NbdError::Inval
    );
}

#[test]
fn write_zeroes_and_trim_may_be_longer_than_any_payload() {
    let mut s = Session::new(&agreed(false));
    for command in [Command::WriteZeroes, Command::Trim, Command::Cache] {
        match one(&mut s, header(command, 0, SIZE as u32)) {
            Step::Request(r) => assert_eq!(r.charge(), Charge(0)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn flags_and_commands_that_were_not_agreed_are_einval() {
    let with = |command, flags| RequestHeader {
        flags,
        ..header(command, 0, 512)
    };
    let mut plain = Session::new(&agreed(false));
    let mut structured = Session::new(&agreed(true));
    let df = with(Command::Read, CommandFlags::DF);
    assert_eq!(refused(&mut plain, df), NbdError::Inval);
    assert!(matches!(
        one(&mut structured, df),
        Step::Request(Request {
            op: Op::Read { df: true },
            ..
        })
    ));
    for s in [&mut plain, &mut structured] {
        for h in [
            with(Command::Read, CommandFlags::NO_HOLE),
            with(Command::Trim, CommandFlags::FAST_ZERO),
            with(Command::Read, CommandFlags(1 << 15)),
            with(Command::Flush, CommandFlags::NONE),
            with(Command::Unknown(8), CommandFlags::NONE),
            with(Command::Unknown(0xffff), CommandFlags::FUA),
            with(Command::BlockStatus, CommandFlags::DF),
        ] {
            assert_eq!(refused(s, h), NbdError::Inval, "{h:?}");
        }
    }
    let status = with(Command::BlockStatus, CommandFlags::REQ_ONE);
    assert_eq!(
        refused(&mut plain, status),
        NbdError::Inval,
        "no context was agreed"
    );
    assert!(matches!(
        one(&mut structured, status),
        Step::Request(Request {
            op: Op::BlockStatus { one: true },
            ..
        })
    ));
}

#[test]
fn fua_is_borne_on_anything_and_means_something_where_data_is_written() {
    let mut s = Session::new(&agreed(false));
    for (command, fua) in [
        (Command::Read, false),
        (Command::Cache, false),
        (Command::Trim, true),
        (Command::WriteZeroes, true),
    ] {
        let h = RequestHeader {
            flags: CommandFlags::FUA,
            ..header(command, 0, 512)
        };
        match one(&mut s, h) {
            Step::Request(r) => assert_eq!(r.fua, fua, "{command:?}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_read_only_export_refuses_every_change_with_eperm() {
    let mut agreed = agreed(false);
    agreed.export = agreed.export.read_only();
    let mut s = Session::new(&agreed);
    assert_eq!(
        refused(&mut s, header(Command::Trim, 0, 512)),
        NbdError::Perm
    );
    assert_eq!(
        refused(&mut s, header(Command::WriteZeroes, 0, 512)),
        NbdError::Perm
    );
    assert_eq!(one(&mut s, header(Command::Write, 0, 1)), Step::NeedMore);
    match s.next(&mut &[0u8][..]) {
        Step::Answer(a) => assert_eq!(a.error, Some(NbdError::Perm)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        one(&mut s, header(Command::Read, 0, 512)),
        Step::Request(_)
    ));
    assert!(matches!(
        one(&mut s, header(Command::Flush, 0, 0)),
        Step::Request(_)
    ));
}

#[test]
fn requests_of_no_bytes_succeed_by_doing_nothing() {
    let mut s = Session::new(&agreed(true));
    let mut out = [0; REPLY_HEAD_MAX];
    for command in [
        Command::Read,
        Command::Write,
        Command::Trim,
        Command::WriteZeroes,
    ] {
        match one(&mut s, header(command, SIZE, 0)) {
            Step::Answer(a) => {
                assert_eq!(a.error, None, "{command:?}");
                let n = s.answer(&a, &mut out);
                let simple = SimpleReply::parse(out.first_chunk().unwrap());
                assert_eq!(simple.is_none(), command == Command::Read, "{n}");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A client that sends for ever and never reads its replies would make the server queue them all.
/// Answers and requests alike hold a place until their reply is sent.
#[test]
fn a_client_that_never_reads_is_stopped_at_the_window() {
    for command in [Command::Flush, Command::Unknown(77)] {
        let mut s = Session::new(&agreed(false));
        let stream = header(command, 0, 0)
            .encode()
            .repeat(WINDOW_REQUESTS as usize + 2);
        let mut input = &stream[..];
        for _ in 0..WINDOW_REQUESTS {
            assert!(matches!(
                s.next(&mut input),
                Step::Request(_) | Step::Answer(_)
            ));
        }
        assert_eq!(s.next(&mut input), Step::Full);
        assert_eq!(s.next(&mut input), Step::Full);
        assert_eq!(s.in_flight(), WINDOW_REQUESTS);
        s.release(Answer::CHARGE);
        assert!(matches!(
            s.next(&mut input),
            Step::Request(_) | Step::Answer(_)
        ));
        assert_eq!(s.next(&mut input), Step::Full);
    }
}

#[test]
fn bytes_in_flight_are_bounded_and_come_back() {
    let mut s = Session::new(&agreed(false));
    let read = header(Command::Read, 0, PAYLOAD_MAX);
    let mut held = Vec::new();
    let last = loop {
        match one(&mut s, read) {
            Step::Request(r) => held.push(r),
            other => break other,
        }
    };
    assert_eq!(last, Step::Full);
    assert_eq!(held.len() as u64 * u64::from(PAYLOAD_MAX), WINDOW_BYTES);
    s.release(held[0].charge());
    assert!(matches!(s.next(&mut &[][..]), Step::Request(_)));
}

#[test]
fn goodbye_ends_the_stream() {
    let mut s = Session::new(&agreed(false));
    assert_eq!(
        one(&mut s, header(Command::Disconnect, 0, 0)),
        Step::Disconnect
    );
    assert_eq!(
        s.next(&mut &header(Command::Read, 0, 1).encode()[..]),
        Step::Disconnect
    );
}

#[test]
fn replies_take_the_form_that_was_agreed() {
    let mut out = [0; REPLY_HEAD_MAX];
    for structured in [false, true] {
        let mut s = Session::new(&agreed(structured));
        let Step::Request(read) = one(&mut s, header(Command::Read, 4096, 512)) else {
            panic!("a read inside the export");
        };
        s.read_head(&read, &mut out);
        let chunk = ChunkHeader::parse(out.first_chunk().unwrap());
        assert_eq!(chunk.is_some(), structured);
        if let Some(chunk) = chunk {
            assert!(chunk.done);
            let data = Chunk::Data {
                offset: 4096,
                len: 512,
            };
            assert_eq!(Chunk::parse(&chunk, &out[20..28]), Some(data));
        }
        assert_eq!(s.hole(&read, &mut out).is_some(), structured);
        s.outcome(&read, Err(5), &mut out);
        match ChunkHeader::parse(out.first_chunk().unwrap()) {
            Some(chunk) => {
                let head = &out[20..20 + chunk.head_len().unwrap()];
                assert!(matches!(
                    Chunk::parse(&chunk, head),
                    Some(Chunk::Error {
                        error: NbdError::Io,
                        ..
                    })
                ));
            }
            None => {
                let simple = SimpleReply::parse(out.first_chunk().unwrap()).unwrap();
                assert_eq!(
                    (simple.cookie, simple.error),
                    (read.cookie, Some(NbdError::Io))
                );
            }
        }
        let Step::Request(flush) = one(&mut s, header(Command::Flush, 0, 0)) else {
            panic!("a flush");
        };
        s.outcome(&flush, Ok(()), &mut out);
        assert!(SimpleReply::parse(out.first_chunk().unwrap()).is_some());
    }
}
