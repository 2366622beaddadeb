//! What an owner does with its replicas: follow each, and hand over when asked.

use crate::hits::Hit;
use crate::net::End;
use crate::node::{Cluster, Handover, Life, SimSender};
use crate::seam::SimSource;
use crate::world::SimClock;
use block::{Epoch, ErrorKind, Generation, NodeName};
use replica::cutover::{self, Phase, Plan};
use replica::{Sender, State};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use volume::{Role, Volume};

/// A volume that its record says was given up: to whom, for which generation, as of when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    to: NodeName,
    next: Generation,
    epoch: Epoch,
}

impl Given {
    pub(crate) fn of(volume: &Volume) -> Option<Given> {
        match volume.role() {
            Role::Relinquished {
                to,
                generation,
                epoch,
            } => Some(Given {
                to,
                next: generation,
                epoch,
            }),
            Role::Owner { .. } | Role::Standby => None,
        }
    }
}

impl Cluster {
    /// Keep a replica on every other node.
    pub(crate) fn follow_all(&self, i: usize, life: &Rc<Life>, generation: Generation) {
        for j in (0..self.0.nodes.len()).filter(|j| *j != i) {
            let (cluster, life) = (self.clone(), life.clone());
            let process = self.0.nodes[i].process;
            self.0.world.spawn(process, async move {
                cluster.follow(i, j, &life, generation).await;
            });
        }
    }

    fn sender(&self, i: usize, j: usize, life: &Life) -> SimSender {
        let source = SimSource {
            host: life.host.clone(),
            to: self.0.nodes[j].name.clone(),
            group: self.0.setup.group.clone(),
        };
        let image = self.0.nodes[i].disks.image.clone();
        let clock = SimClock {
            world: self.0.world.clone(),
            process: self.0.nodes[i].process,
        };
        let tuning = self.0.setup.tuning;
        match Sender::new(self.0.ledger.volume, source, image, clock, tuning, |_| {}) {
            Ok(sender) => sender,
            Err(e) => panic!("[bug] no sender: {e}"),
        }
    }

    async fn follow(&self, i: usize, j: usize, life: &Life, generation: Generation) {
        let world = self.0.world.clone();
        let node = &self.0.nodes[i];
        self.expect_back(life, j).await;
        let sender = self.sender(i, j, life);
        let owns = || life.host.owned() == Some(generation);
        let asked = || node.handover.get().filter(|h| h.to == j);
        while owns() && !life.host.is_poisoned() {
            if let Some(handover) = asked() {
                node.handover.set(None);
                self.doing(i, j, "hands over");
                self.hand_over(i, &sender, handover, life, generation).await;
                continue;
            }
            let Ok((end, id)) = self.dial(i, j).await else {
                world.wait_up_to(5000).await;
                continue;
            };
            let work = sender.connect(end, id, async |session| {
                self.hears(life, j);
                self.doing(i, j, "catches up");
                session.catch_up().await?;
                self.doing(i, j, "follows");
                self.committed(j);
                while owns() && asked().is_none() {
                    world.wait_up_to(self.0.setup.interval).await;
                    session.increment().await?;
                    self.committed(j);
                }
                Ok(())
            });
            if let Err(e) = work.await {
                self.doing(i, j, &e);
                assert_ne!(e.kind(), ErrorKind::Broken, "[bug] node {i} to {j}: {e}");
                if e.kind() == ErrorKind::Fenced {
                    world.hit(Hit::Fenced);
                    self.hears(life, j);
                }
                world.wait_up_to(3000).await;
            }
        }
    }

    fn committed(&self, j: usize) {
        let node = &self.0.nodes[j];
        node.commits.set(node.commits.get() + 1);
        self.check_replica(j);
    }

