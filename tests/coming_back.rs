//! The former owner of a volume comes back: as a replica, with a late frame, or restored from an older
//! copy of its files. It gets increments, is told who owns the volume, and acknowledges nothing.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

mod fleet_processes;
mod serving;

use block::{Epoch, Generation};
use fleet_processes::scene::Scene;
use fleet_processes::{Fleet, VOLUME, Who};
use node::client::Client;
use proto::v1::{ReplicaReport, ReplicaState, VolumeRole};
use serving::Random;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;
use wire::{Decoder, Encoder, FailureKind, Hello, Message, SessionId};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
const FILLED: u64 = 48 * MIB;
const PATIENCE: Duration = Duration::from_secs(30);

fn client(fleet: &Fleet, node: &str) -> Client {
    Client::connect(&fleet.uri(node, VOLUME), &[], PATIENCE).unwrap()
}

fn noise(random: &mut Random, bytes: u64) -> Vec<u8> {
    let words = (0..bytes / 8).flat_map(|_| random.next().to_le_bytes());
    words.collect()
}

/// A volume full of noise on a, with a replica on b.
fn replicated() -> Fleet {
    let fleet = Fleet::start();
    let size = format!("{}M", SIZE / MIB);
    fleet.run(&["volume", "create", VOLUME, "--size", &size, "--node", "a"]);
    let mut random = Random(1);
    let mut to = client(&fleet, "a");
    for mib in 0..FILLED / MIB {
        let data = noise(&mut random, MIB);
        to.write(mib * MIB, &data, mib + 1 == FILLED / MIB).unwrap();
    }
    to.close().unwrap();
    add(&fleet, "b");
    fleet
}

fn add(fleet: &Fleet, node: &str) {
    let bound = ["--consistency", "bounded=500ms"];
    fleet.run(&[&["replica", "add", VOLUME, "--to", node], &bound[..]].concat());
}

fn cut_over(fleet: &Fleet, to: &str) {
    fleet.run(&["cutover", VOLUME, "--to", to]);
}

fn write_blocks(fleet: &Fleet, node: &str, seed: u64, count: u64) {
    let mut random = Random(seed);
    let mut to = client(fleet, node);
    for _ in 0..count {
        let at = random.next() % (FILLED / 4096) * 4096;
        let data = noise(&mut random, 4096);
        to.write(at, &data, true).unwrap();
    }
    to.close().unwrap();
}

fn images_agree(fleet: &Fleet) -> Option<()> {
    let [a, b] = ["a", "b"].map(|n| std::fs::read(fleet.volume(n, VOLUME).join("image")).unwrap());
    (a == b).then_some(())
}

/// The replica that node `who` keeps, once it is consistent and has the same bytes.
fn caught_up(fleet: &Fleet, who: Who) -> ReplicaReport {
    fleet.until("the replica has the same bytes", || {
        let replica = fleet.report(who, VOLUME)?.replicas.into_iter().next()?;
        (replica.state() == ReplicaState::Consistent).then_some(())?;
        images_agree(fleet)?;
        Some(replica)
    })
}

fn assert_sent_at_most(replica: &ReplicaReport, bytes: u64) {
    let sent: u64 = replica.increments.iter().map(|i| i.sent_bytes).sum();
    eprintln!("{sent} bytes were sent back, of a volume of {SIZE}");
    assert_eq!(replica.seed, None, "it was seeded anew");
    assert!(sent <= bytes, "{sent} bytes were sent, {bytes} are right");
}

/// After a cutover the copy that was left behind was compared in full when it became a replica again:
/// 64 MiB were read on both sides to send twenty blocks.
#[test]
fn the_copy_left_behind_gets_what_was_written_since_and_no_more() {
    let fleet = replicated();
    cut_over(&fleet, "b");
    write_blocks(&fleet, "b", 2, 20);
    add(&fleet, "a");
    let replica = caught_up(&fleet, Who::Target);
    assert_sent_at_most(&replica, 20 * 4608 + 16384);
    // And there, and back again.
    cut_over(&fleet, "a");
    write_blocks(&fleet, "a", 3, 20);
    add(&fleet, "b");
    let replica = caught_up(&fleet, Who::Source);
    assert_sent_at_most(&replica, 20 * 4608 + 16384);
}

