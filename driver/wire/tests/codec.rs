//! Frames survive any splitting of the stream; what was damaged, lost, doubled or reordered on the
//! way is an error and never a panic, and never content.
#![allow(clippy::unwrap_used)]

use block::{Epoch, Generation, Span, VolumeId};
use proptest::prelude::*;
use wire::{
    Decoder, DigestAlgorithm, Encoder, Encoding, FailureKind, Frame, HEADER_BYTES, Hello, HelloAck,
    Message, Progress, ReplicaState, SessionId, SpanList,
};

/// A message that owns what [`Message`] borrows.
#[derive(Clone, Debug)]
enum Owned {
    Plain(Message<'static>),
    Data(Vec<(u64, u16)>, u8),
    Zero(Vec<(u64, u16)>),
    Digests(u64, u8),
    Diff(u64, Vec<u8>),
    Mirror(u32, u64, Vec<u8>),
    Error(String),
}

fn list(gaps: &[(u64, u16)]) -> SpanList {
    let mut list = SpanList::default();
    let mut at = 0;
    for (gap, len) in gaps {
        let span = Span::new(at + gap, u64::from(*len) + 1);
        list.push(span);
        at = span.end();
    }
    list
}

impl Owned {
    fn with<R>(&self, f: impl FnOnce(&Message<'_>) -> R) -> R {
        match self {
            Owned::Plain(m) => f(m),
            Owned::Data(gaps, fill) => {
                let list = list(gaps);
                let payload = vec![*fill; list.as_spans().bytes() as usize];
                f(&Message::Data {
                    spans: list.as_spans(),
                    encoding: Encoding::Raw,
                    payload: &payload,
                })
            }
            Owned::Zero(gaps) => f(&Message::Zero {
                spans: list(gaps).as_spans(),
            }),
            Owned::Digests(offset, count) => f(&Message::Digests {
                span: Span::new(*offset, 4096 * u64::from(*count)),
                unit: 4096,
                algorithm: DigestAlgorithm::Blake3,
                digests: &vec![[7; 16]; usize::from(*count)],
            }),
            Owned::Diff(offset, bits) => f(&Message::DigestDiff {
                span: Span::new(*offset, 1 << 22),
                differs: bits,
            }),
            Owned::Mirror(id, offset, payload) => f(&Message::MirrorWrite {
                id: *id,
                span: Span::new(*offset, payload.len() as u64),
                payload,
            }),
            Owned::Error(sentence) => f(&Message::Error {
                kind: FailureKind::NoSpace,
                sentence,
            }),
        }
    }
}

fn gaps() -> impl Strategy<Value = Vec<(u64, u16)>> {
    prop::collection::vec((0..1u64 << 40, 0..4096u16), 1..20)
}

fn message() -> impl Strategy<Value = Owned> {
    let plain = prop_oneof![
        (any::<[u8; 16]>(), any::<u64>()).prop_map(|(v, size)| Message::Hello(Hello {
            oldest: 1,
            newest: 2,
            volume: VolumeId(v),
            size,
        })),
        (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(seed, watermark, has_data)| {
            Message::HelloAck(HelloAck {
                version: 1,
                state: ReplicaState::Seeding { seed, watermark },
                has_data,
            })
        }),
        any::<u64>().prop_map(|from| Message::SeedBegin { from }),
        any::<u64>().prop_map(|offset| Message::SeedWatermark { offset }),
        any::<u64>().prop_map(|base| Message::EpochBegin { base }),
        (any::<u64>(), any::<u64>(), any::<[u8; 16]>()).prop_map(|(frames, bytes, digest)| {
            Message::EpochEnd {
                frames,
                bytes,
                digest,
            }
        }),
        Just(Message::EpochAck),
        any::<u32>().prop_map(|id| Message::MirrorFlush { id }),
        any::<u32>().prop_map(|id| Message::MirrorZero {
            id,
            span: Span::new(u64::from(id), 512)
        }),
        (any::<u32>(), any::<i32>()).prop_map(|(id, errno)| Message::MirrorAck { id, errno }),
        any::<u64>().prop_map(|g| Message::Activate {
            generation: Generation(g)
        }),
        any::<u64>().prop_map(|g| Message::Activated {
            generation: Generation(g)
        }),
        any::<u64>().prop_map(|bytes| Message::Progress(Progress { bytes })),
        Just(Message::Ping),
        Just(Message::Pong),
    ];
    prop_oneof![
        4 => plain.prop_map(Owned::Plain),
        2 => (gaps(), any::<u8>()).prop_map(|(g, fill)| Owned::Data(g, fill)),
        1 => gaps().prop_map(Owned::Zero),
        1 => (0..1u64 << 40, 1..=255u8).prop_map(|(o, n)| Owned::Digests(o, n)),
        1 => (0..1u64 << 40, prop::collection::vec(any::<u8>(), 0..128))
            .prop_map(|(o, b)| Owned::Diff(o, b)),
        1 => (any::<u32>(), 0..1u64 << 40, prop::collection::vec(any::<u8>(), 1..9000))
            .prop_map(|(id, o, p)| Owned::Mirror(id, o, p)),
        1 => "\\PC{0,700}".prop_map(Owned::Error),
    ]
}

fn encode(messages: &[Owned]) -> Vec<Vec<u8>> {
    let mut encoder = Encoder::new(SessionId(9));
    messages
        .iter()
        .map(|m| {
            let mut out = Vec::new();
            m.with(|m| encoder.encode(Generation(3), Epoch(5), m, &mut out));
            out
        })
        .collect()
}

/// Feed `stream` in pieces and give every frame to `each`.
fn decode(stream: &[u8], piece: usize, mut each: impl FnMut(Frame<'_>)) -> block::Result<()> {
    let mut decoder = Decoder::new();
    let mut rest = stream;
    loop {
        while let Some(frame) = decoder.next_frame()? {
            each(frame);
        }
        if rest.is_empty() {
            return Ok(());
        }
        let mut buf = decoder.take_buffer();
        let room = buf.capacity() - buf.len();
        assert!(room > 0, "the decoder must always have room");
        let (now, later) = rest.split_at(piece.min(room).min(rest.len()));
        buf.extend_from_slice(now);
        decoder.give_buffer(buf);
        rest = later;
    }
}

/// The sentence of an error frame may be cut; everything else comes back as it was.
fn same(sent: &Owned, got: &Message<'_>) -> bool {
    match (sent, got) {
        (Owned::Error(sent), Message::Error { kind, sentence }) => {
            *kind == FailureKind::NoSpace
                && sent.starts_with(sentence)
                && (sent.len() <= wire::MAX_SENTENCE || sentence.len() > wire::MAX_SENTENCE - 4)
        }
        _ => sent.with(|m| m == got),
    }
}

proptest! {
    #[test]
    fn frames_come_back_however_the_stream_is_split(
        messages in prop::collection::vec(message(), 1..12),
        piece in 1..5000usize,
    ) {
        let stream = encode(&messages).concat();
        let mut n = 0;
        decode(&stream, piece, |frame| {
            assert!(same(&messages[n], &frame.message), "frame {n}");
            assert_eq!((frame.header.generation, frame.header.epoch), (Generation(3), Epoch(5)));
            n += 1;
        }).unwrap();
        prop_assert_eq!(n, messages.len());
    }

    #[test]
    fn a_flipped_bit_never_passes(
        messages in prop::collection::vec(message(), 1..5),
        at in any::<prop::sample::Index>(),
        bit in 0..8u8,
    ) {
        let mut stream = encode(&messages).concat();
        let at = at.index(stream.len());
        stream[at] ^= 1 << bit;
        let mut n = 0;
        let end = decode(&stream, 4096, |frame| {
            assert!(same(&messages[n], &frame.message), "a damaged frame was believed");
            n += 1;
        });
        prop_assert!(end.is_err());
        prop_assert!(n < messages.len());
    }

    #[test]
    fn garbage_is_an_error_and_no_panic(garbage in prop::collection::vec(any::<u8>(), 0..4096)) {
        let end = decode(&garbage, 1000, |_| panic!("garbage is no frame"));
        prop_assert!(end.is_err() || garbage.len() < HEADER_BYTES);
    }

    /// The CRCs are right, the fields are not: what a hostile peer would send.
    #[test]
    fn hostile_bodies_are_an_error_and_no_panic(
        kind in 0..24u8,
        body in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut header = [0u8; HEADER_BYTES];
        header[..4].copy_from_slice(b"FRr\x01");
        header[4..7].copy_from_slice(&[wire::VERSION, kind, 1]);
        header[40..44].copy_from_slice(&(body.len() as u32).to_le_bytes());
        header[44..48].copy_from_slice(&crc32fast::hash(&body).to_le_bytes());
        let crc = crc32fast::hash(&header[..HEADER_BYTES - 4]);
        header[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        let mut stream = header.to_vec();
        stream.extend_from_slice(&body);
        let _ = decode(&stream, 4096, |frame| {
            if let Message::Data { spans, .. } = frame.message {
                assert!(spans.bytes() <= wire::MAX_CONTENT as u64);
            }
        });
    }
}

#[test]
fn lost_doubled_and_reordered_frames_are_noticed() {
    let messages = vec![
        Owned::Plain(Message::Ping),
        Owned::Plain(Message::EpochAck),
        Owned::Plain(Message::Pong),
    ];
    let frames = encode(&messages);
    for order in [&[0, 2][..], &[0, 0], &[0, 1, 1], &[1, 0], &[0, 2, 1]] {
        let stream: Vec<u8> = order.iter().flat_map(|i| frames[*i].clone()).collect();
        let e = decode(&stream, 7, |_| {}).unwrap_err();
        assert_eq!(e.kind(), block::ErrorKind::Protocol, "{order:?}");
    }
}

#[test]
fn a_frame_of_another_session_is_refused() {
    let mut stream = Vec::new();
    Encoder::new(SessionId(1)).encode(Generation(1), Epoch(1), &Message::Ping, &mut stream);
    let mut other = Encoder::new(SessionId(2));
    other.encode(Generation(1), Epoch(1), &Message::Ping, &mut Vec::new());
    other.encode(Generation(1), Epoch(1), &Message::Ping, &mut stream);
    assert!(decode(&stream, 4096, |_| {}).is_err());
}

#[test]
fn the_largest_frame_fits_and_memory_stays_bounded() {
    let mut list = SpanList::default();
    for i in 0..wire::MAX_SPANS as u64 {
        list.push(Span::new(i * 8192, 4096));
    }
    let payload = vec![1; wire::MAX_CONTENT];
    let mut encoder = Encoder::new(SessionId(1));
    let mut stream = Vec::new();
    for _ in 0..5 {
        let data = Message::Data {
            spans: list.as_spans(),
            encoding: Encoding::Raw,
            payload: &payload,
        };
        encoder.encode(Generation(1), Epoch(1), &data, &mut stream);
    }
    let mut n = 0;
    decode(&stream, usize::MAX, |_| n += 1).unwrap();
    assert_eq!(n, 5);
    assert!(Decoder::new().take_buffer().capacity() < 4 * wire::MAX_CONTENT);
}
