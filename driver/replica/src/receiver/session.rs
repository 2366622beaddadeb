//! One connection at the receiver: what each frame does.

use super::Receiver;
use crate::link::Link;
use crate::record::{Record, State};
use crate::seam::Target;
use crate::staging::{Lane, apply_spans, lane_room};
use block::{
    AlignedBuf, Disk, Epoch, Error, ErrorKind, Generation, Result, SECTOR_BYTES, Span, Transport,
};
use futures_util::future::LocalBoxFuture;
use futures_util::stream::{FuturesUnordered, Stream, StreamExt};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use wire::{Decoder, Decompressor, Encoding, HelloAck, Message, ReplicaState, Spans};

/// Frames whose content is on its way to a disk, at most: 16 MiB a connection.
const WORK_MAX: usize = 16;

/// An epoch whose content is being received.
struct Open<'a, D> {
    epoch: Epoch,
    /// `None`: there is no consistent copy to protect, content goes straight into the image.
    lane: Option<Rc<Lane<'a, D>>>,
    frames: u64,
    bytes: u64,
    digest: blake3::Hasher,
}

pub(super) struct Serving<'a, D, G, T> {
    receiver: &'a Receiver<D, G>,
    link: &'a Link<T>,
    generation: Generation,
    /// Bytes of the volume at its source, which may be about to grow to what the copy has.
    size: u64,
    owned: Option<Generation>,
    work: FuturesUnordered<LocalBoxFuture<'a, Result<()>>>,
    /// Answers are sent here and not from the work itself, so that work never waits for a peer.
    seeding: bool,
    /// A watermark is being made durable.
    marking: Rc<Cell<bool>>,
    increment: Option<Open<'a, D>>,
    mirror: Option<Open<'a, D>>,
    answers: Rc<RefCell<Vec<Answer>>>,
    unzip: Option<Decompressor>,
    /// Buffers of frames whose content is on the disk, at most [`WORK_MAX`]: a new one would be zeroed
    /// first, page by page.
    spare: Rc<RefCell<Vec<AlignedBuf>>>,
}

/// What the work on the disks has to say to the source.
enum Answer {
    Mirrored(u32, i32),
    Watermark(Epoch, u64),
}

fn unexpected(what: &str) -> Error {
    Error::new(
        ErrorKind::Protocol,
        format!("replication: {what} was not expected now"),
    )
}

