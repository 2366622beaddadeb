//! The sending mover: one thread that replicates this node's volumes.
//!
//! Each replica is a task: connect, catch up, then an increment each interval; after a failure again,
//! with a growing pause. An order to stop is taken up at once. One to cut over lets an increment that is
//! under way end first, because what it has sent would be sent again, but no longer spares the guest.
//! An order to stop ends a cutover, too: before the volume is relinquished the source serves on, and after it
//! nobody is told any more to take it.

use super::source::{Redirect, ShardSource};
use super::tcp::{MoverClock, Tcp};
use crate::engine::VolumeHandle;
use block::{Epoch, Error, ErrorKind, NodeName, Result, VolumeId};
use replica::cutover::{self, Plan, Report, Update};
use replica::{Event, Increment, Order, Progress, Seeding, Sender, Tuning};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use storage::ImageFile;
use storage::mover::MoverFile;
use tokio::sync::{mpsc, oneshot, watch};
use wire::SessionId;

/// How long a connection attempt may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// The first pause after a failed session, and the longest.
const RETRY_AFTER: Duration = Duration::from_millis(100);
const RETRY_AT_MOST: Duration = Duration::from_secs(5);
/// Orders to the thread, or to one replica, that are not taken up yet, at most.
const ORDERS_MAX: usize = 16;
/// How often a cutover that waits for an increment says how far that is.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// What a replica has to say.
#[derive(Clone, Debug)]
pub enum News {
    /// A transfer goes on.
    Event(Event),
    /// A seeding is complete.
    Seeded(Seeding),
    /// An epoch was committed at the replica.
    Committed(Increment),
    /// The session failed and will be tried again.
    Failed(String),
    /// As that, and perhaps nobody was there to say anything.
    Away(String),
}

/// A replica to be kept.
pub struct ReplicaSpec {
    /// The volume.
    pub id: VolumeId,
    /// Its home.
    pub handle: VolumeHandle,
    /// Its image.
    pub image: ImageFile,
    /// The node that the replica is on.
    pub replica: NodeName,
    /// Where that node takes replication.
    pub address: SocketAddr,
    /// Time between increments.
    pub interval: Duration,
    /// How to go about it.
    pub tuning: Tuning,
    /// In which order to copy a baseline.
    pub order: Order,
    /// Told how it goes; must not block.
    pub news: Arc<dyn Fn(&News) + Send + Sync>,
    /// Makes the volume forward to the new owner after a cutover.
    pub redirect: Redirect,
}

/// Told how a cutover goes; must not block.
pub type Watch = Box<dyn Fn(&Update) + Send>;

enum Task {
    /// Cut over to this replica's node.
    CutOver(Plan, Watch, oneshot::Sender<Result<Report>>),
    /// Finish a cutover that had relinquished before a restart.
    RollForward(Plan, Epoch, Watch, oneshot::Sender<Result<()>>),
    /// Keep the replica no longer.
    Stop(oneshot::Sender<()>),
}

/// What one replica is told to do.
struct Orders {
    queue: mpsc::Receiver<Task>,
    /// Taken from the queue, and not begun: the session in which it came may break.
    taken: Option<Task>,
    /// Whether the replica is to be kept no longer: known before the order to stop has its turn.
    stopping: watch::Receiver<bool>,
}

impl Orders {
    /// The next one; `None` when nobody can give any more.
    async fn next(&mut self) -> Option<Task> {
        match self.taken.take() {
            Some(task) => Some(task),
            None => self.queue.recv().await,
        }
    }

    /// Puts an order back, to be the next.
    fn keep(&mut self, order: Option<Task>) -> Option<&Task> {
        self.taken = order;
        self.taken.as_ref()
    }
}

/// The sending thread, from outside.
pub struct Sending {
    replicas: mpsc::Sender<(Box<ReplicaSpec>, Orders)>,
    thread: Option<JoinHandle<()>>,
}

/// One replica, from outside.
#[derive(Clone)]
pub struct ReplicaHandle {
    orders: mpsc::Sender<Task>,
    stopping: Arc<watch::Sender<bool>>,
}

fn gone() -> Error {
    Error::new(ErrorKind::Disconnected, "the sending mover has stopped")
}

