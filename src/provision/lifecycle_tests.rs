//! Lives of nodes, with a controller that is killed at every step.

use super::*;
use crate::provision::Changes;
use crate::store::Entries;
use std::collections::BTreeSet;
use std::sync::Mutex;

/// How many more things may happen before the controller dies. Dying means that nothing after it
/// takes place; each effect can be cut off before and after it.
#[derive(Clone, Default)]
struct Life(Arc<Mutex<Option<u32>>>);

impl Life {
    fn tick(&self) -> Result<()> {
        match self.0.lock().unwrap().as_mut() {
            Some(0) => Err(Error::new(ErrorKind::Cancelled, "killed")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

#[derive(Default)]
struct Memory {
    map: Mutex<BTreeMap<String, Vec<u8>>>,
    life: Life,
}

impl Store for Memory {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.map.lock().unwrap().get(key).cloned())
    }
    async fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Entries> {
        let map = self.map.lock().unwrap();
        let hits = map.iter().filter(|(k, _)| k.starts_with(prefix));
        let hits = hits.filter(|(k, _)| after.is_none_or(|a| k.as_str() > a));
        Ok(hits
            .take(limit)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect())
    }
    async fn last(&self, _: &str, _: usize) -> Result<Entries> {
        unreachable!("a lifecycle never asks for the last entries")
    }
    async fn commit(&self, t: Transaction) -> Result<Commit> {
        self.life.tick()?;
        let mut map = self.map.lock().unwrap();
        if t.expect.iter().any(|(k, v)| map.get(k) != v.as_ref()) {
            return Ok(Commit::Conflict);
        }
        for (k, v) in t.write {
            match v {
                Some(v) => map.insert(k, v),
                None => map.remove(&k),
            };
        }
        drop(map);
        self.life.tick()?;
        Ok(Commit::Done)
    }
}

/// The world outside: it goes on when the controller dies.
#[derive(Clone, Default)]
struct Outside {
    life: Life,
    nodes: Arc<Mutex<BTreeSet<String>>>,
    made: Arc<Mutex<Vec<String>>>,
    tokens: Arc<Mutex<BTreeMap<String, String>>>,
    trouble: Arc<Mutex<Option<Failed>>>,
    /// A node that owns a volume.
    used: Arc<Mutex<Option<String>>>,
}

impl Provisioner for Outside {
    async fn converge(
        &self,
        _: &str,
        wanted: &BTreeMap<String, NodeSpec>,
        allow: &Allowance,
        _: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Changes, Failed> {
        self.life.tick()?;
        if let Some(f) = self
            .trouble
            .lock()
            .unwrap()
            .clone()
            .filter(|_| !wanted.is_empty())
        {
            return Err(f);
        }
        let mut nodes = self.nodes.lock().unwrap();
        for gone in nodes.iter().filter(|n| !wanted.contains_key(*n)) {
            assert!(
                allow.destroy.contains(gone),
                "{gone} was not to be destroyed"
            );
        }
        for new in wanted.keys().filter(|n| !nodes.contains(*n)) {
            assert!(
                !allow.keep.contains(new),
                "{new} made again while it serves"
            );
            self.made.lock().unwrap().push(new.clone());
        }
        *nodes = wanted.keys().cloned().collect();
        drop(nodes);
        self.life.tick()?;
        Ok(Changes::default())
    }
    async fn drifted(&self, _: &str) -> Result<bool, Failed> {
        Ok(false)
    }
}

impl World for Outside {
    async fn configure(&self, node: &NodeRecord, token: &str) -> Result<()> {
        self.life.tick()?;
        let mut tokens = self.tokens.lock().unwrap();
        let first = tokens
            .entry(node.name.clone())
            .or_insert_with(|| token.to_owned());
        assert_eq!(first, token, "a node's token changed under it");
        Ok(())
    }
    async fn seed(&self, o: &Operation) -> Result<bool> {
        self.life.tick()?;
        assert!(
            self.nodes.lock().unwrap().contains(&o.node),
            "seeding a node that is not there"
        );
        Ok(true)
    }
    async fn cut_over(&self, o: &Operation) -> Result<bool> {
        self.life.tick()?;
        assert!(self.nodes.lock().unwrap().contains(&o.node));
        Ok(true)
    }
    async fn drain(&self, o: &Operation) -> Result<bool> {
        self.life.tick()?;
        let node = o.leaving();
        assert!(
            self.nodes.lock().unwrap().contains(node),
            "{node} went before it was drained"
        );
        Ok(true)
    }
    async fn is_empty(&self, node: &str) -> Result<bool> {
        self.life.tick()?;
        Ok(self.used.lock().unwrap().as_deref() != Some(node))
    }
    async fn forget(&self, node: &NodeRecord) -> Result<()> {
        self.life.tick()?;
        assert!(
            !self.nodes.lock().unwrap().contains(&node.name),
            "forgotten while it is there"
        );
        Ok(())
    }
    fn report(&self, _: &Operation, _: Progress) {}
}

const RULES: Rules = Rules {
    nodes: 4,
    hour: 10.0,
    register: Duration::from_secs(100),
    backoff: Backoff {
        first: Duration::from_secs(1),
        longest: Duration::from_secs(4),
        tries: 3,
    },
};

struct Fleet {
    store: Arc<Memory>,
    outside: Outside,
    life: Life,
    now: u64,
}

type Driver = Lifecycle<Memory, Outside, Outside>;

impl Fleet {
    fn new() -> Fleet {
        let life = Life::default();
        let outside = Outside {
            life: life.clone(),
            ..Outside::default()
        };
        let store = Arc::new(Memory {
            life: life.clone(),
            ..Memory::default()
        });
        Fleet {
            store,
            outside,
            life,
            now: 1000,
        }
    }

    async fn controller(&self) -> Result<Driver> {
        Lifecycle::open(
            self.store.clone(),
            self.outside.clone(),
            self.outside.clone(),
            RULES,
        )
        .await
    }

    /// Drive until nothing is left to do; nodes that are there register.
    async fn finish(&mut self, op: &Operation, spec: Option<&NodeSpec>) -> Result<()> {
        let controller = self.controller().await?;
        controller.begin(op.clone(), spec.cloned()).await?;
        for _ in 0..40 {
            if controller.drive("east", self.now).await? == 0 {
                return Ok(());
            }
            self.now += 10;
            let there: Vec<_> = self.outside.nodes.lock().unwrap().iter().cloned().collect();
            for node in there {
                let token = self.outside.tokens.lock().unwrap()[&node].clone();
                match controller.register(&node, &token, "address").await {
                    // time stands still once the controller is dead
                    Err(e) if e.kind() == ErrorKind::Cancelled => return Err(e),
                    // a node that is being retired is refused, and goes on asking
                    Err(e) => assert_eq!(e.kind(), ErrorKind::Denied),
                    Ok(()) => {}
                }
            }
        }
        panic!("never ends: {:?}", controller.operations().await?);
    }

    fn there(&self) -> Vec<String> {
        self.outside.nodes.lock().unwrap().iter().cloned().collect()
    }
}

fn spec() -> NodeSpec {
    NodeSpec {
        shape: "small".into(),
        hour: 0.1,
        config: "/etc/node.toml".into(),
    }
}

fn grow(id: &str, node: &str) -> Operation {
    Operation::new(id, Kind::Grow, "east", node, vec!["v".into()], 1000)
}

/// A controller was once killed between making a node and noting it, and made another on restart.
/// Kill it after every single thing it does, for a whole life of grow, resize and retire, and start
/// it again each time: every node is made once, and in the end none is left.
#[tokio::test]
async fn a_controller_killed_at_any_step_leaves_no_duplicate_and_no_orphan() {
    let resize = Operation::new(
        "2",
        Kind::Resize { old: "a".into() },
        "east",
        "b",
        vec![],
        1000,
    );
    let retire = Operation::new("3", Kind::Retire, "east", "b", vec![], 1000);
    let life = [(grow("1", "a"), true), (resize, true), (retire, false)];
    let mut kills = 0;
    for allowed in 0.. {
        let mut fleet = Fleet::new();
        let mut killed = false;
        *fleet.life.0.lock().unwrap() = Some(allowed);
        for (op, makes) in &life {
            let spec = makes.then(spec);
            if let Err(e) = fleet.finish(op, spec.as_ref()).await {
                assert_eq!(e.kind(), ErrorKind::Cancelled, "{e}");
                killed = true;
                *fleet.life.0.lock().unwrap() = None;
                fleet.finish(op, spec.as_ref()).await.unwrap();
            }
        }
        *fleet.life.0.lock().unwrap() = None;
        assert_eq!(
            *fleet.outside.made.lock().unwrap(),
            ["a", "b"],
            "killed after {allowed}"
        );
        assert!(
            fleet.there().is_empty(),
            "orphans {:?}, killed after {allowed}",
            fleet.there()
        );
        let controller = fleet.controller().await.unwrap();
        assert!(controller.nodes().await.unwrap().is_empty());
        let ops = controller.operations().await.unwrap();
        assert!(ops.iter().all(|o| o.stage == Stage::Done), "{ops:?}");
        if !killed {
            break;
        }
        kills += 1;
    }
    assert!(
        kills > 30,
        "only {kills} kills: the life is longer than that"
    );
}

#[tokio::test]
async fn a_token_is_good_for_one_identity() {
    let fleet = Fleet::new();
    let c = fleet.controller().await.unwrap();
    c.begin(grow("1", "a"), Some(spec())).await.unwrap();
    c.drive("east", 1000).await.unwrap();
    let token = fleet.outside.tokens.lock().unwrap()["a"].clone();
    assert_eq!(
        c.register("a", "guess", "x").await.unwrap_err().kind(),
        ErrorKind::Denied
    );
    c.register("a", &token, "first").await.unwrap();
    c.register("a", &token, "first").await.unwrap();
    let e = c.register("a", &token, "thief").await.unwrap_err();
    assert!(e.to_string().contains("used already"), "{e}");
    assert!(c.register("b", &token, "x").await.is_err());
}

#[tokio::test]
async fn what_fails_for_good_is_undone_and_its_site_quarantined() {
    let mut fleet = Fleet::new();
    *fleet.outside.trouble.lock().unwrap() = Some(Failed::new(Class::Quota, "no more of these"));
    fleet.finish(&grow("1", "a"), Some(&spec())).await.unwrap();
    let c = fleet.controller().await.unwrap();
    let op = c.operations().await.unwrap().remove(0);
    assert_eq!(
        (op.stage, op.error.as_deref()),
        (Stage::Failed, Some("no more of these"))
    );
    assert!(c.nodes().await.unwrap().is_empty());
    *fleet.outside.trouble.lock().unwrap() = None;
    let e = c.begin(grow("2", "b"), Some(spec())).await.unwrap_err();
    assert!(e.to_string().contains("quarantined because no more"), "{e}");
    c.end_quarantine("east").await.unwrap();
    c.begin(grow("2", "b"), Some(spec())).await.unwrap();
}

/// A grow failed after its node had registered, and somebody had cut a volume over to it: the undoing waited
/// for the node to be empty, for ever, and the operation never ended.
#[tokio::test]
async fn undoing_ends_and_says_so_where_the_node_is_in_use() {
    let fleet = Fleet::new();
    let c = fleet.controller().await.unwrap();
    c.begin(grow("1", "a"), Some(spec())).await.unwrap();
    c.drive("east", 1000).await.unwrap();
    *fleet.outside.used.lock().unwrap() = Some("a".into());
    c.drive("east", 1101).await.unwrap(); // it does not register
    let op = || async { c.operations().await.unwrap().remove(0) };
    assert_eq!(op().await.stage, Stage::Undoing);
    c.drive("east", 1101 + UNDO.as_secs()).await.unwrap();
    assert_eq!(op().await.stage, Stage::Undoing);
    c.drive("east", 1102 + UNDO.as_secs()).await.unwrap();
    let ended = op().await;
    assert_eq!((ended.stage, ended.kept), (Stage::Failed, true));
    let why = ended.error.unwrap();
    assert!(
        why.contains("did not register") && why.contains("provision retire a"),
        "{why}"
    );
    assert_eq!(fleet.there(), ["a"]);
    // its record stays, so that it is nobody's orphan and can be retired
    assert_eq!(c.nodes().await.unwrap().len(), 1);
    *fleet.outside.used.lock().unwrap() = None;
    let retire = Operation::new("2", Kind::Retire, "east", "a", vec![], 9000);
    c.begin(retire, None).await.unwrap();
    c.drive("east", 9000).await.unwrap();
    assert!(fleet.there().is_empty() && c.nodes().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_may_pass_is_tried_again_with_growing_waits() {
    let fleet = Fleet::new();
    *fleet.outside.trouble.lock().unwrap() = Some(Failed::new(Class::Transient, "throttled"));
    let c = fleet.controller().await.unwrap();
    c.begin(grow("1", "a"), Some(spec())).await.unwrap();
    c.drive("east", 1000).await.unwrap();
    let op = |ops: Vec<Operation>| (ops[0].failures, ops[0].not_before, ops[0].stage);
    assert_eq!(op(c.operations().await.unwrap()), (1, 1001, Stage::Running));
    c.drive("east", 1000).await.unwrap(); // too early: nothing happens
    assert_eq!(op(c.operations().await.unwrap()), (1, 1001, Stage::Running));
    c.drive("east", 1001).await.unwrap();
    assert_eq!(op(c.operations().await.unwrap()), (2, 1003, Stage::Running));
    *fleet.outside.trouble.lock().unwrap() = None;
    c.drive("east", 1003).await.unwrap();
    assert_eq!(fleet.there(), ["a"]);
}

#[tokio::test]
async fn a_node_that_never_registers_is_destroyed() {
    let fleet = Fleet::new();
    let c = fleet.controller().await.unwrap();
    c.begin(grow("1", "a"), Some(spec())).await.unwrap();
    c.drive("east", 1000).await.unwrap();
    assert_eq!(fleet.there(), ["a"]);
    c.drive("east", 1101).await.unwrap();
    assert!(fleet.there().is_empty());
    let op = c.operations().await.unwrap().remove(0);
    assert!(op.error.unwrap().contains("did not register"));
}

#[tokio::test]
async fn asking_twice_is_asking_once_and_conflicts_are_refused() {
    let fleet = Fleet::new();
    let c = fleet.controller().await.unwrap();
    c.begin(grow("1", "a"), Some(spec())).await.unwrap();
    c.begin(grow("1", "a"), Some(spec())).await.unwrap();
    assert_eq!(c.operations().await.unwrap().len(), 1);
    let kind = |e: Error| e.kind();
    assert_eq!(
        kind(c.begin(grow("1", "b"), Some(spec())).await.unwrap_err()),
        ErrorKind::Exists
    );
    assert_eq!(
        kind(c.begin(grow("2", "a"), Some(spec())).await.unwrap_err()),
        ErrorKind::Exists
    );
    let retire = Operation::new("3", Kind::Retire, "east", "nobody", vec![], 1000);
    assert_eq!(
        kind(c.begin(retire, None).await.unwrap_err()),
        ErrorKind::NotFound
    );
}

/// A controller was killed while Terraform ran: the node had registered, and the state had never been
/// written. On restart the gate refused to make a node that serves, and the operation failed.
#[tokio::test]
async fn a_node_that_registered_before_its_create_was_cut_off_is_made_again() {
    let fleet = Fleet::new();
    let c = fleet.controller().await.unwrap();
    c.begin(grow("1", "a"), Some(spec())).await.unwrap();
    // dies after Terraform has made the node, before that is noted
    *fleet.life.0.lock().unwrap() = Some(3);
    assert!(c.drive("east", 1000).await.is_err());
    *fleet.life.0.lock().unwrap() = None;
    assert_eq!(fleet.there(), ["a"]);
    let token = fleet.outside.tokens.lock().unwrap()["a"].clone();
    c.register("a", &token, "first").await.unwrap();
    fleet.outside.nodes.lock().unwrap().clear(); // in no state, so it is swept

    let c = fleet.controller().await.unwrap();
    // the create as it is repeated: the new process registers before that is noted
    c.register("a", &token, "second").await.unwrap();
    c.drive("east", 1001).await.unwrap();
    assert_eq!(fleet.there(), ["a"]);
    let op = c.operations().await.unwrap().remove(0);
    assert_eq!((op.stage, op.error), (Stage::Done, None));
    let e = c.register("a", &token, "thief").await.unwrap_err();
    assert!(e.to_string().contains("used already"), "{e}");
}

/// Emptying a node that was under way could not be told to go on where volumes would meet that are kept apart: a
/// second command was refused as long as the first had not ended.
#[tokio::test]
async fn what_empties_a_node_already_is_told_that_volumes_may_meet() {
    let mut fleet = Fleet::new();
    fleet.finish(&grow("1", "a"), Some(&spec())).await.unwrap();
    let controller = fleet.controller().await.unwrap();
    assert_eq!(controller.ignore_apart("a").await.unwrap(), None);
    let kind = Kind::Resize { old: "a".into() };
    let resize = Operation::new("2", kind, "east", "b", vec![], 1000);
    controller.begin(resize, Some(spec())).await.unwrap();
    assert_eq!(controller.ignore_apart("b").await.unwrap(), None);
    let told = controller.ignore_apart("a").await.unwrap().unwrap();
    assert_eq!((told.id.as_str(), told.ignore_apart), ("2", true));
    let kept = controller.operations().await.unwrap();
    assert!(kept.contains(&told));
}
