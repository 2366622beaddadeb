//! A power cut that does not end the world: from one run come the images of many crashes.
//!
//! ```text
//!   world ──●────────●──────────●───────► goes on
//!           │        └─ cluster as this cut leaves it, in a world of its own, to be started
//!           └─ another
//! ```

use crate::disk::Left;
use crate::net::Network;
use crate::node::{Cluster, Disks, Inner, Node};
use crate::world::World;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

impl Cluster {
    /// The cluster that a power cut of every node at this moment would leave. Nobody runs in it yet.
    #[must_use]
    pub fn after_power_cut(&self, world: &World, left: Left) -> Cluster {
        let node = |n: &Node| Node {
            index: n.index,
            name: n.name.clone(),
            process: n.process,
            disks: Disks {
                image: n.disks.image.after_power_cut(world, left),
                meta: n.disks.meta.after_power_cut(world, left),
                replica: n.disks.replica.after_power_cut(world, left),
                staging: n.disks.staging.after_power_cut(world, left),
            },
            life: RefCell::new(None),
            broken: Cell::new(false),
            handover: Cell::new(None),
            taking: Cell::new(None),
            doing: RefCell::default(),
            commits: Cell::new(0),
        };
        Cluster(Rc::new(Inner {
            world: world.clone(),
            net: Network::new(world),
            ledger: self.0.ledger.fork(),
            setup: self.0.setup.clone(),
            nodes: self.nodes().iter().map(node).collect(),
            sessions: Cell::new(self.0.sessions.get()),
            former: Cell::new(self.0.former.get()),
            offered: Cell::new(self.0.offered.get()),
            owned: Cell::new(self.0.owned.get()),
            apart: Cell::new(self.0.apart.get()),
        }))
    }
}