impl Sending {
    /// Start the thread.
    pub fn start() -> Result<Sending> {
        let (replicas, mut added) = mpsc::channel::<(Box<ReplicaSpec>, Orders)>(ORDERS_MAX);
        let run = async move {
            let mut tasks = Vec::new();
            while let Some((spec, orders)) = added.recv().await {
                tasks.push(tokio_uring::spawn(keep(*spec, orders)));
                tasks.retain(|t| !t.is_finished());
            }
            for task in tasks {
                // Each ends when its handles are gone.
                let _ = task.await;
            }
        };
        let thread = std::thread::Builder::new()
            .name("sending".into())
            .spawn(move || tokio_uring::start(run))
            .map_err(|e| Error::io("start the sending mover", e))?;
        Ok(Sending {
            replicas,
            thread: Some(thread),
        })
    }

    /// Keep a replica from now on.
    pub async fn add(&self, spec: ReplicaSpec) -> Result<ReplicaHandle> {
        let (orders, queue) = mpsc::channel(ORDERS_MAX);
        let (stop, stopping) = watch::channel(false);
        let given = Orders {
            queue,
            taken: None,
            stopping,
        };
        self.replicas
            .send((Box::new(spec), given))
            .await
            .map_err(|_| gone())?;
        Ok(ReplicaHandle {
            orders,
            stopping: Arc::new(stop),
        })
    }

    /// End the thread once every [`ReplicaHandle`] is dropped or stopped.
    pub async fn stop(self) {
        let Sending { replicas, thread } = self;
        drop(replicas);
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the sending mover panicked");
            }
        }
    }
}

impl ReplicaHandle {
    /// Whether its task has not ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.orders.is_closed()
    }

    /// Move the volume to the replica's node. After success the replica is not kept any more.
    pub async fn cut_over(&self, plan: Plan, watch: Watch) -> Result<Report> {
        self.ask(|answer| Task::CutOver(plan, watch, answer))
            .await?
    }

    /// Finish a cutover of which the volume's record says that it was relinquished as of `epoch`.
    pub async fn roll_forward(&self, plan: Plan, epoch: Epoch, watch: Watch) -> Result<()> {
        self.ask(|answer| Task::RollForward(plan, epoch, watch, answer))
            .await?
    }

    /// Keep the replica no longer. A cutover that is under way ends wherever it is: what the volume is then
    /// its own record says.
    pub async fn stop(&self) -> Result<()> {
        self.stopping.send_replace(true);
        self.ask(Task::Stop).await
    }

    async fn ask<R>(&self, task: impl FnOnce(oneshot::Sender<R>) -> Task) -> Result<R> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(task(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }
}

type ShardSender = Sender<ShardSource, MoverFile, MoverClock>;

/// A replica as its task has it.
struct Kept {
    sender: ShardSender,
    address: SocketAddr,
    interval: Duration,
    news: Arc<dyn Fn(&News) + Send + Sync>,
    /// How far the increment under way is.
    progress: Rc<Cell<Option<Progress>>>,
    sessions: Cell<u64>,
    stopping: watch::Receiver<bool>,
    /// The last connection.
    current: RefCell<Option<Tcp>>,
}

async fn keep(spec: ReplicaSpec, mut orders: Orders) {
    let news = Arc::clone(&spec.news);
    let kept = match Kept::new(spec, orders.stopping.clone()).await {
        Ok(kept) => kept,
        // Without the volume there is nothing to keep; whoever gives orders learns that it ended.
        Err(e) => return news(&News::Failed(e.to_string())),
    };
    let mut wait = RETRY_AFTER;
    loop {
        let order = match kept.session(&mut orders, &mut wait).await {
            Ok(order) => order,
            Err(e) => {
                let away = matches!(
                    e.kind(),
                    ErrorKind::Disconnected | ErrorKind::Timeout | ErrorKind::Io
                );
                let why = e.to_string();
                match e.kind() {
                    // The order to stop is next.
                    ErrorKind::Cancelled => {}
                    _ if away => news(&News::Away(why)),
                    _ => news(&News::Failed(why)),
                }
                let order = tokio::time::timeout(wait, orders.next()).await;
                wait = (wait * 2).min(RETRY_AT_MOST);
                let Ok(order) = order else { continue };
                order
            }
        };
        match order {
            Some(Task::CutOver(plan, watch, answer)) => {
                let cutover = cutover::run(&kept.sender, &plan, || kept.dial(), watch);
                let report = kept.until_stopped(cutover).await;
                let moved = report.is_ok();
                let _ = answer.send(report);
                if moved {
                    return;
                }
            }
            Some(Task::RollForward(plan, epoch, watch, answer)) => {
                let dial = || kept.dial();
                let forward = cutover::roll_forward(&kept.sender, &plan, epoch, dial, watch);
                let _ = answer.send(kept.until_stopped(forward).await);
                return;
            }
            Some(Task::Stop(answer)) => {
                kept.release().await;
                let _ = answer.send(());
                return;
            }
            None => return kept.release().await,
        }
    }
}

