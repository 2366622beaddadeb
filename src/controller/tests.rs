//! A controller killed at any step finishes on restart.
//!
//! The world is a fleet of nodes that remember what they were told, and a store that survives. A
//! [`Guillotine`] counts every access to either, twice: just before it takes effect and just after.
//! At the chosen count the controller stops for ever, as SIGKILL stops it. A new controller on the
//! same store must bring the fleet to the same end as one that was never killed.

mod simulation;

use super::nodes::Request;
use super::*;
use crate::fleet::{Answer, Command, Consistency, Node, Operation, OperationId, State};
use crate::store::{Commit, Embedded, Entries, Transaction};
use node::{Error, ErrorKind, Result};
use proto::v1::{CutoverProgress, HeartbeatRequest};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Longer than any of these tests takes on a busy machine; a hang fails by it.
const PATIENCE: Duration = Duration::from_secs(60);

struct Guillotine {
    falls_at: usize,
    count: AtomicUsize,
    fallen: Notify,
}

impl Guillotine {
    fn at(falls_at: usize) -> Arc<Guillotine> {
        Arc::new(Guillotine {
            falls_at,
            count: AtomicUsize::new(0),
            fallen: Notify::new(),
        })
    }

    async fn pass(&self) {
        if self.count.fetch_add(1, Ordering::SeqCst) >= self.falls_at {
            self.fallen.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

#[derive(Clone)]
struct MortalStore {
    store: Embedded,
    blade: Arc<Guillotine>,
}

impl Store for MortalStore {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.store.get(key).await
    }
    async fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Entries> {
        self.store.scan(prefix, after, limit).await
    }
    async fn last(&self, prefix: &str, limit: usize) -> Result<Entries> {
        self.store.last(prefix, limit).await
    }
    async fn commit(&self, t: Transaction) -> Result<Commit> {
        self.blade.pass().await;
        let done = self.store.commit(t).await;
        self.blade.pass().await;
        done
    }
}

/// What the nodes hold: for each (node, volume) its role, generation and replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct World {
    copies: BTreeMap<(String, String), Copy>,
    /// Calls that would have done harm, had the node not refused.
    broken: Vec<String>,
    /// The nodes cannot reach a cutover's target: whether it comes as far as the relinquish record.
    stranded: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Copy {
    id: String,
    owner: bool,
    /// The highest that it has seen.
    generation: u64,
    replicas: Vec<String>,
    bytes: u64,
    given: Option<Given>,
}

/// The volume was given away.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    to: String,
    generation: u64,
    /// It was taken, or somebody came after: nobody is told any more.
    over: bool,
}

impl World {
    fn copy(&mut self, key: (String, String)) -> Result<&mut Copy> {
        let missing = Error::new(ErrorKind::NotFound, format!("{key:?} is not there"));
        self.copies.get_mut(&key).ok_or(missing)
    }

    /// A node that gave the volume away has the target take it. False if that has not the volume.
    fn roll_forward(&mut self, key: &(String, String)) -> bool {
        let Some(given) = self.copies.get(key).and_then(|c| c.given.clone()) else {
            return false;
        };
        let Ok(target) = self.copy((given.to, key.1.clone())) else {
            return false;
        };
        if target.generation < given.generation {
            target.begin(given.generation);
        }
        if let Some(given) = self.copies.get_mut(key).and_then(|c| c.given.as_mut()) {
            given.over = true;
        }
        true
    }
}

impl Copy {
    /// Its node owns the volume from here on, and keeps the replicas that it is told to.
    fn begin(&mut self, generation: u64) {
        self.owner = true;
        self.generation = generation;
        self.replicas.clear();
        self.given = None;
    }

