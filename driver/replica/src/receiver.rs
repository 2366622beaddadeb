//! The receiving side of one replica.
//!
//! ```text
//!   open: redo a committed epoch, or drop what was staged; tell the volume of a later generation
//!   serve, a connection:
//!     admit (the volume remembers the generation) ─► HelloAck ─► frames
//!
//!     seeding     Data/Zero ─► image;            watermark: image sync, record
//!     first epoch Data/Zero ─► image;            end: image sync, record, EpochAck
//!     epoch       Data/Zero ─► staging;          end: staging sync, record (commit),
//!                                                     apply, image sync, EpochAck, record
//!     mirror      Mirror*   ─► staging (other lane), answered one by one; end: as an epoch
//! ```
//!
//! Work on the disks goes on while frames arrive; what must not overlap waits for it. When a
//! connection ends, whatever was given to a disk is awaited before anything else may begin, so no
//! write of a dead connection can land late.

mod session;

use crate::link::{self, Incoming, Link};
use crate::record::{Record, State, Store};
use crate::seam::Target;
use crate::staging::{Lane, lane_bytes, lane_room};
use block::{Disk, Epoch, Error, ErrorKind, Generation, Result, Transport, VolumeId};
use futures_util::future::{Either, select};
use std::cell::Cell;
use std::pin::pin;

/// The files of a replica.
pub struct Files<D> {
    /// The copy.
    pub image: D,
    /// The epoch being received; [`crate::staging_bytes`] says how large.
    pub staging: D,
    /// The record: 8 KiB.
    pub replica: D,
}

/// One replica on the receiving node. It serves one connection at a time.
pub struct Receiver<D, G> {
    volume: VolumeId,
    size: u64,
    image: D,
    staging: D,
    store: Store<D>,
    target: G,
    /// A sync failed: what is on the disks is not known until they are opened again.
    poisoned: Cell<bool>,
}

