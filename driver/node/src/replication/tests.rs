//! Two engines in one process, replication between them over loopback, and a guest that writes.

use super::{News, Receiving, ReplicaSpec, Sending, StandbySpec};
use crate::engine::{Engine, VOLUME_REQUESTS_MAX, VolumeHandle, VolumeSpec};
use block::{Epoch, Generation, NodeName, VolumeId};
use replica::cutover::Plan;
use replica::{State, Tuning};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, mpsc};
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

#[test]
fn a_volume_is_seeded_followed_and_handed_over_between_two_nodes() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (source_engine, target_engine) = (
            Engine::start(1, false).unwrap(),
            Engine::start(1, false).unwrap(),
        );
        let owner = Role::Owner {
            generation: Generation(1),
            since: Epoch(0),
        };
        let (source, image) = volume(a.path(), &source_engine, owner).await;
        source.opened().await.unwrap();
        let content = fill(a.path());
        let (target, copy) = volume(b.path(), &target_engine, Role::Standby).await;

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let receiving = Receiving::start(listener).unwrap();
        let standby = StandbySpec {
            id: ID,
            image: copy,
            directory: b.path().to_owned(),
            handle: target.clone(),
            adopt: None,
        };
        receiving.add(standby).await.unwrap();

        let sending = Sending::start().unwrap();
        let (tell, told) = mpsc::channel();
        let redirected = Arc::new(std::sync::Mutex::new(None));
        let seen = redirected.clone();
        let node: NodeName = "b".parse().unwrap();
        let spec = ReplicaSpec {
            id: ID,
            handle: source.clone(),
            image,
            replica: node.clone(),
            address: receiving.address(),
            interval: Duration::from_millis(50),
            tuning: Tuning::default(),
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
        let replica = sending.add(spec).await.unwrap();
        let told = tokio::task::spawn_blocking(move || {
            let (mut seeded, mut commits) = (None, 0);
            while commits < 3 {
                match told.recv_timeout(Duration::from_secs(30)).unwrap() {
                    News::Seeded(s) => seeded = Some(s),
                    News::Committed(_) => commits += 1,
                    News::Failed(e) => panic!("{e}"),
                    News::Event(_) => {}
                }
            }
            seeded.unwrap()
        });
        let seeded = told.await.unwrap();
        assert!(
            seeded.sent > SIZE / 3 && seeded.sent < SIZE / 2,
            "{seeded:?}"
        );

        let plan = Plan {
            to: node.clone(),
            next: Generation(2),
            freeze_budget: Duration::from_secs(1),
        };
        let report = replica.cut_over(plan, Box::new(|_| {})).await.unwrap();
        assert_eq!(report.generation, Generation(2));
        assert_eq!(*redirected.lock().unwrap(), Some((node, Generation(2))));
        let role = target.call(|v, _| v.role()).await.unwrap();
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
        let role = source.call(|v, _| v.role()).await.unwrap();
        assert!(matches!(role, Role::Relinquished { .. }), "{role:?}");
        let record = receiving.record(ID).await.unwrap().unwrap();
        assert!(matches!(record.state, State::HandedOver { .. }));
        assert_eq!(std::fs::read(b.path().join("image")).unwrap(), content);

        drop(replica);
        sending.stop().await;
        receiving.stop().await;
        source_engine.stop().unwrap();
        target_engine.stop().unwrap();
    });
}
