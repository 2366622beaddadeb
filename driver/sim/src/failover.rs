//! A copy takes the place of an owner that is gone for good; and the owner comes back.
//!
//! ```text
//!   the owner's host is off ─► the operator says so ─► a copy takes over, generation g+1, at its epoch
//!                                                   ─► guests come to it
//!   the owner is back ─► it asks its peers before a guest may come ─► one is of g+1: it stands by
//! ```
//!
//! Whoever said so may be wrong: the owner is cut off from everything but the guests on its host, and serves
//! them on. Two nodes acknowledge then, each in its own generation. What the former owner acknowledges is lost
//! to the volume, and it stops as soon as anybody reaches it.
//!
//! ```text
//!   the owner is cut off ─► a copy takes over, generation g+1 ─► guests elsewhere come to it
//!     the owner serves on in generation g ─► the network heals ─► it hears of g+1 ─► its guests are sent away
//! ```
//!
//! What asks here is what a controller is in production: it knows which cutover has not ended, and lets
//! only its target take over then, in the generation that was offered; it asks until it is answered; and
//! it deposes an owner of an earlier generation that shows itself.

use crate::dice::Dice;
use crate::hits::Hit;
use crate::node::{Cluster, Life, Node};
use block::{ErrorKind, Generation};
use replica::State;
use std::rc::Rc;
use std::time::Duration;
use volume::{CursorName, Role};

/// How long an owner that starts waits for its peers before guests may come.
const PEERS_PATIENCE: Duration = Duration::from_secs(2);

impl Cluster {
    /// A node has become the owner, or started as one.
    pub(crate) fn owns(&self, i: usize, generation: Generation) {
        let inner = &self.0;
        // One that is of before an offer knows nothing of it.
        let ends = |(_, next): &(usize, Generation)| generation.next() >= *next;
        if inner.offered.get().as_ref().is_some_and(ends) {
            inner.offered.set(None);
        }
        inner.owned.set(inner.owned.get().max(generation));
        let taking = &inner.nodes[i].taking;
        if taking.get() == Some(generation) {
            inner.world.hit(Hit::TakenOver);
            taking.set(None);
        }
        self.doing(i, i, format_args!("owns in generation {generation}"));
    }

    /// Whether a cutover was asked for and has not ended.
    pub(crate) fn is_handing_over(&self) -> bool {
        let asked = |n: &Node| n.handover.get().is_some();
        self.0.offered.get().is_some() || self.0.nodes.iter().any(asked)
    }

    pub(crate) fn hears(&self, life: &Life, j: usize) {
        life.heard.set(life.heard.get() | 1 << j);
    }

    /// Let guests come when every other node has answered, or is away.
    pub(crate) fn ask_peers(&self, i: usize, life: &Rc<Life>) {
        let (cluster, life) = (self.clone(), life.clone());
        let world = self.0.world.clone();
        let others = ((1u64 << self.0.nodes.len()) - 1) & !(1 << i);
        self.0.world.spawn(self.0.nodes[i].process, async move {
            let until = world.now() + PEERS_PATIENCE;
            while life.heard.get() & others != others && world.now() < until {
                world.wait_up_to(300).await;
            }
            if life.host.owned().is_some() {
                cluster.doing(i, i, "offers the volume");
                life.host.offer();
            }
        });
    }

    /// Who may take the place of `owner`, which is off, and in which generation.
    #[must_use]
    pub(crate) fn heir(&self, owner: usize, dice: &Dice) -> Option<(usize, Generation)> {
        let offered = self.0.offered.get();
        let only = offered.map(|(to, _)| to);
        let stands_by = |j: &usize| {
            let host = self.host_on(*j);
            host.is_some_and(|h| h.call(|v, _| v.role()) == Role::Standby)
        };
        let whole = |j: &usize| {
            let state = self.record(*j).map(|r| r.state);
            matches!(state, Some(State::Consistent | State::Committed { .. }))
        };
        let all = (0..self.0.nodes.len()).filter(|j| *j != owner && only.is_none_or(|o| o == *j));
        let heirs: Vec<usize> = all.filter(stands_by).filter(whole).collect();
        let next = offered.map_or(self.0.owned.get().next(), |(_, next)| next);
        (!heirs.is_empty()).then(|| (*dice.pick(&heirs), next))
    }

