//! Fencing links between an old owner, which forwards, and the new one.
//!
//! ```text
//!  old owner n1 ──NBD, export NAME@g7:n1──► new owner: owned in generation 7 or later?
//!                                             no  ─► closed
//!                                             yes ─► the former link of n1 is closed, and this one
//!                                                    is read only when nothing of that is in flight
//!  a guest connects to the owner itself ─► every such link is closed, and it is served when nothing
//!                                          of them is in flight
//!  the owner gives the volume away ─► every such link is closed, what it had at the gate is dropped
//!  the owner was replaced ─► the same, and its guests' connections too
//! ```
//!
//! A request of a link that broke may have been carried out, or not, or may still be stalled inside
//! the owner. The old owner sends it again over the next link; if the stalled one landed later still,
//! it would undo whatever was acknowledged in between. So a link is served only after the one that it
//! replaces has come to rest.
//!
//! What a link sent may also be stalled in the network, and arrive after the node that sent it has died
//! and its guest has come to the owner itself. So a guest that comes closes all links; a node that is
//! still there dials again, and sends again what its own guests wait for.
//!
//! And nothing of a link survives its owner's ownership: what was in flight has completed when the
//! volume is given away, what was held is dropped. So whoever is the owner next, also the old owner
//! itself, may take a request that had no answer as not done.

use super::connection::{Connection, Life};
use super::message::{ConnectionIndex, VolumeIndex};
use super::shard::EngineShard;
use block::Generation;
use ring::Ring;
use volume::RequestId;

/// The export under which a node's own description says where the volume is now: `NAME@owner`.
pub(super) const OWNER: &str = "owner";

/// What the export name of a forwarding link says after its `@`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fence {
    /// The generation that the forwarding node knows.
    pub(super) generation: Generation,
    /// Its name, which no other node has.
    pub(super) from: String,
}

impl Fence {
    /// The name of the export `volume` for this link.
    pub(super) fn export(&self, volume: &str) -> String {
        format!("{volume}@g{}:{}", self.generation.0, self.from)
    }

    /// Read what follows the `@`.
    pub(super) fn parse(suffix: &str) -> Option<Fence> {
        let (generation, from) = suffix.strip_prefix('g')?.split_once(':')?;
        Some(Fence {
            generation: Generation(generation.parse().ok()?),
            from: from.to_owned(),
        })
    }
}

impl EngineShard {
    /// Whether the volume is one that a link with this fence may write to.
    pub(super) fn admits(&self, v: VolumeIndex, fence: &Fence) -> bool {
        let owned = self.volumes.get(v as usize).map(|c| c.volume.owned());
        owned.flatten().is_some_and(|g| g >= fence.generation)
    }

    /// Close the links whose place this connection may take, and let it wait for what they have in
    /// flight.
    pub(super) fn succeed(&mut self, ring: &mut Ring, c: ConnectionIndex) {
        for former in self.formers(c) {
            tracing::info!(
                "a forwarding link ends, so that nothing of it lands after a newer connection"
            );
            self.lose(ring, former);
            self.reap(ring, former);
        }
        self.connections[c as usize].parked = !self.formers(c).is_empty();
    }

    /// A connection has left: those that waited for it may go on.
    pub(super) fn succeeded(&mut self, ring: &mut Ring, gone: &Connection) {
        if gone.fence.is_none() {
            return;
        }
        self.volumes[gone.volume as usize].links -= 1;
        let waits = |o: &Connection| o.parked && o.volume == gone.volume && o.life == Life::Open;
        let parked = self.connections.iter().filter(|(_, o)| waits(o));
        let parked: Vec<_> = parked.map(|(c, _)| c as ConnectionIndex).collect();
        for c in parked {
            // A link that came later is none that it waits for.
            let mut formers = self.formers(c).into_iter();
            if formers.all(|f| self.connections[f as usize].life != Life::Gone) {
                self.connections[c as usize].parked = false;
                self.pump(ring, c);
            }
        }
    }

    /// Of a link, the others of its node; of a guest's connection, all links: its guest may have come from
    /// any of their nodes.
    fn formers(&self, c: ConnectionIndex) -> Vec<ConnectionIndex> {
        let me = &self.connections[c as usize];
        let from = me.fence.as_ref().map(|f| &f.from);
        let before = |o: &Connection| {
            let its = |f: &Fence| from.is_none_or(|from| *from == f.from);
            o.volume == me.volume && o.fence.as_ref().is_some_and(its)
        };
        let others = self.connections.iter();
        let others = others.filter(|(o, other)| *o != c as usize && before(other));
        others.map(|(o, _)| o as ConnectionIndex).collect()
    }

    /// The volume is not owned here any more: nothing that came by a link may have an effect. What
    /// completes later comes back to the gate, so this is called again until the links are gone. An owner
    /// that was replaced closes its guests' connections too: nobody answers what they wait for, and the
    /// new owner may lack what they were told is written.
    pub(super) fn cut_links(&mut self, ring: &mut Ring, v: VolumeIndex) {
        let cell = &self.volumes[v as usize];
        let replaced = cell.volume.is_replaced();
        if (cell.links == 0 && !replaced) || cell.volume.owned().is_some() {
            return;
        }
        let own = |o: &Connection| o.volume == v && (replaced || o.fence.is_some());
        let links = self.connections.iter().filter(|(_, o)| own(o));
        let links: Vec<_> = links.map(|(c, _)| c as ConnectionIndex).collect();
        for c in links {
            self.lose(ring, c);
            self.withdraw(c);
            self.reap(ring, c);
        }
    }

    /// Forget what a lost connection has at the gate: nobody waits for it, and its client may have
    /// sent it again elsewhere.
    pub(super) fn withdraw(&mut self, c: ConnectionIndex) {
        let connection = &mut self.connections[c as usize];
        debug_assert_eq!(connection.life, Life::Gone);
        if connection.open_requests == 0 {
            return;
        }
        let cell = &mut self.volumes[connection.volume as usize];
        for slot in 0..cell.volume.config().max_requests {
            let place = cell.requests.get(slot);
            if place.connection != c || !cell.volume.withdraw(RequestId(slot)) {
                continue;
            }
            if let Some(buf) = place.io.take_buffer() {
                connection.held_bytes -= buf.len();
                self.pool.give(buf);
            }
            cell.requests.give(slot);
            connection.open_requests -= 1;
            self.relief = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_reads_back_and_nothing_else_is_one() {
        let fence = Fence {
            generation: Generation(7),
            from: "n1".to_owned(),
        };
        let name = fence.export("vm1");
        assert_eq!(name, "vm1@g7:n1");
        let suffix = name.split_once('@').unwrap().1;
        assert_eq!(Fence::parse(suffix), Some(fence));
        for bad in ["", "g", "g7", "7:n1", "g:n1", "g-1:n1", OWNER] {
            assert_eq!(Fence::parse(bad), None, "{bad}");
        }
    }
}
