//! Two engines in one process, replication between them over loopback, and a guest that writes.

use super::source::{Redirect, ShardSource};
use super::{News, Receiving, ReplicaHandle, ReplicaSpec, Sending, StandbySpec, Succession};
use crate::engine::{Engine, VOLUME_REQUESTS_MAX, VolumeHandle, VolumeSpec};
use block::{Epoch, Generation, NodeName, VolumeId};
use replica::cutover::Plan;
use replica::{Order, Seeding, Source, State, Tuning};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use storage::meta::{MetaFile, SLOT_BYTES};
use storage::{ImageFile, OpenOptions};
use tokio::sync::oneshot;
use volume::{Config, Identity, Role, Volume, meta_bytes};

const SIZE: u64 = 24 << 20;
const ID: VolumeId = VolumeId([5; 16]);

/// A volume in `dir`, on an engine of its own.
async fn volume(dir: &Path, engine: &Engine, role: Role) -> (VolumeHandle, ImageFile) {
    let options = OpenOptions {
        create: Some(SIZE),
        ..OpenOptions::default()
    };
    let image = ImageFile::open(&dir.join("image"), &options).unwrap();
    let config = Config {
        size: SIZE,
        max_requests: VOLUME_REQUESTS_MAX,
        align: u64::from(image.unit()),
        read_only: false,
    };
    let identity = Identity {
        id: ID,
        name: "v".parse().unwrap(),
        image: "image".into(),
    };
    let slots = meta_bytes(SIZE) / SLOT_BYTES as u64;
    let meta = MetaFile::open(&dir.join("meta"), slots as usize).unwrap();
    let shared = image.share().unwrap();
    let spec = VolumeSpec {
        volume: Volume::create(config, identity, role).unwrap(),
        image,
        meta: Some(meta),
    };
    (engine.add_volume(spec).await.unwrap(), shared)
}

fn fill(dir: &Path) -> Vec<u8> {
    let mut x = 1u64;
    let mut content = vec![0; SIZE as usize];
    for (i, b) in content.iter_mut().enumerate() {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        // A third noise, a third the same byte, a third a hole.
        *b = match i / (1 << 20) % 3 {
            0 => x as u8,
            1 => 7,
            _ => 0,
        };
    }
    let file = std::fs::File::options()
        .write(true)
        .open(dir.join("image"))
        .unwrap();
    for (i, part) in content.chunks(1 << 20).enumerate() {
        if i % 3 != 2 {
            file.write_all_at(part, (i as u64) << 20).unwrap();
        }
    }
    file.sync_all().unwrap();
    content
}

/// Has nothing to hand down, and tells no guest.
struct Nobody;

impl Succession for Nobody {
    fn taking(&self) {}
    fn taken(&self) {}
}

/// Two nodes with a volume between them.
struct Pair {
    dirs: (tempfile::TempDir, tempfile::TempDir),
    engines: (Engine, Engine),
    source: VolumeHandle,
    image: ImageFile,
    target: VolumeHandle,
    receiving: Receiving,
    sending: Sending,
    redirected: Arc<Mutex<Option<(NodeName, Generation)>>>,
    content: Vec<u8>,
}

impl Pair {
    async fn new() -> Pair {
        let dirs = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let engines = (
            Engine::start(1, false).unwrap(),
            Engine::start(1, false).unwrap(),
        );
        let owner = Role::Owner {
            generation: Generation(1),
            since: Epoch(0),
        };
        let (source, image) = volume(dirs.0.path(), &engines.0, owner).await;
        source.opened().await.unwrap();
        let content = fill(dirs.0.path());
        let (target, copy) = volume(dirs.1.path(), &engines.1, Role::Standby).await;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let receiving = Receiving::start(listener).unwrap();
        let standby = StandbySpec {
            id: ID,
            image: copy,
            directory: dirs.1.path().to_owned(),
            handle: target.clone(),
            succession: Arc::new(Nobody),
        };
        receiving.add(standby).await.unwrap();
        receiving.listen().await.unwrap();
        Pair {
            dirs,
            engines,
            source,
            image,
            target,
            receiving,
            sending: Sending::start().unwrap(),
            redirected: Arc::default(),
            content,
        }
    }

    /// Keep the replica from now on.
    async fn replicate(&self) -> (ReplicaHandle, mpsc::Receiver<News>) {
        let (tell, told) = mpsc::channel();
        let seen = self.redirected.clone();
        let spec = ReplicaSpec {
            id: ID,
            handle: self.source.clone(),
            image: self.image.share().unwrap(),
            replica: plan().to,
            address: self.receiving.address(),
            interval: Duration::from_millis(50),
            tuning: Tuning::default(),
            order: Order::of_runs(0, 0, &[]),
            news: Arc::new(move |news| {
                let _ = tell.send(news.clone());
            }),
            redirect: Arc::new(move |to, generation| {
                *seen.lock().unwrap() = Some((to, generation));
                let (done, redirected) = oneshot::channel();
                let _ = done.send(Ok(()));
                redirected
            }),
        };
        (self.sending.add(spec).await.unwrap(), told)
    }