/// To whom a node says that it replicates the volume, and to whom its file says that it is to.
fn replicas_of(fleet: &Fleet, who: Who) -> Option<(Vec<String>, Vec<String>)> {
    let said = fleet.report(who, VOLUME)?.replicas;
    let node = if who == Who::Source { "a" } else { "b" };
    let file = fleet.volume(node, VOLUME).join("peers.toml");
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let kept = text.lines().filter_map(|l| l.strip_prefix("node = "));
    Some((
        said.into_iter().map(|r| r.node).collect(),
        kept.map(|n| n.trim_matches('"').to_owned()).collect(),
    ))
}

/// An owner that got its volume back found the replica of its former ownership in its file, and when it
/// was restarted it replicated to it again, though nobody had asked. The controller knew of no replica
/// there: it listed none, and refused to cut over to it.
#[test]
fn an_owner_again_keeps_the_replicas_that_were_asked_for_and_no_others() {
    let mut scene = Scene::replicated();
    let nobody = || (Vec::new(), Vec::new());
    let moves = [
        (Who::Source, "a", Who::Target, "b"),
        (Who::Target, "b", Who::Source, "a"),
        (Who::Source, "a", Who::Target, "b"),
    ];
    for (generation, (from, left, to, node)) in (2..).zip(moves) {
        let fleet = &scene.fleet;
        cut_over(fleet, node);
        let owned = fleet.report(to, VOLUME).unwrap();
        assert_eq!(
            (owned.role(), owned.generation),
            (VolumeRole::Owner, generation)
        );
        assert_eq!(replicas_of(fleet, to), Some(nobody()));
        assert_eq!(replicas_of(fleet, from), Some(nobody()));
        let listed = fleet.run(&["replica", "list", VOLUME]);
        assert_eq!(listed.as_array().map(Vec::len), Some(0), "{listed}");
        let said = fleet.refused(&["cutover", VOLUME, "--to", left]);
        assert!(said.contains("has no replica of it"), "{said}");

        // Also when it reads its files again; and what is asked for now is kept.
        scene.fleet.kill(to);
        scene.fleet.restart(to);
        let fleet = &scene.fleet;
        fleet.until("it owns the volume again", || {
            (fleet.role(to)? == VolumeRole::Owner).then_some(())
        });
        assert_eq!(replicas_of(fleet, to), Some(nobody()));
        if to == Who::Source {
            // Connected here all the time, which is over.
            let load = scene.load.take().unwrap();
            scene.load = Some(load.reconnect());
        }
        add(fleet, left);
        let asked = (vec![left.to_owned()], vec![left.to_owned()]);
        assert_eq!(replicas_of(fleet, to), Some(asked));
        let epoch = || {
            let replica = fleet.report(to, VOLUME)?.replicas.into_iter().next()?;
            (replica.state() == ReplicaState::Consistent).then_some(replica.epoch)
        };
        let now = fleet.until("the replica is consistent", epoch);
        fleet.until("increments flow", || epoch().filter(|e| *e > now + 1));
    }
    scene.finish();
}

/// A node's list of replicas is put back from before one was removed. The controller notices that it
/// replicates to a node that nobody asked for, and has it stop.
#[test]
fn a_replica_that_nobody_wants_any_more_is_given_up() {
    let mut fleet = replicated();
    let file = fleet.volume("a", VOLUME).join("peers.toml");
    let before = std::fs::read(&file).unwrap();
    fleet.run(&["replica", "remove", VOLUME, "--to", "b"]);
    assert_eq!(replicas_of(&fleet, Who::Source), Some((vec![], vec![])));
    fleet.kill(Who::Source);
    std::fs::write(&file, before).unwrap();
    fleet.restart(Who::Source);
    let kept = replicas_of(&fleet, Who::Source).unwrap();
    assert_eq!(kept.0, ["b"]);
    fleet.until("it replicates to nobody", || {
        (replicas_of(&fleet, Who::Source)? == (vec![], vec![])).then_some(())
    });
    // The controller says so once it has its answer.
    fleet.until("it is told", || {
        let told = fleet.run(&["events"]).to_string();
        told.contains("replica-dropped").then_some(())
    });
    add(&fleet, "b");
    caught_up(&fleet, Who::Source);
}

