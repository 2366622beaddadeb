//! Volumes that move between engines while their clients go on.

use crate::setup::*;
use block::{Epoch, Generation};
use nbd::client::{Client, Uri, dial};
use nbd::codec::{Command, CommandFlags, Cookie, REQUEST_BYTES, RequestHeader};
use node::engine::{Engine, VolumeHandle};
use replica::MirrorItem;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use storage::CacheMode;
use tokio::runtime::Runtime;
use volume::{CursorName, Role, Start};

const FIRST: Role = Role::Owner {
    generation: Generation(1),
    since: Epoch(0),
};

/// An engine with the volume on it, as node `n`I.
struct Node {
    name: String,
    image: PathBuf,
    engine: Engine,
    volume: VolumeHandle,
    task: tokio::task::JoinHandle<()>,
    uri: Uri,
    /// How often a link came before its owner.
    asked: Arc<AtomicUsize>,
    _dir: tempfile::TempDir,
}

impl Node {
    fn new(runtime: &Runtime, i: usize, role: Role) -> Node {
        let dir = directory();
        let name = format!("n{i}");
        let engine = Engine::start(1, false)
            .unwrap()
            .named(&name.parse().unwrap());
        let volume = runtime.block_on(with_meta(&engine, dir.path(), role));
        runtime.block_on(volume.opened()).unwrap();
        let socket = dir.path().join("s");
        let (task, uri, asked) =
            runtime.block_on(async { listen_counted(&socket, volume.clone()) });
        Node {
            name,
            image: dir.path().join("old"),
            engine,
            volume,
            task,
            uri,
            asked,
            _dir: dir,
        }
    }

    /// The copy on `to` is as good as of now: track what it lacks.
    async fn track(&self, to: &Node) -> CursorName {
        let replica = CursorName::Replica(to.name.parse().unwrap());
        let name = replica.clone();
        let added = self
            .volume
            .control(move |v, _| v.add_cursor(name, Start::Now));
        added.await.unwrap();
        let name = replica.clone();
        let seeded = self.volume.control(move |v, _| v.seeded(&name));
        seeded.await.unwrap();
        replica
    }

    /// A cutover with a copy of the whole image in place of increments.
    async fn hand_over(&self, to: &Node, generation: Generation) {
        self.give(to, generation).await;
        self.volume.forward(to.uri.clone(), None).await.unwrap();
    }

    /// A cutover up to the point where the new owner has the volume.
    async fn give(&self, to: &Node, generation: Generation) {
        let replica = self.track(to).await;
        self.volume.freeze().await.unwrap();
        let name = replica.clone();
        let last = self
            .volume
            .snapshot(move |v, _| v.rotate(&name))
            .await
            .unwrap();
        let epoch = last.epoch();
        let content = std::fs::read(&self.image).unwrap();
        let mut image = std::fs::OpenOptions::new()
            .write(true)
            .open(&to.image)
            .unwrap();
        image.write_all(&content).unwrap();
        image.sync_all().unwrap();
        let name = replica.clone();
        let committed = self.volume.control(move |v, _| v.committed(&name, epoch));
        committed.await.unwrap();
        let next = to.name.parse().unwrap();
        let given = self
            .volume
            .control(move |v, _| v.relinquish(&next, generation, epoch));
        given.await.unwrap();
        let taken = to.volume.control(move |v, _| v.activate(generation, epoch));
        taken.await.unwrap();
    }

    fn stop(self, runtime: &Runtime) {
        self.task.abort();
        runtime.block_on(self.volume.remove()).unwrap();
        self.engine.stop().unwrap();
    }
}

