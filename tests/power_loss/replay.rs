//! A recording goes through a simulated source and replica, and the power fails again and again.
//!
//! ```text
//!   recording ─► volume (gate, intents, epochs) ─► simulated image      source
//!                         └─ sender ═══ receiver ─► simulated image     replica
//!        at a cut: of each disk what is synced, and of the rest nothing, all, or any of it
//! ```
//!
//! The volume, the sender and the receiver are the ones that ship. A request is submitted when all that
//! had been answered before it in the recording has been answered in the replay; what the recording had
//! in flight together the replay may reorder. A cut does not end the run: each is a world of its own in
//! which the two nodes start again.

use crate::database::{Database, inspect_image};
use crate::recorder::{Asked, Event};
use crate::scene::Recording;
use crate::serving::Random;
use block::{Epoch, SECTOR_BYTES, Span, VolumeId};
use nbd::session::Op as Asks;
use replica::{Record, State, Tuning};
use sim::disk::{Left, SimDisk};
use sim::host::{Answer, Host, Wish};
use sim::ledger::Ledger;
use sim::net::Network;
use sim::node::{Cluster, Setup};
use sim::world::World;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::oneshot;
use volume::Op;

/// Virtual time for a node to come back, or for a replica to be the source again.
const RECOVERY: Duration = Duration::from_secs(120);
/// Microseconds that a database takes between two transactions, at most: the replica goes on meanwhile.
const THINKS: u64 = 2000;
/// In the control, one flush in so many is carried out; all are acknowledged.
const HONOURED: u64 = 40;

/// What to replay, and how often the power fails.
pub struct Plan {
    pub recording: Rc<Recording>,
    pub database: Database,
    pub points: usize,
    pub seed: u64,
    /// False: the control, in which most flushes are acknowledged and not carried out.
    pub flushes: bool,
}

/// What the crashes left.
#[derive(Debug, Default)]
pub struct Verdict {
    pub points: usize,
    /// Of them after a flush, and how many flushes there were.
    pub boundaries: (usize, usize),
    pub sources: usize,
    pub replicas: usize,
    /// Crashed sources whose replica became the source's equal again.
    pub caught_up: usize,
    /// Epochs that replicas had after a cut, all different.
    pub epochs: BTreeSet<Epoch>,
    /// Acknowledged transactions that crashed sources had to have.
    pub demanded: u64,
    pub failures: Vec<String>,
}

/// An image after a crash, in a file, and what must be in it.
struct Remains {
    what: String,
    file: tempfile::NamedTempFile,
    least: u64,
}

struct Run {
    plan: Plan,
    world: World,
    cluster: Cluster,
    ledger: Ledger,
    acknowledged: u64,
    /// For each transaction the epoch that was open when it was acknowledged.
    epochs: BTreeMap<u64, Epoch>,
    verdict: Verdict,
}

impl Plan {
    pub fn run(self) -> Verdict {
        let world = World::new(self.seed);
        let w = world.clone();
        let verdict = world.run(async move {
            let net = Network::new(&w);
            let ledger = Ledger::new(VolumeId::from_random([7; 16]), Vec::new());
            let setup = Setup {
                size: self.recording.size,
                align: 512,
                requests: 64,
                tuning: Tuning {
                    compress: false,
                    ..Tuning::default()
                },
                // Often: a recording of a second is over in milliseconds here.
                interval: 500,
                group: None,
            };
            let cluster = Cluster::create(&w, &net, &ledger, &setup, 2).await;
            let mut run = Run {
                plan: self,
                world: w,
                cluster: cluster.unwrap(),
                ledger,
                acknowledged: 0,
                epochs: BTreeMap::new(),
                verdict: Verdict::default(),
            };
            run.replay().await;
            run.verdict
        });
        world.end();
        verdict
    }

