//! The engine as the rest of the node sees it: start shards, give them volumes and connections,
//! make control calls.

use super::VOLUME_REQUESTS_MAX;
use super::activity::Activity;
use super::connection::Arrival;
use super::dialler::{Ahead, Dialler};
use super::extents::Extents;
use super::fence::{Fence, OWNER};
use super::forward::Forwarder;
use super::latency::Latency;
use super::message::{Message, VolumeIndex};
use super::mirror::{FLUSH, MirrorQueue};
use super::shard::EngineShard;
use super::volume_cell::{Standing, VolumeCell, VolumeFiles};
use block::{Error, ErrorKind, Generation, Nanos, NodeName, Result};
use nbd::Export;
use nbd::accept::Accepted;
use nbd::client::Uri;
use nbd::session::Session;
use replica::MirrorItem;
use ring::{Mailbox, Shard};
use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use storage::ImageFile;
use storage::meta::MetaFile;
use tokio::sync::{mpsc, oneshot};
use volume::{Control, CursorName, Outcome, RequestId, Snapshot, Volume};

/// The shards of a process.
pub struct Engine {
    me: Arc<str>,
    shards: Vec<Shard<Message>>,
    next: AtomicUsize,
}

/// What a volume is made of.
pub struct VolumeSpec {
    /// The state machine. Its `max_requests` is [`VOLUME_REQUESTS_MAX`].
    pub volume: Volume,
    /// The image.
    pub image: ImageFile,
    /// The metadata file and the descriptor to sync it by; `None` for a volume without metadata.
    pub meta: Option<(MetaFile, OwnedFd)>,
}

/// A volume on its home shard. Cheap to clone.
#[derive(Clone)]
pub struct VolumeHandle {
    pub(super) mailbox: Mailbox<Message>,
    pub(super) index: VolumeIndex,
    me: Arc<str>,
    latency: Arc<Latency>,
    activity: Arc<Activity>,
    standing: Arc<Standing>,
}

/// What the guest does while a replica mirrors.
pub struct Mirror {
    volume: VolumeHandle,
    session: u64,
    items: mpsc::Receiver<MirrorItem>,
}

impl Mirror {
    /// The next write, zeroing or flush in the gate's order; `None` once the mirror is off.
    pub async fn next(&mut self) -> Option<MirrorItem> {
        self.items.recv().await
    }

    /// As [`Mirror::next`], for those who share the mirror and must not hold it while they wait.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<MirrorItem>> {
        self.items.poll_recv(cx)
    }

    /// Whom to tell that the replica has an item.
    #[must_use]
    pub fn receipts(&self) -> MirrorReceipts {
        MirrorReceipts {
            volume: self.volume.clone(),
            session: self.session,
        }
    }
}

/// Tells the volume what its mirror has.
#[derive(Clone)]
pub struct MirrorReceipts {
    volume: VolumeHandle,
    session: u64,
}

impl MirrorReceipts {
    /// The replica has the item of this id, or failed with an errno. Of a mirror that is off it
    /// means nothing.
    pub fn mirrored(&self, id: u32, result: Outcome) {
        let session = self.session;
        self.volume.tell(move |cell, now| {
            if cell.mirror.as_ref().is_none_or(|m| m.session != session) {
                return;
            }
            match id {
                FLUSH => cell.volume.mirror_flushed(now, result),
                id => cell.volume.mirrored(now, RequestId(id), result),
            }
        });
    }
}

fn gone() -> Error {
    Error::new(
        ErrorKind::Disconnected,
        "the shard has stopped: the process is ending, or an error above says why",
    )
}

