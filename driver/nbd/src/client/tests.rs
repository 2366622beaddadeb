//! The client's reply parser against honest servers cut anywhere, and against liars.

use super::*;
use crate::codec::{
    Command, CommandFlags, Cookie, NbdError, REPLY_HEAD_MAX, Reply, RequestHeader, put_descriptor,
};
use proptest::prelude::*;

const OFFSET: u64 = 1 << 20;

fn header(command: Command, cookie: u64, len: u32) -> RequestHeader {
    RequestHeader {
        flags: CommandFlags::NONE,
        command,
        cookie: Cookie(cookie),
        offset: OFFSET,
        len,
    }
}

fn encoded(cookie: u64, reply: Reply<'_>, bulk: &[u8]) -> Vec<u8> {
    let mut out = [0; REPLY_HEAD_MAX];
    let n = reply.encode(Cookie(cookie), &mut out);
    [&out[..n], bulk].concat()
}

fn data(cookie: u64, done: bool, offset: u64, bulk: &[u8]) -> Vec<u8> {
    let len = bulk.len() as u32;
    encoded(cookie, Reply::Data { done, offset, len }, bulk)
}

fn hole(cookie: u64, done: bool, offset: u64, len: u32) -> Vec<u8> {
    encoded(cookie, Reply::Hole { done, offset, len }, &[])
}

/// One read of `len` bytes is out; what the client makes of `stream`, and the read's buffer.
fn read(structured: bool, len: u32, stream: &[u8], piece: usize) -> (Vec<Arrival>, Vec<u8>) {
    let mut replies = Replies::new(structured);
    assert!(replies.expect(&header(Command::Read, 1, len)));
    let mut buffer = vec![0xee; len as usize];
    let mut arrivals = Vec::new();
    let mut place = 0..0;
    for mut input in stream.chunks(piece) {
        loop {
            let arrival = replies.next(&mut input);
            match arrival {
                Arrival::NeedMore => break,
                Arrival::Data { at, len, .. } => place = at as usize..(at + len) as usize,
                Arrival::Zeroes { at, len, .. } => {
                    buffer[at as usize..(at + len) as usize].fill(0);
                }
                Arrival::Bulk { .. } if input.is_empty() => break,
                Arrival::Bulk { .. } => {
                    replies.take_bulk(&mut input, &mut buffer[place.clone()]);
                }
                _ => {}
            }
            if !matches!(arrival, Arrival::Bulk { .. }) {
                arrivals.push(arrival);
            }
            if matches!(arrival, Arrival::Broken(_)) {
                return (arrivals, buffer);
            }
        }
    }
    // the end of a data chunk is seen when the parser is next asked
    loop {
        match replies.next(&mut &[][..]) {
            Arrival::NeedMore | Arrival::Bulk { .. } => break,
            other => arrivals.push(other),
        }
    }
    (arrivals, buffer)
}

fn outcome(structured: bool, len: u32, stream: &[u8]) -> Arrival {
    *read(structured, len, stream, usize::MAX).0.last().unwrap()
}

const OK: Arrival = Arrival::Done {
    cookie: Cookie(1),
    result: Ok(()),
};

#[test]
fn a_read_is_assembled_from_chunks_in_any_order() {
    let stream = [
        data(1, false, OFFSET + 6, b"gh"),
        hole(1, false, OFFSET + 2, 4),
        data(1, true, OFFSET, b"ab"),
    ]
    .concat();
    for piece in 1..stream.len() {
        let (arrivals, buffer) = read(true, 8, &stream, piece);
        assert_eq!(arrivals.last(), Some(&OK));
        assert_eq!(buffer, b"ab\0\0\0\0gh");
    }
}

#[test]
fn a_simple_read_is_its_data() {
    let stream = encoded(1, Reply::Simple { error: None }, b"abcd");
    for piece in 1..stream.len() {
        let (arrivals, buffer) = read(false, 4, &stream, piece);
        assert_eq!((arrivals.last(), &buffer[..]), (Some(&OK), &b"abcd"[..]));
    }
}

