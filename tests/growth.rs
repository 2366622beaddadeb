//! A volume grows while it has a replica, after it has moved, and although its node dies on the way.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

mod fleet_processes;

use fleet_processes::{Fleet, PATIENCE, VOLUME, Who};
use node::client::Client;
use proto::v1::{ReplicaState, VolumeRole};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

struct Growing {
    fleet: Fleet,
    /// What the volume must hold.
    content: Vec<u8>,
}

impl Growing {
    /// A volume of 32 MiB on a, full of what is known.
    fn new() -> Growing {
        let fleet = Fleet::start();
        fleet.run(&["volume", "create", VOLUME, "--size", "32M", "--node", "a"]);
        let mut growing = Growing {
            fleet,
            content: Vec::new(),
        };
        growing.fill("a", 32 * MIB);
        growing
    }

    fn guest(&self, node: &str) -> Client {
        let until = Instant::now() + PATIENCE;
        loop {
            match Client::connect(&self.fleet.uri(node, VOLUME), &[], PATIENCE) {
                Ok(client) => return client,
                Err(e) => assert!(Instant::now() < until, "{e}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Write from where the last one ended.
    fn fill(&mut self, node: &str, to: u64) {
        let mut guest = self.guest(node);
        assert!(guest.agreed().size >= to, "it ends before {to}");
        let from = self.content.len();
        let word = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i >> 3).to_le_bytes();
        self.content
            .extend((from as u64 / 8..to / 8).flat_map(word));
        guest
            .write(from as u64, &self.content[from..], true)
            .unwrap();
    }

    fn resize(&self, mib: u64) {
        let size = format!("{mib}M");
        self.fleet
            .run(&["volume", "resize", VOLUME, "--size", &size]);
        let shown = self.fleet.run(&["volume", "show", VOLUME]);
        assert_eq!(shown["size_bytes"], mib * MIB);
    }

    fn replica(&self, node: &str) {
        let add = ["replica", "add", VOLUME, "--to", node];
        let how = ["--consistency", "bounded=500ms"];
        self.fleet.run(&[&add[..], &how].concat());
    }

    /// The owner has sent all that it knows to differ.
    fn follows(&self, owner: Who) {
        self.fleet.until("the replica has all", || {
            let said = self.fleet.report(owner, VOLUME)?;
            let r = said.replicas.first()?;
            (r.state() == ReplicaState::Consistent && r.lag_bytes == 0).then_some(())
        });
    }

    fn moves(&self, to: &str, who: Who) {
        self.fleet.run(&["cutover", VOLUME, "--to", to]);
        let owns = || (self.fleet.role(who)? == VolumeRole::Owner).then_some(());
        self.fleet.until("it has moved", owns);
    }

    /// What was written is served by `node`, in a volume of so many bytes, with zeroes after it.
    fn check(&self, node: &str, mib: u64) {
        let mut guest = self.guest(node);
        assert_eq!(guest.agreed().size, mib * MIB);
        let mut found = vec![0xff; (mib * MIB) as usize];
        guest.read(0, &mut found).unwrap();
        let (written, rest) = found.split_at(self.content.len());
        assert!(written == self.content, "other content on {node}");
        assert!(rest.iter().all(|b| *b == 0), "no zeroes on {node}");
    }
}

#[test]
fn a_volume_grows_with_its_replica_and_with_the_copy_it_left_behind() {
    let mut growing = Growing::new();
    growing.replica("b");
    growing.resize(64);
    growing.fill("a", 64 * MIB);
    growing.follows(Who::Source);
    growing.moves("b", Who::Target);
    growing.check("b", 64);
    // What a kept is of the former size; as a replica it has the new one.
    growing.resize(96);
    growing.fill("b", 96 * MIB);
    growing.check("b", 96);
    growing.replica("a");
    growing.follows(Who::Target);
    growing.moves("a", Who::Source);
    growing.check("a", 96);
    let shrink = ["volume", "resize", VOLUME, "--size", "64M"];
    let said = growing.fleet.output(&shrink).stderr;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("can only grow"), "{said}");
}

/// The node died when it had written down that the volume grows, and once more when the image had grown and
/// the metadata had not.
#[test]
fn a_node_that_died_while_a_volume_grew_goes_on() {
    let mut growing = Growing::new();
    for (from, to, extended) in [(32, 64, false), (64, 96, true)] {
        growing.fleet.kill(Who::Source);
        let dir = growing.fleet.volume("a", VOLUME);
        let growth = format!("{} {}\n", from * MIB, to * MIB);
        std::fs::write(dir.join("growth"), growth).unwrap();
        if extended {
            let image = std::fs::File::options().write(true).open(dir.join("image"));
            image.unwrap().set_len(to * MIB).unwrap();
        }
        growing.fleet.restart(Who::Source);
        growing.check("a", to);
        assert!(!dir.join("growth").exists(), "it has ended");
        // The controller is told by the command, which finds it done.
        growing.resize(to);
        growing.fill("a", to * MIB);
        growing.check("a", to);
    }
}

/// A replica's node is away when the volume is to grow: the command waits for it, the owner serves on, and
/// what a killed controller left of it is finished.
#[test]
fn a_growth_waits_for_a_replica_and_outlives_the_controller() {
    let mut growing = Growing::new();
    growing.replica("b");
    growing.fleet.kill(Who::Target);
    let resize = growing
        .fleet
        .begin(&["volume", "resize", VOLUME, "--size", "64M"]);
    growing.fleet.until("the growth is logged", || {
        let list = growing.fleet.run(&["operation", "list", "--running"]);
        (list.as_array()?.len() == 1).then_some(())
    });
    growing.check("a", 32);
    growing.fleet.kill(Who::Controller);
    growing.fleet.restart(Who::Controller);
    growing.fleet.restart(Who::Target);
    resize.succeeds();
    growing.fill("a", 64 * MIB);
    growing.follows(Who::Source);
    growing.moves("b", Who::Target);
    growing.check("b", 64);
}