    /// Places of the recording where the power fails: after flushes, and anywhere.
    fn cuts(&self) -> (BTreeSet<usize>, (usize, usize)) {
        let events = &self.recording.events;
        let ready = events.iter().position(|e| matches!(e, Event::Marked(0)));
        let ready = ready.expect("the workload said that its tables stand");
        let flushes: BTreeSet<u64> = events
            .iter()
            .filter_map(|e| match e {
                Event::Submitted(id, a) if a.op == Asks::Flush => Some(*id),
                _ => None,
            })
            .collect();
        let ends: Vec<usize> = (ready..events.len())
            .filter(|i| matches!(&events[*i], Event::Completed(id) if flushes.contains(id)))
            .collect();
        let mut random = Random(self.seed);
        let mut cuts = BTreeSet::new();
        let after_flushes = (self.points * 2).div_ceil(3).min(ends.len());
        for i in 0..after_flushes {
            cuts.insert(ends[(i + 1) * ends.len() / after_flushes - 1]);
        }
        let all = events.len() - ready;
        while cuts.len() < self.points.min(all) {
            cuts.insert(ready + (random.next() % all as u64) as usize);
        }
        (cuts, (after_flushes, ends.len()))
    }
}

impl Run {
    async fn replay(&mut self) {
        let recording = self.plan.recording.clone();
        let (cuts, boundaries) = self.plan.cuts();
        self.verdict.boundaries = boundaries;
        let host = loop {
            match self.cluster.host_on(0).filter(Host::serves) {
                Some(host) => break host,
                None => self.world.sleep(Duration::from_millis(1)).await,
            }
        };
        let mut flying: BTreeMap<u64, oneshot::Receiver<Answer>> = BTreeMap::new();
        let mut flushes = 0;
        for (at, event) in recording.events.iter().enumerate() {
            match event {
                Event::Submitted(id, asked) => {
                    flushes += u64::from(asked.op == Asks::Flush);
                    let skipped = asked.op == Asks::Flush && flushes % HONOURED != 0;
                    if self.plan.flushes || !skipped {
                        let told = self.submit(&host, asked).await;
                        flying.insert(*id, told);
                    }
                }
                Event::Completed(id) => {
                    if let Some(told) = flying.remove(id) {
                        let answer = told.await.unwrap();
                        assert!(matches!(answer, Answer::Done(Ok(()), _)), "{answer:?}");
                    }
                }
                Event::Marked(n) => {
                    self.acknowledged = *n;
                    let open = host.call(|v, _| v.open_epoch());
                    self.epochs.insert(*n, open);
                    if *n == 0 {
                        self.replicated(open).await;
                    }
                    self.world.wait_up_to(THINKS).await;
                }
            }
            if cuts.contains(&at) {
                self.cut(at);
            }
        }
    }

    /// Wait until the replica has what made the database, as it would have had by then.
    async fn replicated(&self, epoch: Epoch) {
        let until = self.world.now() + RECOVERY;
        let has = |r: Record| r.state == State::Consistent && r.epoch >= epoch;
        while !self.cluster.record(1).is_some_and(has) {
            assert!(self.world.now() < until, "the replica does not get there");
            self.world.sleep(Duration::from_millis(1)).await;
        }
    }

    async fn submit(&self, host: &Host, asked: &Asked) -> oneshot::Receiver<Answer> {
        let op = match asked.op {
            Asks::Write => Op::Write,
            Asks::Trim => Op::Trim,
            Asks::Zero { no_hole, .. } => Op::Zero {
                no_hole,
                fast: false,
            },
            Asks::Flush => Op::Flush,
            other => unreachable!("{other:?} is not recorded"),
        };
        let write = match op {
            Op::Write => self.ledger.given(asked.bytes.clone()),
            _ => 0,
        };
        let wish = Wish {
            op,
            span: Span::new(asked.offset, asked.len),
            fua: asked.fua,
            write,
        };
        loop {
            if let Some(told) = host.submit(wish.clone()) {
                return told;
            }
            self.world.wait_up_to(100).await;
        }
    }

