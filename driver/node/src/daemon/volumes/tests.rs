//! Calls on a node's volumes, without the process around them.

use super::*;
use crate::daemon::peers::{Peers, ReplicaRecord};
use crate::service::{Consistency, NewReplica, NodeOps};
use std::path::Path;

const SIZE: u64 = 4 << 20;

async fn volumes(dir: &Path) -> Volumes {
    let peers = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let reach = Reach {
        socket: dir.join("nbd.sock"),
        tcp: "127.0.0.1:1".parse().unwrap(),
    };
    Volumes::open(
        DataDir::lock(dir).unwrap(),
        Engine::start(1, false).unwrap(),
        reach,
        (Sending::start().unwrap(), Receiving::start(peers).unwrap()),
        &[],
    )
    .await
    .unwrap()
}

fn id() -> VolumeId {
    VolumeId([7; 16])
}

fn v() -> VolumeName {
    "v".parse().unwrap()
}

async fn create(volumes: &Volumes) {
    let new = NewVolume {
        name: v(),
        id: id(),
        size_bytes: Some(SIZE),
        image: None,
        standby: false,
    };
    volumes.create(None, new).await.unwrap();
}

/// The last sync of a volume failed while it was closed to grow. It had been taken out of its place before
/// that, so the node reported no such volume, and would have made another one under its name, until it was
/// started again.
#[tokio::test]
async fn a_volume_that_cannot_be_closed_to_grow_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let node = volumes(dir.path()).await;
    create(&node).await;
    // What cannot be closed here is one that has left its shard.
    let hosted = node.hosted("test", &v(), None).unwrap();
    hosted.handle.clone().remove().await.unwrap();
    let e = node.resize(None, v(), id(), 2 * SIZE).await.unwrap_err();
    let said = node.report().await;
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].role(), VolumeRole::Failed);
    assert!(e.to_string().ends_with(&said[0].trouble), "{e}: {said:?}");
    let again = node.resize(None, v(), id(), 2 * SIZE).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Corrupt);
    drop((hosted, node));

    let node = volumes(dir.path()).await;
    assert_eq!(node.report().await[0].size_bytes, 2 * SIZE, "it goes on");
}

/// A killed controller had asked the owner to keep a replica again. That was still on its way when its
/// successor had the replica removed; it arrived then, and the owner kept a replica that nobody wanted.
#[tokio::test]
async fn a_command_of_a_dead_controller_is_refused_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let node = volumes(dir.path()).await;
    create(&node).await;
    let replica = || NewReplica {
        volume: v(),
        node: "n2".parse().unwrap(),
        address: "127.0.0.1:1".parse().unwrap(),
        consistency: Consistency::Eventual,
        rate_bytes_per_second: None,
        order: SeedOrder::default(),
    };
    let turn = |life, number| Some(Turn { life, number });
    let kept = async |node: &Volumes| node.report().await[0].replicas.len();
    node.start_replica(turn(3, 1), replica()).await.unwrap();
    assert_eq!(kept(&node).await, 1);
    let stop = node.stop_replica(turn(4, 1), v(), "n2".parse().unwrap());
    assert!(stop.await.unwrap());
    let late = node.start_replica(turn(3, 2), replica()).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(kept(&node).await, 0);
    node.close().await.unwrap();
    drop(node);

    let node = volumes(dir.path()).await;
    let late = node.start_replica(turn(3, 2), replica()).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(kept(&node).await, 0);
    node.start_replica(turn(4, 2), replica()).await.unwrap();
    assert_eq!(kept(&node).await, 1);
}

/// An owner was killed between giving its volume up and forgetting its replicas. When the volume comes back it
/// must not replicate to them again unasked.
#[test]
fn a_volume_that_comes_back_finds_no_replicas_of_its_former_ownership() {
    let dir = tempfile::tempdir().unwrap();
    let mut peers = Peers::default();
    peers.set(ReplicaRecord {
        node: "n2".to_owned(),
        address: "127.0.0.1:1".parse().unwrap(),
        interval_ms: 1000,
        rate_bytes_per_second: 0,
    });
    peers.save(dir.path()).unwrap();
    let heir = Heir {
        replicas: Replicas::default(),
        peers: Arc::new(PeersFile::of(dir.path().to_owned())),
        offered: Arc::default(),
    };
    heir.taking();
    assert_eq!(Peers::load(dir.path()).unwrap(), Peers::default());
}
