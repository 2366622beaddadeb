//! One chunk of image on its way: read, compared if the receiver may have it, packed, sent.

use super::Session;
use crate::content;
use crate::seam::{Pending, Source};
use block::{
    AlignedBuf, BLOCK_BYTES, Clock, Disk, Epoch, Error, ErrorKind, Result, Span, Transport,
};
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::cell::{Cell, RefCell};
use wire::{DigestAlgorithm, Message};

/// Bytes of one chunk, at most: large enough for a disk's full rate, small enough that a guest's
/// request behind one is not held up for long.
pub(super) const CHUNK_BYTES: u64 = 512 << 10;
const _: () = assert!(CHUNK_BYTES <= wire::MAX_CONTENT as u64);

/// Chunks in flight, at most: 4 MiB of buffers a sender.
pub(super) const CHUNKS: usize = 8;

/// Reads of one chunk in flight, at most.
const READS: usize = 32;

/// Bytes that one digest covers when a whole old copy is compared: 0.03% of the volume travels.
pub(super) const SEED_UNIT: u32 = 64 << 10;
/// The same inside suspect areas, of which a few blocks differ as a rule.
pub(super) const SUSPECT_UNIT: u32 = BLOCK_BYTES as u32;

/// Frames of an epoch so far, as its end frame states them.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) frames: Cell<u64>,
    pub(super) bytes: Cell<u64>,
    pub(super) digest: RefCell<blake3::Hasher>,
}

impl<S: Source, D: Disk, C: Clock, T: Transport> Session<'_, S, D, C, T> {
    /// Ship spans of the image: at most [`CHUNK_BYTES`] and [`wire::MAX_SPANS`] of them. With a
    /// snapshot, as they were at its epoch. With a unit, only the units that the receiver has not.
    pub(super) async fn ship(
        &self,
        epoch: Epoch,
        spans: &[Span],
        snapshot: Option<&S::Snapshot>,
        unit: Option<u32>,
        tally: &Tally,
    ) -> Result<()> {
        let bytes: u64 = spans.iter().map(|s| s.len).sum();
        let sender = self.sender;
        sender
            .pacer
            .admit(&sender.clock, bytes, || sender.source.guest_load())
            .await;
        let mut pieces = self.read(spans).await?;
        if let Some(snapshot) = snapshot {
            for (span, buf) in &mut pieces {
                restore(snapshot, *span, buf);
            }
        }
        let mut parts: Vec<(Span, &[u8])> = Vec::with_capacity(pieces.len());
        for (span, buf) in &pieces {
            match unit {
                None => parts.push((*span, buf)),
                Some(unit) => parts.extend(self.differing(epoch, *span, buf, unit).await?),
            }
        }
        if !parts.is_empty() {
            self.pack(epoch, &parts, tally).await?;
        }
        let mut spare = sender.spare.borrow_mut();
        spare.extend(pieces.into_iter().map(|(_, buf)| buf));
        spare.truncate(CHUNKS);
        Ok(())
    }

    async fn pack(&self, epoch: Epoch, parts: &[(Span, &[u8])], tally: &Tally) -> Result<()> {
        let mut room = self.link.room().await?;
        // No await from here on: the frames' order on the wire is their order in the tally.
        let mut packer = self.sender.packer.borrow_mut();
        let (zero, data) = packer.pack(parts);
        for message in [zero, data].into_iter().flatten() {
            let crc = room.send(epoch, &message)?;
            tally.count(&message, crc);
        }
        Ok(())
    }

    async fn read(&self, spans: &[Span]) -> Result<Vec<(Span, AlignedBuf)>> {
        let mut pieces: Vec<(Span, AlignedBuf)> = Vec::with_capacity(spans.len());
        let mut reads = FuturesUnordered::new();
        let mut result = Ok(());
        let mut spans = spans.iter();
        loop {
            while reads.len() < READS && result.is_ok() {
                let Some(span) = spans.next() else { break };
                let mut buf = self.sender.spare.borrow_mut().pop().unwrap_or_default();
                buf.resize(span.len as usize);
                reads.push(async move {
                    let (result, buf) = self.sender.image.read(span.offset, buf).await;
                    (result, *span, buf)
                });
            }
            let Some((r, span, buf)) = reads.next().await else {
                break;
            };
            result = result.and(r);
            pieces.push((span, buf));
        }
        result.map_err(|e| e.within("read the image to replicate it"))?;
        pieces.sort_unstable_by_key(|(span, _)| span.offset);
        Ok(pieces)
    }

    /// The parts of a span that the receiver has not.
    async fn differing<'b>(
        &self,
        epoch: Epoch,
        span: Span,
        content: &'b [u8],
        unit: u32,
    ) -> Result<Vec<(Span, &'b [u8])>> {
        let digests = content::digests(content, unit as usize);
        let answer = self.inbox.compare(span);
        let message = Message::Digests {
            span,
            unit,
            algorithm: DigestAlgorithm::Blake3,
            digests: &digests,
        };
        self.link.send(epoch, &message).await?;
        let differs = answer
            .await
            .map_err(|_| Error::new(ErrorKind::Broken, "a comparison was forgotten"))?;
        if differs.len() != digests.len().div_ceil(8) {
            return Err(Error::new(
                ErrorKind::Protocol,
                "the receiver compared another number of digests than it was sent",
            ));
        }
        let chunks = content.chunks(unit as usize).enumerate();
        let parts = chunks.filter(|(i, _)| differs[i / 8] & (1 << (i % 8)) != 0);
        let parts = parts.map(|(i, part)| {
            let offset = span.offset + i as u64 * u64::from(unit);
            (Span::new(offset, part.len() as u64), part)
        });
        Ok(parts.collect())
    }
}

impl Tally {
    /// Count a data or zero frame.
    pub(super) fn count(&self, message: &Message<'_>, crc: u32) {
        if let Message::Data { spans, .. } | Message::Zero { spans } = message {
            self.frames.set(self.frames.get() + 1);
            self.bytes.set(self.bytes.get() + spans.bytes());
            self.digest.borrow_mut().update(&crc.to_le_bytes());
        }
    }

    /// The frame that ends the epoch.
    pub(super) fn end(&self) -> Message<'static> {
        Message::EpochEnd {
            frames: self.frames.get(),
            bytes: self.bytes.get(),
            digest: content::cut(&self.digest.borrow().finalize()),
        }
    }
}

/// Put the blocks that the guest has rewritten since back as they were, and let the gate know that
/// the span's content is out of the image.
fn restore(snapshot: &impl Pending, span: Span, buf: &mut AlignedBuf) {
    let blocks = span.blocks();
    for (block, part) in blocks.iter().zip(buf.chunks_mut(BLOCK_BYTES as usize)) {
        if let Some(old) = snapshot.saved(block) {
            part.copy_from_slice(&old[..part.len()]);
        }
    }
    snapshot.shipped(blocks);
}
