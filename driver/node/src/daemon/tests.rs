//! A node as a process would run it, without the process.

use super::*;
use crate::client::{Client, Uri};
use block::VolumeId;
use proto::v1::node_client::NodeClient;
use proto::v1::{self, CreateVolumeRequest, VolumeReport, VolumeRole};
use std::path::Path;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::Channel;

const SIZE: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

struct Node {
    at: SocketAddr,
    client: NodeClient<Channel>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<()>>,
}

fn config(dir: &Path) -> Config {
    Config {
        name: "n1".parse().unwrap(),
        site: "here".into(),
        data: dir.to_owned(),
        controller: None,
        token: String::new(),
        advertise: None,
        listen: "127.0.0.1:0".parse().unwrap(),
        replication: "127.0.0.1:0".parse().unwrap(),
        nbd: "127.0.0.1:0".parse().unwrap(),
        shards: 1,
        pin: false,
        allow_plaintext: false,
        adopt_images: Vec::new(),
    }
}

impl Node {
    async fn start(dir: &Path) -> Node {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let config = config(dir);
        let task = tokio::spawn(async move {
            let stop = async {
                let _ = stopped.await;
            };
            run(config, stop, |at| ready.send(at.listening).unwrap()).await
        });
        let listening = is_ready.await.expect("the node did not start");
        let client = NodeClient::connect(format!("http://{listening}"))
            .await
            .unwrap();
        Node {
            at: listening,
            client,
            stop,
            task,
        }
    }

    async fn stop(self) {
        drop(self.client);
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }

    async fn create(&mut self, name: &str, id: u8, image: &Path) -> tonic::Result<VolumeReport> {
        let adopts = !image.as_os_str().is_empty();
        let request = CreateVolumeRequest {
            operation_id: "op".into(),
            name: name.into(),
            id: VolumeId([id; 16]).to_string(),
            size_bytes: if adopts { 0 } else { SIZE },
            image_path: image.to_str().unwrap().into(),
            role: VolumeRole::Owner.into(),
        };
        Ok(self.client.create_volume(request).await?.into_inner())
    }

    async fn report(&mut self) -> Vec<VolumeReport> {
        self.client
            .status(v1::StatusRequest {})
            .await
            .unwrap()
            .into_inner()
            .volumes
    }
}

async fn write(report: &VolumeReport, at: u64, byte: u8) {
    let uri: Uri = report.uris[0].parse().unwrap();
    tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(&uri, &[], PATIENCE).unwrap();
        client.write(at, &[byte; 4096], true).unwrap();
        client.close().unwrap();
    })
    .await
    .unwrap();
}

async fn read(uri: &str, at: u64) -> u8 {
    let uri: Uri = uri.parse().unwrap();
    tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(&uri, &[], PATIENCE).unwrap();
        let mut data = [0; 4096];
        client.read(at, &mut data).unwrap();
        assert!(data.iter().all(|b| *b == data[0]));
        data[0]
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_volume_is_served_on_both_fronts_and_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path()).await;
    let made = node.create("v", 1, Path::new("")).await.unwrap();
    assert_eq!(
        (made.role(), made.generation, made.size_bytes),
        (VolumeRole::Owner, 1, SIZE)
    );
    write(&made, 4096, 7).await;
    for uri in &made.uris {
        assert_eq!(read(uri, 4096).await, 7, "{uri}");
    }
    let again = node.create("v", 1, Path::new("")).await.unwrap();
    assert_eq!(
        again.id, made.id,
        "a repetition answers as the first call did"
    );
    let other = node.create("v", 2, Path::new("")).await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists);
    node.stop().await;

    let mut node = Node::start(dir.path()).await;
    let reports = node.report().await;
    assert_eq!(
        (reports[0].id.as_str(), reports[0].generation),
        (made.id.as_str(), 1)
    );
    assert_eq!(read(&reports[0].uris[0], 4096).await, 7);
    node.stop().await;
}

