//! The codec against the specification's own bytes, against itself, and against garbage.

use super::*;
use proptest::prelude::*;

fn any_header() -> impl Strategy<Value = RequestHeader> {
    any::<(u16, u16, u64, u64, u32)>().prop_map(|(flags, command, cookie, offset, len)| {
        RequestHeader {
            flags: CommandFlags(flags),
            command: Command::from_wire(command),
            cookie: Cookie(cookie),
            offset,
            len,
        }
    })
}

proptest! {
    #[test]
    fn a_request_reads_back(header in any_header()) {
        prop_assert_eq!(RequestHeader::parse(&header.encode()), Ok(header));
    }

    #[test]
    fn a_chunk_reads_back(
        cookie: u64, done: bool, offset: u64, len in 1..PAYLOAD_MAX, count in 1u32..1000,
        message in ".{0,200}", pick in 0..6,
    ) {
        let error = NbdError::NoSpc;
        let (reply, expect) = match pick {
            0 => (Reply::None, Chunk::None),
            1 => (Reply::Data { done, offset, len }, Chunk::Data { offset, len }),
            2 => (Reply::Hole { done, offset, len }, Chunk::Hole { offset, len }),
            3 => (
                Reply::BlockStatus { done, context: len, count },
                Chunk::BlockStatus { context: len, count },
            ),
            4 => (
                Reply::Error { done, error, message: &message },
                Chunk::Error { error, offset: None },
            ),
            _ => (
                Reply::ErrorAt { done, error, message: &message, offset },
                Chunk::Error { error, offset: Some(offset) },
            ),
        };
        let mut out = [0; REPLY_HEAD_MAX];
        let n = reply.encode(Cookie(cookie), &mut out);
        let header = ChunkHeader::parse(out.first_chunk().unwrap()).unwrap();
        prop_assert_eq!(header.cookie, Cookie(cookie));
        prop_assert_eq!(header.done, done || pick == 0);
        prop_assert_eq!(header.head_len(), Some(n - CHUNK_HEADER_BYTES));
        prop_assert_eq!(Chunk::parse(&header, &out[CHUNK_HEADER_BYTES..n]), Some(expect));
        prop_assert!(SimpleReply::parse(out.first_chunk().unwrap()).is_none());
    }

    #[test]
    fn garbage_is_refused_without_panic(header: [u8; CHUNK_HEADER_BYTES], tail: Vec<u8>) {
        let mut header = header;
        header[..4].copy_from_slice(&0x668e_33efu32.to_be_bytes());
        if let Some(header) = ChunkHeader::parse(&header) {
            let _ = Chunk::parse(&header, &tail);
            if let Some(n) = header.head_len() {
                prop_assert!(n <= 8192, "a head must never need a large buffer");
                let _ = Chunk::parse(&header, &vec![0xff; n]);
            }
        }
    }
}

#[test]
fn a_request_is_laid_out_as_the_specification_says() {
    let header = RequestHeader {
        flags: CommandFlags::FUA | CommandFlags::NO_HOLE,
        command: Command::WriteZeroes,
        cookie: Cookie(0x0102_0304_0506_0708),
        offset: 0x1000,
        len: 0x200,
    };
    let bytes = [
        0x25, 0x60, 0x95, 0x13, 0, 3, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0, 0,
        0, 2, 0,
    ];
    assert_eq!(header.encode(), bytes);
}

#[test]
fn a_wrong_magic_is_an_error_and_no_request() {
    let mut bytes = RequestHeader {
        flags: CommandFlags::NONE,
        command: Command::Read,
        cookie: Cookie(1),
        offset: 0,
        len: 512,
    }
    .encode();
    bytes[0] ^= 1;
    assert_eq!(RequestHeader::parse(&bytes), Err(BadMagic(0x2460_9513)));
}

#[test]
fn a_simple_reply_reads_back() {
    let mut out = [0; REPLY_HEAD_MAX];
    for error in [None, Some(NbdError::Io)] {
        let n = Reply::Simple { error }.encode(Cookie(7), &mut out);
        assert_eq!(n, SIMPLE_REPLY_BYTES);
        assert!(SimpleReply::begins(*out.first_chunk().unwrap()));
        let back = SimpleReply::parse(out.first_chunk().unwrap()).unwrap();
        assert_eq!(
            back,
            SimpleReply {
                cookie: Cookie(7),
                error
            }
        );
    }
}

#[test]
fn every_errno_becomes_a_number_of_the_protocol() {
    for errno in 1..200 {
        let e = NbdError::from_errno(errno);
        assert_eq!(NbdError::from_wire(e.wire()), Some(e));
    }
    for errno in [1, 5, 12, 22, 28, 75, 95, 108] {
        assert_eq!(NbdError::from_errno(errno).errno(), errno);
    }
    assert_eq!(NbdError::from_wire(0), None);
}

/// A copy tool once took the data of an error chunk for content, and a backup was silently
/// corrupt (CVE-2022-0485). An error chunk is an error whatever else it says.
#[test]
fn an_error_chunk_is_never_a_success() {
    let header = ChunkHeader {
        done: true,
        kind: ChunkKind::Unknown(0x8003),
        cookie: Cookie(1),
        len: 6,
    };
    assert!(matches!(
        Chunk::parse(&header, &[0; 6]),
        Some(Chunk::Error { .. })
    ));
    let unknown_success = ChunkHeader {
        kind: ChunkKind::Unknown(9),
        ..header
    };
    assert_eq!(Chunk::parse(&unknown_success, &[0; 6]), None);
}