impl Engine {
    /// Start `shards` shards; with `pin`, each on a processor of its own.
    pub fn start(shards: usize, pin: bool) -> Result<Engine> {
        assert!(shards > 0, "an engine has at least one shard");
        ring::give_back_what_is_freed();
        let extents = Extents::start()?;
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (0..shards)
            .map(|i| {
                let extents = extents.clone();
                let config = ring::Config {
                    name: format!("shard-{i}"),
                    cpu: pin.then_some(i % cpus),
                };
                Shard::spawn(config, move |_, mailbox| {
                    Ok(EngineShard::new(extents, mailbox))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Engine {
            me: "".into(),
            shards,
            next: AtomicUsize::new(0),
        })
    }

    /// Let other nodes tell this one's forwarding links from those of others: by its name.
    #[must_use]
    pub fn named(self, me: &NodeName) -> Engine {
        Engine {
            me: me.as_str().into(),
            ..self
        }
    }

    /// Give a volume a home.
    pub async fn add_volume(&self, spec: VolumeSpec) -> Result<VolumeHandle> {
        assert_eq!(spec.volume.config().max_requests, VOLUME_REQUESTS_MAX);
        let latency = Arc::new(Latency::default());
        let activity = Arc::new(Activity::new(spec.image.size));
        let standing = Arc::new(Standing::default());
        standing.set(&spec.volume);
        let extents_file = Arc::new(spec.image.duplicate()?);
        let files = VolumeFiles {
            volume: spec.volume,
            image: spec.image,
            meta: spec.meta,
            latency: Arc::clone(&latency),
            activity: Arc::clone(&activity),
            extents_file,
            standing: Arc::clone(&standing),
        };
        let n = self.next.fetch_add(1, Ordering::Relaxed) % self.shards.len();
        let mailbox = self.shards[n].mailbox();
        let (answer, answered) = oneshot::channel();
        mailbox
            .send(Message::AddVolume(Box::new(files), answer))
            .map_err(|_| gone())?;
        let index = answered.await.map_err(|_| gone())??;
        Ok(VolumeHandle {
            mailbox,
            index,
            me: Arc::clone(&self.me),
            latency,
            activity,
            standing,
        })
    }

    /// Finish what is in flight, sync every volume, end the shards.
    pub fn stop(self) -> Result<()> {
        for shard in &self.shards {
            // One that has stopped already is joined below.
            let _ = shard.mailbox().send(Message::Stop);
        }
        self.shards.into_iter().try_for_each(Shard::join)
    }
}

impl VolumeHandle {
    /// Hand over a negotiated connection. `permit` is dropped when the connection is closed.
    pub fn connect(&self, accepted: Accepted, permit: Box<dyn Any + Send>) -> Result<()> {
        let agreed = &accepted.agreed;
        let suffix = agreed
            .requested
            .strip_prefix(agreed.export.name.as_str())
            .and_then(|rest| rest.strip_prefix('@'));
        let arrival = Arrival {
            volume: self.index,
            fence: suffix.and_then(Fence::parse),
            socket: accepted.socket,
            session: Session::new(&accepted.agreed),
            surplus: accepted.surplus,
            permit,
        };
        self.mailbox
            .send(Message::Connect(Box::new(arrival)))
            .map_err(|_| gone())
    }

    /// Run `f` on the volume, between two batches of requests.
    pub async fn call<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Volume, Nanos) -> R + Send + 'static,
    ) -> Result<R> {
        self.on_cell(move |cell, now| f(&mut cell.volume, now))
            .await
    }

    /// Run a control call that must become durable, and return when it has.
    pub async fn control(
        &self,
        f: impl FnOnce(&mut Volume, Nanos) -> Result<Control> + Send + 'static,
    ) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.on_cell(move |cell, now| {
            let control = f(&mut cell.volume, now)?;
            cell.waiters.controls.insert(control, answer);
            Ok(())
        })
        .await??;
        let outcome = answered.await.map_err(|_| gone())?;
        outcome.map_err(|e| Error::errno("make the volume's record durable", e))
    }

    /// Make a snapshot (`rotate`, `mirror_on`), and return it once it may be read.
    pub async fn snapshot(
        &self,
        f: impl FnOnce(&mut Volume, Nanos) -> Result<Arc<Snapshot>> + Send + 'static,
    ) -> Result<Arc<Snapshot>> {
        let (answer, answered) = oneshot::channel();
        let snapshot = self
            .on_cell(move |cell, now| {
                let snapshot = f(&mut cell.volume, now)?;
                cell.waiters.when_settled(Arc::clone(&snapshot), answer);
                Ok::<_, Error>(snapshot)
            })
            .await??;
        answered.await.map_err(|_| gone())?;
        Ok(snapshot)
    }

    /// Turn the mirror on. The snapshot is the last ordinary increment; the queue has everything
    /// after it.
    pub async fn mirror_on(&self, replica: CursorName) -> Result<(Arc<Snapshot>, Mirror)> {
        static SESSIONS: AtomicU64 = AtomicU64::new(0);
        let session = SESSIONS.fetch_add(1, Ordering::Relaxed);
        let (sender, items) = mpsc::channel(VOLUME_REQUESTS_MAX as usize + 1);
        let (answer, answered) = oneshot::channel();
        let snapshot = self
            .on_cell(move |cell, _| {
                let snapshot = cell.volume.mirror_on(&replica)?;
                cell.mirror = Some(MirrorQueue::new(sender, session));
                cell.waiters.when_settled(Arc::clone(&snapshot), answer);
                Ok::<_, Error>(snapshot)
            })
            .await??;
        answered.await.map_err(|_| gone())?;
        let mirror = Mirror {
            volume: self.clone(),
            session,
            items,
        };
        Ok((snapshot, mirror))
    }