    /// It does not, whatever it was.
    fn end(&mut self, generation: u64) {
        self.owner = false;
        self.generation = generation;
        self.replicas.clear();
        self.given = None;
    }
}

#[derive(Clone)]
struct MortalNodes {
    world: Arc<Mutex<World>>,
    blade: Arc<Guillotine>,
    /// A call that is refused: (node, its kind).
    refuses: Option<(&'static str, &'static str)>,
}

impl MortalNodes {
    fn carry_out(&self, call: &Call) -> Result<Answer> {
        let node = call.to.name.to_string();
        let mut world = self.world.lock().unwrap();
        let kind = match &call.request {
            Request::Create(_) => "create",
            Request::Delete(_) => "delete",
            Request::Resize(_) => "resize",
            Request::StartReplica(_) => "start",
            Request::StopReplica(_) => "stop",
            Request::Cutover(_) => "cutover",
            Request::TakeOver(_) => "take over",
            Request::Depose(_) => "depose",
        };
        if self.refuses == Some((node.as_str(), kind)) {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!("{kind} on {node}: the disk is full"),
            ));
        }
        let key = |volume: &str| (node.clone(), volume.to_owned());
        match &call.request {
            Request::Create(r) => {
                let owner = r.role() == proto::v1::VolumeRole::Owner;
                let bytes = if r.image_path.is_empty() {
                    r.size_bytes
                } else {
                    8192
                };
                let new = Copy {
                    id: r.id.clone(),
                    owner,
                    generation: u64::from(owner),
                    replicas: vec![],
                    bytes,
                    given: None,
                };
                let copy = world
                    .copies
                    .entry(key(&r.name))
                    .or_insert_with(|| new.clone())
                    .clone();
                if copy.id != r.id {
                    return Err(Error::new(
                        ErrorKind::Exists,
                        format!("{} is another one on {node}", r.name),
                    ));
                }
                Ok(Answer {
                    size_bytes: copy.bytes,
                    generation: copy.generation,
                    cutover: None,
                })
            }
            Request::Delete(r) => {
                world
                    .copies
                    .retain(|k, c| *k != key(&r.name) || c.id != r.id);
                Ok(Answer::default())
            }
            Request::Resize(r) => {
                world.copy(key(&r.name))?.bytes = r.size_bytes;
                Ok(Answer::default())
            }
            Request::StartReplica(r) => {
                let is_there = (r.node.clone(), r.volume.clone());
                let is_there = world.copies.contains_key(&is_there);
                let owner = world.copy(key(&r.volume))?;
                if !owner.owner {
                    return Err(Error::new(ErrorKind::NotOwner, "it is not the owner"));
                }
                if !is_there {
                    let harm = format!("{} sent to {} which has no standby", r.volume, r.node);
                    world.broken.push(harm);
                }
                let owner = world.copy(key(&r.volume))?;
                if !owner.replicas.contains(&r.node) {
                    owner.replicas.push(r.node.clone());
                }
                // It speaks to the copy, which obeys the higher generation.
                let generation = owner.generation;
                if let Ok(copy) = world.copy((r.node.clone(), r.volume.clone())) {
                    if copy.owner && copy.generation < generation {
                        copy.end(generation);
                    }
                    copy.generation = copy.generation.max(generation);
                }
                Ok(Answer::default())
            }
            Request::StopReplica(r) => {
                if let Ok(copy) = world.copy(key(&r.volume)) {
                    copy.replicas.retain(|n| *n != r.node);
                }
                Ok(Answer::default())
            }
            Request::TakeOver(r) => {
                let copy = world.copy(key(&r.volume))?;
                let answer = Ok(Answer {
                    generation: r.generation,
                    ..Answer::default()
                });
                if copy.owner && copy.generation == r.generation {
                    return answer; // it did before
                }
                if copy.generation >= r.generation {
                    return Err(Error::new(ErrorKind::Fenced, "a later owner was seen"));
                }
                if copy.owner && !r.back {
                    let why = "it owns the volume, and what it has is no copy";
                    world.broken.push(format!("{r:?}: {why}"));
                    return Err(Error::new(ErrorKind::Invalid, why));
                }
                copy.begin(r.generation);
                answer
            }
            Request::Depose(r) => {
                if let Ok(copy) = world.copy(key(&r.volume))
                    && copy.generation < r.generation
                {
                    copy.end(r.generation);
                }
                Ok(Answer::default())
            }
            Request::Cutover(r) => {
                let stranded = world.stranded;
                let source = world.copy(key(&r.volume))?.clone();
                let silent = || Err(Error::new(ErrorKind::Timeout, "the target does not answer"));
                if source.owner {
                    let generation = source.generation + 1;
                    let target = world.copy((r.to.clone(), r.volume.clone()))?;
                    if target.generation >= generation {
                        return Err(Error::new(ErrorKind::Fenced, "a later owner was seen"));
                    }
                    if stranded == Some(false) {
                        return silent();
                    }
                    let source = world.copy(key(&r.volume))?;
                    source.end(generation);
                    source.given = Some(Given {
                        to: r.to.clone(),
                        generation,
                        over: false,
                    });
                }
                let given = world.copy(key(&r.volume))?.given.clone();
                let Some(given) = given.filter(|g| g.to == r.to) else {
                    return Err(Error::new(ErrorKind::NotOwner, "it is not the owner"));
                };
                if !given.over && (stranded.is_some() || !world.roll_forward(&key(&r.volume))) {
                    return silent();
                }
                Ok(Answer {
                    generation: given.generation,
                    ..Answer::default()
                })
            }
        }
    }
}

