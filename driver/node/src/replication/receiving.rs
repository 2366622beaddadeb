//! The receiving mover: one thread that takes the replication of all standby volumes of this node.
//!
//! ```text
//!   accept ─► greet (deadline) ─► which volume? ─► cut the connection before it, wait for its end
//!          ─► Receiver::serve
//! ```
//!
//! A source that comes back must not wait for its dead connection to time out, so the newer
//! connection ends the older one, if it speaks for no lower generation.

use super::target::{ShardTarget, Succession};
use super::tcp::Tcp;
use crate::complaints::Complaints;
use crate::engine::VolumeHandle;
use block::{Epoch, Error, ErrorKind, Generation, Result, VolumeId};
use replica::{Files, Receiver, Record, greet, staging_bytes};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use storage::ImageFile;
use storage::mover::MoverFile;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_uring::net::TcpListener;

/// How long a peer may take to introduce itself.
const GREETING_DEADLINE: Duration = Duration::from_secs(10);
/// Connections that have not introduced themselves yet, at most: strangers cost no more than this.
const GREETINGS_MAX: usize = 64;
/// Orders to the thread that it has not taken up yet, at most.
const ORDERS_MAX: usize = 64;
/// Bytes of a replica's record file.
const RECORD_BYTES: u64 = 8192;

/// A standby volume whose replication is to be taken.
pub struct StandbySpec {
    /// The volume.
    pub id: VolumeId,
    /// Its image.
    pub image: ImageFile,
    /// The directory for the record and the staging file.
    pub directory: PathBuf,
    /// The volume's home.
    pub handle: VolumeHandle,
    /// Told when this node takes the volume over.
    pub succession: Arc<dyn Succession>,
}

enum Order {
    Add(Box<StandbySpec>, oneshot::Sender<Result<()>>),
    Remove(VolumeId, oneshot::Sender<()>),
    Record(VolumeId, oneshot::Sender<Option<Record>>),
    Remember(VolumeId, oneshot::Sender<Result<()>>),
    Listen,
    TakeOver(VolumeId, Generation, oneshot::Sender<Result<Epoch>>),
    Stop,
}