    /// Have a copy take the volume over.
    pub(crate) fn ask_to_take(&self, j: usize, generation: Generation) {
        self.0.nodes[j].taking.set(Some(generation));
    }

    /// Whether that has not ended yet.
    pub(crate) fn is_taking(&self, j: usize) -> bool {
        self.0.nodes[j].taking.get().is_some()
    }

    /// Take the volume over, as was asked. Nobody is served meanwhile.
    pub(crate) async fn take_over(&self, j: usize, life: &Rc<Life>) {
        let node = &self.0.nodes[j];
        let receiver = life.receiver.borrow().clone();
        let (Some(generation), Some(receiver)) = (node.taking.get(), receiver) else {
            self.0.world.wait_up_to(1000).await;
            return;
        };
        life.takes_over.set(Some(receiver.record().generation));
        match receiver.take_over(generation).await {
            // That is known when it shows itself as the owner: it may die before it can say so.
            Ok(epoch) => self.doing(j, j, format_args!("took over at {epoch} for {generation}")),
            Err(e) => {
                self.note(j, &e);
                self.doing(j, j, &e);
                // A copy that turned out to be no point in time replaces nobody.
                if e.kind() == ErrorKind::Invalid {
                    node.taking.set(None);
                }
                self.0.world.wait_up_to(5000).await;
            }
        }
    }

    /// From now on nobody reaches a node but the guests that run on it.
    pub(crate) fn cut_off(&self, i: usize) {
        for j in (0..self.0.nodes.len()).filter(|j| *j != i) {
            self.0.net.block(i as u32, j as u32);
            self.0.net.block(j as u32, i as u32);
        }
        self.0.ledger.cut_off(i as u32);
        self.0.apart.set(Some(i));
    }

    /// The node that was cut off, until it has heard what it missed.
    pub(crate) fn apart(&self) -> Option<usize> {
        self.0.apart.get()
    }

    /// Whether a node still takes itself for the owner, and is not.
    pub(crate) fn is_unaware(&self, i: usize) -> bool {
        let owned = self.0.owned.get();
        let before = |h: crate::host::Host| h.call(|v, _| v.owned().is_some_and(|g| g < owned));
        self.host_on(i).is_none_or(before)
    }

    /// It has heard.
    pub(crate) fn rejoin(&self) {
        self.0.ledger.rejoined();
        self.0.apart.set(None);
    }

    /// A copy never lacks what its owner was told it has.
    pub(crate) fn check_has_what_it_acknowledged(&self, owner: usize, j: usize) {
        let (Ok(volume), Some(record)) = (self.open(owner), self.record(j)) else {
            return;
        };
        let name = CursorName::Replica(self.0.nodes[j].name.clone());
        let cursor = volume.cursors().iter().find(|c| c.name == name);
        if let Some(c) = cursor.filter(|c| c.seeded && volume.owned() == Some(record.generation)) {
            assert!(
                record.epoch >= c.epoch,
                "[acknowledged epochs survive] node {j} is at {record:?}, its owner was told {}",
                c.epoch
            );
        }
    }

    /// The controller has heard of an owner that was replaced.
    pub(crate) fn depose(&self, i: usize) {
        let Some(host) = self.host_on(i) else { return };
        let owned = self.0.owned.get();
        let cluster = self.clone();
        self.0.world.spawn(self.0.nodes[i].process, async move {
            host.opened().await;
            let before = |v: &volume::Volume| v.owned().is_some_and(|g| g < owned);
            if !host.call(|v, _| before(v)) {
                return;
            }
            match host.control(|v, now| v.depose(now, owned)).await {
                Ok(()) => cluster.0.world.hit(Hit::Deposed),
                Err(e) => cluster.note(i, &e),
            }
        });
    }
}