/// A copy tool once took what came before an error chunk for the whole of a read, and what it
/// wrote was silently wrong (CVE-2022-0485). An error anywhere fails the read.
#[test]
fn an_error_chunk_fails_a_read_that_looks_complete() {
    let error = Reply::ErrorAt {
        done: false,
        error: NbdError::Io,
        message: "bad sector",
        offset: OFFSET,
    };
    let failed = Arrival::Done {
        cookie: Cookie(1),
        result: Err(NbdError::Io),
    };
    let error = encoded(1, error, &[]);
    let whole = data(1, false, OFFSET, b"abcd");
    let end = encoded(1, Reply::None, &[]);
    assert_eq!(
        outcome(true, 4, &[&error[..], &whole, &end].concat()),
        failed
    );
    assert_eq!(
        outcome(true, 4, &[&whole[..], &error, &end].concat()),
        failed
    );
    assert_eq!(outcome(true, 4, &[&error[..], &end].concat()), failed);
}

#[test]
fn success_without_all_of_the_data_is_no_success() {
    let incomplete = Arrival::Broken(Breach::Incomplete(Cookie(1)));
    assert_eq!(outcome(true, 4, &encoded(1, Reply::None, &[])), incomplete);
    assert_eq!(outcome(true, 4, &data(1, true, OFFSET, b"abc")), incomplete);
    assert_eq!(
        outcome(true, 4, &data(1, true, OFFSET + 1, b"abc")),
        incomplete
    );
}

#[test]
fn data_outside_the_read_or_twice_is_refused_before_it_is_placed() {
    let misplaced = Arrival::Broken(Breach::Misplaced(Cookie(1)));
    assert_eq!(
        outcome(true, 4, &data(1, true, OFFSET - 1, b"abcd")),
        misplaced
    );
    assert_eq!(
        outcome(true, 4, &data(1, true, OFFSET, b"abcde")),
        misplaced
    );
    assert_eq!(
        outcome(true, 4, &hole(1, true, OFFSET + 1, u32::MAX)),
        misplaced
    );
    assert_eq!(outcome(true, 4, &hole(1, true, u64::MAX, 2)), misplaced);
    let twice = [
        data(1, false, OFFSET, b"abc"),
        data(1, true, OFFSET + 2, b"cd"),
    ]
    .concat();
    assert_eq!(outcome(true, 4, &twice), misplaced);
}

#[test]
fn replies_to_nothing_and_in_the_wrong_form_end_the_connection() {
    let simple = |cookie| encoded(cookie, Reply::Simple { error: None }, b"abcd");
    let broken = Arrival::Broken;
    assert_eq!(
        outcome(false, 4, &simple(2)),
        broken(Breach::NoSuchRequest(Cookie(2)))
    );
    assert_eq!(
        outcome(true, 4, &simple(1)),
        broken(Breach::Form(Cookie(1)))
    );
    let chunk = data(1, true, OFFSET, b"abcd");
    assert_eq!(outcome(false, 4, &chunk), broken(Breach::Form(Cookie(1))));
    assert_eq!(
        outcome(true, 4, &data(7, true, OFFSET, b"abcd")),
        broken(Breach::NoSuchRequest(Cookie(7)))
    );
    assert_eq!(
        outcome(true, 4, b"GET "),
        broken(Breach::Magic(0x4745_5420))
    );
    let twice = [chunk.clone(), chunk].concat();
    assert_eq!(
        outcome(true, 4, &twice),
        broken(Breach::NoSuchRequest(Cookie(1)))
    );
    let count = encoded(
        1,
        Reply::BlockStatus {
            done: true,
            context: 0,
            count: 1,
        },
        &[0; 8],
    );
    assert_eq!(outcome(true, 4, &count), broken(Breach::Chunk(Cookie(1))));
}

