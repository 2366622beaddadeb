//! Frames out of a stream that arrives in pieces of any size.

use crate::header::{HEADER_BYTES, Header, Kind, SessionId};
use crate::message::{
    Digest, DigestAlgorithm, Encoding, FailureKind, Hello, HelloAck, Message, Progress,
    ReplicaState,
};
use crate::spans::{SPAN_BYTES, Spans};
use block::{Error, ErrorKind, Generation, Result, SECTOR_BYTES, Span, VolumeId};
use zerocopy::FromBytes;

/// Bytes that the decoder buffers, at most: one frame of the largest size while the next arrives.
/// Twice a frame, so that what is left of one is moved to the front at most once a frame.
const BUFFER: usize = 2 * (HEADER_BYTES + crate::MAX_BODY);

/// A frame: its checked header and its message, which borrows the decoder's buffer.
#[derive(Debug, PartialEq)]
pub struct Frame<'a> {
    /// The header.
    pub header: Header,
    /// The body.
    pub message: Message<'a>,
}

/// Reads one direction of one connection.
///
/// Take the buffer with [`Decoder::take_buffer`], let the transport append to it, give it back, and
/// call [`Decoder::next_frame`] until it has no more. After an error the connection must end: where
/// the next frame would begin is not known any more.
pub struct Decoder {
    buf: Vec<u8>,
    /// Where the first frame that was not handed out begins.
    start: usize,
    session: Option<SessionId>,
    sequence: u64,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder::new()
    }
}

impl Decoder {
    /// A decoder for a new connection; its first frame sets the session that all must name.
    #[must_use]
    pub fn new() -> Decoder {
        Decoder {
            buf: Vec::with_capacity(BUFFER),
            start: 0,
            session: None,
            sequence: 0,
        }
    }

    /// The buffer, with spare capacity for at least a byte more than the frame being received needs.
    pub fn take_buffer(&mut self) -> Vec<u8> {
        if self.start == self.buf.len() {
            self.buf.clear();
            self.start = 0;
        } else if self.start > BUFFER / 2 {
            self.buf.drain(..self.start);
            self.start = 0;
        }
        std::mem::take(&mut self.buf)
    }

    /// The buffer comes back with more in it.
    pub fn give_buffer(&mut self, buf: Vec<u8>) {
        self.buf = buf;
    }

    /// The next whole frame, `None` if more must be received first.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>> {
        let Some(header) = self.advance()? else {
            return Ok(None);
        };
        let message = self.message(&header)?;
        Ok(Some(Frame { header, message }))
    }

    /// Step over the next whole frame, `None` if more must be received first. For those who must
    /// wait between the two: [`Decoder::message`] then reads it.
    pub fn advance(&mut self) -> Result<Option<Header>> {
        let rest = &self.buf[self.start..];
        let Some((head, rest)) = rest.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = Header::from_wire(head)?;
        let session = *self.session.get_or_insert(header.session);
        if header.session != session {
            return Err(protocol("frame of another session"));
        }
        if header.sequence != self.sequence {
            return Err(protocol(&format!(
                "frame {} where {} was due: frames were lost, doubled or reordered",
                header.sequence, self.sequence
            )));
        }
        if rest.len() < header.body_len {
            return Ok(None);
        }
        if crc32fast::hash(&rest[..header.body_len]) != header.body_crc {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "replication frame: body checksum does not match",
            ));
        }
        self.sequence += 1;
        self.start += HEADER_BYTES + header.body_len;
        Ok(Some(header))
    }

    /// The message of the frame that [`Decoder::advance`] stepped over last. The buffer must not
    /// have been taken since.
    pub fn message(&self, header: &Header) -> Result<Message<'_>> {
        let body = self.start.checked_sub(header.body_len);
        let body = body.and_then(|from| self.buf.get(from..self.start));
        parse(header.kind, body.ok_or_else(|| protocol("no frame"))?)
    }
}

fn protocol(what: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("replication stream: {what}"))
}

/// Takes fields off the front of a body.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or_else(|| protocol("body cut short"))?;
        self.0 = rest;
        Ok(*head)
    }
    fn u8(&mut self) -> Result<u8> {
        Ok(self.bytes::<1>()?[0])
    }
    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }
    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }
    fn span(&mut self) -> Result<Span> {
        let span = Span::new(self.u64()?, self.u64()?);
        if span.len == 0 || span.checked_end().is_none() {
            return Err(protocol("bad span"));
        }
        Ok(span)
    }
    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