impl Kept {
    async fn new(spec: ReplicaSpec, stopping: watch::Receiver<bool>) -> Result<Kept> {
        let source = ShardSource::new(spec.handle, spec.replica, spec.redirect).await?;
        source.observe_guest().await;
        let news = Arc::clone(&spec.news);
        let progress = Rc::new(Cell::new(None));
        let far = Rc::clone(&progress);
        let sender = Sender::new(
            spec.id,
            source,
            MoverFile::new(spec.image)?,
            MoverClock::start(),
            spec.tuning,
            move |event| {
                if let Event::Increment(_, progress) = event {
                    far.set(Some(*progress));
                }
                news(&News::Event(*event));
            },
        )?
        .in_order(spec.order);
        Ok(Kept {
            sender,
            address: spec.address,
            interval: spec.interval,
            news: spec.news,
            progress,
            sessions: Cell::new(0),
            stopping,
            current: RefCell::default(),
        })
    }

    /// Does what might not end by itself. Once the replica is to be kept no longer its connection is cut,
    /// and no other is made.
    async fn until_stopped<R>(&self, work: impl Future<Output = R>) -> R {
        let mut work = pin!(work);
        let mut stopping = self.stopping.clone();
        tokio::select! {
            done = &mut work => return done,
            // An error is that nobody is left who could say so.
            Ok(_) = stopping.wait_for(|stopping| *stopping) => {}
        }
        if let Some(tcp) = self.current.borrow_mut().take() {
            tcp.cut();
        }
        work.await
    }

    async fn dial(&self) -> Result<(Tcp, SessionId)> {
        let connected = Tcp::connect(self.address, CONNECT_DEADLINE).await;
        if *self.stopping.borrow() {
            let why = "the replica is kept no longer";
            return Err(Error::new(ErrorKind::Cancelled, why));
        }
        let tcp = connected?;
        *self.current.borrow_mut() = Some(tcp.clone());
        // Unique on this connection's two ends is enough: it is there to tell streams apart.
        let n = self.sessions.get() + 1;
        self.sessions.set(n);
        Ok((tcp, SessionId(u64::from(std::process::id()) << 32 | n)))
    }

    /// One session, to its failure or to the next order.
    async fn session(&self, orders: &mut Orders, wait: &mut Duration) -> Result<Option<Task>> {
        let (tcp, id) = self.dial().await?;
        let work = async |session: &replica::Session<'_, _, _, _, Tcp>| {
            // An order need not wait for a seeding: what it leaves half done is resumed or undone.
            let (seeding, first) = tokio::select! {
                order = orders.next() => return Ok(order),
                caught_up = session.catch_up() => caught_up?,
            };
            *wait = RETRY_AFTER;
            if let Some(seeding) = seeding {
                (self.news)(&News::Seeded(seeding));
            }
            (self.news)(&News::Committed(first));
            loop {
                if let Ok(order) = tokio::time::timeout(self.interval, orders.next()).await {
                    return Ok(order);
                }
                self.progress.set(None);
                let mut increment = pin!(session.increment());
                let order = tokio::select! {
                    done = &mut increment => {
                        (self.news)(&News::Committed(done?));
                        continue;
                    }
                    order = orders.next() => order,
                };
                if let Some(Task::CutOver(_, watch, _)) = orders.keep(order) {
                    let done = self.finish(increment, watch).await?;
                    (self.news)(&News::Committed(done));
                }
                return Ok(orders.next().await);
            }
        };
        let ended = self.sender.connect(tcp, id, work).await;
        self.sender.hurry(false);
        ended
    }

    /// The rest of an increment that a cutover waits for.
    async fn finish(
        &self,
        mut increment: Pin<&mut impl Future<Output = Result<Increment>>>,
        watch: &Watch,
    ) -> Result<Increment> {
        self.sender.hurry(true);
        loop {
            watch(&Update::finishing(self.progress.get().as_ref()));
            if let Ok(done) = tokio::time::timeout(TELL_EVERY, &mut increment).await {
                return done;
            }
        }
    }

    async fn release(&self) {
        if let Err(e) = self.sender.source.release().await {
            tracing::warn!("give up a replica's snapshot: {e}");
        }
    }
}
