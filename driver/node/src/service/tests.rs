//! The service over a real connection, in front of a node that writes down what it was asked.

use super::*;
use block::{Error, ErrorKind, NodeName, Result, VolumeId, VolumeName};
use proto::v1::node_client::NodeClient;
use proto::v1::node_server::NodeServer;
use proto::v1::registry_server::{Registry, RegistryServer};
use proto::v1::{self, CutoverPhase, CutoverProgress, NodeMetrics, VolumeReport, VolumeRole};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status};

#[derive(Default)]
struct Scribe {
    asked: Mutex<Vec<String>>,
    cutover_ended: Arc<Notify>,
    changed: Arc<Notify>,
    left: Arc<AtomicBool>,
}

impl Scribe {
    fn write(&self, line: String) {
        self.asked.lock().unwrap().push(line);
    }
}

impl NodeOps for Scribe {
    async fn report(&self) -> Vec<VolumeReport> {
        vec![VolumeReport {
            name: "v".into(),
            ..Default::default()
        }]
    }
    async fn changed(&self) {
        self.changed.notified().await;
    }
    fn metrics(&self) -> NodeMetrics {
        NodeMetrics::default()
    }
    fn trails(&self) -> Vec<v1::WriteTrail> {
        Vec::new()
    }
    async fn create(&self, new: NewVolume) -> Result<VolumeReport> {
        self.write(format!("{new:?}"));
        Ok(VolumeReport {
            name: new.name.to_string(),
            ..Default::default()
        })
    }
    async fn delete(&self, _: VolumeName, _: VolumeId) -> Result<bool> {
        Ok(false)
    }
    async fn resize(&self, name: VolumeName, _: VolumeId, _: u64) -> Result<VolumeReport> {
        Err(Error::new(
            ErrorKind::NoSpace,
            format!("resize {name}: the disk is full"),
        ))
    }
    async fn start_replica(&self, new: NewReplica) -> Result<()> {
        self.write(format!("{new:?}"));
        Ok(())
    }
    async fn stop_replica(&self, _: VolumeName, _: NodeName) -> Result<bool> {
        Ok(true)
    }
    async fn cutover(&self, _: Handover, progress: mpsc::Sender<CutoverProgress>) -> Result<()> {
        let phase = |p: CutoverPhase| CutoverProgress {
            phase: p.into(),
            ..Default::default()
        };
        let _ = progress.send(phase(CutoverPhase::Converge)).await;
        while !self.left.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let _ = progress.send(phase(CutoverPhase::Done)).await;
        self.cutover_ended.notify_one();
        Ok(())
    }
    async fn take_over(&self, taken: TakeOver) -> Result<VolumeReport> {
        self.write(format!("{taken:?}"));
        Ok(VolumeReport::default())
    }
    async fn depose(&self, deposed: TakeOver) -> Result<()> {
        self.write(format!("depose {deposed:?}"));
        Ok(())
    }
}

async fn listener() -> (TcpListenerStream, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (TcpListenerStream::new(listener), address)
}

async fn node(ops: Arc<Scribe>) -> NodeClient<Channel> {
    let (incoming, address) = listener().await;
    let service = NodeServer::new(Service::new("n1".parse().unwrap(), ops));
    tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    NodeClient::connect(format!("http://{address}"))
        .await
        .unwrap()
}

fn create(name: &str) -> v1::CreateVolumeRequest {
    v1::CreateVolumeRequest {
        operation_id: "op".into(),
        name: name.into(),
        id: VolumeId([9; 16]).to_string(),
        size_bytes: 4096,
        image_path: String::new(),
        role: VolumeRole::Standby.into(),
    }
}