    /// Return when the volume's record is durable: an owner's gate is open then.
    pub async fn opened(&self) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.on_cell(move |cell, _| cell.waiters.when_open(answer))
            .await?;
        answered.await.map_err(|_| gone())
    }

    /// Hold new requests, and return when nothing is in flight.
    pub async fn freeze(&self) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.on_cell(move |cell, _| {
            cell.waiters.drained.push(answer);
            cell.volume.freeze();
        })
        .await?;
        answered.await.map_err(|_| gone())
    }

    /// Let requests in again.
    pub async fn thaw(&self) -> Result<()> {
        self.call(Volume::thaw).await
    }

    /// Send requests, held and new ones, to the volume's new owner, where it is the export `owner`.
    /// A lost link is made again for as long as it takes; what had no answer is sent again. The
    /// volume must have been relinquished. Again is as good as once; another owner takes the former
    /// one's place. It ends when the volume is activated here.
    ///
    /// `ahead` is a link that [`VolumeHandle::dial_ahead`] has made or is about to.
    pub async fn forward(&self, owner: Uri, ahead: Option<Ahead>) -> Result<()> {
        let (lost, losses) = mpsc::channel(1);
        let to = owner.clone();
        let switched = self
            .on_cell(move |cell, now| {
                cell.volume.forward(now, true)?;
                *cell.standing.forwards_to() = Some(to.clone());
                let round = match &mut cell.forwarder {
                    Some(forwarder) => forwarder.switch(&to, lost),
                    none => Some(none.insert(Forwarder::new(to, lost)).round()),
                };
                Ok::<_, Error>(round.map(|r| (r, cell.volume.seen())))
            })
            .await??;
        if let Some((round, generation)) = switched {
            let dialler = Dialler {
                volume: self.clone(),
                owner,
                fence: Fence {
                    generation,
                    from: self.me.to_string(),
                },
                round,
            };
            tokio::spawn(dialler.keep_linked(losses, ahead));
        }
        Ok(())
    }

    /// Begin to dial the node that will own the volume in generation `next`, so that the link is there
    /// when it does: the guest is held meanwhile, and a dial takes round trips.
    #[must_use]
    pub fn dial_ahead(&self, owner: Uri, next: Generation) -> Ahead {
        let fence = Fence {
            generation: next,
            from: self.me.to_string(),
        };
        Ahead::begin(owner, fence)
    }

    /// What another node finds as `NAME@suffix`, where `export` is `NAME`: the volume itself, for a
    /// forwarding link whose fence this owner satisfies; or where the volume is now.
    #[must_use]
    pub fn find(&self, export: &Export, suffix: &str) -> Option<Export> {
        let mut export = export.clone();
        if suffix == OWNER {
            let owned = self.standing.owned().is_some();
            let owner = self.standing.forwards_to().clone();
            export.description = owner.filter(|_| !owned)?.to_string();
        } else {
            let fence = Fence::parse(suffix)?;
            self.standing.owned().filter(|g| *g >= fence.generation)?;
        }
        Some(export)
    }

    /// For a forwarding link that came before the owner did: ends when it may be found.
    #[must_use]
    pub fn arrival(&self, suffix: &str) -> Option<nbd::Arrival> {
        let Fence { generation, .. } = Fence::parse(suffix)?;
        let standing = Arc::clone(&self.standing);
        standing
            .is_to_come(generation)
            .then(|| Box::pin(async move { standing.owned_from(generation).await }) as _)
    }

    /// Close its connections, finish its requests, sync it, and take it off its shard.
    pub async fn remove(self) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.mailbox
            .send(Message::RemoveVolume(self.index, answer))
            .map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// What guests do to it.
    #[must_use]
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// How long its guests wait.
    #[must_use]
    pub fn latency(&self) -> &Arc<Latency> {
        &self.latency
    }

    fn tell(&self, f: impl FnOnce(&mut VolumeCell, Nanos) + Send + 'static) {
        // A shard that is gone needs to be told nothing.
        let _ = self.mailbox.send(Message::Call(self.index, Box::new(f)));
    }

    pub(super) async fn on_cell<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut VolumeCell, Nanos) -> R + Send + 'static,
    ) -> Result<R> {
        let (answer, answered) = oneshot::channel();
        let call = move |cell: &mut VolumeCell, now| {
            // The caller may have gone; the call was made all the same.
            let _ = answer.send(f(cell, now));
        };
        self.mailbox
            .send(Message::Call(self.index, Box::new(call)))
            .map_err(|_| gone())?;
        answered
            .await
            .map_err(|_| Error::new(ErrorKind::NotFound, "the volume was removed from its shard"))
    }
}
