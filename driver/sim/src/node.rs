//! A node: disks that survive it, and a process that lives, dies and comes back.
//!
//! ```text
//!   start ─► open the volume from its metadata ─► owner?         follow every peer with a sender
//!                                               ─► standby?      wait at the door for a source
//!                                               ─► relinquished? roll forward, then adopt, then stand by
//! ```
//!
//! What is here is what a node daemon does around the crates that it is made of; the crates are the
//! real ones.

use crate::disk::SimDisk;
use crate::group::Group;
use crate::hits::Hit;
use crate::host::Host;
use crate::ledger::Ledger;
use crate::net::{End, Network};
use crate::owner::Given;
use crate::seam::{SimSource, SimTarget};
use crate::world::{Process, SimClock, World};
use block::sector::Seen;
use block::{Disk, Epoch, Error, ErrorKind, Generation, NodeName, Result, SECTOR_BYTES};
use replica::{Files, Receiver, Record, Sender, State, Tuning, greet};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use volume::{Config, CursorName, Identity, Role, Start, Volume, meta_bytes};
use wire::SessionId;

/// Connections that wait at a node's door, at most.
const DOOR: usize = 4;

/// A sender of the simulation.
pub type SimSender = Sender<SimSource, SimDisk, SimClock>;
type SimReceiver = Receiver<SimDisk, SimTarget>;

/// How nodes are set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The volume's bytes.
    pub size: u64,
    /// The image's unit of direct I/O.
    pub align: u64,
    /// Requests at a time.
    pub requests: u32,
    /// How senders go about it.
    pub tuning: Tuning,
    /// Between two increments, at most, in microseconds.
    pub interval: u64,
    /// Volumes that are rotated together with this one.
    pub group: Option<Group>,
}

/// What is asked of an owner: to give the volume to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover {
    /// To which node.
    pub to: usize,
    /// The guest may be held for so long.
    pub budget: Duration,
}

/// The disks of a node.
pub struct Disks {
    /// The image.
    pub image: SimDisk,
    /// The volume's metadata.
    pub meta: SimDisk,
    /// The replica's record.
    pub replica: SimDisk,
    /// What is staged.
    pub staging: SimDisk,
}

impl Disks {
    /// Every one of them.
    pub fn all(&self) -> [&SimDisk; 4] {
        [&self.image, &self.meta, &self.replica, &self.staging]
    }
}

/// A process that runs.
pub(crate) struct Life {
    pub(crate) host: Host,
    door: mpsc::Sender<End>,
    pub(crate) receiver: RefCell<Option<Rc<SimReceiver>>>,
    /// Nodes that have answered, one bit each.
    pub(crate) heard: Cell<u64>,
    pub(crate) takes_over: Rc<Cell<Option<Generation>>>,
}

/// A node.
pub struct Node {
    /// Its number, from 1.
    pub index: usize,
    /// Its name.
    pub name: NodeName,
    /// Its process.
    pub process: Process,
    /// Its disks.
    pub disks: Disks,
    pub(crate) life: RefCell<Option<Rc<Life>>>,
    /// It should be started again, having lost its power: a sync failed.
    pub broken: Cell<bool>,
    pub(crate) handover: Cell<Option<Handover>>,
    /// It is to take the volume over, in this generation.
    pub(crate) taking: Cell<Option<Generation>>,
    /// What its sender to each node and its receiver do, for a run that does not come to rest.
    pub(crate) doing: RefCell<BTreeMap<usize, String>>,
    /// Epochs that its copy committed.
    pub commits: Cell<u64>,
}

pub(crate) struct Inner {
    pub(crate) world: World,
    pub(crate) net: Network,
    pub(crate) ledger: Ledger,
    pub(crate) setup: Setup,
    pub(crate) nodes: Vec<Node>,
    pub(crate) sessions: Cell<u64>,
    /// Who owned the volume before its owner, as whoever asked for the cutover knows.
    pub(crate) former: Cell<Option<usize>>,
    /// To whom and for which generation a cutover that has not ended offers the volume.
    pub(crate) offered: Cell<Option<(usize, Generation)>>,
    /// The highest generation known to be owned.
    pub(crate) owned: Cell<Generation>,
    /// A node that nobody reaches but the guests on it, or that has not heard yet what it missed.
    pub(crate) apart: Cell<Option<usize>>,
}

