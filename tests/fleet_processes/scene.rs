//! A volume on node a, a client that knows what it wrote, and somebody who watches the owners.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

use super::load::{IO_BYTES, Load};
use super::owners::Owners;
use super::{Fleet, Running, VOLUME, Who};
use proto::v1::{ReplicaState, VolumeRole};
use std::time::Duration;

pub const MIB: u64 = 1 << 20;
pub const SIZE: u64 = 64 * MIB;
/// Written before the replica is made, with bytes that no compression shrinks.
pub const FILLED: u64 = 60 * MIB;
/// I/Os of the client a second.
pub const RATE: u32 = 200;

pub struct Scene {
    pub fleet: Fleet,
    pub load: Option<Load>,
    owners: Owners,
}

/// What was there at some moment.
#[derive(Clone, Copy)]
pub struct Mark {
    pub ios: u64,
    pub sent: u64,
}

impl Scene {
    /// The volume is made and filled, and the client writes.
    pub fn start(rate: u32) -> Scene {
        let fleet = Fleet::start();
        let size = format!("{}M", SIZE / MIB);
        fleet.run(&["volume", "create", VOLUME, "--size", &size, "--node", "a"]);
        let id = fleet.report(Who::Source, VOLUME).unwrap().id;
        let uri = fleet.uri("a", VOLUME);
        let load = Load::start(&uri, id.parse().unwrap(), SIZE, FILLED, rate);
        Scene {
            owners: Owners::watch(fleet.node_addresses(), VOLUME),
            fleet,
            load: Some(load),
        }
    }

    /// With a replica on b that has had an increment.
    pub fn replicated() -> Scene {
        let scene = Scene::start(RATE);
        scene.fleet.replicate("b");
        scene.committed();
        scene
    }

    /// With a replica on b that is being seeded, slowly: the whole takes four seconds.
    pub fn seeding() -> Scene {
        let scene = Scene::start(20);
        let rate = format!("{}M", SIZE / MIB / 4);
        let add = ["replica", "add", VOLUME, "--to", "b", "--no-wait"];
        let how = ["--rate", &rate, "--consistency", "bounded=500ms"];
        scene.fleet.run(&[&add[..], &how].concat());
        scene
    }

    /// Waits until more than so many bytes are seeded; answers how many are.
    pub fn seeded(&self, bytes: u64) -> u64 {
        let done = || self.fleet.replica()?.seed.map(|s| s.bytes_done);
        let enough = || done().filter(|d| *d > bytes);
        self.fleet.until("a part is seeded", enough)
    }

    /// Waits for the next epoch that begins from now on to be at the replica.
    pub fn committed(&self) -> Mark {
        let mark = self.mark();
        let epoch = || {
            let replica = self.fleet.replica()?;
            (replica.state() == ReplicaState::Consistent).then_some(replica.epoch)
        };
        let now = self.fleet.until("the replica is consistent", epoch);
        // The one after the next: the next may have begun already.
        self.fleet
            .until("an epoch is committed", || epoch().filter(|e| *e > now + 1));
        mark
    }

    /// What was there until now.
    pub fn mark(&self) -> Mark {
        Mark {
            ios: self.load.as_ref().unwrap().ios(),
            sent: self.fleet.link().sent(),
        }
    }

    /// The client goes on by itself, over a new connection if its node died.
    pub fn kill_and_restart(&mut self, who: Who) {
        self.fleet.kill(who);
        // Long enough for the others to notice.
        std::thread::sleep(Duration::from_millis(200));
        self.fleet.restart(who);
        if who == Who::Source {
            let load = self.load.take().unwrap();
            self.load = Some(load.reconnect());
        }
    }

    /// What was sent since is what was written since, and digests of the areas that were suspect.
    pub fn assert_no_resync(&self, since: Mark) {
        let now = self.mark();
        let (sent, ios) = (now.sent - since.sent, now.ios - since.ios);
        // A block with its part of a frame's header; 32 bytes for 4 KiB of a suspect area, twice.
        let bound = ios * u64::from(IO_BYTES + 512) + SIZE / 64 + MIB / 4;
        eprintln!("{sent} bytes sent for {ios} I/Os, at most {bound} are right");
        assert!(sent <= bound, "{sent} bytes were sent, {bound} are right");
        assert!(
            bound < FILLED / 2,
            "the bound is too large to show anything"
        );
    }

    /// Begins to move the volume to b.
    pub fn cutover(&self) -> Running {
        self.fleet.begin(&["cutover", VOLUME, "--to", "b"])
    }

    /// b owns the volume; everything that the client knows of it is there.
    pub fn finish(self) {
        let Scene {
            fleet,
            load,
            owners,
        } = self;
        assert_eq!(fleet.role(Who::Target), Some(VolumeRole::Owner));
        assert_eq!(fleet.role(Who::Source), Some(VolumeRole::Forwarding));
        load.unwrap().check(&fleet.uri("b", VOLUME));
        owners.check();
        assert_eq!(fleet.run(&["volume", "show", VOLUME])["owner"], "b");
    }

    /// a owns the volume again; everything that the client knows of it is there.
    pub fn taken_back(self) -> Fleet {
        let Scene {
            fleet,
            load,
            owners,
        } = self;
        assert_eq!(fleet.role(Who::Source), Some(VolumeRole::Owner));
        load.unwrap().check(&fleet.uri("a", VOLUME));
        owners.check();
        assert_eq!(fleet.run(&["volume", "show", VOLUME])["owner"], "a");
        fleet
    }
}