impl<'a, D: Disk, G: Target, T: Transport> Serving<'a, D, G, T> {
    pub(super) fn new(
        receiver: &'a Receiver<D, G>,
        link: &'a Link<T>,
        generation: Generation,
        size: u64,
        owned: Option<Generation>,
    ) -> Serving<'a, D, G, T> {
        Serving {
            receiver,
            link,
            generation,
            size,
            owned,
            work: FuturesUnordered::new(),
            seeding: false,
            marking: Rc::default(),
            increment: None,
            mirror: None,
            answers: Rc::default(),
            unzip: None,
            spare: Rc::default(),
        }
    }

    /// Say what is here, then obey frames until the connection ends.
    pub(super) async fn run(&mut self, decoder: &mut Decoder, version: u8) -> Result<()> {
        self.greet(version).await?;
        loop {
            let header = self.next(decoder).await?;
            if header.generation != self.generation {
                return Err(unexpected("a frame of another generation"));
            }
            let message = decoder.message(&header)?;
            self.obey(header.epoch, header.body_crc, message).await?;
        }
    }

    async fn greet(&mut self, version: u8) -> Result<()> {
        let record = self.receiver.store.get();
        let state = match (self.owned, record.state) {
            (Some(_), _) => ReplicaState::Owner,
            (_, State::Empty) => ReplicaState::Empty,
            (_, State::Seeding { seed, watermark }) => ReplicaState::Seeding {
                seed: seed.0,
                watermark,
            },
            _ => ReplicaState::Consistent,
        };
        let has_data = self.receiver.image.next_data(0).await?.is_some();
        self.link
            .set_generation(self.owned.unwrap_or(record.generation));
        let ack = Message::HelloAck(HelloAck {
            version,
            state,
            has_data,
        });
        self.link.send(record.epoch, &ack).await?;
        Ok(())
    }

    /// The next frame, while the disks work and what they have to say is sent.
    async fn next(&mut self, decoder: &mut Decoder) -> Result<wire::Header> {
        let link = self.link;
        let mut next = pin!(link.next(decoder));
        loop {
            let work = &mut self.work;
            let got = poll_fn(|cx| {
                if let Poll::Ready(header) = next.as_mut().poll(cx) {
                    return Poll::Ready(Ok(Some(header)));
                }
                match Pin::new(&mut *work).poll_next(cx) {
                    Poll::Ready(Some(done)) => Poll::Ready(done.map(|()| None)),
                    _ => Poll::Pending,
                }
            })
            .await?;
            self.answer().await?;
            if let Some(header) = got {
                return header;
            }
        }
    }

    async fn answer(&mut self) -> Result<()> {
        let answers = std::mem::take(&mut *self.answers.borrow_mut());
        for answer in answers {
            let (epoch, message) = match answer {
                Answer::Mirrored(id, errno) => (Epoch(0), Message::MirrorAck { id, errno }),
                Answer::Watermark(seed, offset) => (seed, Message::SeedWatermark { offset }),
            };
            self.link.send(epoch, &message).await?;
        }
        Ok(())
    }

    /// Wait until at most `left` pieces of work are under way.
    async fn drain(&mut self, left: usize) -> Result<()> {
        while self.work.len() > left {
            let work = &mut self.work;
            let done = poll_fn(|cx| Pin::new(&mut *work).poll_next(cx)).await;
            done.unwrap_or(Ok(()))?;
        }
        self.answer().await
    }

    /// The connection is over: wait for the disks, whatever they say.
    pub(super) async fn settle(&mut self) {
        let work = &mut self.work;
        while poll_fn(|cx| Pin::new(&mut *work).poll_next(cx))
            .await
            .is_some()
        {}
    }

    async fn push(&mut self, work: impl Future<Output = Result<()>> + 'a) -> Result<()> {
        self.drain(WORK_MAX - 1).await?;
        self.work.push(Box::pin(work));
        Ok(())
    }

    async fn obey(&mut self, epoch: Epoch, crc: u32, message: Message<'_>) -> Result<()> {
        if let Message::Activate { generation } = message {
            return self.activate(epoch, generation).await;
        }
        if self.owned.is_some() {
            return Err(Error::new(
                ErrorKind::Fenced,
                "this node owns the volume: the source is a former owner",
            ));
        }
        match message {
            Message::SeedBegin { from } => self.seed_begin(epoch, from).await,
            Message::SeedWatermark { offset } => self.seed_watermark(epoch, offset).await,
            Message::EpochBegin { base } => self.epoch_begin(epoch, Epoch(base)).await,
            Message::Data {
                spans,
                encoding,
                payload,
            } => {
                self.take(epoch, crc, spans, Some((encoding, payload)))
                    .await
            }
            Message::Zero { spans } => self.take(epoch, crc, spans, None).await,
            Message::Digests {
                span,
                unit,
                digests,
                ..
            } => self.compare(epoch, span, unit, digests).await,
            Message::EpochEnd {
                frames,
                bytes,
                digest,
            } => self.epoch_end(epoch, frames, bytes, digest).await,
            Message::MirrorWrite { id, span, payload } => {
                self.mirror(epoch, crc, id, span, Some(payload)).await
            }
            Message::MirrorZero { id, span } => self.mirror(epoch, crc, id, span, None).await,
            Message::MirrorFlush { id } => self.mirror_flush(epoch, id).await,
            Message::Ping => self.link.send(epoch, &Message::Pong).await.map(drop),
            Message::Error { kind, sentence } => Err(Error::new(
                kind.error_kind(),
                format!("the source gave up: {sentence}"),
            )),
            _ => Err(unexpected("a receiver's frame")),
        }
    }

    async fn seed_begin(&mut self, seed: Epoch, from: u64) -> Result<()> {
        self.drain(0).await?;
        if let State::HandedOver { .. } = self.receiver.store.get().state {
            return Err(unexpected("a seeding after the hand-over"));
        }
        let resumes = matches!(self.receiver.store.get().state,
            State::Seeding { seed: s, watermark } if s == seed && from <= watermark);
        if from != 0 && !resumes {
            return Err(unexpected(
                "a seeding that resumes where this one never was",
            ));
        }
        // Before the first byte: from here on the copy is no point in time.
        let state = State::Seeding {
            seed,
            watermark: from,
        };
        let record = self.receiver.store.get();
        self.receiver.save(Record { state, ..record }).await?;
        self.increment = None;
        self.seeding = true;
        Ok(())
    }

    /// Make everything before durable, and say so, while what comes after goes on.
    async fn seed_watermark(&mut self, seed: Epoch, offset: u64) -> Result<()> {
        if !self.seeding || offset > self.size {
            return Err(unexpected("a watermark"));
        }
        self.seeding = offset < self.size;
        if self.marking.get() {
            // The disk is behind: not more than this much is to be unsynced.
            self.drain(0).await?;
        }
        self.marking.set(true);
        let before = std::mem::take(&mut self.work);
        let (receiver, marking) = (self.receiver, self.marking.clone());
        let answers = self.answers.clone();
        self.work.push(Box::pin(async move {
            all(before).await?;
            receiver.sync(&receiver.image, "image").await?;
            let state = State::Seeding {
                seed,
                watermark: offset,
            };
            let record = receiver.store.get();
            receiver.save(Record { state, ..record }).await?;
            marking.set(false);
            answers.borrow_mut().push(Answer::Watermark(seed, offset));
            Ok(())
        }));
        Ok(())
    }

    async fn epoch_begin(&mut self, epoch: Epoch, base: Epoch) -> Result<()> {
        self.drain(0).await?;
        let receiver = self.receiver;
        let record = receiver.store.get();
        let direct = match record.state {
            State::Seeding { watermark, .. } if watermark == self.size => true,
            State::Consistent if base <= record.epoch && epoch > record.epoch => false,
            _ => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!(
                        "epoch {epoch} relative to {base} does not follow this copy, which is \
                         {:?} at epoch {}",
                        record.state, record.epoch
                    ),
                ));
            }
        };
        self.increment = Some(self.open(epoch, direct));
        Ok(())
    }

    fn open(&self, epoch: Epoch, direct: bool) -> Open<'a, D> {
        let receiver = self.receiver;
        let lane = || Rc::new(receiver.lane(epoch, 0, lane_room(&receiver.staging)));
        Open {
            epoch,
            lane: (!direct).then(lane),
            frames: 0,
            bytes: 0,
            digest: blake3::Hasher::new(),
        }
    }

    /// Content or zeroes of a seeding or of the open epoch.
    async fn take(
        &mut self,
        epoch: Epoch,
        crc: u32,
        spans: Spans<'_>,
        content: Option<(Encoding, &[u8])>,
    ) -> Result<()> {
        check_spans(spans, self.size)?;
        let lane = match &mut self.increment {
            Some(open) if open.epoch == epoch => {
                open.count(crc, spans.bytes());
                open.lane.clone()
            }
            None if self.seeding => None,
            _ => return Err(unexpected("content")),
        };
        let bytes = content.map_or(0, |_| spans.bytes() as usize);
        let receiver = self.receiver;
        if let Some(lane) = lane {
            let list: Vec<Span> = spans.iter().collect();
            let (at, buf) = lane.stage(list.into_iter(), bytes, |out| {
                content.map_or(Ok(()), |(e, p)| self.unpack(e, p, out))
            })?;
            return self.push(async move { lane.write(at, buf).await }).await;
        }
        let Some((encoding, payload)) = content else {
            let list: Vec<Span> = spans.iter().collect();
            let zero = async move { apply_spans(&receiver.image, list.into_iter(), None).await };
            return self.push(zero).await;
        };
        let mut buf = self.spare.borrow_mut().pop().unwrap_or_default();
        buf.resize(bytes);
        self.unpack(encoding, payload, &mut buf)?;
        let spare = Rc::clone(&self.spare);
        if spans.len() == 1 {
            let offset = spans.iter().map(|s| s.offset).next().unwrap_or(0);
            let write = async move {
                let (result, buf) = receiver.image.write(offset, buf).await;
                keep(&spare, buf);
                result.map_err(|e| e.within("write the replica's image"))
            };
            return self.push(write).await;
        }
        let list: Vec<Span> = spans.iter().collect();
        self.push(async move {
            let result = apply_spans(&receiver.image, list.into_iter(), Some(&buf)).await;
            keep(&spare, buf);
            result
        })
        .await
    }

    fn unpack(&mut self, encoding: Encoding, payload: &[u8], out: &mut [u8]) -> Result<()> {
        match encoding {
            Encoding::Raw => out.copy_from_slice(payload),
            Encoding::Zstd => {
                let unzip = match &mut self.unzip {
                    Some(unzip) => unzip,
                    none => none.insert(Decompressor::new()?),
                };
                unzip.restore(payload, out)?;
            }
        }
        Ok(())
    }

    /// Tell the source which of its digests differ from the image's content.
    async fn compare(
        &mut self,
        epoch: Epoch,
        span: Span,
        unit: u32,
        digests: &[wire::Digest],
    ) -> Result<()> {
        if !span.fits(self.size)
            || !span.is_aligned(SECTOR_BYTES)
            || span.len > wire::MAX_CONTENT as u64
        {
            return Err(unexpected("a comparison of that range"));
        }
        let (result, buf) = self
            .receiver
            .image
            .read(span.offset, AlignedBuf::zeroed(span.len as usize))
            .await;
        // What cannot be read differs: the source sends it, and writing may heal it.
        let mut differs = vec![0u8; digests.len().div_ceil(8)];
        for (i, unit) in buf.chunks(unit as usize).enumerate() {
            if result.is_err() || crate::content::digest(unit) != digests[i] {
                differs[i / 8] |= 1 << (i % 8);
            }
        }
        let diff = Message::DigestDiff {
            span,
            differs: &differs,
        };
        self.link.send(epoch, &diff).await?;
        Ok(())
    }

    async fn epoch_end(
        &mut self,
        epoch: Epoch,
        frames: u64,
        bytes: u64,
        digest: wire::Digest,
    ) -> Result<()> {
        self.drain(0).await?;
        let slot = if self.increment.as_ref().is_some_and(|o| o.epoch == epoch) {
            self.increment.take()
        } else if self.mirror.as_ref().is_some_and(|o| o.epoch == epoch) {
            self.mirror.take()
        } else if self.mirror.is_some() {
            return Err(unexpected("the end of an epoch that is not the mirror's"));
        } else {
            None
        };
        // A mirrored epoch in which the guest wrote nothing has no frame that opened it.
        let open = slot.unwrap_or_else(|| self.open(epoch, false));
        if (open.frames, open.bytes) != (frames, bytes) || open.sum() != digest {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "epoch {epoch} is refused: {frames} frames with {bytes} bytes were sent, \
                     {} with {} arrived, or their digests differ",
                    open.frames, open.bytes
                ),
            ));
        }
        let receiver = self.receiver;
        let record = receiver.store.get();
        let Some(lane) = open.lane else {
            receiver.sync(&receiver.image, "image").await?;
            receiver.applied(epoch).await?;
            self.link.send(epoch, &Message::EpochAck).await?;
            return Ok(());
        };
        if record.state != State::Consistent || epoch <= record.epoch {
            return Err(unexpected("the end of an epoch"));
        }
        if lane.end() > 0 {
            receiver.sync(&receiver.staging, "staging").await?;
            let state = State::Committed {
                next: epoch,
                end: lane.end(),
            };
            receiver.save(Record { state, ..record }).await?;
            lane.apply(&receiver.image).await?;
            receiver.sync(&receiver.image, "image").await?;
        }
        receiver.applied(epoch).await?;
        self.link.send(epoch, &Message::EpochAck).await?;
        // Space is given back after the answer: the guest may be waiting for it.
        self.push(async move { lane.empty().await }).await
    }

    /// A guest's write as it happens. The first one of an epoch opens its lane.
    async fn mirror(
        &mut self,
        epoch: Epoch,
        crc: u32,
        id: u32,
        span: Span,
        content: Option<&[u8]>,
    ) -> Result<()> {
        if !span.fits(self.size) || !span.is_aligned(SECTOR_BYTES) {
            return Err(unexpected("a mirrored write of that range"));
        }
        let lane = self.mirror_lane(epoch, crc, span.len)?;
        let bytes = content.map_or(0, <[u8]>::len);
        let staged = lane.stage([span].into_iter(), bytes, |out| {
            out.copy_from_slice(content.unwrap_or_default());
            Ok(())
        });
        let answers = self.answers.clone();
        let (at, buf) = staged?;
        self.push(async move {
            lane.write(at, buf).await?;
            answers.borrow_mut().push(Answer::Mirrored(id, 0));
            Ok(())
        })
        .await
    }

    fn mirror_lane(&mut self, epoch: Epoch, crc: u32, bytes: u64) -> Result<Rc<Lane<'a, D>>> {
        if self.mirror.as_ref().is_none_or(|open| open.epoch != epoch) {
            let busy = self.mirror.is_some()
                || self
                    .increment
                    .as_ref()
                    .is_some_and(|o| o.epoch.next() != epoch);
            if busy {
                return Err(unexpected("a mirrored write of that epoch"));
            }
            self.mirror = Some(self.open(epoch, false));
        }
        let open = self.mirror.as_mut().ok_or_else(|| unexpected("a mirror"))?;
        open.count(crc, bytes);
        open.lane.clone().ok_or_else(|| unexpected("a mirror"))
    }

    async fn mirror_flush(&mut self, epoch: Epoch, id: u32) -> Result<()> {
        self.drain(0).await?;
        let receiver = self.receiver;
        receiver.sync(&receiver.staging, "staging").await?;
        let ack = Message::MirrorAck { id, errno: 0 };
        self.link.send(epoch, &ack).await?;
        Ok(())
    }

    async fn activate(&mut self, epoch: Epoch, generation: Generation) -> Result<()> {
        self.drain(0).await?;
        self.receiver.give(generation, epoch).await?;
        self.owned = Some(generation);
        self.link
            .send(epoch, &Message::Activated { generation })
            .await?;
        Ok(())
    }
}

impl<D> Open<'_, D> {
    fn count(&mut self, crc: u32, bytes: u64) {
        self.frames += 1;
        self.bytes += bytes;
        self.digest.update(&crc.to_le_bytes());
    }

    fn sum(&self) -> wire::Digest {
        crate::content::cut(&self.digest.finalize())
    }
}

/// All of the work, also after a failure of some of it: none may land after what comes next.
async fn all(mut work: FuturesUnordered<LocalBoxFuture<'_, Result<()>>>) -> Result<()> {
    let mut result = Ok(());
    while let Some(done) = work.next().await {
        result = result.and(done);
    }
    result
}

fn keep(spare: &RefCell<Vec<AlignedBuf>>, buf: AlignedBuf) {
    let mut spare = spare.borrow_mut();
    if spare.len() < WORK_MAX {
        spare.push(buf);
    }
}

fn check_spans(spans: Spans<'_>, size: u64) -> Result<()> {
    let ok = spans.fit(size) && spans.iter().all(|s| s.is_aligned(SECTOR_BYTES));
    if ok {
        Ok(())
    } else {
        Err(unexpected("content outside the volume"))
    }
}
