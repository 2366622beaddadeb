//! One seed: a cluster, its guests, and everything that fate has in store for them.
//!
//! Each seed draws which faults are on at all (a run with every fault is a run in which nothing gets
//! far), how many nodes there are and what the guests are like. At the end fate stops, and the
//! cluster must come to rest: every request answered, every copy equal to the volume.

use crate::dice::Dice;
use crate::disk;
use crate::guest::{Guest, Habits};
use crate::hits::{Hit, Hits};
use crate::ledger::Ledger;
use crate::net::{self, Network};
use crate::node::{Cluster, Handover, Setup, seen};
use crate::world::{OUTSIDE, World};
use block::{AREA_BYTES, BLOCK_BYTES, SECTOR_BYTES, VolumeId};
use replica::{State, Tuning};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

/// Virtual time in which a cluster without faults must come to rest.
const REST: Duration = Duration::from_secs(120);
/// Virtual time that a cutover is given before its guests stop.
const CUTOVER: Duration = Duration::from_millis(600);
/// More than a volume waits between two clearings of intents.
const LEAP: Duration = Duration::from_secs(11);

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What fate may do.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault { $($(#[$doc])* $name,)* }
        impl Fault {
            /// All of them.
            pub const ALL: &[Fault] = &[$(Fault::$name,)*];
        }
        impl fmt::Display for Fault {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Fault::$name => $text,)* })
            }
        }
        impl FromStr for Fault {
            type Err = String;
            fn from_str(s: &str) -> Result<Fault, String> {
                match s { $($text => Ok(Fault::$name),)* _ => Err(format!("no fault is called {s}")) }
            }
        }
    };
}

faults! {
    /// SIGKILL.
    Kill = "kill",
    /// A node loses its power.
    Power = "power",
    /// SIGSTOP and SIGCONT.
    Stop = "stop",
    /// A clock jumps ahead.
    Jump = "jump",
    /// All clocks pass the time after which intents are swept, again and again.
    Leap = "leap",
    /// Connections end anywhere.
    Cut = "cut",
    /// Bits flip on the wire.
    Flip = "flip",
    /// Pieces of a stream arrive twice.
    Twice = "twice",
    /// Pieces of a stream change places.
    Swap = "swap",
    /// Nothing passes in one direction.
    Partition = "partition",
    /// The network is slow.
    SlowNet = "slow-net",
    /// Disks are slow.
    SlowDisk = "slow-disk",
    /// Reads fail.
    ReadError = "read-error",
    /// Writes fail.
    WriteError = "write-error",
    /// Syncs fail, and then lie.
    SyncError = "sync-error",
    /// A disk is full.
    Space = "space",
    /// A sector of the volume's metadata rots.
    MetaRot = "meta-rot",
    /// A sector of the replica's record rots.
    RecordRot = "record-rot",
    /// A sector of what is staged rots.
    StagingRot = "staging-rot",
    /// Writes to the staging file go to another place.
    Misdirect = "misdirect",
    /// The volume is handed over.
    Handover = "handover",
    /// The owner's host is lost, a copy takes over, and the host comes back with its old disk.
    Failover = "failover",
}

/// What one run is.
#[derive(Clone, Debug)]
pub struct Swarm {
    /// Draws everything.
    pub seed: u64,
    /// Faults that may happen.
    pub faults: BTreeSet<Fault>,
    /// Virtual milliseconds before fate stops.
    pub millis: u64,
}

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Good answers to guests.
    pub answers: u64,
    /// Nodes that died.
    pub crashes: u64,
    /// Epochs that replicas committed.
    pub commits: u64,
    /// Volumes handed over.
    pub handovers: u64,
    /// What happened, fault by fault.
    pub hits: Hits,
    /// Over everything that was done.
    pub trace: u64,
}

impl Tally {
    /// Count another run's as well.
    pub fn add(&mut self, other: &Tally) {
        self.answers += other.answers;
        self.crashes += other.crashes;
        self.commits += other.commits;
        self.handovers += other.handovers;
        self.hits.add(&other.hits);
    }
}