/// The old owner goes on serving its connections as a client of the new one. The new one is
/// killed and started again under load: its clients must see neither an error nor an old byte.
#[test]
fn a_volume_forwards_and_outlives_the_links_to_its_owner() {
    let dir = directory();
    let runtime = runtime();
    let (owner_image, owner_socket) = (dir.path().join("owner"), dir.path().join("o"));
    let old = Engine::start(1, false).unwrap();

    let forwarding = runtime.block_on(with_meta(&old, dir.path(), Role::Standby));
    let (old_task, uri) =
        runtime.block_on(async { listen(&dir.path().join("s"), forwarding.clone()) });

    let start_owner = |create| {
        let engine = Engine::start(1, false).unwrap();
        let image = open(&owner_image, CacheMode::Writeback, create);
        let volume = runtime.block_on(ephemeral(&engine, image));
        let (task, uri) = runtime.block_on(async { listen(&owner_socket, volume.clone()) });
        (engine, volume, task, uri)
    };
    let (mut engine, mut volume, mut task, owner) = start_owner(true);
    let clients: Vec<_> = (0..4)
        .map(|i| {
            let uri = uri.clone();
            std::thread::spawn(move || work(&uri, i * SIZE / 8, SIZE / 8, 150))
        })
        .collect();
    // The clients are held from their first request on.
    std::thread::sleep(Duration::from_millis(100));
    assert!(clients.iter().all(|c| !c.is_finished()));
    runtime.block_on(forwarding.forward(owner, None)).unwrap();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(30));
        task.abort();
        runtime.block_on(volume.remove()).unwrap();
        engine.stop().unwrap();
        (engine, volume, task, _) = start_owner(false);
    }
    for client in clients {
        client.join().unwrap();
    }
    old_task.abort();
    task.abort();
    runtime.block_on(forwarding.remove()).unwrap();
    runtime.block_on(volume.remove()).unwrap();
    old.stop().unwrap();
    engine.stop().unwrap();
    let untouched = std::fs::read(dir.path().join("old")).unwrap();
    assert!(
        untouched.iter().all(|b| *b == 0),
        "a forwarding node wrote its own image"
    );
}