impl Nodes for MortalNodes {
    async fn call(&self, call: Call, _: impl Fn(CutoverProgress) + Send + Sync) -> Result<Answer> {
        self.blade.pass().await;
        let answer = self.carry_out(&call);
        self.blade.pass().await;
        answer
    }
}

struct Fleet {
    _dir: tempfile::TempDir,
    store: Embedded,
    world: Arc<Mutex<World>>,
    refuses: Option<(&'static str, &'static str)>,
    /// Sends no heartbeats.
    silent: Option<&'static str>,
}

type Mortal = Controller<MortalStore, MortalNodes>;

impl Fleet {
    async fn new() -> Fleet {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("db")).unwrap();
        let mut t = Transaction::default();
        for name in ["n1", "n2", "n3"] {
            let node = Node {
                name: name.parse().unwrap(),
                site: "here".into(),
                address: "127.0.0.1:1".into(),
                replication_address: "127.0.0.1:2".into(),
                nbd_address: "127.0.0.1:3".into(),
                shape: None,
                draining: false,
            };
            records::put_node(&mut t, &node).unwrap();
        }
        assert_eq!(store.commit(t).await.unwrap(), Commit::Done);
        Fleet {
            _dir: dir,
            store,
            world: Arc::default(),
            refuses: None,
            silent: None,
        }
    }

    async fn controller(&self, blade: &Arc<Guillotine>) -> Mortal {
        let store = MortalStore {
            store: self.store.clone(),
            blade: blade.clone(),
        };
        let nodes = MortalNodes {
            world: self.world.clone(),
            blade: blade.clone(),
            refuses: self.refuses,
        };
        let controller = Controller::start(store, nodes, &Config::default())
            .await
            .unwrap();
        for name in ["n1", "n2", "n3"] {
            if self.silent == Some(name) {
                continue;
            }
            let mut copy = proto::v1::VolumeReport {
                name: "v".into(),
                epoch: 5,
                ..Default::default()
            };
            copy.set_copy(proto::v1::ReplicaState::Consistent);
            let beat = HeartbeatRequest {
                name: name.into(),
                volumes: vec![copy],
                ..Default::default()
            };
            controller.inner.presence.heard(name.parse().unwrap(), beat);
        }
        controller
    }

    /// Run a command to its end under a controller that dies at `falls_at`, and under its successor.
    /// Answers the operation and whether the blade fell.
    async fn run(&self, id: &str, command: Command, falls_at: usize) -> (Operation, bool) {
        let id: OperationId = id.parse().unwrap();
        let blade = Guillotine::at(falls_at);
        let whole = async {
            let first = self.controller(&blade).await;
            first.begin(id.clone(), command.clone()).await.unwrap();
            ended(&first, &id).await
        };
        tokio::select! {
            operation = whole => return (operation, false),
            () = blade.fallen.notified() => {}
        }
        let second = self.controller(&Guillotine::at(usize::MAX)).await;
        // The client saw no answer: it asks again with the same id.
        second.begin(id.clone(), command).await.unwrap();
        (ended(&second, &id).await, true)
    }

    async fn done(&self, id: &str, command: Command) {
        let (operation, _) = self.run(id, command, usize::MAX).await;
        assert_eq!(operation.state, State::Done, "{operation:?}");
    }
}