impl<D: Disk, G: Target> Receiver<D, G> {
    /// Open a replica, finishing the epoch that was being applied.
    pub async fn open(
        volume: VolumeId,
        size: u64,
        files: Files<D>,
        target: G,
    ) -> Result<Receiver<D, G>> {
        if files.image.size() != size {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "the replica image of volume {volume} has {} bytes, the volume {size}: \
                     recreate the replica",
                    files.image.size()
                ),
            ));
        }
        let store = Store::open(files.replica, volume, size).await?;
        let receiver = Receiver {
            volume,
            size,
            image: files.image,
            staging: files.staging,
            store,
            target,
            poisoned: Cell::new(false),
        };
        let before = receiver.store.size_before();
        // The volume has grown since: the epoch lies where the lanes of the smaller file were.
        let room = (before < size).then(|| lane_bytes(before));
        let room = room.unwrap_or_else(|| lane_room(&receiver.staging));
        receiver.redo(room).await?;
        receiver.warn_volume().await?;
        Ok(receiver)
    }

    /// The record obeyed a generation that the volume's metadata has not seen: that was put back from
    /// before, and may say that this node owns the volume.
    async fn warn_volume(&self) -> Result<()> {
        let obeyed = self.store.get().generation;
        if obeyed > self.target.seen().await? {
            self.target.observe(obeyed).await?;
        }
        Ok(())
    }

    /// The volume was given up here, and somebody has taken it: have the copy's record know it too, so
    /// that it does not hang on one file who owned the volume last. Nothing else may write it meanwhile.
    pub async fn remember(&self) -> Result<()> {
        let before = self.store.get();
        let proven = before.proven(self.target.gave_up().await?);
        if proven != before {
            self.save(proven).await?;
        }
        Ok(())
    }

    /// What the copy is.
    pub fn record(&self) -> Record {
        self.store.get()
    }

    async fn recover(&self) -> Result<()> {
        self.redo(lane_room(&self.staging)).await
    }

    /// Finish an epoch that is committed and lies in a lane with so much room.
    async fn redo(&self, room: u64) -> Result<()> {
        let State::Committed { next, end } = self.store.get().state else {
            return Ok(());
        };
        let lane = self.lane(next, end, room);
        match self.apply(&lane, next).await {
            // The copy is now neither one epoch nor the other; comparing repairs it.
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                tracing::error!(volume = %self.volume, "replica must be compared anew: {e}");
                self.store.set(State::Empty).await
            }
            result => result,
        }
    }

    fn lane(&self, epoch: Epoch, end: u64, room: u64) -> Lane<'_, D> {
        Lane::new(&self.staging, self.volume, epoch, end, room)
    }

    /// Put a committed log onto the image and record that the copy is at `next`.
    async fn apply(&self, lane: &Lane<'_, D>, next: Epoch) -> Result<()> {
        lane.apply(&self.image).await?;
        self.sync(&self.image, "image").await?;
        self.applied(next).await
    }

    async fn applied(&self, epoch: Epoch) -> Result<()> {
        let record = Record {
            epoch,
            state: State::Consistent,
            ..self.store.get()
        };
        self.save(record).await
    }

    async fn save(&self, record: Record) -> Result<()> {
        self.latch(self.store.save(record).await)
    }

    async fn sync(&self, disk: &D, what: &str) -> Result<()> {
        let result = disk.sync().await.map_err(|e| {
            Error::new(
                ErrorKind::Poisoned,
                format!("make the replica's {what} durable: {e}"),
            )
        });
        self.latch(result)
    }

    fn latch<R>(&self, result: Result<R>) -> Result<R> {
        if result.is_err() {
            self.poisoned.set(true);
        }
        result
    }

    fn alive(&self) -> Result<()> {
        if self.poisoned.get() {
            return Err(Error::new(
                ErrorKind::Poisoned,
                format!(
                    "replica of volume {}: an earlier sync failed; check the disk and restart the \
                     node",
                    self.volume
                ),
            ));
        }
        Ok(())
    }

    /// Serve a connection to its end, which is always an error: at best that the peer went away. To
    /// end it earlier, break the transport; do not drop the future, its writes would go on alone.
    pub async fn serve<T: Transport>(&self, incoming: Incoming<T>) -> Error {
        let Incoming {
            link,
            mut decoder,
            hello,
            generation,
            ..
        } = incoming;
        let epoch = self.store.get().epoch;
        let result = async {
            self.alive()?;
            // An apply that failed for want of space or a bad sector is tried again first.
            self.recover().await?;
            let version = self.check(&hello)?;
            link.set_version(version);
            let owned = self.admit(&link, generation).await?;
            if owned.is_none() {
                self.follow(generation).await?;
            }
            let mut session = session::Serving::new(self, &link, generation, hello.size, owned);
            let result = {
                let frames = pin!(session.run(&mut decoder, version));
                let writer = pin!(link.write_loop());
                match select(frames, writer).await {
                    Either::Left((result, _)) => result,
                    Either::Right((result, _)) => result,
                }
            };
            // Whatever the disks were given is awaited. Answers that nobody will read must not be.
            session.settle().await;
            result
        }
        .await;
        let error = match result {
            Ok(()) => Error::new(ErrorKind::Disconnected, "the replication link has closed"),
            Err(e) => e,
        };
        if error.kind() != ErrorKind::Disconnected {
            link::tell(&link, epoch, &error).await;
        }
        error
    }

    /// The source is gone for good: give the copy to this node's volume to own in `generation`. The
    /// answer is the epoch that it is. Nobody may be served meanwhile, so that nothing lands late; the
    /// same call again is no error. A copy that is no point in time is refused. What this node gave away
    /// itself is one, as of then.
    pub async fn take_over(&self, generation: Generation) -> Result<Epoch> {
        self.alive()?;
        self.recover().await?;
        self.remember().await?;
        let epoch = self.store.get().epoch;
        self.give(generation, epoch).await?;
        Ok(epoch)
    }

    /// Give the copy, which must be exactly `epoch`, to this node's volume to own in `generation`.
    async fn give(&self, generation: Generation, epoch: Epoch) -> Result<()> {
        let record = self.store.get();
        match record.state {
            State::HandedOver { next } if next == generation && record.epoch == epoch => {}
            State::Consistent if record.epoch == epoch && generation > record.generation => {
                // From here on the image is the volume's, and the record no longer speaks for it.
                let state = State::HandedOver { next: generation };
                self.save(Record { state, ..record }).await?;
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!(
                        "activate generation {generation} at epoch {epoch}: this copy is {:?} at \
                         epoch {} of generation {}",
                        record.state, record.epoch, record.generation
                    ),
                ));
            }
        }
        self.target.activate(generation, epoch).await
    }

    fn check(&self, hello: &wire::Hello) -> Result<u8> {
        // A copy grows before its source does.
        if hello.volume != self.volume || hello.size > self.size {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "this replica is of volume {} with {} bytes, the source offers {} with {} (if it has grown, \
                     repeat `forerun volume resize`)",
                    self.volume, self.size, hello.volume, hello.size
                ),
            ));
        }
        wire::negotiate(hello.oldest, hello.newest)
    }

    /// Whether this source may speak here. Asked before its connection takes the place of another, and
    /// again when its turn has come.
    pub async fn admits<T: Transport>(&self, incoming: &Incoming<T>) -> Result<()> {
        self.check(&incoming.hello)?;
        let admitted = self.admit(&incoming.link, incoming.generation).await;
        admitted.map(drop)
    }

    /// Ask the volume, which remembers the generation durably before anything is answered, and alone
    /// knows a former owner. The answer says whether this node owns the volume by now.
    async fn admit<T: Transport>(
        &self,
        link: &Link<T>,
        generation: Generation,
    ) -> Result<Option<Generation>> {
        let owned = self.owned_since(generation).await?;
        if owned.is_some() {
            return Ok(owned);
        }
        if let Err(e) = self.target.observe(generation).await {
            if e.kind() == ErrorKind::Fenced {
                // The connection before may have brought the volume meanwhile.
                let owned = self.owned_since(generation).await?;
                if owned.is_some() {
                    return Ok(owned);
                }
                link.set_generation(self.target.last_owned().await?);
            }
            return Err(e.within(format!("volume {}", self.volume)));
        }
        Ok(None)
    }

    /// The generation in which this node owns the volume, if it owns it in this one or later.
    async fn owned_since(&self, generation: Generation) -> Result<Option<Generation>> {
        let owned = self.target.owned().await?;
        Ok(owned.filter(|o| *o >= generation))
    }

    /// Bring the record to the generation of the source that was admitted.
    async fn follow(&self, generation: Generation) -> Result<()> {
        let before = self.store.get();
        let record = before.proven(self.target.gave_up().await?);
        let state = match record.state {
            State::HandedOver { next } if generation <= next => record.state,
            // A copy is of the generation in which it was made: what a later owner began with, this one
            // may lack, or have more of.
            _ if generation != record.generation => State::Empty,
            state => state,
        };
        let record = Record {
            generation,
            state,
            ..record
        };
        if record != before {
            self.save(record).await?;
        }
        Ok(())
    }
}