/// A link's server had its window full, so the last write of the link lay unread in the socket when the
/// link died. The old owner dialled again, sent that write again, had it acknowledged, and then wrote
/// something newer to the same block. When the stalled window drained, the server went on reading the
/// dead link's socket: the old write landed over the newer one.
#[test]
fn a_write_of_a_dead_link_never_lands_over_newer_ones() {
    const STALLED: u32 = 128;
    const BLOCK: u64 = 4096;
    let runtime = runtime();
    let node = Node::new(&runtime, 1, FIRST);
    let (snapshot, mut mirror) = runtime.block_on(async {
        let replica = CursorName::Replica("n9".parse().unwrap());
        let name = replica.clone();
        let added = node
            .volume
            .control(move |v, _| v.add_cursor(name, Start::Now));
        added.await.unwrap();
        let name = replica.clone();
        node.volume
            .control(move |v, _| v.seeded(&name))
            .await
            .unwrap();
        node.volume.mirror_on(replica).await.unwrap()
    });
    drop(snapshot);
    // A slow disk: the mirror answers none of the first writes until it is told to.
    let receipts = mirror.receipts();
    let stalled: Arc<Mutex<Vec<MirrorItem>>> = Arc::default();
    let (held, answers) = (Arc::clone(&stalled), mirror.receipts());
    runtime.spawn(async move {
        for _ in 0..STALLED {
            let item = mirror.next().await.unwrap();
            held.lock().unwrap().push(item);
        }
        while let Some(item) = mirror.next().await {
            answers.mirrored(item.id, Ok(()));
        }
    });

    let mut link = node.uri.clone();
    link.export = "v@g1:n7".to_owned();
    let (_, socket) = dial(&link, &[], PATIENCE).unwrap();
    let mut dead = UnixStream::from(socket);
    for i in 0..=u64::from(STALLED) {
        let mut bytes = [2; REQUEST_BYTES + BLOCK as usize];
        let header = RequestHeader {
            flags: CommandFlags::NONE,
            command: Command::Write,
            cookie: Cookie(i),
            offset: i * BLOCK,
            len: BLOCK as u32,
        };
        bytes[..REQUEST_BYTES].copy_from_slice(&header.encode());
        dead.write_all(&bytes).unwrap();
    }
    let patience = Instant::now() + PATIENCE;
    while stalled.lock().unwrap().len() < STALLED as usize {
        assert!(Instant::now() < patience, "the writes do not stall");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(dead);

    let last = u64::from(STALLED) * BLOCK;
    let heir = std::thread::spawn(move || {
        let mut client = Client::connect(&link, &[], PATIENCE).unwrap();
        client.write(last, &[2; BLOCK as usize], false).unwrap();
        client.write(last, &[3; BLOCK as usize], false).unwrap();
        client.close().unwrap();
    });
    std::thread::sleep(Duration::from_millis(200));
    let served = heir.is_finished();
    for item in stalled.lock().unwrap().drain(..) {
        receipts.mirrored(item.id, Ok(()));
    }
    heir.join().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let mut found = [0; BLOCK as usize];
    let mut client = Client::connect(&node.uri, &[], PATIENCE).unwrap();
    client.read(last, &mut found).unwrap();
    assert_eq!(found, [3; BLOCK as usize], "an older write landed late");
    assert!(
        !served,
        "the new link was served while the dead one had writes in flight"
    );
    client.close().unwrap();
    node.stop(&runtime);
}

/// A former owner's node was killed while what it forwarded was stalled in the network. Its guest came to
/// the owner itself and wrote; then the network came back, and the dead node's write landed over the newer
/// one: an acknowledged write was lost.
#[test]
fn a_write_of_a_link_never_lands_after_its_guest_has_come_here() {
    const BLOCK: u64 = 4096;
    let runtime = runtime();
    let node = Node::new(&runtime, 1, FIRST);
    let mut link = node.uri.clone();
    link.export = "v@g1:n7".to_owned();
    let (_, socket) = dial(&link, &[], PATIENCE).unwrap();
    let mut stalled = UnixStream::from(socket);
    let mut client = Client::connect(&node.uri, &[], PATIENCE).unwrap();
    client.write(0, &[3; BLOCK as usize], false).unwrap();
    let mut late = [2; REQUEST_BYTES + BLOCK as usize];
    let header = RequestHeader {
        flags: CommandFlags::NONE,
        command: Command::Write,
        cookie: Cookie(1),
        offset: 0,
        len: BLOCK as u32,
    };
    late[..REQUEST_BYTES].copy_from_slice(&header.encode());
    let arrived = stalled.write_all(&late).is_ok();
    std::thread::sleep(Duration::from_millis(100));
    let mut found = [0; BLOCK as usize];
    client.read(0, &mut found).unwrap();
    assert_eq!(
        found, [3; BLOCK as usize],
        "landed late; arrived: {arrived}"
    );
    // Who is still there dials again.
    let mut again = Client::connect(&link, &[], PATIENCE).unwrap();
    again.write(BLOCK, &[4; 512], false).unwrap();
    client.read(BLOCK, &mut found[..512]).unwrap();
    assert_eq!(found[..512], [4; 512]);
    again.close().unwrap();
    client.close().unwrap();
    node.stop(&runtime);
}

/// Links of two nodes do not push each other out, and a node that does not own the volume in the
/// generation that a link names takes none.
#[test]
fn a_link_is_refused_where_the_volume_is_not_owned() {
    let runtime = runtime();
    let (owner, standby) = (
        Node::new(&runtime, 1, FIRST),
        Node::new(&runtime, 2, Role::Standby),
    );
    let link = |node: &Node, export: &str| {
        let mut uri = node.uri.clone();
        uri.export = export.to_owned();
        Client::connect(&uri, &[], PATIENCE)
    };
    let mut a = link(&owner, "v@g1:n7").unwrap();
    let mut b = link(&owner, "v@g0:n8").unwrap();
    a.write(0, &[1; 512], false).unwrap();
    b.write(512, &[2; 512], false).unwrap();
    a.flush().unwrap();
    assert!(link(&owner, "v@g2:n7").is_err(), "a later generation");
    assert!(link(&standby, "v@g0:n7").is_err(), "a standby");
    b.close().unwrap();
    a.close().unwrap();
    owner.stop(&runtime);
    standby.stop(&runtime);
}

/// Guests were held for seven round trips of a cutover, and five of them were a dial that began when the
/// new owner had taken the volume. A link that is dialled before waits at the owner to be, is answered by
/// nobody else, and serves at once: the new owner accepts no connection here once it owns the volume.
#[test]
fn a_link_that_is_dialled_ahead_waits_for_its_owner_and_serves_at_once() {
    let runtime = runtime();
    let (old, new) = (
        Node::new(&runtime, 1, FIRST),
        Node::new(&runtime, 2, Role::Standby),
    );
    let mut client = Client::connect(&old.uri, &[], PATIENCE).unwrap();
    client.write(0, &[1; 4096], false).unwrap();
    let next = Generation(2);
    let mut link = new.uri.clone();
    link.export = "v@g2:n7".to_owned();
    let other = std::thread::spawn(move || dial(&link, &[], PATIENCE));
    let ahead = runtime.block_on(async { old.volume.dial_ahead(new.uri.clone(), next) });
    // The handshake asks, and so does who waits.
    let patience = Instant::now() + PATIENCE;
    while new.asked.load(Ordering::Acquire) < 4 {
        assert!(Instant::now() < patience, "nobody asks the owner to be");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!other.is_finished(), "a standby answered a link");
    runtime.block_on(old.give(&new, next));
    new.task.abort();
    runtime
        .block_on(old.volume.forward(new.uri.clone(), Some(ahead)))
        .unwrap();
    let mut found = [0; 4096];
    client.read(0, &mut found).unwrap();
    assert_eq!(found, [1; 4096]);
    other.join().unwrap().unwrap();
    client.close().unwrap();
    old.stop(&runtime);
    new.stop(&runtime);
}

/// A node that was stopped while it forwarded, when its link broke or had never come about, forgot whom it
/// owed answers, waited for them, and could only be killed.
#[test]
fn a_volume_that_forwards_is_removed_though_its_owner_is_gone() {
    let runtime = runtime();
    #[derive(PartialEq)]
    enum Owner {
        Unknown,
        Unreachable,
        Dies,
    }
    for owner in [Owner::Unknown, Owner::Unreachable, Owner::Dies] {
        let (old, new) = (
            Node::new(&runtime, 1, FIRST),
            Node::new(&runtime, 2, Role::Standby),
        );
        let mut clients: Vec<_> = (0..3)
            .map(|_| Client::connect(&old.uri, &[], PATIENCE).unwrap())
            .collect();
        clients[0].write(0, &[1; 4096], false).unwrap();
        runtime.block_on(old.give(&new, Generation(2)));
        let uri = match owner {
            Owner::Unknown => None,
            Owner::Unreachable => Some("nbd+unix:///v?socket=/nobody/is/there".parse().unwrap()),
            Owner::Dies => Some(new.uri.clone()),
        };
        if let Some(uri) = uri {
            runtime.block_on(old.volume.forward(uri, None)).unwrap();
        }
        if owner == Owner::Dies {
            clients[0].write(0, &[2; 4096], false).unwrap();
        }
        new.stop(&runtime);
        let waiting: Vec<_> = clients
            .into_iter()
            .map(|mut client| std::thread::spawn(move || client.write(0, &[3; 4096], false)))
            .collect();
        std::thread::sleep(Duration::from_millis(100));
        assert!(
            waiting.iter().all(|w| !w.is_finished()),
            "they wait for the owner"
        );
        old.task.abort();
        let removed = async { tokio::time::timeout(PATIENCE, old.volume.remove()).await };
        let removed = runtime.block_on(removed);
        removed.expect("the volume waits for its owner").unwrap();
        for client in waiting {
            assert!(client.join().unwrap().is_err());
        }
        old.engine.stop().unwrap();
    }
}

/// The volume goes from node to node and back, under load from clients of two nodes that keep their
/// connections: they see neither an error nor an old byte.
#[test]
fn a_volume_goes_back_and_forth_between_nodes_under_load() {
    let runtime = runtime();
    let nodes: Vec<_> = (0..3)
        .map(|i| Node::new(&runtime, i, if i == 0 { FIRST } else { Role::Standby }))
        .collect();
    let clients: Vec<_> = (0..6)
        .map(|i| {
            let uri = nodes[i as usize / 3].uri.clone();
            std::thread::spawn(move || work(&uri, i * SIZE / 8, SIZE / 8, 400))
        })
        .collect();
    let mut owner = 0;
    for (i, next) in [1, 0, 1, 2, 0, 2, 1, 0].into_iter().enumerate() {
        std::thread::sleep(Duration::from_millis(40));
        let handed = nodes[owner].hand_over(&nodes[next], Generation(i as u64 + 2));
        runtime.block_on(handed);
        owner = next;
    }
    for client in clients {
        client.join().unwrap();
    }
    for node in nodes {
        node.stop(&runtime);
    }
}