/// Several nodes with one volume. Cheap to clone.
#[derive(Clone)]
pub struct Cluster(pub(crate) Rc<Inner>);

/// What a sector of a disk holds.
#[must_use]
pub fn seen(disk: &SimDisk, sector: u64) -> Seen {
    disk.peek(sector)
        .map_or(Seen::Zero, |bytes| Seen::in_sector(&bytes))
}

impl Cluster {
    /// Nodes with blank disks; the first owns the volume.
    pub async fn create(
        world: &World,
        net: &Network,
        ledger: &Ledger,
        setup: &Setup,
        count: usize,
    ) -> Result<Cluster> {
        let node = |index: usize| {
            let process = Process(index as u32 + 1);
            let disk = |size: u64| SimDisk::new(world, process, size);
            let staging = replica::staging_bytes(setup.size);
            Ok(Node {
                index,
                name: format!("n{index}").parse()?,
                process,
                disks: Disks {
                    image: disk(setup.size),
                    meta: disk(meta_bytes(setup.size)),
                    replica: disk(8192),
                    staging: disk(staging.next_multiple_of(SECTOR_BYTES)),
                },
                life: RefCell::new(None),
                broken: Cell::new(false),
                handover: Cell::new(None),
                taking: Cell::new(None),
                doing: RefCell::default(),
                commits: Cell::new(0),
            })
        };
        let cluster = Cluster(Rc::new(Inner {
            world: world.clone(),
            net: net.clone(),
            ledger: ledger.clone(),
            setup: setup.clone(),
            nodes: (0..count).map(node).collect::<Result<Vec<_>>>()?,
            sessions: Cell::new(0),
            former: Cell::new(None),
            offered: Cell::new(None),
            owned: Cell::new(Generation(1)),
            apart: Cell::new(None),
        }));
        for i in 0..count {
            let role = match i {
                0 => Role::Owner {
                    generation: Generation(1),
                    since: Epoch(0),
                },
                _ => Role::Standby,
            };
            let identity = Identity {
                id: ledger.volume,
                name: "v".parse()?,
                image: "image".into(),
            };
            let volume = Volume::create(cluster.config(), identity, role)?;
            let host = cluster.host(i, volume);
            host.opened().await;
            world.kill(cluster.0.nodes[i].process);
            cluster.0.nodes[i].disks.meta.killed();
        }
        for i in 0..count {
            cluster.start(i);
        }
        Ok(cluster)
    }

    fn config(&self) -> Config {
        let setup = &self.0.setup;
        Config {
            size: setup.size,
            max_requests: setup.requests,
            align: setup.align,
            read_only: false,
        }
    }

    fn host(&self, i: usize, volume: Volume) -> Host {
        let node = &self.0.nodes[i];
        let disks = (node.disks.image.clone(), node.disks.meta.clone());
        let (world, ledger) = (&self.0.world, &self.0.ledger);
        Host::start(world, node.process, i as u32, ledger, volume, disks)
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.0.nodes
    }

    /// The host on a node, if it runs.
    #[must_use]
    pub fn host_on(&self, i: usize) -> Option<Host> {
        self.0.nodes[i]
            .life
            .borrow()
            .as_ref()
            .map(|l| l.host.clone())
    }

    /// The node whose image is the volume.
    #[must_use]
    pub fn holder(&self) -> usize {
        self.0.ledger.holder() as usize
    }

    /// What the copy on a node is, if its receiver runs.
    #[must_use]
    pub fn record(&self, i: usize) -> Option<Record> {
        let life = self.0.nodes[i].life.borrow().clone()?;
        let receiver = life.receiver.borrow();
        receiver.as_ref().map(|r| r.record())
    }

