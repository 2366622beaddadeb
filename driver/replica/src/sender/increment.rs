//! An increment: the blocks that changed between two epochs, as they were at the second.

use super::chunk::{CHUNK_BYTES, CHUNKS, SUSPECT_UNIT, Tally};
use super::{Event, Progress, Session};
use crate::seam::{Pending, Source};
use block::{
    BLOCK_BYTES, BLOCKS_PER_AREA, Block, Clock, Disk, Epoch, Error, ErrorKind, Result, Span,
    Transport,
};
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::time::Duration;
use wire::{Message, ReplicaState};

/// Times that an epoch is begun again because the guest overwrote more of it than could be saved.
const OVERRUNS_MAX: usize = 5;

/// What an increment did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Increment {
    /// The receiver now has this epoch.
    pub epoch: Epoch,
    /// Bytes that counted as dirty.
    pub dirty: u64,
    /// Bytes put on the wire.
    pub sent: u64,
    /// From the rotation to the receiver's durable answer.
    pub elapsed: Duration,
}

impl<S: Source, D: Disk, C: Clock, T: Transport> Session<'_, S, D, C, T> {
    /// End an epoch and bring the receiver to it.
    pub async fn increment(&self) -> Result<Increment> {
        for _ in 0..OVERRUNS_MAX {
            let began = self.sender.clock.now();
            let snapshot = self.sender.source.rotate().await?;
            if let Some(done) = self.deliver(snapshot, began).await? {
                return Ok(done);
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            format!(
                "volume {}: the guest overwrote each of {OVERRUNS_MAX} epochs faster than it could \
                 be sent; give the link more bandwidth or pace the guest",
                self.sender.volume
            ),
        ))
    }

    /// Bring the receiver to a snapshot's epoch; `None` if the guest overran it.
    pub(crate) async fn deliver(
        &self,
        snapshot: S::Snapshot,
        began: block::Nanos,
    ) -> Result<Option<Increment>> {
        let sender = self.sender;
        let (epoch, dirty) = (snapshot.epoch(), snapshot.pending_bytes());
        let sent = self.link.sent();
        *sender.held.borrow_mut() = Some(snapshot.clone());
        if snapshot.is_mirrored() {
            let end = self.mirrored.borrow_mut().end(epoch);
            self.link.send(epoch, &end).await?;
        } else {
            let base = sender.source.cursor().unwrap_or_default();
            self.link
                .send(epoch, &Message::EpochBegin { base: base.0 })
                .await?;
            let tally = Tally::default();
            self.ship_all(&snapshot, dirty, began, &tally).await?;
            if snapshot.is_overrun() {
                sender.source.abandon(epoch).await?;
                *sender.held.borrow_mut() = None;
                return Ok(None);
            }
            self.link.send(epoch, &tally.end()).await?;
        }
        self.inbox
            .wait(|i| (i.acked.get() == Some(epoch)).then_some(()))
            .await;
        let mut peer = self.peer.get();
        (peer.state, peer.epoch) = (ReplicaState::Consistent, epoch);
        self.peer.set(peer);
        if !self.committed(epoch).await? {
            return Ok(None);
        }
        Ok(Some(Increment {
            epoch,
            dirty,
            sent: self.link.sent() - sent,
            elapsed: sender.clock.now().since(began),
        }))
    }

    async fn ship_all(
        &self,
        snapshot: &S::Snapshot,
        dirty: u64,
        began: block::Nanos,
        tally: &Tally,
    ) -> Result<()> {
        let sender = self.sender;
        let epoch = snapshot.epoch();
        let sent = self.link.sent();
        let mut at = Block(0);
        let mut done = 0;
        let mut work = FuturesUnordered::new();
        loop {
            while work.len() < CHUNKS && !snapshot.is_overrun() {
                let Some((spans, suspect)) = gather(snapshot, &mut at, sender.size) else {
                    break;
                };
                let unit = suspect.then_some(SUSPECT_UNIT);
                work.push(async move {
                    self.ship(epoch, &spans, Some(snapshot), unit, tally)
                        .await?;
                    Ok::<u64, Error>(spans.iter().map(|s| s.len).sum())
                });
            }
            let Some(shipped) = work.next().await else {
                return Ok(());
            };
            done += shipped?;
            sender.tell(Event::Increment(
                epoch,
                Progress {
                    done,
                    total: dirty,
                    sent: self.link.sent() - sent,
                    elapsed: sender.clock.now().since(began),
                },
            ));
        }
    }
}

/// The next chunk of pending blocks at or after `at`, all suspect or none.
fn gather<P: Pending>(snapshot: &P, at: &mut Block, size: u64) -> Option<(Vec<Span>, bool)> {
    let mut spans: Vec<Span> = Vec::new();
    let mut kind = None;
    let mut room = CHUNK_BYTES / BLOCK_BYTES;
    while room > 0 && spans.len() < wire::MAX_SPANS {
        // An extent ends with its area, so that it is suspect as a whole or not at all.
        let Some(found) = snapshot.next_pending(*at, room) else {
            break;
        };
        let to_end = BLOCKS_PER_AREA - found.start.0 % BLOCKS_PER_AREA;
        let extent = block::Extent::new(found.start.0, found.count.min(to_end));
        let suspect = snapshot.is_suspect(extent.start.area());
        if *kind.get_or_insert(suspect) != suspect {
            break;
        }
        spans.push(extent.span(size));
        room -= extent.count;
        *at = extent.end();
    }
    kind.map(|suspect| (spans, suspect))
}