impl Swarm {
    /// What a seed draws.
    #[must_use]
    pub fn of(seed: u64) -> Swarm {
        let dice = Dice::new(seed ^ 0x5eed);
        let likely = 2 + dice.below(4);
        let faults = Fault::ALL.iter().copied().filter(|_| dice.one_in(likely));
        Swarm {
            seed,
            faults: faults.collect(),
            millis: 80 + dice.below(300),
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// Run it. Panics with the name of the check that failed.
    #[must_use]
    pub fn run(&self) -> Tally {
        let world = World::new(self.seed);
        let swarm = self.clone();
        let w = world.clone();
        let result = catch_unwind(AssertUnwindSafe(|| {
            world.run(async move { swarm.play(w).await })
        }));
        world.end();
        match result {
            Ok(tally) => Tally {
                trace: world.trace(),
                hits: world.hits(),
                ..tally
            },
            Err(panic) => resume_unwind(panic),
        }
    }

    async fn play(&self, world: World) -> Tally {
        let dice = world.dice().clone();
        let areas = 1 + dice.below(4);
        let size = areas * AREA_BYTES - *dice.pick(&[0, 2560, BLOCK_BYTES]);
        let volume = VolumeId::from_random([self.seed as u8 | 1; 16]);
        let ledger = Ledger::new(volume, hot(size));
        let net = Network::new(&world);
        let setup = Setup {
            size,
            align: *dice.pick(&[512, 4096]),
            requests: 16,
            tuning: Tuning {
                // A link that is slow enough makes a cutover use the mirror.
                rate: match dice.below(6) {
                    0 => Some(1 << (20 + dice.below(8))),
                    1..=4 if self.has(Fault::Handover) => Some(1 << 20),
                    _ => None,
                },
                compress: dice.one_in(3),
                watermark_every: 256 << 10,
            },
            interval: 1 + dice.below(30_000),
            group: None,
        };
        let nodes = 2 + dice.below(2) as usize;
        let cluster = match Cluster::create(&world, &net, &ledger, &setup, nodes).await {
            Ok(cluster) => cluster,
            Err(e) => panic!("[bug] no cluster: {e}"),
        };
        let guests = Guests::start(&world, &cluster, &ledger, size);
        let fate = Fate {
            swarm: self,
            world: world.clone(),
            cluster: cluster.clone(),
            net,
            rotten: Cell::new(0),
            crashes: Cell::new(0),
        };
        fate.strike().await;
        fate.relent().await;
        fate.let_hand_over().await;
        let answers = guests.finish(&fate).await;
        fate.rest().await;
        let node = |f: fn(&crate::node::Node) -> u64| cluster.nodes().iter().map(f).sum();
        Tally {
            answers,
            crashes: fate.crashes.get(),
            commits: node(|n| n.commits.get()),
            handovers: cluster.handovers(),
            hits: Hits::default(),
            trace: 0,
        }
    }
}

/// The sectors that guests write: a few blocks at the beginning of each area, one at its end, and the
/// volume's last, which may be partial.
fn hot(size: u64) -> Vec<u64> {
    let mut sectors = BTreeSet::new();
    let per_block = BLOCK_BYTES / SECTOR_BYTES;
    let per_area = AREA_BYTES / SECTOR_BYTES;
    let last = size / SECTOR_BYTES;
    for area in 0..size.div_ceil(AREA_BYTES) {
        for block in [0, 1, 2, 9, 1023] {
            let first = area * per_area + block * per_block;
            sectors.extend(first..(first + per_block).min(last));
        }
    }
    sectors.extend(last - last % per_block..last);
    sectors.into_iter().filter(|s| *s < last).collect()
}

struct Guests {
    stop: Rc<Cell<bool>>,
    running: Rc<Cell<u64>>,
    answers: Rc<Cell<u64>>,
}

impl Guests {
    fn start(world: &World, cluster: &Cluster, ledger: &Ledger, size: u64) -> Guests {
        let dice = world.dice();
        let guests = Guests {
            stop: Rc::default(),
            running: Rc::default(),
            answers: Rc::default(),
        };
        let habits = Habits {
            write: 6,
            read: 1 + dice.below(4),
            flush: dice.below(3),
            zero: dice.below(3),
            fua: dice.below(8),
            large: 20 * dice.below(3),
            think: *dice.pick(&[100, 1000, 10_000]),
        };
        for _ in 0..1 + dice.below(6) {
            let guest = Guest {
                world: world.clone(),
                cluster: cluster.clone(),
                ledger: ledger.clone(),
                size,
                habits,
                inside: dice.one_in(2),
            };
            guests.running.set(guests.running.get() + 1);
            let (stop, running, answers) = (
                guests.stop.clone(),
                guests.running.clone(),
                guests.answers.clone(),
            );
            world.spawn(OUTSIDE, async move {
                let n = guest.run(stop).await;
                answers.set(answers.get() + n);
                running.set(running.get() - 1);
            });
        }
        guests
    }

    async fn finish(&self, fate: &Fate<'_>) -> u64 {
        self.stop.set(true);
        let until = fate.world.now() + REST;
        while self.running.get() > 0 {
            assert!(
                fate.world.now() < until,
                "[comes to rest] {} guests are never answered: {}",
                self.running.get(),
                fate.cluster.describe()
            );
            fate.world.sleep(Duration::from_millis(5)).await;
            fate.revive_broken();
        }
        self.answers.get()
    }
}

struct Fate<'a> {
    swarm: &'a Swarm,
    world: World,
    cluster: Cluster,
    net: Network,
    /// Nodes whose metadata has rotted, one bit each: no more than once.
    rotten: Cell<u64>,
    crashes: Cell<u64>,
}

impl Fate<'_> {
    fn now_and_then(&self, fault: Fault, n: u64) -> u64 {
        if self.swarm.has(fault) { n } else { 0 }
    }