/// The new owner was killed meanwhile: what it cannot know it compares, in the areas that were written.
#[test]
fn a_new_owner_that_was_killed_compares_the_areas_that_it_wrote() {
    let mut fleet = replicated();
    cut_over(&fleet, "b");
    write_blocks(&fleet, "b", 4, 3);
    fleet.kill(Who::Target);
    fleet.restart(Who::Target);
    write_blocks(&fleet, "b", 5, 3);
    add(&fleet, "a");
    let replica = caught_up(&fleet, Who::Target);
    // Six areas of 4 MiB at most, 32 bytes a block of digests, and the blocks.
    assert_sent_at_most(&replica, 6 * 1024 * 64 + 6 * 8192 + 16384);
}

/// A replication connection as any program could make it.
struct Peer {
    stream: TcpStream,
    encoder: Encoder,
    decoder: Decoder,
    generation: Generation,
}

impl Peer {
    fn connect(at: SocketAddr, generation: u64) -> Peer {
        let stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Peer {
            stream,
            encoder: Encoder::new(SessionId(7)),
            decoder: Decoder::new(),
            generation: Generation(generation),
        }
    }

    fn send(&mut self, epoch: u64, message: &Message<'_>) {
        let mut frame = Vec::new();
        self.encoder
            .encode(self.generation, Epoch(epoch), message, &mut frame);
        self.stream.write_all(&frame).unwrap();
    }

    /// The next frame: who speaks for which generation, and what it says, as text.
    fn hear(&mut self) -> (Generation, String, Option<FailureKind>) {
        loop {
            if let Some(header) = self.decoder.advance().unwrap() {
                let message = self.decoder.message(&header).unwrap();
                let kind = match &message {
                    Message::Error { kind, .. } => Some(*kind),
                    _ => None,
                };
                return (header.generation, format!("{message:?}"), kind);
            }
            let mut some = [0; 4096];
            let n = self.stream.read(&mut some).unwrap();
            assert!(n > 0, "it hung up without a word");
            let mut buf = self.decoder.take_buffer();
            buf.extend_from_slice(&some[..n]);
            self.decoder.give_buffer(buf);
        }
    }
}