    /// Ask the owner to give the volume away.
    pub fn ask(&self, handover: Handover) {
        self.0.nodes[self.holder()].handover.set(Some(handover));
    }

    pub(crate) fn open(&self, i: usize) -> Result<Volume> {
        let meta = self.0.nodes[i].disks.meta.bytes();
        Volume::open(self.config(), Some(self.0.ledger.volume), &meta)
    }

    /// Whether the volume's metadata cannot be believed: then its node must say so and stop.
    #[must_use]
    pub fn refuses(&self, i: usize) -> bool {
        self.open(i).is_err_and(|e| e.kind() == ErrorKind::Corrupt)
    }

    /// Begin a process. It must not be running.
    pub fn start(&self, i: usize) {
        let cluster = self.clone();
        self.0.world.spawn(self.0.nodes[i].process, async move {
            let node = &cluster.0.nodes[i];
            let volume = match cluster.open(i) {
                Ok(volume) => volume,
                Err(e) => panic!("[recovery terminates] node {i} cannot open its volume: {e}"),
            };
            let host = cluster.host(i, volume);
            let (door, knocks) = mpsc::channel(DOOR);
            let life = Rc::new(Life {
                host,
                door,
                receiver: RefCell::new(None),
                heard: Cell::new(0),
                takes_over: Rc::default(),
            });
            *node.life.borrow_mut() = Some(life.clone());
            let suspects = |v: &Volume| v.intents().is_some_and(|a| !a.is_empty());
            if life
                .host
                .call(|v, _| !v.cursors().is_empty() && suspects(v))
            {
                cluster.0.world.hit(Hit::Suspect);
            }
            cluster.check_no_false_clean(i);
            if let Some(generation) = life.host.call(|v, _| v.owned()) {
                let image = &node.disks.image;
                let disk = |s| seen(image, s);
                cluster.0.ledger.came_back(generation, disk);
            }
            life.host.opened().await;
            let watching = cluster.clone();
            let watched = life.host.clone();
            cluster.0.world.spawn(node.process, async move {
                watched.poisoned().await;
                watching.0.nodes[i].broken.set(true);
            });
            cluster.live(i, life, knocks).await;
        });
    }

    /// End a process, and with `power` everything that its disks had not synced.
    pub fn crash(&self, i: usize, power: bool) {
        let node = &self.0.nodes[i];
        let there = self.host_on(i).map(|h| h.writes()).unwrap_or_default();
        let world = &self.0.world;
        world.hit(if power { Hit::PowerCut } else { Hit::Kill });
        if matches!(self.record(i), Some(r) if matches!(r.state, State::Committed { .. })) {
            world.hit(Hit::Redone);
        }
        self.0.world.kill(node.process);
        *node.life.borrow_mut() = None;
        for disk in node.disks.all() {
            if power {
                disk.power_cut();
            } else {
                disk.killed();
            }
        }
        node.broken.set(false);
        if self.holder() == i {
            let image = &node.disks.image;
            self.0.ledger.crashed(power, &there, |s| seen(image, s));
        }
    }

    async fn live(&self, i: usize, life: Rc<Life>, knocks: mpsc::Receiver<End>) {
        let knocks = RefCell::new(knocks);
        loop {
            let before = life.host.call(|v, _| v.role());
            match before {
                Role::Relinquished { .. } => {
                    if let Some(given) = life.host.call(|v, _| Given::of(v)) {
                        self.retire(i, &life, &knocks, given).await;
                    }
                }
                Role::Owner { generation, .. } => {
                    self.owns(i, generation);
                    self.open_receiver(i, &life).await;
                    self.follow_all(i, &life, generation);
                    self.ask_peers(i, &life);
                }
                Role::Standby => {
                    life.host.step_aside();
                    self.open_receiver(i, &life).await;
                }
            }
            // Until the part that this node plays has changed.
            let same = || life.host.call(|v, _| v.role()) == before;
            let taking = || before == Role::Standby && self.0.nodes[i].taking.get().is_some();
            while same() || life.host.is_poisoned() {
                self.serve_one(i, &life, &knocks, || !same() || taking())
                    .await;
                if taking() {
                    self.take_over(i, &life).await;
                }
            }
        }
    }