    async fn assert_moved(&self) {
        let moved = Some((plan().to, Generation(2)));
        assert_eq!(*self.redirected.lock().unwrap(), moved);
        let role = self.target.call(|v, _| v.role()).await.unwrap();
        assert!(
            matches!(
                role,
                Role::Owner {
                    generation: Generation(2),
                    ..
                }
            ),
            "{role:?}"
        );
        let role = self.source.call(|v, _| v.role()).await.unwrap();
        assert!(matches!(role, Role::Relinquished { .. }), "{role:?}");
        let record = self.receiving.record(ID).await.unwrap().unwrap();
        assert!(matches!(record.state, State::HandedOver { .. }));
        let copy = std::fs::read(self.dirs.1.path().join("image")).unwrap();
        assert!(copy == self.content, "the copies differ");
    }

    async fn stop(self) {
        self.sending.stop().await;
        self.receiving.stop().await;
        self.engines.0.stop().unwrap();
        self.engines.1.stop().unwrap();
    }
}

fn plan() -> Plan {
    Plan {
        to: "b".parse().unwrap(),
        next: Generation(2),
        freeze_budget: Duration::from_secs(1),
        last_increment: Duration::from_millis(5),
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

/// Wait until the replica was seeded and has had so many epochs.
async fn follow(told: mpsc::Receiver<News>, commits: usize) -> (Seeding, Epoch) {
    let wait = tokio::task::spawn_blocking(move || {
        let (mut seeded, mut epochs) = (None, Vec::new());
        while epochs.len() < commits {
            match told.recv_timeout(Duration::from_secs(30)).unwrap() {
                News::Seeded(s) => seeded = Some(s),
                News::Committed(i) => epochs.push(i.epoch),
                News::Failed(e) | News::Away(e) => panic!("{e}"),
                News::Event(_) => {}
            }
        }
        (seeded.unwrap(), epochs[commits - 1])
    });
    wait.await.unwrap()
}

#[test]
fn a_volume_is_seeded_followed_and_handed_over_between_two_nodes() {
    run(async {
        let pair = Pair::new().await;
        let (replica, told) = pair.replicate().await;
        let (seeded, _) = follow(told, 3).await;
        assert!(
            seeded.sent > SIZE / 3 && seeded.sent < SIZE / 2,
            "{seeded:?}"
        );
        let report = replica.cut_over(plan(), Box::new(|_| {})).await.unwrap();
        assert_eq!(report.generation, Generation(2));
        pair.assert_moved().await;
        drop(replica);
        pair.stop().await;
    });
}

/// The source dies after its record says that it has relinquished and before the target took over.
/// Its volume has by then "seen" the target's generation; a source that introduced itself with that
/// one made the target refuse it as its own, and nobody owned the volume for ever.
#[test]
fn a_source_that_restarts_after_relinquish_hands_the_volume_over() {
    run(async {
        let pair = Pair::new().await;
        let (replica, told) = pair.replicate().await;
        follow(told, 2).await;
        replica.stop().await.unwrap();
        pair.source.freeze().await.unwrap();
        let cursor = pair.source.call(|v, _| v.cursors()[0].epoch).await.unwrap();
        pair.source
            .control(move |v, _| v.relinquish(&plan().to, Generation(2), cursor))
            .await
            .unwrap();
        let (replica, _told) = pair.replicate().await;
        replica
            .roll_forward(plan(), cursor, Box::new(|_| {}))
            .await
            .unwrap();
        pair.assert_moved().await;
        drop(replica);
        pair.stop().await;
    });
}

/// The link was cut while the volume was told to track the copy that a former owner kept. The call was given
/// up, the volume tracked it all the same, and every later attempt ended with "it is tracked already": the copy
/// was not replicated to until the node was restarted.
#[test]
fn a_copy_that_was_begun_over_a_link_that_broke_goes_on_over_the_next() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::start(1, false).unwrap();
        let owner = Role::Owner {
            generation: Generation(1),
            since: Epoch(0),
        };
        let (volume, _image) = volume(dir.path(), &engine, owner).await;
        volume.opened().await.unwrap();
        let redirect: Redirect = Arc::new(|_, _| oneshot::channel().1);
        let name = "b".parse().unwrap();
        let source = ShardSource::new(volume.clone(), name, redirect).await;
        let source = source.unwrap();
        {
            // Polled once, and dropped: a timer of no time at all ends a millisecond later, or after the call.
            let mut broken = std::pin::pin!(source.resume_at(Epoch(0)));
            let mut once = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(
                broken.as_mut().poll(&mut once).is_pending(),
                "it was given up"
            );
        }
        while volume.call(|v, _| v.cursors().is_empty()).await.unwrap() {
            tokio::task::yield_now().await;
        }
        assert!(source.resume_at(Epoch(0)).await.unwrap());
        assert_eq!(source.cursor(), Some(Epoch(0)));
        drop((source, volume));
        engine.stop().unwrap();
    });
}