#[tokio::test]
async fn what_is_not_valid_never_reaches_the_node() {
    let ops = Arc::new(Scribe::default());
    let mut client = node(ops.clone()).await;
    let e = client.create_volume(create("../../etc")).await.unwrap_err();
    assert_eq!(e.code(), Code::InvalidArgument);
    assert!(e.message().contains("../../etc"), "{e}");
    let mut roleless = create("v");
    roleless.role = 0;
    assert_eq!(
        client.create_volume(roleless).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let replica = v1::StartReplicaRequest {
        volume: "v".into(),
        node: "n2".into(),
        address: "nowhere".into(),
        consistency: Some(v1::Consistency {
            level: 3,
            bound_ms: 0,
        }),
        ..Default::default()
    };
    assert_eq!(
        client.start_replica(replica).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(*ops.asked.lock().unwrap(), Vec::<String>::new());
    client.create_volume(create("v")).await.unwrap();
    let asked = ops.asked.lock().unwrap().join("");
    assert!(
        asked.contains("size_bytes: Some(4096), image: None, standby: true"),
        "{asked}"
    );
}

#[tokio::test]
async fn a_refusal_keeps_its_kind_and_its_words() {
    let mut client = node(Arc::default()).await;
    let request = v1::ResizeVolumeRequest {
        name: "v".into(),
        id: VolumeId([1; 16]).to_string(),
        size_bytes: 1,
        ..Default::default()
    };
    let e = to_error("node n1", &client.resize_volume(request).await.unwrap_err());
    assert_eq!(e.kind(), ErrorKind::NoSpace);
    assert_eq!(e.to_string(), "node n1: resize v: the disk is full");
}

/// A controller that is killed while a cutover runs must not stop it: past the relinquish record the
/// only way is forward.
#[tokio::test]
async fn a_cutover_ends_although_nobody_listens_any_more() {
    let ops = Arc::new(Scribe::default());
    let mut client = node(ops.clone()).await;
    let request = v1::CutoverRequest {
        operation_id: "op".into(),
        volume: "v".into(),
        to: "n2".into(),
        replication_address: "127.0.0.1:1".into(),
        nbd_address: "127.0.0.1:2".into(),
    };
    let mut stream = client.cutover(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(first.phase(), CutoverPhase::Converge);
    drop(stream);
    drop(client);
    ops.left.store(true, Ordering::SeqCst);
    let ended = ops.cutover_ended.notified();
    tokio::time::timeout(Duration::from_secs(10), ended)
        .await
        .expect("it was cut short");
}

/// A controller that forgot the node (its store was lost) and went away in between.
#[derive(Default)]
struct Forgetful {
    registered: AtomicUsize,
    beats: AtomicUsize,
}

#[tonic::async_trait]
impl Registry for Forgetful {
    async fn register(
        &self,
        _: Request<v1::RegisterRequest>,
    ) -> std::result::Result<Response<v1::RegisterResponse>, Status> {
        self.registered.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(v1::RegisterResponse { heartbeat_ms: 100 }))
    }
    async fn heartbeat(
        &self,
        r: Request<v1::HeartbeatRequest>,
    ) -> std::result::Result<Response<v1::HeartbeatResponse>, Status> {
        assert_eq!(r.into_inner().volumes.len(), 1);
        let beats = self.beats.fetch_add(1, Ordering::SeqCst) + 1;
        Ok(Response::new(v1::HeartbeatResponse {
            register: beats == 2,
            ..Default::default()
        }))
    }
}

#[tokio::test]
async fn a_node_that_the_controller_forgot_registers_again() {
    let (incoming, address) = listener().await;
    let registry = Arc::new(Forgetful::default());
    let me = v1::RegisterRequest {
        name: "n1".into(),
        ..Default::default()
    };
    let node = tokio::spawn(keep_registered(
        address.to_string(),
        me,
        Arc::new(Scribe::default()),
    ));
    let service = RegistryServer::from_arc(registry.clone());
    tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    let again = async {
        while registry.registered.load(Ordering::SeqCst) < 2
            || registry.beats.load(Ordering::SeqCst) < 3
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again)
        .await
        .unwrap();
    node.abort();
}