    /// The power fails at both nodes, in several ways; each is looked into.
    fn cut(&mut self, at: usize) {
        self.verdict.points += 1;
        let mut remains = Vec::new();
        let ways = [Left::Everything, Left::Nothing, Left::Any, Left::Any];
        for (i, left) in ways.into_iter().enumerate() {
            let name = format!("event {at}, {left:?} ({i})");
            let world = World::new(self.plan.seed ^ (at * ways.len() + i) as u64);
            let cluster = self.cluster.after_power_cut(&world, left);
            remains.push(Remains {
                what: format!("source, {name}"),
                file: image_of(&cluster.nodes()[0].disks.image),
                least: self.acknowledged,
            });
            self.verdict.sources += 1;
            self.verdict.demanded += self.acknowledged;
            if left != Left::Nothing {
                remains.extend(self.recover_replica(&name, &world, &cluster));
            }
            if i == 3 {
                self.catch_up(&name, &world, &cluster);
            }
            world.end();
        }
        let database = self.plan.database;
        let failures = std::thread::scope(|scope| {
            let look = |r: &Remains| match inspect_image(r.file.path(), database) {
                Ok(n) if n >= r.least => None,
                Ok(n) => Some(format!("{}: lost {}..={}", r.what, n + 1, r.least)),
                Err(e) => Some(format!("{}: {e}", r.what)),
            };
            let parts = remains.chunks(remains.len().div_ceil(2));
            let threads: Vec<_> = parts
                .map(|part| scope.spawn(move || part.iter().filter_map(look).collect::<Vec<_>>()))
                .collect();
            let ended = threads.into_iter().map(|t| t.join().unwrap());
            ended.flatten().collect::<Vec<_>>()
        });
        self.verdict.failures.extend(failures);
    }

    /// The replica comes back alone, as it would when the source is gone for good.
    fn recover_replica(&mut self, name: &str, world: &World, cluster: &Cluster) -> Option<Remains> {
        let (c, w) = (cluster.clone(), world.clone());
        let record = world.run(async move {
            c.start(1);
            let until = w.now() + RECOVERY;
            loop {
                if let Some(record) = c.record(1) {
                    return record;
                }
                assert!(
                    w.now() < until,
                    "[recovery terminates] the replica stays away"
                );
                w.sleep(Duration::from_millis(1)).await;
            }
        });
        let image = image_of(&cluster.nodes()[1].disks.image);
        if record.state != State::Consistent {
            return None;
        }
        self.verdict.replicas += 1;
        self.verdict.epochs.insert(record.epoch);
        let had = self.epochs.iter().filter(|(_, e)| **e <= record.epoch);
        // Before its tables stand there is no database to look into.
        let least = had.map(|(n, _)| *n).max()?;
        Some(Remains {
            what: format!("replica at epoch {}, {name}", record.epoch),
            file: image,
            least,
        })
    }

    /// Both come back; what the crash did to the source reaches the replica, all of it.
    fn catch_up(&mut self, name: &str, world: &World, cluster: &Cluster) {
        let (c, w) = (cluster.clone(), world.clone());
        let same = world.run(async move {
            c.start(0);
            let until = w.now() + RECOVERY;
            let images = |i: usize| c.nodes()[i].disks.image.data();
            loop {
                w.sleep(Duration::from_millis(50)).await;
                if c.record(1).is_some_and(|r| r.state == State::Consistent)
                    && c.host_on(0).is_some_and(|h| h.serves())
                    && images(0) == images(1)
                {
                    return true;
                }
                if w.now() > until {
                    return false;
                }
            }
        });
        self.verdict.caught_up += usize::from(same);
        if !same {
            let text = format!("{name}: the replica does not become the source's equal");
            self.verdict.failures.push(text);
        }
    }
}

fn image_of(disk: &SimDisk) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(block::Disk::size(disk)).unwrap();
    // One write a run: an image has some ten thousand sectors.
    let mut run: (u64, Vec<u8>) = (0, Vec::new());
    let put = |(first, bytes): &(u64, Vec<u8>)| {
        let at = first * SECTOR_BYTES;
        file.as_file().write_all_at(bytes, at).unwrap();
    };
    for (sector, content) in disk.data() {
        if run.0 + run.1.len() as u64 / SECTOR_BYTES != sector {
            put(&run);
            run = (sector, Vec::new());
        }
        run.1.extend_from_slice(&*content);
    }
    put(&run);
    file
}
