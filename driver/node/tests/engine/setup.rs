//! Engines, volumes and clients for the tests.

use block::{Error, VolumeId};
use nbd::accept::{HANDSHAKE_DEADLINE, accept};
use nbd::client::{Client, Uri};
use nbd::codec::CommandFlags;
use nbd::{Arrival, Export, Exports};
use node::engine::{Engine, VOLUME_REQUESTS_MAX, VolumeHandle, VolumeSpec};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use storage::meta::{MetaFile, SLOT_BYTES};
use storage::{CacheMode, ImageFile, OpenOptions};
use volume::{Config, Identity, Role, Volume, meta_bytes};

pub(crate) const SIZE: u64 = 8 << 20;
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// One volume, offered as a node does it; counts the links that came before their owner.
#[derive(Clone)]
pub(crate) struct Offer(VolumeHandle, Arc<AtomicUsize>);

impl Exports for Offer {
    fn names(&self) -> Vec<String> {
        vec!["v".to_owned()]
    }
    fn find(&self, name: &str) -> Option<Export> {
        let export = Export::new("v", SIZE);
        match name.split_once('@') {
            Some((_, suffix)) => self.0.find(&export, suffix),
            None => Some(export),
        }
    }
    fn arrival(&self, name: &str) -> Option<Arrival> {
        self.1.fetch_add(1, Ordering::AcqRel);
        self.0.arrival(name.split_once('@')?.1)
    }
}

pub(crate) fn open(path: &Path, cache: CacheMode, create: bool) -> ImageFile {
    let options = OpenOptions {
        cache,
        read_only: false,
        create: create.then_some(SIZE),
    };
    ImageFile::open(path, &options).unwrap()
}

pub(crate) fn config(image: &ImageFile) -> Config {
    Config {
        size: SIZE,
        max_requests: VOLUME_REQUESTS_MAX,
        align: u64::from(image.unit()),
        read_only: false,
    }
}

pub(crate) async fn ephemeral(engine: &Engine, image: ImageFile) -> VolumeHandle {
    let spec = VolumeSpec {
        volume: Volume::ephemeral(config(&image)),
        image,
        meta: None,
    };
    engine.add_volume(spec).await.unwrap()
}

/// A volume with metadata and the image `old`.
pub(crate) async fn with_meta(engine: &Engine, dir: &Path, role: Role) -> VolumeHandle {
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
pub(crate) fn listen(path: &Path, volume: VolumeHandle) -> (tokio::task::JoinHandle<()>, Uri) {
    let (task, uri, _) = listen_counted(path, volume);
    (task, uri)
}

/// As [`listen`]; also how often it was asked when the volume arrives.
pub(crate) fn listen_counted(
    path: &Path,
    volume: VolumeHandle,
) -> (tokio::task::JoinHandle<()>, Uri, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let offer = Offer(volume, Arc::clone(&asked));
    let _ = std::fs::remove_file(path);
    let listener = tokio::net::UnixListener::bind(path).unwrap();
    let uri = format!("nbd+unix:///v?socket={}", path.display());
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let offer = offer.clone();
            tokio::spawn(async move {
                let accepted = accept(stream, &offer, HANDSHAKE_DEADLINE).await?;
                offer.0.connect(accepted, Box::new(()))?;
                Ok::<_, Error>(())
            });
        }
    });
    (task, uri.parse().unwrap(), asked)
}

/// A small generator whose seed is in the name of the region it works on.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Random reads, writes, zeroes and flushes inside one region, checked against a model.
pub(crate) fn work(uri: &Uri, region: u64, len: u64, steps: u32) {
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

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
}

pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}