/// The receiving thread, from outside.
pub struct Receiving {
    orders: mpsc::Sender<Order>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

struct Standby {
    receiver: Receiver<MoverFile, ShardTarget>,
    /// Held while a connection is served.
    serving: Mutex<()>,
    current: RefCell<Option<Tcp>>,
}

type Standbys = Rc<RefCell<BTreeMap<VolumeId, Rc<Standby>>>>;

fn gone() -> Error {
    Error::new(ErrorKind::Disconnected, "the receiving mover has stopped")
}

impl Receiving {
    /// Take connections from `listener` with a thread of its own, once that is told to
    /// [listen](Receiving::listen).
    pub fn start(listener: std::net::TcpListener) -> Result<Receiving> {
        let address = listener
            .local_addr()
            .map_err(|e| Error::io("take replication", e))?;
        let (orders, taken) = mpsc::channel(ORDERS_MAX);
        let thread = std::thread::Builder::new()
            .name("receiving".into())
            .spawn(move || tokio_uring::start(run(TcpListener::from_std(listener), taken)))
            .map_err(|e| Error::io("start the receiving mover", e))?;
        Ok(Receiving {
            orders,
            address,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Take connections from now on. Who came before has waited: a node that is not ready knows of no
    /// volume, and to say so would be the wrong answer.
    pub async fn listen(&self) -> Result<()> {
        self.orders.send(Order::Listen).await.map_err(|_| gone())
    }

    /// Take the replication of a standby volume.
    pub async fn add(&self, spec: StandbySpec) -> Result<()> {
        self.ask(|answer| Order::Add(Box::new(spec), answer))
            .await?
    }

    /// Take it no longer; returns when nothing is written any more.
    pub async fn remove(&self, id: VolumeId) -> Result<()> {
        self.ask(|answer| Order::Remove(id, answer)).await
    }

    /// What the copy of a volume is; `None` if it is no standby here.
    pub async fn record(&self, id: VolumeId) -> Result<Option<Record>> {
        self.ask(|answer| Order::Record(id, answer)).await
    }

    /// A volume was given up, and taken by another node: see [`Receiver::remember`].
    pub async fn remember(&self, id: VolumeId) -> Result<()> {
        self.ask(|answer| Order::Remember(id, answer)).await?
    }

    /// The source of this volume is gone for good: have the volume here take its place, in `generation`.
    /// The answer is the epoch that its copy is.
    pub async fn take_over(&self, id: VolumeId, generation: Generation) -> Result<Epoch> {
        self.ask(|answer| Order::TakeOver(id, generation, answer))
            .await?
    }

    async fn ask<R>(&self, order: impl FnOnce(oneshot::Sender<R>) -> Order) -> Result<R> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(order(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }

    /// End all connections and the thread.
    pub async fn stop(mut self) {
        // A thread that has stopped takes no order.
        let _ = self.orders.send(Order::Stop).await;
        if let Some(thread) = self.thread.take() {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the receiving mover panicked");
            }
        }
    }
}

fn no_standby(volume: VolumeId) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("volume {volume} is no standby here; add the replica first"),
    )
}

async fn run(listener: TcpListener, mut orders: mpsc::Receiver<Order>) {
    let standbys = Standbys::default();
    let mut listener = Some(listener);
    let mut accepting = None;
    while let Some(order) = orders.recv().await {
        match order {
            Order::Add(spec, answer) => {
                let standbys = standbys.clone();
                // Opening may redo an epoch; others need not wait for it.
                tokio_uring::spawn(async move {
                    let id = spec.id;
                    let opened = open(*spec).await.map(|standby| {
                        standbys.borrow_mut().insert(id, Rc::new(standby));
                    });
                    let _ = answer.send(opened);
                });
            }
            Order::Remove(id, answer) => {
                let standby = standbys.borrow_mut().remove(&id);
                tokio_uring::spawn(async move {
                    if let Some(standby) = standby {
                        standby.end().await;
                    }
                    let _ = answer.send(());
                });
            }
            Order::Record(id, answer) => {
                let standby = standbys.borrow().get(&id).cloned();
                let _ = answer.send(standby.map(|s| s.receiver.record()));
            }
            Order::Remember(id, answer) => {
                let standby = standbys.borrow().get(&id).cloned();
                tokio_uring::spawn(async move {
                    let remembered = match standby {
                        Some(standby) => standby.remember().await,
                        None => Ok(()),
                    };
                    let _ = answer.send(remembered);
                });
            }
            Order::Listen => {
                if let Some(listener) = listener.take() {
                    accepting = Some(tokio_uring::spawn(accept(listener, standbys.clone())));
                }
            }
            Order::TakeOver(id, generation, answer) => {
                let standby = standbys.borrow().get(&id).cloned();
                tokio_uring::spawn(async move {
                    let taken = match standby {
                        Some(standby) => standby.take_over(generation).await,
                        None => Err(no_standby(id)),
                    };
                    let _ = answer.send(taken);
                });
            }
            Order::Stop => break,
        }
    }
    if let Some(accepting) = accepting {
        accepting.abort();
    }
    let all = std::mem::take(&mut *standbys.borrow_mut());
    for standby in all.into_values() {
        standby.end().await;
    }
}

async fn open(spec: StandbySpec) -> Result<Standby> {
    let size = spec.image.size;
    let files = Files {
        image: MoverFile::new(spec.image)?,
        staging: MoverFile::open(&spec.directory.join("staging"), staging_bytes(size))?,
        replica: MoverFile::open(&spec.directory.join("replica"), RECORD_BYTES)?,
    };
    let target = ShardTarget::new(spec.handle, spec.succession);
    Ok(Standby {
        receiver: Receiver::open(spec.id, size, files, target).await?,
        serving: Mutex::new(()),
        current: RefCell::new(None),
    })
}

async fn accept(listener: TcpListener, standbys: Standbys) {
    let greeting = Rc::new(Cell::new(0));
    let complaints = Rc::new(Complaints::default());
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of descriptors, most likely: let some be closed.
                tracing::warn!("accept a replication connection: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if greeting.get() >= GREETINGS_MAX {
            complaints.warn(format_args!(
                "{peer}: too many replication peers that do not introduce themselves"
            ));
            continue;
        }
        let (standbys, greeting) = (standbys.clone(), greeting.clone());
        let complaints = complaints.clone();
        greeting.set(greeting.get() + 1);
        tokio_uring::spawn(async move {
            let served = receive(stream, peer, &standbys, || greeting.set(greeting.get() - 1));
            if let Err(e) = served.await
                && e.kind() != ErrorKind::Disconnected
            {
                complaints.warn(format_args!("replication connection from {peer}: {e}"));
            }
        });
    }
}

async fn receive(
    stream: tokio_uring::net::TcpStream,
    peer: SocketAddr,
    standbys: &Standbys,
    greeted: impl FnOnce(),
) -> Result<()> {
    let tcp = Tcp::new(stream, peer);
    let hello = async {
        let hello =
            tokio::time::timeout(GREETING_DEADLINE, greet(tcp.as_ref().ok()?.clone())).await;
        Some(hello)
    };
    let hello = hello.await;
    greeted();
    let tcp = tcp?;
    let Some(Ok(incoming)) = hello else {
        tcp.cut();
        return Err(Error::new(
            ErrorKind::Timeout,
            "it did not introduce itself",
        ));
    };
    let incoming = incoming?;
    let standby = standbys.borrow().get(&incoming.hello.volume).cloned();
    let Some(standby) = standby else {
        let e = no_standby(incoming.hello.volume);
        incoming.refuse(&e).await;
        return Err(e);
    };
    if let Err(e) = standby.receiver.admits(&incoming).await {
        incoming.refuse(&e).await;
        return Err(e);
    }
    if let Some(before) = standby.current.borrow_mut().replace(tcp.clone()) {
        before.cut();
    }
    let _serving = standby.serving.lock().await;
    let ended = standby.receiver.serve(incoming).await;
    // A source that still sends learns that nobody reads; the reason is on its way before that.
    tcp.cut();
    Err(ended)
}

impl Standby {
    async fn remember(&self) -> Result<()> {
        // A source that is served has had it written already.
        match self.serving.try_lock() {
            Ok(_serving) => self.receiver.remember().await,
            Err(_) => Ok(()),
        }
    }

    /// With nobody served: what a connection was writing has landed before the copy is given away.
    async fn take_over(&self, generation: Generation) -> Result<Epoch> {
        if let Some(tcp) = self.current.borrow_mut().take() {
            tcp.cut();
        }
        let _serving = self.serving.lock().await;
        self.receiver.take_over(generation).await
    }

    /// End the connection and wait until its writes have ended too.
    async fn end(&self) {
        if let Some(tcp) = self.current.borrow_mut().take() {
            tcp.cut();
        }
        drop(self.serving.lock().await);
    }
}