    pub(crate) async fn open_receiver(&self, i: usize, life: &Rc<Life>) {
        if life.receiver.borrow().is_some() {
            return;
        }
        let node = &self.0.nodes[i];
        loop {
            let files = Files {
                image: node.disks.image.clone(),
                staging: node.disks.staging.clone(),
                replica: node.disks.replica.clone(),
            };
            let target = SimTarget {
                host: life.host.clone(),
                takes_over: life.takes_over.clone(),
            };
            let size = self.0.setup.size;
            match Receiver::open(self.0.ledger.volume, size, files, target).await {
                Ok(receiver) => {
                    let restarts = receiver.record().state == State::Empty;
                    if restarts && node.commits.get() > 0 {
                        self.0.world.hit(Hit::Restarted);
                    }
                    *life.receiver.borrow_mut() = Some(Rc::new(receiver));
                    self.check_replica(i);
                    return;
                }
                Err(e) => self.note(i, &e),
            }
            self.0.world.sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn note(&self, i: usize, e: &Error) {
        match e.kind() {
            ErrorKind::Poisoned => self.0.nodes[i].broken.set(true),
            ErrorKind::Broken => panic!("[bug] node {i}: {e}"),
            ErrorKind::Fenced => self.0.world.hit(Hit::Fenced),
            _ => {}
        }
    }

    pub(crate) fn doing(&self, i: usize, j: usize, what: impl std::fmt::Display) {
        let mut doing = self.0.nodes[i].doing.borrow_mut();
        doing.insert(j, format!("{what} at {:?}", self.0.world.now()));
    }

    /// Serve the next connection until it ends, another comes, or `over` is true.
    pub(crate) async fn serve_one(
        &self,
        i: usize,
        life: &Rc<Life>,
        knocks: &RefCell<mpsc::Receiver<End>>,
        over: impl Fn() -> bool,
    ) {
        let world = &self.0.world;
        let knock = knocks.borrow_mut().try_recv();
        let Ok(end) = knock else {
            world.wait_up_to(400).await;
            return;
        };
        let scissors = end.scissors();
        self.doing(i, i, "serves");
        let done = Rc::new(Cell::new(false));
        let (cluster, serving, flag) = (self.clone(), life.clone(), done.clone());
        let process = self.0.nodes[i].process;
        world.spawn(process, async move {
            let receiver = serving.receiver.borrow().clone();
            let error = match (greet(end).await, receiver) {
                (Ok(incoming), Some(receiver)) => receiver.serve(incoming).await,
                (Ok(incoming), None) => {
                    let busy = Error::new(ErrorKind::Busy, "not yet");
                    incoming.refuse(&busy).await;
                    busy
                }
                (Err(e), _) => e,
            };
            cluster.note(i, &error);
            cluster.doing(i, i, &error);
            flag.set(true);
        });
        while !done.get() {
            // One connection at a time: a later one replaces it.
            if !knocks.borrow().is_empty() {
                scissors.cut();
            }
            self.check_replica(i);
            world.wait_up_to(700).await;
            if over() {
                // Whoever handed over still hears the answer before the end of the stream.
                world.wait_up_to(3000).await;
                scissors.cut();
            }
        }
    }

    /// A connection to a node.
    pub(crate) async fn dial(&self, from: usize, to: usize) -> Result<(End, SessionId)> {
        let gone = || Error::new(ErrorKind::Disconnected, "nobody is there");
        let (near, far) = self.0.net.dial(from as u32, to as u32).await?;
        let life = self.0.nodes[to].life.borrow().clone().ok_or_else(gone)?;
        life.door.try_send(far).map_err(|_| gone())?;
        self.0.sessions.set(self.0.sessions.get() + 1);
        Ok((near, SessionId(self.0.sessions.get())))
    }

    /// Track for the former owner from where it stopped.
    pub(crate) async fn expect_back(&self, life: &Life, j: usize) {
        if self.0.former.get() != Some(j) {
            return;
        }
        let to = &self.0.nodes[j].name;
        let Role::Owner { since, .. } = life.host.call(|v, _| v.role()) else {
            return;
        };
        let name = CursorName::Replica(to.clone());
        let known = |v: &mut Volume, _| v.cursors().iter().any(|c| c.name == name);
        if since > Epoch(0) && !life.host.call(known) {
            // If that is not known any more it is seeded.
            let at = life
                .host
                .control(|v, _| v.add_cursor(name.clone(), Start::At(since)));
            let _ = at.await;
        }
    }

    /// Everything that a consistent copy must be.
    pub fn check_replica(&self, i: usize) {
        let Some(record) = self.record(i) else { return };
        if record.state != State::Consistent || self.holder() == i {
            return;
        }
        let image = &self.0.nodes[i].disks.image;
        let point = (record.generation, record.epoch);
        if let Some(how) = self.0.ledger.differs_from(point, |s| seen(image, s)) {
            panic!(
                "[point in time] the copy on node {i} says it is epoch {}: {how}",
                record.epoch
            );
        }
    }

    /// Whatever differs from a copy is covered by an intent.
    fn check_no_false_clean(&self, i: usize) {
        let Some(host) = self.host_on(i) else { return };
        if self.holder() != i {
            return;
        }
        let image = &self.0.nodes[i].disks.image;
        for (j, node) in self.0.nodes.iter().enumerate().filter(|(j, _)| *j != i) {
            let name = CursorName::Replica(node.name.clone());
            let cursor = host.call(|v, _| v.cursors().iter().find(|c| c.name == name).cloned());
            let (Some(cursor), Some(record)) = (cursor, self.record(j)) else {
                continue;
            };
            if !cursor.seeded || record.state != State::Consistent || record.epoch < cursor.epoch {
                continue;
            }
            let Some(copy) = self.0.ledger.at((record.generation, record.epoch)) else {
                continue;
            };
            for (sector, content) in copy {
                let here = self.0.ledger.content(sector, seen(image, sector));
                let area = block::Area(sector * SECTOR_BYTES / block::AREA_BYTES);
                let covered = host.call(|v, _| v.intents().is_some_and(|s| s.contains(area)));
                assert!(
                    here == content || covered,
                    "[no false clean] sector {sector} holds {here:?} on node {i} and {content:?} at \
                     epoch {} on node {j}; area {} has no intent",
                    record.epoch,
                    area.0
                );
            }
        }
    }

    /// Bytes of the image on a node that no guest ever wrote: there must be none.
    pub fn check_nothing_foreign(&self, i: usize) {
        for (sector, _) in self.0.nodes[i].disks.image.data() {
            let hot = self.0.ledger.hot.binary_search(&sector).is_ok();
            assert!(
                hot,
                "[foreign] sector {sector} on node {i} was never written"
            );
        }
    }

    /// How everybody is, for a run that does not come to rest.
    #[must_use]
    pub fn describe(&self) -> String {
        let nodes = self.0.nodes.iter().map(|n| {
            let host = self.host_on(n.index);
            let volume = host.map(|h| {
                let waits = h.waits();
                h.call(|v, _| {
                    format!(
                        "{}, seen {}, {:?}; {waits}",
                        v.role(),
                        v.seen(),
                        v.cursors()
                    )
                })
            });
            let doing = n.doing.borrow();
            format!(
                "\n  {}: {volume:?}, copy {:?}, {doing:?}",
                n.name,
                self.record(n.index)
            )
        });
        let nodes: String = nodes.collect();
        format!("holder n{}{nodes}{}", self.holder(), self.0.net.describe())
    }

    /// The sectors that guests write.
    #[must_use]
    pub fn hot(&self) -> &[u64] {
        &self.0.ledger.hot
    }

    /// Times that the volume was handed over.
    #[must_use]
    pub fn handovers(&self) -> u64 {
        self.0.ledger.handovers()
    }

    pub(crate) fn size(&self) -> u64 {
        self.0.nodes[0].disks.image.size()
    }
}
