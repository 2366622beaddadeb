//! Seeding: the whole image as it is found, while the guest writes.

use super::chunk::{CHUNK_BYTES, CHUNKS, SEED_UNIT, Tally};
use super::{Event, Order, Progress, Session};
use crate::seam::Source;
use block::{Clock, Disk, Epoch, Result, Span, Transport};
use futures_util::future::LocalBoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::BTreeSet;
use std::time::Duration;
use wire::{Message, ReplicaState, SpanList};

/// What a seeding did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seeding {
    /// Where it began: zero unless it resumed.
    pub resumed_at: u64,
    /// Bytes of the volume.
    pub total: u64,
    /// Bytes put on the wire.
    pub sent: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl<S: Source, D: Disk, C: Clock, T: Transport> Session<'_, S, D, C, T> {
    /// Seed the receiver, from where the last attempt's durable watermark is.
    pub async fn seed(&self) -> Result<Seeding> {
        let sender = self.sender;
        let (began, sent) = (sender.clock.now(), self.link.sent());
        let (seed, from) = match (self.peer.get().state, sender.source.cursor()) {
            (ReplicaState::Seeding { seed, watermark }, Some(cursor)) if cursor.0 == seed => {
                (cursor, watermark)
            }
            _ => (sender.source.begin_seed().await?, 0),
        };
        // In an order of its own only the whole has a watermark.
        let from = if sender.order.is_none() || from == sender.size {
            from
        } else {
            0
        };
        self.inbox.watermark.set(from);
        self.link.send(seed, &Message::SeedBegin { from }).await?;
        // What a blank image has is known without asking.
        let unit = self.hello.has_data.then_some(SEED_UNIT);
        self.copy(seed, from, unit, began).await?;
        self.inbox
            .wait(|i| (i.watermark.get() == sender.size).then_some(()))
            .await;
        sender.source.seeded().await?;
        let mut peer = self.peer.get();
        peer.state = ReplicaState::Seeding {
            seed: seed.0,
            watermark: sender.size,
        };
        self.peer.set(peer);
        Ok(Seeding {
            resumed_at: from,
            total: sender.size,
            sent: self.link.sent() - sent,
            elapsed: sender.clock.now().since(began),
        })
    }

    async fn copy(
        &self,
        seed: Epoch,
        from: u64,
        unit: Option<u32>,
        began: block::Nanos,
    ) -> Result<()> {
        let sender = self.sender;
        let tally = Tally::default();
        let (sent, mut marked) = (self.link.sent(), from);
        let order = sender.order.clone().filter(|_| from == 0);
        let is_scattered = order.is_some();
        let order = order.unwrap_or_else(|| Order::linear(from, sender.size));
        let mut walk = Walk::new(order);
        let mut dealt_with = 0;
        // Chunks end in any order; a watermark may pass none that has not.
        let mut going = BTreeSet::new();
        let mut work: FuturesUnordered<LocalBoxFuture<'_, Result<Option<Span>>>> =
            FuturesUnordered::new();
        let mut walked = false;
        loop {
            while going.len() < CHUNKS && !walked {
                let Some((span, is_data)) = walk.next(&sender.image).await? else {
                    walked = true;
                    break;
                };
                going.insert(span.offset);
                let tally = &tally;
                work.push(Box::pin(async move {
                    if is_data {
                        self.ship(seed, &[span], None, unit, tally).await?;
                    } else {
                        self.hole(seed, span).await?;
                    }
                    Ok(Some(span))
                }));
            }
            let Some(done) = work.next().await else { break };
            let Some(done) = done? else { continue };
            going.remove(&done.offset);
            dealt_with += done.len;
            let done = if is_scattered {
                dealt_with
            } else {
                going.first().copied().unwrap_or(walk.at)
            };
            if is_scattered {
                // until all is there, what is durable has no end that could be named
            } else if done >= marked + sender.tuning.watermark_every || done == sender.size {
                marked = done;
                // Among the chunks, not beside them: they may hold the room it waits for.
                work.push(Box::pin(async move {
                    let mark = Message::SeedWatermark { offset: done };
                    self.link.send(seed, &mark).await?;
                    Ok(None)
                }));
            }
            sender.tell(Event::Seeding(Progress {
                done,
                total: sender.size,
                sent: self.link.sent() - sent,
                elapsed: sender.clock.now().since(began),
            }));
        }
        if marked < sender.size || from == sender.size {
            let mark = Message::SeedWatermark {
                offset: sender.size,
            };
            self.link.send(seed, &mark).await?;
        }
        Ok(())
    }

    /// A hole of the source: the receiver's range may hold old data.
    async fn hole(&self, seed: Epoch, span: Span) -> Result<()> {
        let mut list = SpanList::default();
        list.push(span);
        let zero = Message::Zero {
            spans: list.as_spans(),
        };
        self.link.send(seed, &zero).await
    }
}

/// Walks an image in an order: data in chunks, holes whole.
struct Walk {
    order: std::vec::IntoIter<Span>,
    at: u64,
    end: u64,
    /// The run of data found last.
    data: (u64, u64),
}

impl Walk {
    fn new(order: Order) -> Walk {
        Walk {
            order: order.into_spans(),
            at: 0,
            end: 0,
            data: (0, 0),
        }
    }

    async fn next<D: Disk>(&mut self, image: &D) -> Result<Option<(Span, bool)>> {
        while self.at >= self.end {
            let Some(span) = self.order.next() else {
                return Ok(None);
            };
            (self.at, self.end, self.data) = (span.offset, span.end(), (0, 0));
        }
        if self.at >= self.data.1 {
            let found = image.next_data(self.at).await?;
            self.data = found.unwrap_or((u64::MAX, u64::MAX));
        }
        let (start, end) = self.data;
        let (start, end) = (start.max(self.at).min(self.end), end.min(self.end));
        let (span, is_data) = if start > self.at {
            (Span::new(self.at, start - self.at), false)
        } else {
            // Chunks end on multiples of their size, so that a run's are aligned but for its first.
            let cut = (self.at / CHUNK_BYTES + 1) * CHUNK_BYTES;
            (Span::new(self.at, end.min(cut) - self.at), true)
        };
        self.at = span.end();
        Ok(Some((span, is_data)))
    }
}
