//! How connections end, and with the last of them the shard.

use super::connection::Life;
use super::message::{ConnectionIndex, VolumeIndex};
use super::shard::EngineShard;
use ring::Ring;
use std::time::Duration;

/// How long a stopping shard waits for clients to take their replies.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(5);

impl EngineShard {
    /// The peer is gone, or is to be: nothing more is sent to it or taken from it.
    pub(super) fn lose(&mut self, ring: &mut Ring, c: ConnectionIndex) {
        let connection = &mut self.connections[c as usize];
        if connection.life == Life::Gone {
            return;
        }
        connection.life = Life::Gone;
        if connection.receiving || connection.sending {
            ring.cancel(connection.socket);
        }
        let pool = &mut self.pool;
        let held = &mut connection.held_bytes;
        connection.out.clear(|buf| {
            *held -= buf.len();
            pool.give(buf);
        });
        connection.out_charges.clear();
        self.relief = true;
        self.withdraw(c);
    }

    /// Take a connection that is over out of the slab.
    pub(super) fn reap(&mut self, ring: &mut Ring, c: ConnectionIndex) {
        let Some(connection) = self.connections.get_mut(c as usize) else {
            return;
        };
        // A write whose payload never came whole was never submitted: it just goes.
        if connection.life != Life::Open
            && !connection.receiving
            && let Some(slot) = connection.filling.take()
        {
            let requests = &mut self.volumes[connection.volume as usize].requests;
            if let Some(buf) = requests.get(slot).io.take_buffer() {
                connection.held_bytes -= buf.len();
                self.pool.give(buf);
            }
            requests.give(slot);
            connection.open_requests -= 1;
            self.relief = true;
        }
        if !connection.is_over() {
            return;
        }
        debug_assert_eq!(connection.held_bytes, 0, "a connection kept buffers");
        let connection = self.connections.remove(c as usize);
        ring.remove_file(connection.socket);
        self.touch(connection.volume);
        self.succeeded(ring, &connection);
    }

    /// Take no more requests from a connection; its replies still go out.
    pub(super) fn drain(&mut self, ring: &mut Ring, c: ConnectionIndex) {
        let connection = &mut self.connections[c as usize];
        if connection.life == Life::Open {
            connection.life = Life::Draining;
            if connection.receiving {
                ring.cancel(connection.socket);
            }
        }
        self.reap(ring, c);
    }

    pub(super) fn stop(&mut self, ring: &mut Ring) {
        self.stopping = Some(ring.now() + STOP_PATIENCE);
        let volumes: Vec<_> = self.volumes.iter().map(|(v, _)| v as VolumeIndex).collect();
        for v in volumes {
            self.leave(ring, v, None);
        }
    }
}