fn parse(kind: Kind, body: &[u8]) -> Result<Message<'_>> {
    let mut f = Fields(body);
    let message = match kind {
        Kind::Hello => Message::Hello(Hello {
            oldest: f.u8()?,
            newest: f.u8()?,
            volume: VolumeId(f.bytes()?),
            size: f.u64()?,
        }),
        Kind::HelloAck => {
            let [version, state, has_data] = f.bytes()?;
            let (seed, watermark) = (f.u64()?, f.u64()?);
            let state = match state {
                0 => ReplicaState::Empty,
                1 => ReplicaState::Seeding { seed, watermark },
                2 => ReplicaState::Consistent,
                3 => ReplicaState::Owner,
                _ => return Err(protocol("unknown replica state")),
            };
            Message::HelloAck(HelloAck {
                version,
                state,
                has_data: has_data != 0,
            })
        }
        Kind::SeedBegin => Message::SeedBegin { from: f.u64()? },
        Kind::Data => data(&mut f)?,
        Kind::Zero => Message::Zero {
            spans: Spans::parse(f.rest())?,
        },
        Kind::Digests => digests(&mut f)?,
        Kind::DigestDiff => {
            let span = f.span()?;
            let differs = f.rest();
            if differs.len() > crate::MAX_DIGESTS.div_ceil(8) {
                return Err(protocol("more differences than a digest frame has digests"));
            }
            Message::DigestDiff { span, differs }
        }
        Kind::SeedWatermark => Message::SeedWatermark { offset: f.u64()? },
        Kind::EpochBegin => Message::EpochBegin { base: f.u64()? },
        Kind::EpochEnd => Message::EpochEnd {
            frames: f.u64()?,
            bytes: f.u64()?,
            digest: f.bytes()?,
        },
        Kind::EpochAck => Message::EpochAck,
        Kind::MirrorWrite => {
            let (id, span) = (f.u32()?, f.span()?);
            let payload = f.rest();
            if payload.len() > crate::MAX_CONTENT || payload.len() as u64 != span.len {
                return Err(protocol("mirrored write whose length is not its content's"));
            }
            Message::MirrorWrite { id, span, payload }
        }
        Kind::MirrorZero => Message::MirrorZero {
            id: f.u32()?,
            span: f.span()?,
        },
        Kind::MirrorFlush => Message::MirrorFlush { id: f.u32()? },
        Kind::MirrorAck => Message::MirrorAck {
            id: f.u32()?,
            errno: f.u32()? as i32,
        },
        Kind::Activate => Message::Activate {
            generation: Generation(f.u64()?),
        },
        Kind::Activated => Message::Activated {
            generation: Generation(f.u64()?),
        },
        Kind::Progress => Message::Progress(Progress { bytes: f.u64()? }),
        Kind::Ping => Message::Ping,
        Kind::Pong => Message::Pong,
        Kind::Error => {
            let kind =
                FailureKind::from_wire(f.u8()?).ok_or_else(|| protocol("unknown failure kind"))?;
            let sentence = f.rest();
            if sentence.len() > crate::MAX_SENTENCE {
                return Err(protocol("error sentence too long"));
            }
            let sentence = std::str::from_utf8(sentence)
                .map_err(|_| protocol("error sentence is not UTF-8"))?;
            Message::Error { kind, sentence }
        }
    };
    if f.0.is_empty() {
        Ok(message)
    } else {
        Err(protocol("bytes left over in a body"))
    }
}

fn data<'a>(f: &mut Fields<'a>) -> Result<Message<'a>> {
    let count = f.u32()? as usize;
    let encoding = match f.u32()? {
        0 => Encoding::Raw,
        1 => Encoding::Zstd,
        _ => return Err(protocol("unknown encoding")),
    };
    let rest = f.rest();
    let split = count.checked_mul(SPAN_BYTES).filter(|n| *n <= rest.len());
    let Some(split) = split else {
        return Err(protocol("span list cut short"));
    };
    let (spans, payload) = rest.split_at(split);
    let spans = Spans::parse(spans)?;
    let content = spans.iter().try_fold(0u64, |sum, s| sum.checked_add(s.len));
    match content {
        Some(n) if n <= crate::MAX_CONTENT as u64 => match encoding {
            Encoding::Raw if payload.len() as u64 != n => {
                return Err(protocol("content is not as long as its spans"));
            }
            Encoding::Zstd if payload.len() as u64 >= n => {
                return Err(protocol("compressed content that did not shrink"));
            }
            _ => {}
        },
        _ => return Err(protocol("more content than a frame may hold")),
    }
    Ok(Message::Data {
        spans,
        encoding,
        payload,
    })
}

fn digests<'a>(f: &mut Fields<'a>) -> Result<Message<'a>> {
    let (span, unit) = (f.span()?, f.u32()?);
    if f.u32()? != DigestAlgorithm::Blake3 as u32 {
        return Err(protocol("unknown digest algorithm"));
    }
    let rest = f.rest();
    let Ok(digests) = <[Digest]>::ref_from_bytes(rest) else {
        return Err(protocol("digests cut short"));
    };
    let whole = u64::from(unit) >= SECTOR_BYTES
        && unit as usize <= crate::MAX_CONTENT
        && digests.len() <= crate::MAX_DIGESTS
        && span.len.div_ceil(u64::from(unit)) == digests.len() as u64;
    if !whole {
        return Err(protocol("digests do not cover their span"));
    }
    Ok(Message::Digests {
        span,
        unit,
        algorithm: DigestAlgorithm::Blake3,
        digests,
    })
}
