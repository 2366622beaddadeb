//! The engine with real sockets and files: many clients at once, clients that vanish in the middle
//! of a request, and a volume that forwards to another engine while its links die.

#![allow(clippy::unwrap_used)] // a test

use block::{Epoch, Error, Generation, VolumeId};
use nbd::accept::{HANDSHAKE_DEADLINE, accept};
use nbd::client::{Client, Uri};
use nbd::codec::{Command, CommandFlags, Cookie, RequestHeader};
use nbd::{Export, Exports};
use node::engine::{Engine, VOLUME_REQUESTS_MAX, VolumeHandle, VolumeSpec};
use replica::MirrorOp;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use storage::meta::{MetaFile, SLOT_BYTES};
use storage::{CacheMode, ImageFile, OpenOptions};
use volume::{Config, CursorName, Identity, Role, Start, Volume, meta_bytes};

const SIZE: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

struct One;

impl Exports for One {
    fn names(&self) -> Vec<String> {
        vec!["v".to_owned()]
    }
    fn find(&self, _name: &str) -> Option<Export> {
        Some(Export::new("v", SIZE))
    }
}

fn open(path: &Path, cache: CacheMode, create: bool) -> ImageFile {
    let options = OpenOptions {
        cache,
        read_only: false,
        create: create.then_some(SIZE),
    };
    ImageFile::open(path, &options).unwrap()
}

fn config(image: &ImageFile) -> Config {
    Config {
        size: SIZE,
        max_requests: VOLUME_REQUESTS_MAX,
        align: u64::from(image.unit()),
        read_only: false,
    }
}

async fn ephemeral(engine: &Engine, image: ImageFile) -> VolumeHandle {
    let spec = VolumeSpec {
        volume: Volume::ephemeral(config(&image)),
        image,
        meta: None,
    };
    engine.add_volume(spec).await.unwrap()
}

/// A volume with metadata and the image `old`.
async fn with_meta(engine: &Engine, dir: &Path, role: Role) -> VolumeHandle {
    let image = open(&dir.join("old"), CacheMode::Direct, true);
    let slots = (meta_bytes(SIZE) as usize).div_ceil(SLOT_BYTES);
    let identity = Identity {
        id: VolumeId::from_random([5; 16]),
        name: "v".parse().unwrap(),
        image: "old".into(),
    };
    let spec = VolumeSpec {
        volume: Volume::create(config(&image), identity, role).unwrap(),
        image,
        meta: Some(MetaFile::open(&dir.join("meta"), slots).unwrap()),
    };
    engine.add_volume(spec).await.unwrap()
}

/// Accept connections to `volume` on a unix socket until the listener's task is aborted.
fn listen(path: &Path, volume: VolumeHandle) -> (tokio::task::JoinHandle<()>, Uri) {
    let _ = std::fs::remove_file(path);
    let listener = tokio::net::UnixListener::bind(path).unwrap();
    let uri = format!("nbd+unix:///v?socket={}", path.display());
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let volume = volume.clone();
            tokio::spawn(async move {
                let accepted = accept(stream, &One, HANDSHAKE_DEADLINE).await?;
                volume.connect(accepted, Box::new(()))?;
                Ok::<_, Error>(())
            });
        }
    });
    (task, uri.parse().unwrap())
}

/// A small generator whose seed is in the name of the region it works on.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Random reads, writes, zeroes and flushes inside one region, checked against a model.
fn work(uri: &Uri, region: u64, len: u64, steps: u32) {
    let mut client = Client::connect(uri, &[], PATIENCE).unwrap();
    let mut model = vec![0; len as usize];
    let mut random = Random(region + 0x9e37_79b9);
    client.read(region, &mut model).unwrap();
    for step in 0..steps {
        let at = random.below(len - 1);
        let n = 1 + random.below((len - at).min(70_000));
        let place = at as usize..(at + n) as usize;
        match random.below(8) {
            0..3 => {
                let data: Vec<u8> = (0..n).map(|i| (i + u64::from(step)) as u8).collect();
                let fua = random.below(4) == 0;
                client.write(region + at, &data, fua).unwrap();
                model[place].copy_from_slice(&data);
            }
            3..6 => {
                let mut data = vec![0xee; n as usize];
                client.read(region + at, &mut data).unwrap();
                assert!(
                    data == model[place],
                    "region {region} step {step}: {at}+{n}"
                );
            }
            6 => {
                client.zero(region + at, n, CommandFlags::NONE).unwrap();
                model[place].fill(0);
            }
            _ => client.flush().unwrap(),
        }
    }
    let mut all = vec![0; len as usize];
    client.read(region, &mut all).unwrap();
    assert!(all == model, "region {region} differs at the end");
    client.close().unwrap();
}