    async fn hand_over(
        &self,
        i: usize,
        sender: &SimSender,
        asked: Handover,
        life: &Life,
        now: Generation,
    ) {
        self.0.former.set(Some(i));
        self.0.offered.set(Some((asked.to, now.next())));
        let plan = Plan {
            to: self.0.nodes[asked.to].name.clone(),
            next: now.next(),
            freeze_budget: asked.budget,
            last_increment: asked.budget / 4,
        };
        let mirrors = Cell::new(false);
        let dial = async || self.dial(i, asked.to).await;
        let watch = |u: &cutover::Update| mirrors.set(mirrors.get() || u.phase == Phase::Mirror);
        let end = cutover::run(sender, &plan, dial, watch).await;
        if mirrors.get() {
            self.0.world.hit(Hit::Mirroring);
            if end.is_ok() {
                self.0.world.hit(Hit::Mirrored);
            }
        }
        if let Err(e) = end {
            let host = &life.host;
            let mine = self.0.offered.get() == Some((asked.to, now.next()));
            if mine && host.owned() == Some(now) && !host.is_poisoned() {
                self.0.offered.set(None);
            }
            self.0.world.hit(Hit::Aborted);
            self.doing(i, asked.to, &e);
            assert_ne!(e.kind(), ErrorKind::Broken, "[bug] cutover from {i}: {e}");
        }
    }

    /// The volume was given up: see that it is taken, then become the new owner's replica. Sources
    /// are served all the while: one may be about to give the volume back.
    pub(crate) async fn retire(
        &self,
        i: usize,
        life: &Rc<Life>,
        knocks: &RefCell<mpsc::Receiver<End>>,
        given: Given,
    ) {
        let is_given = || life.host.call(|v, _| Given::of(v)).as_ref() == Some(&given);
        if !is_given() {
            return;
        }
        self.0.former.set(Some(i));
        self.open_receiver(i, life).await;
        let taken = Rc::new(Cell::new(false));
        let (cluster, rolling, flag) = (self.clone(), life.clone(), taken.clone());
        let process = self.0.nodes[i].process;
        let promise = given.clone();
        self.0.world.spawn(process, async move {
            cluster.roll_forward(i, &rolling, &promise).await;
            flag.set(true);
        });
        let over = || taken.get() || !is_given();
        while !over() {
            self.serve_one(i, life, knocks, over).await;
        }
        if is_given() {
            life.receiver.borrow_mut().take();
            self.adopt(i, life, given.next, given.epoch).await;
        }
    }

    async fn roll_forward(&self, i: usize, life: &Life, given: &Given) {
        let Given { to, next, epoch } = given.clone();
        let Some(j) = self.0.nodes.iter().position(|n| n.name == to) else {
            panic!("[bug] relinquished to nobody: {to}");
        };
        let sender = self.sender(i, j, life);
        let plan = Plan {
            to,
            next,
            freeze_budget: Duration::ZERO,
            last_increment: Duration::ZERO,
        };
        let dial = async || self.dial(i, j).await;
        let done = cutover::roll_forward(&sender, &plan, epoch, dial, |_| {}).await;
        self.0.world.hit(Hit::RolledForward);
        if let Err(e) = done {
            let back = life.host.call(|v, _| Given::of(v)).as_ref() != Some(given);
            assert!(
                back || e.kind() == ErrorKind::Fenced,
                "[rolls forward] node {i}: {e}"
            );
            let _ = life.host.redirect();
        }
    }

    /// Record once that the image is the last epoch of the ownership that ended.
    async fn adopt(&self, i: usize, life: &Rc<Life>, next: Generation, epoch: Epoch) {
        loop {
            self.open_receiver(i, life).await;
            let record = self.record(i);
            let stale = |r: &replica::Record| {
                r.generation < next || matches!(r.state, State::HandedOver { next: n } if n < next)
            };
            if !record.as_ref().is_none_or(stale) {
                return;
            }
            life.receiver.borrow_mut().take();
            let disk = self.0.nodes[i].disks.replica.clone();
            let volume = self.0.ledger.volume;
            if let Err(e) = replica::adopt(disk, volume, self.size(), next, epoch).await {
                self.note(i, &e);
                self.0.world.sleep(Duration::from_millis(5)).await;
            }
        }
    }
}