#[tokio::test]
async fn an_adopted_image_stays_when_its_volume_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("mine.raw");
    std::fs::write(&image, vec![9; SIZE as usize]).unwrap();
    let mut node = Node::start(&dir.path().join("data")).await;
    let made = node.create("v", 1, &image).await.unwrap();
    assert_eq!(made.size_bytes, SIZE);
    assert_eq!(read(&made.uris[0], 0).await, 9);
    let delete = |id| v1::DeleteVolumeRequest {
        operation_id: "op".into(),
        name: "v".into(),
        id: VolumeId([id; 16]).to_string(),
    };
    let other = node
        .client
        .delete_volume(delete(2))
        .await
        .unwrap()
        .into_inner();
    assert!(
        !other.existed,
        "a volume of another identity is not the one that was meant"
    );
    for existed in [true, false] {
        let answer = node
            .client
            .delete_volume(delete(1))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(answer.existed, existed);
    }
    assert_eq!(node.report().await, []);
    node.stop().await;
    assert_eq!(std::fs::metadata(&image).unwrap().len(), SIZE);
}

#[tokio::test]
async fn a_broken_volume_is_named_and_the_others_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path()).await;
    for (name, id) in [("bad", 1), ("good", 2)] {
        node.create(name, id, Path::new("")).await.unwrap();
    }
    node.stop().await;
    let image = dir.path().join("volumes/bad/image");
    std::fs::File::options()
        .write(true)
        .open(image)
        .unwrap()
        .set_len(SIZE / 2)
        .unwrap();
    std::fs::create_dir(dir.path().join("volumes/.making-half")).unwrap();

    let mut node = Node::start(dir.path()).await;
    let reports = node.report().await;
    assert_eq!(reports.len(), 2);
    assert_eq!(reports[0].role(), VolumeRole::Failed);
    assert!(
        reports[0].trouble.contains("put the right image back"),
        "{}",
        reports[0].trouble
    );
    assert_eq!(reports[1].role(), VolumeRole::Owner);
    assert_eq!(read(&reports[1].uris[0], 0).await, 0);
    assert!(
        !dir.path().join("volumes/.making-half").exists(),
        "what a crash left is swept"
    );
    node.stop().await;
}

#[tokio::test]
async fn what_cannot_be_made_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path()).await;
    let e = node
        .create("v", 1, Path::new("/no/such/image"))
        .await
        .unwrap_err();
    assert_eq!(e.code(), Code::NotFound);
    assert!(e.message().contains("/no/such/image"), "{}", e.message());
    assert_eq!(node.report().await, []);
    assert_eq!(
        std::fs::read_dir(dir.path().join("volumes"))
            .unwrap()
            .count(),
        0
    );
    node.stop().await;
}

#[tokio::test]
async fn a_second_node_on_the_same_directory_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path()).await;
    let second = run(config(dir.path()), std::future::pending(), |_| {}).await;
    let e = second.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy);
    assert!(e.to_string().contains("with pid"), "{e}");
    node.stop().await;
}

/// A node was killed and started again 200 ms later, and refused to start: the replication port was
/// still held by an accept that the kernel had not yet taken from the dead process's ring.
#[tokio::test]
async fn a_port_that_a_killed_node_still_holds_is_waited_for() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(held);
    });
    let (listener, at) = bind("replication", address).await.unwrap();
    assert_eq!(at, address);
    // One that is held for good is still refused, and named.
    let e = bind("replication", address).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy);
    assert!(e.to_string().contains(&address.to_string()), "{e}");
    drop(listener);
}

/// A caller that had stopped reading kept its connection open, and with it a node that was told to stop:
/// the calls were waited for, for ever, and the supervisor's SIGKILL was the end of it.
#[tokio::test]
async fn a_caller_that_reads_nothing_does_not_keep_a_node_from_stopping() {
    use tokio::io::AsyncWriteExt;
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path()).await;
    let mut caller = tokio::net::TcpStream::connect(node.at).await.unwrap();
    // The beginning of HTTP/2, and empty settings.
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    caller.write_all(hello).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let stopped = tokio::time::timeout(PATIENCE, node.stop()).await;
    stopped.expect("the node does not stop");
}
