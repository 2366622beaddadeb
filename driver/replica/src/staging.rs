//! The staging file: what was received of an epoch that is not committed yet, as a log.
//!
//! ```text
//!   lane 0 (even epochs)                    lane 1 (odd epochs)
//!   ┌────────┬─────────┬────────┬─────┬──  ┌────────┬─────────┬──
//!   │ header │ content │ header │ ... │    │ header │ content │
//!   └────────┴─────────┴────────┴─────┴──  └────────┴─────────┴──
//! ```
//!
//! One entry a frame; header and content each begin on a page. Two lanes, because a mirror's epoch
//! is received while the increment before it still is. An entry names its volume, epoch and position
//! and carries CRCs, so that a log that is redone after a crash is known to be the one committed.

use block::{AlignedBuf, Disk, Epoch, Error, ErrorKind, Result, SECTOR_BYTES, Span, VolumeId};
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const PAGE: u64 = 4096;
const MAGIC: [u8; 8] = *b"FRstaged";

/// Staged content that is also kept in memory, so that applying a small epoch (the last one of a
/// cutover, while the guest is frozen) reads nothing back.
const KEEP_BYTES: usize = 8 << 20;

/// Bytes at the front of a lane whose space is kept when it is emptied: overwriting them costs a
/// fifth of writing into a hole.
const KEEP_SPACE: u64 = 16 << 20;

/// Writes of one entry in flight at the image, at most.
const APPLY_DEPTH: usize = 32;

/// Bytes of staging file for a volume of `size` bytes: two lanes, each with room for an epoch that
/// dirtied everything. The file is sparse and emptied after each epoch.
#[must_use]
pub fn staging_bytes(size: u64) -> u64 {
    2 * lane_bytes(size)
}

/// Room for an epoch of a volume of `size` bytes.
pub(crate) fn lane_bytes(size: u64) -> u64 {
    (size + size / 16 + (64 << 20)).next_multiple_of(PAGE)
}

/// Room for an epoch in a staging file as it is.
pub(crate) fn lane_room<D: Disk>(staging: &D) -> u64 {
    staging.size() / 2 / PAGE * PAGE
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    magic: [u8; 8],
    /// CRC of the rest of this header and of the spans.
    crc: U32,
    content_crc: U32,
    volume: [u8; 16],
    epoch: U64,
    /// Where in its lane the entry begins.
    at: U64,
    spans: U32,
    /// Zero for an entry of zeroes.
    content: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSpan {
    offset: U64,
    len: U64,
}

const HEAD: usize = size_of::<RawEntry>();

/// The largest header: the most spans a frame has, rounded up to pages.
const HEAD_MAX: usize = (HEAD + wire::MAX_SPANS * 16).next_multiple_of(PAGE as usize);

/// Bytes of the head of an entry with so many spans.
fn head_bytes(spans: usize) -> usize {
    (HEAD + spans * size_of::<RawSpan>()).next_multiple_of(PAGE as usize)
}

/// The log of one epoch.
pub(crate) struct Lane<'a, D> {
    disk: &'a D,
    volume: VolumeId,
    epoch: Epoch,
    base: u64,
    room: u64,
    end: Cell<u64>,
    kept: RefCell<BTreeMap<u64, AlignedBuf>>,
    kept_bytes: Cell<usize>,
}