#[test]
fn extents_come_one_by_one_and_an_empty_one_is_refused() {
    for (len, good) in [(4096, true), (0, false)] {
        let mut replies = Replies::new(true);
        assert!(replies.expect(&header(Command::BlockStatus, 5, 1 << 20)));
        let mut bulk = [0; 16];
        put_descriptor(8192, 3, bulk.first_chunk_mut().unwrap());
        put_descriptor(len, 0, bulk[8..].first_chunk_mut().unwrap());
        let reply = Reply::BlockStatus {
            done: true,
            context: 2,
            count: 2,
        };
        let stream = encoded(5, reply, &bulk);
        let mut input = &stream[..];
        let mut all: Vec<Arrival> = (0..3).map(|_| replies.next(&mut input)).collect();
        let last = all.pop().unwrap();
        assert!(matches!(
            all[0],
            Arrival::Extent {
                context: 2,
                len: 8192,
                flags: 3,
                ..
            }
        ));
        if good {
            assert!(matches!(last, Arrival::Done { result: Ok(()), .. }));
        } else {
            assert_eq!(last, Arrival::Broken(Breach::Chunk(Cookie(5))));
        }
    }
}

#[test]
fn cookies_are_unique_and_their_number_is_bounded() {
    let mut replies = Replies::new(false);
    for cookie in 0..OUTSTANDING_MAX as u64 {
        assert!(replies.expect(&header(Command::Flush, cookie, 0)));
        assert!(!replies.expect(&header(Command::Flush, cookie, 0)));
    }
    assert!(!replies.expect(&header(Command::Flush, u64::MAX, 0)));
    let done = encoded(3, Reply::Simple { error: None }, &[]);
    assert!(matches!(replies.next(&mut &done[..]), Arrival::Done { .. }));
    assert!(replies.expect(&header(Command::Flush, u64::MAX, 0)));
}

proptest! {
    #[test]
    fn any_partition_of_a_read_is_put_together(
        sizes in proptest::collection::vec(1usize..40, 1..20),
        holes in proptest::collection::vec(any::<bool>(), 20),
        keys in proptest::collection::vec(any::<u16>(), 20),
        piece in 1usize..100,
    ) {
        let total: usize = sizes.iter().sum();
        let mut expect: Vec<u8> = (0..total).map(|i| (i % 251) as u8 + 1).collect();
        let mut chunks = Vec::new();
        let mut at = 0;
        for (i, n) in sizes.iter().enumerate() {
            let offset = OFFSET + at as u64;
            if holes[i] {
                expect[at..at + n].fill(0);
                chunks.push((keys[i], hole(1, false, offset, *n as u32)));
            } else {
                chunks.push((keys[i], data(1, false, offset, &expect[at..at + n])));
            }
            at += n;
        }
        chunks.sort();
        let mut stream: Vec<u8> = chunks.into_iter().flat_map(|c| c.1).collect();
        stream.extend(encoded(1, Reply::None, &[]));
        let (arrivals, buffer) = read(true, total as u32, &stream, piece);
        prop_assert_eq!(arrivals.last(), Some(&OK));
        prop_assert_eq!(buffer, expect);
    }

    #[test]
    fn garbage_never_panics_and_never_writes_outside_the_read(
        structured: bool, kind: u16, flags: u16, len in 0u32..64, tail: Vec<u8>, piece in 1usize..20,
    ) {
        let mut stream = vec![0x66, 0x8e, 0x33, 0xef];
        stream.extend(flags.to_be_bytes());
        stream.extend(((kind % 7) | (kind & 0x8000)).to_be_bytes());
        stream.extend(1u64.to_be_bytes());
        stream.extend(len.to_be_bytes());
        stream.extend(&tail);
        read(structured, 32, &stream, piece);
        read(structured, 32, &tail, piece);
    }
}