    async fn strike(&self) {
        let dice = self.world.dice();
        let rare = 20 + dice.below(400);
        self.net.set_faults(net::Faults {
            cut: self.now_and_then(Fault::Cut, rare),
            flip: self.now_and_then(Fault::Flip, rare),
            twice: self.now_and_then(Fault::Twice, rare),
            swap: self.now_and_then(Fault::Swap, rare),
            slow: self.now_and_then(Fault::SlowNet, 1 + dice.below(300_000)),
        });
        let until = self.world.now() + Duration::from_millis(self.swarm.millis);
        let pause = 1000 * (1 + dice.below(40));
        while self.world.now() < until {
            self.world.wait_up_to(pause).await;
            if self.swarm.has(Fault::Leap) {
                self.leap();
            }
            self.revive_broken();
            let all: Vec<Fault> = self.swarm.faults.iter().copied().collect();
            if !all.is_empty() {
                self.strike_once(*dice.pick(&all)).await;
            }
        }
    }

    async fn strike_once(&self, fault: Fault) {
        let dice = self.world.dice();
        let n = self.cluster.nodes().len() as u64;
        let i = dice.below(n) as usize;
        let j = (i as u64 + 1 + dice.below(n - 1)) % n;
        let node = &self.cluster.nodes()[i];
        match fault {
            Fault::Kill | Fault::Power => self.crash(i, fault == Fault::Power).await,
            Fault::Stop => {
                self.world.hit(Hit::Stop);
                self.world.stop(node.process);
                self.world.wait_up_to(30_000).await;
                self.world.go_on(node.process);
            }
            Fault::Jump => {
                let by = Duration::from_millis(dice.below(20_000));
                self.world.hit(Hit::Jump);
                self.world.jump(node.process, by);
            }
            Fault::Cut => self.net.cut_all(),
            Fault::Partition => {
                self.net.block(i as u32, j as u32);
                self.world.wait_up_to(50_000).await;
                if dice.one_in(2) {
                    self.net.cut_all();
                }
                self.net.heal();
            }
            Fault::SlowDisk => {
                let disk = node.disks.all()[dice.below(4) as usize];
                self.world.hit(Hit::SlowDisk);
                disk.set_slow(*dice.pick(&[5, 40, 3000]));
            }
            Fault::ReadError | Fault::WriteError | Fault::SyncError | Fault::Misdirect => {
                self.spoil(i, fault).await;
            }
            Fault::Space => {
                let disk = [&node.disks.image, &node.disks.staging][dice.below(2) as usize];
                disk.set_faults(disk::Faults {
                    space: Some(BLOCK_BYTES * dice.below(30)),
                    ..disk::Faults::default()
                });
                self.world.wait_up_to(30_000).await;
                disk.set_faults(disk::Faults::default());
            }
            Fault::MetaRot | Fault::RecordRot | Fault::StagingRot => self.rot(i, fault).await,
            Fault::Handover => self.cluster.ask(Handover {
                to: j as usize,
                budget: Duration::from_micros(*dice.pick(&[2000, 20_000, 500_000])),
            }),
            Fault::Failover => self.fail_over().await,
            Fault::Flip | Fault::Twice | Fault::Swap | Fault::SlowNet | Fault::Leap => {}
        }
    }