/// Send a storm of requests without reading a reply, end in the middle of a payload, and vanish.
fn vanish(path: &Path, seed: u64) {
    let uri: Uri = format!("nbd+unix:///v?socket={}", path.display())
        .parse()
        .unwrap();
    let (_, socket) = nbd::client::dial(&uri, &[], PATIENCE).unwrap();
    let mut stream = UnixStream::from(socket);
    let mut random = Random(seed);
    for cookie in 0..100 {
        let (command, len) = match random.below(3) {
            0 => (Command::Write, 40_000),
            1 => (Command::Flush, 0),
            _ => (Command::Read, 200_000),
        };
        let header = RequestHeader {
            flags: CommandFlags::NONE,
            command,
            cookie: Cookie(cookie),
            offset: if len == 0 {
                0
            } else {
                SIZE / 2 + random.below(SIZE / 4)
            },
            len,
        };
        let payload = if command == Command::Write {
            len as usize
        } else {
            0
        };
        stream
            .set_write_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let sent = stream
            .write_all(&header.encode())
            .and_then(|()| stream.write_all(&vec![7; payload.min(20_000 + cookie as usize)]));
        if sent.is_err() || payload > 0 && random.below(3) == 0 {
            return;
        }
        if payload > 0
            && stream
                .write_all(&vec![7; payload - payload.min(20_000 + cookie as usize)])
                .is_err()
        {
            return;
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn clients_that_vanish_in_a_storm_disturb_nobody() {
    for cache in [CacheMode::Direct, CacheMode::Writeback] {
        let dir = directory();
        let runtime = runtime();
        let engine = Engine::start(1, false).unwrap();
        let image = open(&dir.path().join("image"), cache, true);
        let socket = dir.path().join("s");
        let volume = runtime.block_on(ephemeral(&engine, image));
        let (task, uri) = runtime.block_on(async { listen(&socket, volume.clone()) });
        std::thread::scope(|s| {
            for i in 0..4 {
                let uri = &uri;
                s.spawn(move || work(uri, i * SIZE / 8, SIZE / 8, 60));
            }
            for i in 0..8 {
                let socket = &socket;
                s.spawn(move || vanish(socket, 77 + i));
            }
        });
        task.abort();
        runtime.block_on(volume.remove()).unwrap();
        engine.stop().unwrap();
    }
}

/// Two regions whose border is inside a sector: their writers share units that O_DIRECT writes
/// whole. Neither may undo the other's bytes.
#[test]
fn neighbours_inside_one_sector_lose_nothing() {
    let dir = directory();
    let runtime = runtime();
    let engine = Engine::start(1, false).unwrap();
    let image = open(&dir.path().join("image"), CacheMode::Direct, true);
    let volume = runtime.block_on(ephemeral(&engine, image));
    let (task, uri) = runtime.block_on(async { listen(&dir.path().join("s"), volume.clone()) });
    std::thread::scope(|s| {
        for i in 0..8 {
            let uri = &uri;
            s.spawn(move || work(uri, 100 + i * 300, 300, 200));
        }
    });
    task.abort();
    runtime.block_on(volume.remove()).unwrap();
    engine.stop().unwrap();
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
    runtime.block_on(forwarding.forward(owner)).unwrap();
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

/// While a replica mirrors, every write, zeroing and flush goes to it in the gate's order, and what
/// it was sent, applied in that order, is the image. When the mirror's mover dies, the guest's
/// requests that waited for it are answered all the same.
#[test]
fn a_mirror_gets_what_the_image_gets_and_its_death_holds_nobody() {
    let dir = directory();
    let runtime = runtime();
    let engine = Engine::start(1, false).unwrap();
    let owner = Role::Owner {
        generation: Generation(1),
        since: Epoch(0),
    };
    let volume = runtime.block_on(with_meta(&engine, dir.path(), owner));
    let replica = CursorName::Replica("n2".parse().unwrap());
    let mirror_on = async || volume.mirror_on(replica.clone()).await.unwrap();
    let (snapshot, mut mirror) = runtime.block_on(async {
        volume.opened().await.unwrap();
        let name = replica.clone();
        let added = volume.control(move |v, _| v.add_cursor(name, Start::Now));
        added.await.unwrap();
        let name = replica.clone();
        volume.control(move |v, _| v.seeded(&name)).await.unwrap();
        mirror_on().await
    });
    let receipts = mirror.receipts();
    let first = snapshot.epoch();
    let mover = runtime.spawn(async move {
        let mut copy = vec![0; SIZE as usize];
        let mut flushes = 0;
        while let Some(item) = mirror.next().await {
            assert_eq!(item.epoch, first.next());
            match item.op {
                MirrorOp::Write(span, content) => {
                    copy[span.offset as usize..span.end() as usize].copy_from_slice(&content);
                }
                MirrorOp::Zero(span) => copy[span.offset as usize..span.end() as usize].fill(0),
                MirrorOp::Flush => flushes += 1,
            }
            receipts.mirrored(item.id, Ok(()));
        }
        assert!(flushes > 0, "no flush came");
        copy
    });
    let (task, uri) = runtime.block_on(async { listen(&dir.path().join("s"), volume.clone()) });
    let clients = || -> Vec<_> {
        let spawn = |i| {
            let uri = uri.clone();
            std::thread::spawn(move || work(&uri, i * SIZE / 8, SIZE / 8, 60))
        };
        (0..4).map(spawn).collect()
    };
    for client in clients() {
        client.join().unwrap();
    }
    let off = || {
        runtime
            .block_on(volume.call(|v, now| v.mirror_off(now)))
            .unwrap()
    };
    off();
    let copy = runtime.block_on(mover).unwrap();
    let image = std::fs::read(dir.path().join("old")).unwrap();
    assert!(image == copy, "the mirror differs from the image");

    let name = replica.clone();
    let abandon = volume.call(move |v, _| v.abandon(&name, first));
    runtime.block_on(abandon).unwrap();
    let (_, deaf) = runtime.block_on(mirror_on());
    let stuck = clients();
    std::thread::sleep(Duration::from_millis(100));
    assert!(
        stuck.iter().all(|c| !c.is_finished()),
        "a write did not wait for its mirror"
    );
    drop(deaf);
    off();
    for client in stuck {
        client.join().unwrap();
    }
    task.abort();
    runtime.block_on(volume.remove()).unwrap();
    engine.stop().unwrap();
}