/// A source of an earlier ownership, and one that makes things up, at the new owner's replication port.
#[test]
fn a_lower_generation_is_told_so_and_changes_nothing() {
    let fleet = replicated();
    let id = fleet.report(Who::Source, VOLUME).unwrap().id;
    cut_over(&fleet, "b");
    let image = fleet.volume("b", VOLUME).join("image");
    let before = std::fs::read(&image).unwrap();
    let hello = Message::Hello(Hello {
        oldest: wire::OLDEST_VERSION,
        newest: wire::VERSION,
        volume: id.parse().unwrap(),
        size: SIZE,
    });
    // The former owner's, and of a generation that never was: it is told who owns the volume, because its
    // hand-over may have to be finished, and nothing else is taken from it.
    let frames: [(u64, Message<'_>); 3] = [
        (9, Message::SeedBegin { from: 0 }),
        (9, Message::EpochBegin { base: 1 }),
        (9, Message::SeedWatermark { offset: SIZE }),
    ];
    for (generation, (epoch, frame)) in [0, 1, 1].into_iter().zip(frames) {
        let mut peer = Peer::connect(fleet.replication(), generation);
        peer.send(0, &hello);
        let (owned, said, _) = peer.hear();
        assert_eq!(owned, Generation(2), "{said}");
        assert!(said.contains("Owner"), "{said}");
        peer.send(epoch, &frame);
        let (_, said, kind) = peer.hear();
        assert_eq!(kind, Some(FailureKind::Fenced), "{frame:?}: {said}");
        assert!(said.contains("former owner"), "{said}");
    }
    // A replayed activation of another epoch, and one that was never handed over.
    for (epoch, generation) in [(1, 2), (1, 9)] {
        let mut peer = Peer::connect(fleet.replication(), 1);
        peer.send(0, &hello);
        peer.hear();
        let generation = Generation(generation);
        peer.send(epoch, &Message::Activate { generation });
        let (_, said, kind) = peer.hear();
        assert!(kind.is_some(), "{said}");
    }
    assert!(
        std::fs::read(&image).unwrap() == before,
        "the image changed"
    );
    let report = fleet.report(Who::Target, VOLUME).unwrap();
    assert_eq!((report.role(), report.generation), (VolumeRole::Owner, 2));
    write_blocks(&fleet, "b", 6, 3);
}

fn copy_files(from: &Path, to: &Path, files: &[&str]) {
    for file in files {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

/// A fleet whose volume has moved from a to b; both are dead, and these files of a are from before.
fn restored(files: &[&str]) -> Fleet {
    let mut fleet = replicated();
    let backup = tempfile::tempdir().unwrap();
    let dir = fleet.volume("a", VOLUME);
    fleet.kill(Who::Source);
    copy_files(&dir, backup.path(), files);
    fleet.restart(Who::Source);
    fleet.until("a owns it", || {
        (fleet.role(Who::Source)? == VolumeRole::Owner).then_some(())
    });
    cut_over(&fleet, "b");
    write_blocks(&fleet, "b", 9, 5);
    fleet.kill(Who::Source);
    fleet.kill(Who::Target);
    copy_files(backup.path(), &dir, files);
    fleet
}

fn assert_a_stands_by(fleet: &Fleet) {
    let report = fleet.report(Who::Source, VOLUME).unwrap();
    assert_eq!((report.role(), report.generation), (VolumeRole::Standby, 2));
    let refused = Client::connect(&fleet.uri("a", VOLUME), &[], PATIENCE);
    assert!(refused.is_err(), "a former owner serves a guest");
}

/// Its metadata is from before the cutover, its peer and the controller are dead: only the record of its copy
/// knows.
#[test]
fn a_former_owner_whose_metadata_alone_was_put_back_knows_by_itself() {
    let mut fleet = restored(&["meta", "peers.toml"]);
    fleet.kill(Who::Controller);
    fleet.restart(Who::Source);
    assert_a_stands_by(&fleet);
    fleet.restart(Who::Controller);
    fleet.restart(Who::Target);
    write_blocks(&fleet, "b", 10, 5);
    add(&fleet, "a");
    caught_up(&fleet, Who::Target);
}

/// All that knows of the cutover was put back, and both nodes start: the former owner first, when the new
/// one refuses connections. It took that for an answer and served; when the other was up but not ready, it
/// was told that there is no such volume there, and served.
#[test]
fn a_former_owner_that_starts_before_its_successor_waits_to_be_told() {
    let mut fleet = restored(&["meta", "peers.toml", "replica"]);
    fleet.restart_both();
    assert_a_stands_by(&fleet);
    write_blocks(&fleet, "b", 11, 5);
    add(&fleet, "a");
    caught_up(&fleet, Who::Target);
}

/// Somebody restores a node's metadata from before the cutover. It believes that it owns the volume; its
/// replica's node knows better, and is asked before a guest is served.
#[test]
fn a_former_owner_restored_from_an_older_copy_acknowledges_nothing() {
    let mut fleet = replicated();
    const FILES: [&str; 3] = ["meta", "peers.toml", "replica"];
    let backup = tempfile::tempdir().unwrap();
    let dir = fleet.volume("a", VOLUME);
    fleet.kill(Who::Source);
    copy_files(&dir, backup.path(), &FILES);
    fleet.restart(Who::Source);
    fleet.until("a owns it", || {
        (fleet.role(Who::Source)? == VolumeRole::Owner).then_some(())
    });
    cut_over(&fleet, "b");
    write_blocks(&fleet, "b", 7, 5);
    fleet.kill(Who::Source);
    copy_files(backup.path(), &dir, &FILES);
    let image = fleet.volume("b", VOLUME).join("image");
    let before = std::fs::read(&image).unwrap();
    fleet.restart(Who::Source);
    let report = fleet.report(Who::Source, VOLUME).unwrap();
    assert_eq!((report.role(), report.generation), (VolumeRole::Standby, 2));
    let refused = Client::connect(&fleet.uri("a", VOLUME), &[], PATIENCE);
    assert!(refused.is_err(), "a former owner serves a guest");
    assert!(
        std::fs::read(&image).unwrap() == before,
        "the image changed"
    );
    write_blocks(&fleet, "b", 8, 5);
    // Its copy is of use again, once it is a replica.
    add(&fleet, "a");
    caught_up(&fleet, Who::Target);
}