    /// Everybody's clock passes what intents wait for before they are cleared.
    fn leap(&self) {
        self.world.hit(Hit::Leap);
        for node in self.cluster.nodes() {
            self.world.jump(node.process, LEAP);
        }
    }

    async fn crash(&self, i: usize, power: bool) {
        self.crashes.set(self.crashes.get() + 1);
        self.cluster.crash(i, power);
        self.world.wait_up_to(20_000).await;
        // It may come back and die again at once: recovery must survive that.
        while self.world.dice().one_in(3) {
            self.cluster.start(i);
            self.world.wait_up_to(1500).await;
            self.cluster.crash(i, power);
            self.crashes.set(self.crashes.get() + 1);
        }
        self.cluster.start(i);
    }

    /// The owner's host is off, or cut off with its guests, until somebody has taken its place, or nobody can.
    async fn fail_over(&self) {
        let (world, cluster, dice) = (&self.world, &self.cluster, self.world.dice());
        let owner = cluster.holder();
        let serves = dice.one_in(2);
        if serves {
            cluster.cut_off(owner);
        } else {
            self.crashes.set(self.crashes.get() + 1);
            cluster.crash(owner, dice.one_in(2));
        }
        world.wait_up_to(20_000).await;
        if let Some((heir, generation)) = cluster.heir(owner, dice) {
            cluster.check_has_what_it_acknowledged(owner, heir);
            cluster.ask_to_take(heir, generation);
            let until = world.now() + REST;
            while cluster.is_taking(heir) {
                assert!(
                    world.now() < until,
                    "[comes to rest] a take-over does not end: {}",
                    cluster.describe()
                );
                world.wait_up_to(2000).await;
                self.revive_broken();
                if cluster.is_taking(heir) && dice.one_in(10) {
                    world.hit(Hit::TakingDied);
                    self.crashes.set(self.crashes.get() + 1);
                    cluster.crash(heir, dice.one_in(2));
                    world.wait_up_to(20_000).await;
                    cluster.start(heir);
                }
            }
            if cluster.holder() == heir {
                world.hit(if serves { Hit::CutOff } else { Hit::CameBack });
            }
        }
        world.wait_up_to(20_000).await;
        if serves {
            self.net.heal();
        } else {
            cluster.start(owner);
        }
        if dice.one_in(2) {
            world.wait_up_to(3000).await;
            cluster.depose(owner);
        }
        if serves {
            self.hears(owner).await;
            cluster.rejoin();
        }
    }

    /// An owner that was replaced hears of it when somebody reaches it.
    async fn hears(&self, owner: usize) {
        let until = self.world.now() + REST;
        while self.cluster.is_unaware(owner) {
            assert!(
                self.world.now() < until,
                "[hears that it was replaced] node {owner}: {}",
                self.cluster.describe()
            );
            self.world.wait_up_to(2000).await;
            self.revive_broken();
        }
    }

    async fn spoil(&self, i: usize, fault: Fault) {
        let dice = self.world.dice();
        let disks = &self.cluster.nodes()[i].disks;
        let often = 2 + dice.below(40);
        let (disk, faults) = match fault {
            Fault::Misdirect => (
                &disks.staging,
                disk::Faults {
                    misdirect: often,
                    ..disk::Faults::default()
                },
            ),
            Fault::SyncError => (
                disks.all()[dice.below(4) as usize],
                disk::Faults {
                    sync: often,
                    ..disk::Faults::default()
                },
            ),
            _ => (
                disks.all()[dice.below(4) as usize],
                disk::Faults {
                    read: if fault == Fault::ReadError { often } else { 0 },
                    write: if fault == Fault::WriteError { often } else { 0 },
                    ..disk::Faults::default()
                },
            ),
        };
        disk.set_faults(faults);
        self.world.wait_up_to(30_000).await;
        disk.set_faults(disk::Faults::default());
    }

