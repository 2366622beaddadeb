//! Messages into frames.

use crate::header::{HEADER_BYTES, Header, Kind, SessionId, VERSION};
use crate::message::{Message, ReplicaState};
use crate::spans::SpanList;
use block::{Epoch, Generation, Span};
use zerocopy::IntoBytes;

/// Numbers the frames of one direction of one connection and writes them.
#[derive(Debug)]
pub struct Encoder {
    session: SessionId,
    version: u8,
    sequence: u64,
}

impl Encoder {
    /// The encoder of a new connection.
    #[must_use]
    pub fn new(session: SessionId) -> Encoder {
        Encoder {
            session,
            version: VERSION,
            sequence: 0,
        }
    }

    /// Write in `version`, as negotiated.
    pub fn set_version(&mut self, version: u8) {
        self.version = version;
    }

    /// The session that the frames name.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Append the frame of `message` to `out` and return the CRC of its body.
    ///
    /// # Panics
    /// If the message exceeds the limits of the format, which its maker must respect.
    pub fn encode(
        &mut self,
        generation: Generation,
        epoch: Epoch,
        message: &Message<'_>,
        out: &mut Vec<u8>,
    ) -> u32 {
        let at = out.len();
        out.extend_from_slice(&[0; HEADER_BYTES]);
        let kind = body(message, out);
        let body = &out[at + HEADER_BYTES..];
        assert!(body.len() <= crate::MAX_BODY, "{kind:?} of {}", body.len());
        let header = Header {
            version: self.version,
            kind,
            session: self.session,
            generation,
            epoch,
            sequence: self.sequence,
            body_len: body.len(),
            body_crc: crc32fast::hash(body),
        };
        self.sequence += 1;
        out[at..at + HEADER_BYTES].copy_from_slice(&header.to_wire());
        header.body_crc
    }
}

fn put_u32(out: &mut Vec<u8>, v: u32) {
    out.extend_from_slice(&v.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, v: u64) {
    out.extend_from_slice(&v.to_le_bytes());
}

fn put_span(out: &mut Vec<u8>, span: Span) {
    put_u64(out, span.offset);
    put_u64(out, span.len);
}

/// Append the body; [`crate::decode`] reads the same fields in the same order.
fn body(message: &Message<'_>, out: &mut Vec<u8>) -> Kind {
    match *message {
        Message::Hello(h) => {
            out.extend_from_slice(&[h.oldest, h.newest]);
            out.extend_from_slice(&h.volume.0);
            put_u64(out, h.size);
            Kind::Hello
        }
        Message::HelloAck(h) => {
            let (state, seed, watermark) = match h.state {
                ReplicaState::Empty => (0, 0, 0),
                ReplicaState::Seeding { seed, watermark } => (1, seed, watermark),
                ReplicaState::Consistent => (2, 0, 0),
                ReplicaState::Owner => (3, 0, 0),
            };
            out.extend_from_slice(&[h.version, state, u8::from(h.has_data)]);
            put_u64(out, seed);
            put_u64(out, watermark);
            Kind::HelloAck
        }
        Message::SeedBegin { from } => {
            put_u64(out, from);
            Kind::SeedBegin
        }
        Message::Data {
            spans,
            encoding,
            payload,
        } => {
            put_u32(out, spans.len() as u32);
            put_u32(out, encoding as u32);
            out.extend_from_slice(SpanList::bytes_of(&spans));
            out.extend_from_slice(payload);
            Kind::Data
        }
        Message::Zero { spans } => {
            out.extend_from_slice(SpanList::bytes_of(&spans));
            Kind::Zero
        }
        Message::Digests {
            span,
            unit,
            algorithm,
            digests,
        } => {
            put_span(out, span);
            put_u32(out, unit);
            put_u32(out, algorithm as u32);
            out.extend_from_slice(digests.as_bytes());
            Kind::Digests
        }
        Message::DigestDiff { span, differs } => {
            put_span(out, span);
            out.extend_from_slice(differs);
            Kind::DigestDiff
        }
        Message::SeedWatermark { offset } => {
            put_u64(out, offset);
            Kind::SeedWatermark
        }
        Message::EpochBegin { base } => {
            put_u64(out, base);
            Kind::EpochBegin
        }
        Message::EpochEnd {
            frames,
            bytes,
            digest,
        } => {
            put_u64(out, frames);
            put_u64(out, bytes);
            out.extend_from_slice(&digest);
            Kind::EpochEnd
        }
        Message::EpochAck => Kind::EpochAck,
        Message::MirrorWrite { id, span, payload } => {
            put_u32(out, id);
            put_span(out, span);
            out.extend_from_slice(payload);
            Kind::MirrorWrite
        }
        Message::MirrorZero { id, span } => {
            put_u32(out, id);
            put_span(out, span);
            Kind::MirrorZero
        }
        Message::MirrorFlush { id } => {
            put_u32(out, id);
            Kind::MirrorFlush
        }
        Message::MirrorAck { id, errno } => {
            put_u32(out, id);
            put_u32(out, errno as u32);
            Kind::MirrorAck
        }
        Message::Activate { generation } => {
            put_u64(out, generation.0);
            Kind::Activate
        }
        Message::Activated { generation } => {
            put_u64(out, generation.0);
            Kind::Activated
        }
        Message::Progress(p) => {
            put_u64(out, p.bytes);
            Kind::Progress
        }
        Message::Ping => Kind::Ping,
        Message::Pong => Kind::Pong,
        Message::Error { kind, sentence } => {
            out.push(kind as u8);
            let mut end = sentence.len().min(crate::MAX_SENTENCE);
            while !sentence.is_char_boundary(end) {
                end -= 1;
            }
            out.extend_from_slice(&sentence.as_bytes()[..end]);
            Kind::Error
        }
    }
}