async fn ended(controller: &Mortal, id: &OperationId) -> Operation {
    let wait = async {
        loop {
            let o = controller
                .inner
                .records
                .operation(id)
                .await
                .unwrap()
                .unwrap()
                .record;
            // The driver too: it passes the blade once more after it has written the end.
            if !o.is_running() && controller.follow(id).is_none() {
                return o;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("the operation never ended")
}

fn create() -> Command {
    Command::Create {
        volume: "v".parse().unwrap(),
        id: node::VolumeId([1; 16]),
        size_bytes: 4096,
        node: Some("n1".parse().unwrap()),
    }
}

fn add(node: &str) -> Command {
    Command::AddReplica {
        volume: "v".parse().unwrap(),
        node: node.parse().unwrap(),
        consistency: Consistency::Eventual,
        rate_bytes_per_second: 0,
    }
}

/// Kill the controller at every point of `command`, after `before` has been done, and compare the
/// fleet and the records with those of a controller that lived.
async fn survives_every_death(
    before: &[Command],
    command: Command,
    refuses: Option<(&'static str, &'static str)>,
    end: State,
) {
    let mut expected = None;
    for falls_at in (0..).map(|n| if n == 0 { usize::MAX } else { n - 1 }) {
        let mut fleet = Fleet::new().await;
        for (i, command) in before.iter().enumerate() {
            fleet.done(&format!("before-{i}"), command.clone()).await;
        }
        fleet.refuses = refuses;
        let (operation, fell) = fleet.run("op", command.clone(), falls_at).await;
        assert_eq!(operation.state, end, "killed at {falls_at}: {operation:?}");
        let store = Records::open(fleet.store.clone()).await.unwrap();
        let volumes = store.volumes().await.unwrap();
        assert!(
            volumes.iter().all(|v| v.operation.is_none()),
            "killed at {falls_at}"
        );
        let world = fleet.world.lock().unwrap().clone();
        assert_eq!(world.broken, Vec::<String>::new(), "killed at {falls_at}");
        let owners = world.copies.values().filter(|c| c.owner).count();
        assert!(owners <= 1, "killed at {falls_at}: {world:?}");
        match &expected {
            None => expected = Some((world, volumes)),
            Some(e) => assert_eq!((&world, &volumes), (&e.0, &e.1), "killed at {falls_at}"),
        }
        if falls_at != usize::MAX && !fell {
            assert!(
                falls_at >= 6,
                "the blade never stood in the way of {command:?}"
            );
            return;
        }
    }
}

#[tokio::test]
async fn a_killed_creation_is_finished_once() {
    survives_every_death(&[], create(), None, State::Done).await;
}

#[tokio::test]
async fn a_killed_import_learns_the_size() {
    let import = Command::Import {
        volume: "v".parse().unwrap(),
        id: node::VolumeId([1; 16]),
        node: "n2".parse().unwrap(),
        path: "/images/v.raw".into(),
    };
    survives_every_death(&[], import, None, State::Done).await;
}

#[tokio::test]
async fn a_killed_replica_add_is_finished() {
    survives_every_death(&[create()], add("n2"), None, State::Done).await;
}

#[tokio::test]
async fn a_killed_cutover_leaves_one_owner_that_the_other_replicas_follow() {
    let cutover = Command::Cutover {
        volume: "v".parse().unwrap(),
        to: "n2".parse().unwrap(),
    };
    survives_every_death(
        &[create(), add("n2"), add("n3")],
        cutover,
        None,
        State::Done,
    )
    .await;
}

#[tokio::test]
async fn a_killed_resize_is_finished_on_every_copy() {
    let resize = Command::Resize {
        volume: "v".parse().unwrap(),
        size_bytes: 8192,
    };
    survives_every_death(&[create(), add("n2")], resize, None, State::Done).await;
}

#[tokio::test]
async fn a_killed_deletion_leaves_nothing() {
    let delete = Command::Delete {
        volume: "v".parse().unwrap(),
        forget_unreachable: false,
    };
    survives_every_death(&[create(), add("n2")], delete, None, State::Done).await;
}

#[tokio::test]
async fn a_refused_creation_gives_the_name_back() {
    survives_every_death(&[], create(), Some(("n1", "create")), State::Failed).await;
}

#[tokio::test]
async fn a_replica_whose_start_is_refused_is_taken_back() {
    survives_every_death(&[create()], add("n2"), Some(("n1", "start")), State::Failed).await;
}

#[tokio::test]
async fn an_id_used_for_another_command_is_refused() {
    let fleet = Fleet::new().await;
    fleet.done("op", create()).await;
    let controller = fleet.controller(&Guillotine::at(usize::MAX)).await;
    let e = controller
        .begin("op".parse().unwrap(), add("n2"))
        .await
        .unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Exists);
    assert!(e.to_string().contains("volume create v"), "{e}");
}

#[test]
fn an_owner_that_lost_a_replica_is_reminded_only_when_nothing_is_under_way() {
    let (name, owner) = ("v".parse().unwrap(), "n1".parse().unwrap());
    let mut v = crate::fleet::Volume {
        status: crate::fleet::Status::Ready,
        generation: 1,
        replicas: vec![crate::fleet::Replica {
            node: "n2".parse().unwrap(),
            consistency: Consistency::Eventual,
            rate_bytes_per_second: 0,
        }],
        ..crate::fleet::Volume::new(name, node::VolumeId([1; 16]), 4096, owner)
    };
    let mut said = proto::v1::VolumeReport::default();
    said.set_role(proto::v1::VolumeRole::Owner);
    said.generation = v.generation;
    assert_eq!(reconcile::forgotten(&v, &said).len(), 1);
    v.operation = Some("op".parse().unwrap());
    assert_eq!(reconcile::forgotten(&v, &said).len(), 0);
    v.operation = None;
    said.set_role(proto::v1::VolumeRole::Forwarding);
    assert_eq!(reconcile::forgotten(&v, &said).len(), 0);

    // What it keeps and nobody wants.
    said.set_role(proto::v1::VolumeRole::Owner);
    let kept = |node: &str| proto::v1::ReplicaReport {
        node: node.to_owned(),
        ..Default::default()
    };
    said.replicas = vec![kept("n2"), kept("n3")];
    let n3: Vec<node::NodeName> = vec!["n3".parse().unwrap()];
    assert_eq!(reconcile::unasked(&v, &said), n3);
    v.operation = Some("op".parse().unwrap());
    assert!(reconcile::unasked(&v, &said).is_empty());
    v.operation = None;
    said.generation = v.generation + 1;
    assert!(reconcile::unasked(&v, &said).is_empty());
}

/// The owner is off. Whatever moment the controller dies in, its successor has the replica take over once,
/// in one generation, and the others follow.
#[tokio::test]
async fn a_controller_that_dies_in_a_failover_leaves_one_owner() {
    let failover = Command::Failover {
        volume: "v".parse().unwrap(),
        to: Some("n2".parse().unwrap()),
        owner_is_off: true,
        target_is_off: false,
    };
    for falls_at in 0.. {
        let mut fleet = Fleet::new().await;
        fleet.done("make", create()).await;
        fleet.done("copy", add("n2")).await;
        fleet.done("another", add("n3")).await;
        fleet.silent = Some("n1");
        let (operation, fell) = fleet.run("op", failover.clone(), falls_at).await;
        assert_eq!(operation.state, State::Done, "{operation:?}");
        let world = fleet.world.lock().unwrap().clone();
        assert!(world.broken.is_empty(), "{:?}", world.broken);
        let n2 = &world.copies[&("n2".to_owned(), "v".to_owned())];
        assert_eq!((n2.owner, n2.generation), (true, 2), "falls at {falls_at}");
        assert_eq!(n2.replicas, ["n3"]);
        if !fell {
            assert!(falls_at > 3, "the blade fell {falls_at} times only");
            return;
        }
    }
}

/// A former owner comes back: what it says of itself is of an earlier generation, and it is told.
#[tokio::test]
async fn a_former_owner_that_comes_back_is_deposed() {
    let mut fleet = Fleet::new().await;
    fleet.done("make", create()).await;
    fleet.done("copy", add("n2")).await;
    fleet.silent = Some("n1");
    let failover = Command::Failover {
        volume: "v".parse().unwrap(),
        to: None,
        owner_is_off: true,
        target_is_off: false,
    };
    fleet.done("op", failover).await;
    fleet.silent = None;
    let controller = fleet.controller(&Guillotine::at(usize::MAX)).await;
    let owned =
        |node: &str| fleet.world.lock().unwrap().copies[&(node.to_owned(), "v".to_owned())].owner;
    assert!(owned("n1") && owned("n2"), "the scene is wrong");
    let id = controller.inner.records.volumes().await.unwrap()[0].id;
    for (node, generation) in [("n1", 1), ("n2", 2)] {
        let mut said = proto::v1::VolumeReport {
            name: "v".into(),
            id: id.to_string(),
            generation,
            ..Default::default()
        };
        said.set_role(proto::v1::VolumeRole::Owner);
        let beat = HeartbeatRequest {
            name: node.into(),
            volumes: vec![said],
            ..Default::default()
        };
        controller.inner.presence.heard(node.parse().unwrap(), beat);
    }
    controller.look_over().await.unwrap();
    assert!(!owned("n1") && owned("n2"));
}

/// A volume is deleted without a node that is silent. When that is back it is told once, and nothing is left.
#[tokio::test]
async fn a_node_that_was_away_deletes_its_copy_when_it_is_back() {
    let mut fleet = Fleet::new().await;
    fleet.done("make", create()).await;
    fleet.done("copy", add("n2")).await;
    let cutover = Command::Cutover {
        volume: "v".parse().unwrap(),
        to: "n2".parse().unwrap(),
    };
    fleet.done("move", cutover).await;
    fleet.silent = Some("n1");
    let delete = Command::Delete {
        volume: "v".parse().unwrap(),
        forget_unreachable: true,
    };
    fleet.done("op", delete).await;
    let held = || {
        let world = fleet.world.lock().unwrap();
        world.copies.keys().map(|k| k.0.clone()).collect::<Vec<_>>()
    };
    assert_eq!(held(), ["n1"]);
    let controller = fleet.controller(&Guillotine::at(usize::MAX)).await;
    assert_eq!(controller.inner.records.volumes().await.unwrap(), []);
    controller.look_over().await.unwrap();
    assert_eq!(held(), ["n1"], "it is still away");

    let there = HeartbeatRequest {
        name: "n1".into(),
        ..Default::default()
    };
    let presence = &controller.inner.presence;
    presence.heard("n1".parse().unwrap(), there);
    controller.look_over().await.unwrap();
    assert_eq!(held(), Vec::<String>::new());
    assert_eq!(controller.inner.records.left().await.unwrap(), []);
}

/// A replica's node is gone, and its copy is given up. When it is back it deletes that once, unless it was given
/// the volume again before it could: then the new copy stays.
#[tokio::test]
async fn a_copy_that_was_given_up_goes_when_its_node_is_back_and_a_new_one_stays() {
    let remove = Command::RemoveReplica {
        volume: "v".parse().unwrap(),
        node: "n2".parse().unwrap(),
        forget_unreachable: true,
    };
    let back = HeartbeatRequest {
        name: "n2".into(),
        ..Default::default()
    };
    for given_again in [false, true] {
        let mut fleet = Fleet::new().await;
        fleet.done("make", create()).await;
        fleet.done("copy", add("n2")).await;
        fleet.silent = Some("n2");
        fleet.done("op", remove.clone()).await;
        let world = fleet.world.clone();
        let held = || world.lock().unwrap().copies.len();
        assert_eq!(held(), 2, "it is away");
        fleet.silent = None;
        if given_again {
            fleet.done("again", add("n2")).await;
        }
        let controller = fleet.controller(&Guillotine::at(usize::MAX)).await;
        controller
            .inner
            .presence
            .heard("n2".parse().unwrap(), back.clone());
        controller.look_over().await.unwrap();
        assert_eq!(held(), 1 + usize::from(given_again));
        assert_eq!(controller.inner.records.left().await.unwrap(), []);
    }
}