    async fn rot(&self, i: usize, fault: Fault) {
        let dice = self.world.dice();
        let staging = fault == Fault::StagingRot;
        if !staging && self.rotten.get() & (1 << i) != 0 {
            return;
        }
        let disks = &self.cluster.nodes()[i].disks;
        self.crashes.set(self.crashes.get() + 1);
        self.cluster.crash(i, dice.one_in(2));
        match fault {
            Fault::MetaRot => {
                self.world.hit(Hit::MetaRot);
                let sector = dice.below(4 * 8);
                let good = disks.meta.rot(sector);
                // The power may have torn the other copy of the superblock in the same moment.
                if self.cluster.refuses(i) {
                    self.world.hit(Hit::Refused);
                    disks.meta.restore(sector, good);
                }
            }
            Fault::StagingRot => {
                let used = disks.staging.data();
                if !used.is_empty() {
                    self.world.hit(Hit::StagingRot);
                    let _ = disks.staging.rot(dice.pick(&used).0);
                }
            }
            // The record is in the first sector of a page.
            _ => {
                self.world.hit(Hit::RecordRot);
                let _ = disks.replica.rot(dice.below(2) * 8);
            }
        }
        if !staging {
            self.rotten.set(self.rotten.get() | 1 << i);
        }
        self.world.wait_up_to(20_000).await;
        self.cluster.start(i);
    }

    /// A node of which a sync failed is started again without what its caches pretend.
    fn revive_broken(&self) {
        for node in self.cluster.nodes().iter().filter(|n| n.broken.get()) {
            self.cluster.crash(node.index, true);
            self.cluster.start(node.index);
        }
    }

    async fn relent(&self) {
        self.net.set_faults(net::Faults::default());
        self.net.heal();
        for node in self.cluster.nodes() {
            self.world.go_on(node.process);
            for disk in node.disks.all() {
                disk.set_faults(disk::Faults::default());
                disk.set_slow(40);
            }
        }
    }

    /// A cutover goes on under its guests' load for a while: on a slow link it needs the mirror, and is
    /// hardly ever left alone for long enough before fate relents.
    async fn let_hand_over(&self) {
        let dice = self.world.dice();
        let (holder, n) = (self.cluster.holder(), self.cluster.nodes().len());
        if self.swarm.has(Fault::Handover) {
            self.cluster.ask(Handover {
                to: (holder + 1 + dice.below(n as u64 - 1) as usize) % n,
                budget: Duration::from_micros(*dice.pick(&[2000, 20_000])),
            });
        }
        let until = self.world.now() + CUTOVER;
        while self.cluster.is_handing_over() && self.world.now() < until {
            self.world.sleep(Duration::from_millis(5)).await;
            self.revive_broken();
        }
    }

    /// Wait until every copy is the volume.
    async fn rest(&self) {
        let until = self.world.now() + REST;
        loop {
            self.revive_broken();
            let holder = self.cluster.holder();
            let others = (0..self.cluster.nodes().len()).filter(|i| *i != holder);
            let behind: Vec<String> = others.filter_map(|i| self.behind(holder, i)).collect();
            if behind.is_empty() {
                break;
            }
            assert!(
                self.world.now() < until,
                "[comes to rest] copies stay behind: {behind:?}; {}",
                self.cluster.describe()
            );
            self.world.sleep(Duration::from_millis(20)).await;
        }
        for i in 0..self.cluster.nodes().len() {
            self.cluster.check_nothing_foreign(i);
            self.cluster.check_replica(i);
        }
    }

    fn behind(&self, holder: usize, i: usize) -> Option<String> {
        let record = self.cluster.record(i);
        if !record.is_some_and(|r| r.state == State::Consistent) {
            return Some(format!("node {i} is {record:?}"));
        }
        let (a, b) = (
            &self.cluster.nodes()[holder].disks.image,
            &self.cluster.nodes()[i].disks.image,
        );
        let differs = |s: &&u64| seen(a, **s) != seen(b, **s);
        let first = self.cluster.hot().iter().find(differs)?;
        Some(format!("node {i} differs in sector {first}, {record:?}"))
    }
}