impl<'a, D: Disk> Lane<'a, D> {
    /// The lane of `epoch` in a file whose lanes have `room` bytes each, with the first `end` bytes of it
    /// written already.
    pub(crate) fn new(
        disk: &'a D,
        volume: VolumeId,
        epoch: Epoch,
        end: u64,
        room: u64,
    ) -> Lane<'a, D> {
        Lane {
            disk,
            volume,
            epoch,
            base: epoch.0 % 2 * room,
            room,
            end: Cell::new(end),
            kept: RefCell::default(),
            kept_bytes: Cell::new(0),
        }
    }

    pub(crate) fn end(&self) -> u64 {
        self.end.get()
    }

    /// Take the next place in the log for an entry whose content, `None` for zeroes, is written into
    /// the slice given to `fill`. Awaiting [`Lane::write`] of the answer writes it.
    pub(crate) fn stage(
        &self,
        spans: impl ExactSizeIterator<Item = Span>,
        content: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<(u64, AlignedBuf)> {
        let count = spans.len();
        let head = head_bytes(count);
        let len = (head + content).next_multiple_of(PAGE as usize);
        let at = self.end.get();
        if at + len as u64 > self.room {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "stage epoch {}: it exceeds the {} bytes of its lane of the staging file",
                    self.epoch, self.room
                ),
            ));
        }
        let mut buf = AlignedBuf::zeroed(len);
        fill(&mut buf[head..head + content])?;
        for (i, s) in spans.enumerate() {
            let raw = RawSpan {
                offset: U64::new(s.offset),
                len: U64::new(s.len),
            };
            buf[HEAD + i * 16..HEAD + (i + 1) * 16].copy_from_slice(raw.as_bytes());
        }
        let mut raw = RawEntry {
            magic: MAGIC,
            crc: U32::new(0),
            content_crc: U32::new(crc32fast::hash(&buf[head..head + content])),
            volume: self.volume.0,
            epoch: U64::new(self.epoch.0),
            at: U64::new(at),
            spans: U32::new(count as u32),
            content: U32::new(content as u32),
        };
        raw.crc = U32::new(entry_crc(&raw, &buf[HEAD..HEAD + count * 16]));
        buf[..HEAD].copy_from_slice(raw.as_bytes());
        self.end.set(at + len as u64);
        Ok((at, buf))
    }

    /// Write a staged entry.
    pub(crate) async fn write(&self, at: u64, buf: AlignedBuf) -> Result<()> {
        let (result, buf) = self.disk.write(self.base + at, buf).await;
        result.map_err(|e| e.within(format!("stage epoch {}", self.epoch)))?;
        if self.kept_bytes.get() + buf.len() <= KEEP_BYTES {
            self.kept_bytes.set(self.kept_bytes.get() + buf.len());
            self.kept.borrow_mut().insert(at, buf);
        }
        Ok(())
    }

    /// Put the whole log onto `image`, entry by entry in order. Not durable until the image is synced.
    pub(crate) async fn apply(&self, image: &D) -> Result<()> {
        let mut at = 0;
        while at < self.end.get() {
            let kept = self.kept.borrow_mut().remove(&at);
            let buf = match kept {
                Some(buf) => buf,
                None => self.read_back(at).await?,
            };
            let (spans, content) = self.parse(at, &buf)?;
            apply_spans(image, spans.iter().copied(), content).await?;
            at += buf.len() as u64;
        }
        Ok(())
    }

    async fn read_back(&self, at: u64) -> Result<AlignedBuf> {
        let read = async |len: usize| {
            let len = len.min((self.end.get() - at) as usize);
            let (result, buf) = self
                .disk
                .read(self.base + at, AlignedBuf::zeroed(len))
                .await;
            result.map_err(|e| e.within(format!("read back staged epoch {}", self.epoch)))?;
            Ok::<_, Error>(buf)
        };
        let head = read(HEAD_MAX).await?;
        let (raw, _) = RawEntry::ref_from_prefix(&head).map_err(|_| self.corrupt())?;
        let (spans, content) = (raw.spans.get() as usize, raw.content.get() as usize);
        if raw.magic != MAGIC || spans > wire::MAX_SPANS || content > wire::MAX_CONTENT {
            return Err(self.corrupt());
        }
        let len = (head_bytes(spans) + content).next_multiple_of(PAGE as usize);
        if len <= head.len() {
            let mut head = head;
            head.resize(len);
            return Ok(head);
        }
        read(len).await
    }

    fn parse<'b>(&self, at: u64, buf: &'b AlignedBuf) -> Result<(Vec<Span>, Option<&'b [u8]>)> {
        let (raw, _) = RawEntry::ref_from_prefix(buf).map_err(|_| self.corrupt())?;
        let (count, content) = (raw.spans.get() as usize, raw.content.get() as usize);
        let head = head_bytes(count);
        let spans = buf
            .get(HEAD..HEAD + count * 16)
            .ok_or_else(|| self.corrupt())?;
        let data = buf
            .get(head..head + content)
            .ok_or_else(|| self.corrupt())?;
        let ours = raw.magic == MAGIC
            && raw.volume == self.volume.0
            && raw.epoch.get() == self.epoch.0
            && raw.at.get() == at
            && raw.crc.get() == entry_crc(raw, spans)
            && raw.content_crc.get() == crc32fast::hash(data);
        let spans = <[RawSpan]>::ref_from_bytes(spans).map_err(|_| self.corrupt())?;
        if !ours {
            return Err(self.corrupt());
        }
        let spans = spans.iter().map(|s| Span::new(s.offset.get(), s.len.get()));
        Ok((spans.collect(), (content > 0).then_some(data)))
    }

    fn corrupt(&self) -> Error {
        Error::new(
            ErrorKind::Corrupt,
            format!("what was staged of epoch {} does not read back", self.epoch),
        )
    }

    /// Give the log's space back.
    pub(crate) async fn empty(&self) -> Result<()> {
        if self.end.get() > KEEP_SPACE {
            let len = self.end.get() - KEEP_SPACE;
            self.disk.zero(self.base + KEEP_SPACE, len).await?;
        }
        Ok(())
    }
}

fn entry_crc(raw: &RawEntry, spans: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&raw.as_bytes()[12..]);
    crc.update(spans);
    crc.finalize()
}

/// Write `content`, span after span, or zeroes if there is none.
pub(crate) async fn apply_spans<D: Disk>(
    image: &D,
    spans: impl Iterator<Item = Span>,
    content: Option<&[u8]>,
) -> Result<()> {
    let Some(content) = content else {
        for span in spans {
            zero_data(image, span).await?;
        }
        return Ok(());
    };
    let mut writes = FuturesUnordered::new();
    let mut result = Ok(());
    let mut rest = content;
    for span in spans {
        debug_assert!(span.is_aligned(SECTOR_BYTES));
        let (bytes, later) = rest.split_at(span.len as usize);
        rest = later;
        if writes.len() == APPLY_DEPTH {
            result = result.and(written(writes.next().await));
        }
        writes.push(image.write(span.offset, AlignedBuf::copy_of(bytes)));
    }
    // All of them, also after a failure: none may land after what comes next.
    while let Some(done) = writes.next().await {
        result = result.and(written(Some(done)));
    }
    result
}

fn written(done: Option<(Result<()>, AlignedBuf)>) -> Result<()> {
    done.map_or(Ok(()), |(result, _)| result)
        .map_err(|e| e.within("write the replica's image"))
}

/// Make a range read as zeroes, touching only what holds data.
async fn zero_data<D: Disk>(image: &D, span: Span) -> Result<()> {
    let mut at = span.offset;
    while at < span.end() {
        let Some((start, end)) = image.next_data(at).await? else {
            return Ok(());
        };
        let (start, end) = (start.max(at), end.min(span.end()));
        if start >= span.end() {
            return Ok(());
        }
        image
            .zero(start, end - start)
            .await
            .map_err(|e| e.within("zero the replica's image"))?;
        at = end;
    }
    Ok(())
}
