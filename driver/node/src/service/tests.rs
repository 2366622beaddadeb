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
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status};

#[derive(Default)]
struct Scribe {
    asked: Mutex<Vec<String>>,
    cutover_ended: Arc<Notify>,
    changed: Arc<Notify>,
    left: Arc<AtomicBool>,
    deletes: Notify,
    deleted: Notify,
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
    async fn create(&self, _: Option<Turn>, new: NewVolume) -> Result<VolumeReport> {
        self.write(format!("{new:?}"));
        Ok(VolumeReport {
            name: new.name.to_string(),
            ..Default::default()
        })
    }
    async fn delete(&self, turn: Option<Turn>, _: VolumeName, _: VolumeId) -> Result<bool> {
        self.write(format!("delete {turn:?}"));
        self.deletes.notified().await;
        self.write("deleted".into());
        self.deleted.notify_one();
        Ok(false)
    }
    async fn resize(
        &self,
        _: Option<Turn>,
        name: VolumeName,
        _: VolumeId,
        _: u64,
    ) -> Result<VolumeReport> {
        Err(Error::new(
            ErrorKind::NoSpace,
            format!("resize {name}: the disk is full"),
        ))
    }
    async fn start_replica(&self, _: Option<Turn>, new: NewReplica) -> Result<()> {
        self.write(format!("{new:?}"));
        Ok(())
    }
    async fn stop_replica(&self, _: Option<Turn>, _: VolumeName, _: NodeName) -> Result<bool> {
        Ok(true)
    }
    async fn cutover(
        &self,
        _: Option<Turn>,
        _: Handover,
        progress: mpsc::Sender<CutoverProgress>,
    ) -> Result<()> {
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
    async fn take_over(&self, turn: Option<Turn>, taken: TakeOver) -> Result<VolumeReport> {
        self.write(format!("{taken:?} {turn:?}"));
        Ok(VolumeReport::default())
    }
    async fn depose(&self, _: Option<Turn>, deposed: TakeOver) -> Result<()> {
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

/// A controller was killed while it had a volume deleted. Its connection ended, and with that the call, where
/// it stood: the volume was no longer known and its image was still there, so that the next controller was told
/// that nothing was left to delete.
#[tokio::test]
async fn a_change_ends_although_its_caller_has_left() {
    let ops = Arc::new(Scribe::default());
    let mut client = node(ops.clone()).await;
    let mut request = Request::new(v1::DeleteVolumeRequest {
        name: "v".into(),
        id: VolumeId([9; 16]).to_string(),
        ..Default::default()
    });
    request.metadata_mut().insert(TURN, "3/17".parse().unwrap());
    let call = tokio::spawn(async move { client.delete_volume(request).await });
    while ops.asked.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let turn = Some(Turn {
        life: 3,
        number: 17,
    });
    assert_eq!(*ops.asked.lock().unwrap(), [format!("delete {turn:?}")]);
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    // Time for the server to hear of it; the test holds whether it has or not.
    tokio::time::sleep(Duration::from_millis(50)).await;
    ops.deletes.notify_one();
    tokio::time::timeout(Duration::from_secs(10), ops.deleted.notified())
        .await
        .expect("it was cut short");
}

/// A controller that forgot the node (its store was lost) and went away in between.
#[derive(Default)]
struct Forgetful {
    /// Milliseconds from one heartbeat to the next; zero is a hundred.
    every: u64,
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
        let heartbeat_ms = if self.every > 0 { self.every } else { 100 };
        Ok(Response::new(v1::RegisterResponse { heartbeat_ms }))
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

impl Forgetful {
    async fn serve(every: u64, ops: Arc<Scribe>) -> (Arc<Forgetful>, JoinHandle<()>) {
        let (incoming, address) = listener().await;
        let registry = Arc::new(Forgetful {
            every,
            ..Forgetful::default()
        });
        let me = v1::RegisterRequest {
            name: "n1".into(),
            ..Default::default()
        };
        let node = tokio::spawn(keep_registered(address.to_string(), me, ops));
        let service = RegistryServer::from_arc(registry.clone());
        tokio::spawn(
            Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        (registry, node)
    }

    /// Wait until a node has registered and sent heartbeats so many times.
    async fn heard(&self, registered: usize, beats: usize) {
        let heard = async {
            while self.registered.load(Ordering::SeqCst) < registered
                || self.beats.load(Ordering::SeqCst) < beats
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let heard = tokio::time::timeout(Duration::from_secs(20), heard);
        heard.await.expect("no heartbeat");
    }
}

#[tokio::test]
async fn a_node_that_the_controller_forgot_registers_again() {
    let (registry, node) = Forgetful::serve(0, Arc::default()).await;
    registry.heard(2, 3).await;
    node.abort();
}

/// A replica was ready, and for the rest of a second nobody knew: a cutover that was asked for then was refused.
#[tokio::test]
async fn what_has_changed_is_told_before_the_next_heartbeat_is_due() {
    let ops = Arc::new(Scribe::default());
    let (registry, node) = Forgetful::serve(3_600_000, ops.clone()).await;
    registry.heard(1, 1).await;
    ops.changed.notify_one();
    registry.heard(1, 2).await;
    node.abort();
}
