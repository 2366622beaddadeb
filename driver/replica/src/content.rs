//! What a chunk of image becomes on the wire: digests, zeroes left out, the rest shrunk if it will.

use block::{BLOCK_BYTES, Result, Span};
use wire::{Compressor, Digest, Encoding, Message, SpanList};

/// The digest of a piece of content.
pub(crate) fn digest(content: &[u8]) -> Digest {
    cut(&blake3::hash(content))
}

/// A hash as the wire has it.
pub(crate) fn cut(hash: &blake3::Hash) -> Digest {
    let mut digest = Digest::default();
    digest.copy_from_slice(&hash.as_bytes()[..size_of::<Digest>()]);
    digest
}

/// The digests of a chunk, one for each `unit` bytes.
pub(crate) fn digests(content: &[u8], unit: usize) -> Vec<Digest> {
    content.chunks(unit).map(digest).collect()
}

/// Splits content into what is zero and what is not, and packs the latter.
pub(crate) struct Packer {
    zeroes: SpanList,
    data: SpanList,
    /// The content of `data`, if it is not all of the chunk.
    gathered: Vec<u8>,
    compressor: Option<Compressor>,
}

impl Packer {
    pub(crate) fn new(compress: bool) -> Result<Packer> {
        let compressor = if compress {
            Some(Compressor::new()?)
        } else {
            None
        };
        Ok(Packer {
            zeroes: SpanList::default(),
            data: SpanList::default(),
            gathered: Vec::new(),
            compressor,
        })
    }

    /// The frames that carry `pieces`, ascending and disjoint, at most a frame's content in all:
    /// zeroes first, then data; either may be missing.
    pub(crate) fn pack<'p>(
        &'p mut self,
        pieces: &[(Span, &'p [u8])],
    ) -> (Option<Message<'p>>, Option<Message<'p>>) {
        self.zeroes.clear();
        self.data.clear();
        self.gathered.clear();
        for (span, content) in pieces {
            let mut at = span.offset;
            for block in content.chunks(BLOCK_BYTES as usize) {
                let list = if is_zero(block) {
                    &mut self.zeroes
                } else {
                    &mut self.data
                };
                list.push(Span::new(at, block.len() as u64));
                at += block.len() as u64;
            }
        }
        let whole = match pieces {
            [(_, content)] if self.zeroes.is_empty() => Some(*content),
            _ => None,
        };
        let payload = match whole {
            Some(content) => content,
            None => {
                for (span, content) in pieces {
                    for (i, block) in content.chunks(BLOCK_BYTES as usize).enumerate() {
                        debug_assert!(span.len as usize > i * BLOCK_BYTES as usize);
                        if !is_zero(block) {
                            self.gathered.extend_from_slice(block);
                        }
                    }
                }
                &self.gathered
            }
        };
        let zero = (!self.zeroes.is_empty()).then(|| Message::Zero {
            spans: self.zeroes.as_spans(),
        });
        let spans = self.data.as_spans();
        let data = (!self.data.is_empty()).then(|| {
            let shrunk = self.compressor.as_mut().and_then(|c| c.shrink(payload));
            match shrunk {
                Some(payload) => Message::Data {
                    spans,
                    encoding: Encoding::Zstd,
                    payload,
                },
                None => Message::Data {
                    spans,
                    encoding: Encoding::Raw,
                    payload,
                },
            }
        });
        (zero, data)
    }
}

/// Whether every byte is zero; noise is told by its first bytes.
fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<32>();
    words.iter().all(|w| w == &[0; 32]) && rest.iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_travel_as_ranges_and_the_rest_in_one_piece() {
        let mut content = vec![7u8; 5 * 4096];
        content[4096..2 * 4096].fill(0);
        content[4 * 4096..].fill(0);
        let mut packer = Packer::new(false).unwrap();
        let (zero, data) = packer.pack(&[
            (Span::new(8192, 3 * 4096), &content[..3 * 4096]),
            (Span::new(1 << 20, 2 * 4096), &content[3 * 4096..]),
        ]);
        let spans = |m: Option<Message<'_>>| match m.unwrap() {
            Message::Zero { spans } | Message::Data { spans, .. } => {
                spans.iter().map(|s| (s.offset, s.len)).collect::<Vec<_>>()
            }
            m => panic!("{m:?}"),
        };
        assert_eq!(spans(zero), [(12288, 4096), ((1 << 20) + 4096, 4096)]);
        match data.unwrap() {
            Message::Data { payload, .. } => assert_eq!(payload, vec![7; 3 * 4096]),
            m => panic!("{m:?}"),
        }
        assert_eq!(spans(data), [(8192, 4096), (16384, 4096), (1 << 20, 4096)]);
    }

    #[test]
    fn what_shrinks_is_packed() {
        let content = vec![7u8; 1 << 16];
        let mut packer = Packer::new(true).unwrap();
        match packer.pack(&[(Span::new(0, 1 << 16), &content)]) {
            (
                None,
                Some(Message::Data {
                    encoding, payload, ..
                }),
            ) => {
                assert_eq!(encoding, Encoding::Zstd);
                assert!(payload.len() < 1000);
            }
            m => panic!("{m:?}"),
        }
    }
}
