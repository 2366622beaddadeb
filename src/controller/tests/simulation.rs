//! Many operations at a time, on nodes that do not answer or refuse, under controllers that die at
//! random: one seed is one run.
//!
//! The store is in memory. A transaction that was under way when the controller died is there or is
//! lost, as the seed says; so is the effect of a call that was under way. Every command is asked again
//! with its id until it was answered. In the end every operation has ended, exactly as one story: the
//! records agree with what the nodes hold, no volume has two owners, nothing was made twice.
//!
//! `FORERUN_SEED=n cargo nextest run -p forerun --lib simulation` runs one seed.

use super::*;
use crate::fleet::Status;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;

const SEEDS: u64 = 150;
const COMMANDS: usize = 14;
const NODES: [&str; 3] = ["n1", "n2", "n3"];
const VOLUMES: [&str; 3] = ["u", "v", "w"];
/// Turns of the runtime before an operation that gets nowhere is a failure.
const TURNS: usize = 200_000;

/// One stream of random numbers (splitmix64).
struct Dice(AtomicU64);

impl Dice {
    fn below(&self, n: u64) -> u64 {
        let step = 0x9e37_79b9_7f4a_7c15;
        let state = self.0.fetch_add(step, Ordering::SeqCst).wrapping_add(step);
        let x = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % n
    }
    fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }
    fn pick<'a>(&self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len() as u64) as usize]
    }
}

/// What outlives every controller.
struct Fate {
    dice: Dice,
    map: Mutex<BTreeMap<String, Vec<u8>>>,
    lost: AtomicUsize,
    unanswered: AtomicUsize,
    refused: AtomicUsize,
    /// In the end everything answers.
    is_kind: std::sync::atomic::AtomicBool,
}

/// A life of a controller: it dies at some access, before or after that takes effect.
#[derive(Clone)]
struct SimStore {
    fate: Arc<Fate>,
    blade: Arc<Guillotine>,
}

impl Fate {
    /// Others come first, sometimes.
    async fn turns(&self) {
        for _ in 0..self.dice.below(4) {
            tokio::task::yield_now().await;
        }
    }

    fn entries(&self, prefix: &str, after: Option<&str>) -> Entries {
        let map = self.map.lock().unwrap();
        let of = |(k, _): &(&String, _)| {
            k.starts_with(prefix) && after.is_none_or(|after| k.as_str() > after)
        };
        let all = map.iter().filter(of);
        all.map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

impl Store for SimStore {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.fate.turns().await;
        Ok(self.fate.map.lock().unwrap().get(key).cloned())
    }
    async fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Entries> {
        self.fate.turns().await;
        let mut all = self.fate.entries(prefix, after);
        all.truncate(limit);
        Ok(all)
    }
    async fn last(&self, prefix: &str, limit: usize) -> Result<Entries> {
        self.fate.turns().await;
        let all = self.fate.entries(prefix, None);
        Ok(all[all.len().saturating_sub(limit)..].to_vec())
    }
    async fn commit(&self, t: Transaction) -> Result<Commit> {
        self.fate.turns().await;
        if self.blade.is_down() {
            self.fate.lost.fetch_add(1, Ordering::SeqCst);
        }
        self.blade.pass().await;
        let done = {
            let mut map = self.fate.map.lock().unwrap();
            if t.expect.iter().any(|(k, v)| map.get(k) != v.as_ref()) {
                Commit::Conflict
            } else {
                for (key, value) in t.write {
                    match value {
                        Some(value) => drop(map.insert(key, value)),
                        None => drop(map.remove(&key)),
                    }
                }
                Commit::Done
            }
        };
        self.blade.pass().await;
        Ok(done)
    }
}

impl Guillotine {
    fn is_down(&self) -> bool {
        self.count.load(Ordering::SeqCst) >= self.falls_at
    }
}

#[derive(Clone)]
struct SimNodes {
    fate: Arc<Fate>,
    nodes: MortalNodes,
}

impl Nodes for SimNodes {
    async fn call(&self, call: Call, _: impl Fn(CutoverProgress) + Send + Sync) -> Result<Answer> {
        let fate = &self.fate;
        fate.turns().await;
        let blade = &self.nodes.blade;
        blade.pass().await;
        let kind = fate.is_kind.load(Ordering::SeqCst);
        if !kind && fate.dice.one_in(12) && matches!(call.request, Request::Create(_)) {
            fate.refused.fetch_add(1, Ordering::SeqCst);
            return Err(Error::new(ErrorKind::NoSpace, "the disk is full"));
        }
        // What is not answered was carried out, or not.
        let silent = !kind && fate.dice.one_in(5);
        if silent && fate.dice.one_in(2) {
            fate.unanswered.fetch_add(1, Ordering::SeqCst);
            return Err(Error::new(ErrorKind::Timeout, "no answer"));
        }
        let answer = self.nodes.carry_out(&call);
        fate.turns().await;
        blade.pass().await;
        if silent {
            fate.unanswered.fetch_add(1, Ordering::SeqCst);
            return Err(Error::new(ErrorKind::Timeout, "no answer"));
        }
        answer
    }
}

type Sim = Controller<SimStore, SimNodes>;

struct Run {
    fate: Arc<Fate>,
    world: Arc<Mutex<World>>,
    deaths: usize,
}

impl Run {
    fn new(seed: u64) -> Run {
        Run {
            fate: Arc::new(Fate {
                dice: Dice(AtomicU64::new(seed)),
                map: Mutex::default(),
                lost: AtomicUsize::new(0),
                unanswered: AtomicUsize::new(0),
                refused: AtomicUsize::new(0),
                is_kind: std::sync::atomic::AtomicBool::new(false),
            }),
            world: Arc::default(),
            deaths: 0,
        }
    }

    fn store(&self, blade: &Arc<Guillotine>) -> SimStore {
        SimStore {
            fate: self.fate.clone(),
            blade: blade.clone(),
        }
    }

    /// A controller begins its life; `None` if it dies in that.
    async fn controller(&self, blade: &Arc<Guillotine>) -> Option<Sim> {
        let nodes = SimNodes {
            fate: self.fate.clone(),
            nodes: MortalNodes {
                world: self.world.clone(),
                blade: blade.clone(),
                refuses: None,
            },
        };
        let controller = tokio::select! {
            started = Controller::start(self.store(blade), nodes) => started.unwrap(),
            () = blade.fallen.notified() => return None,
        };
        for name in NODES {
            let beat = HeartbeatRequest {
                name: name.into(),
                ..Default::default()
            };
            controller.inner.presence.heard(name.parse().unwrap(), beat);
        }
        Some(controller)
    }

    fn command(&self, number: usize) -> Command {
        let dice = &self.fate.dice;
        let volume = || dice.pick(&VOLUMES).parse().unwrap();
        let node = || dice.pick(&NODES).parse().unwrap();
        match dice.below(10) {
            0..=2 => Command::Create {
                volume: volume(),
                id: node::VolumeId([number as u8 + 1; 16]),
                size_bytes: 4096,
                node: Some(node()),
            },
            3..=5 => Command::AddReplica {
                volume: volume(),
                node: node(),
                consistency: Consistency::Eventual,
                rate_bytes_per_second: 0,
            },
            6 => Command::RemoveReplica {
                volume: volume(),
                node: node(),
            },
            7 | 8 => Command::Cutover {
                volume: volume(),
                to: node(),
            },
            _ => Command::Delete { volume: volume() },
        }
    }

    /// Ask for everything, die and come back until all of it has been answered and has ended.
    async fn play(&mut self) -> usize {
        let mut asked: Vec<(OperationId, Command)> = Vec::new();
        let mut answered = BTreeSet::new();
        let mut begun = BTreeSet::new();
        loop {
            let last = self.deaths >= 6 && asked.len() == COMMANDS;
            self.fate.is_kind.store(last, Ordering::SeqCst);
            let falls_at = match last {
                true => usize::MAX,
                false => self.fate.dice.below(60) as usize,
            };
            let blade = Guillotine::at(falls_at);
            if let Some(controller) = self.controller(&blade).await {
                for turn in 0.. {
                    assert!(turn < TURNS, "[comes to rest] {begun:?} do not end");
                    self.fate.turns().await;
                    tokio::task::yield_now().await;
                    controller.inner.arrival.notify_waiters();
                    let open = asked.iter().find(|(id, _)| !answered.contains(id)).cloned();
                    let next = match open {
                        Some(next) => next,
                        None if asked.len() < COMMANDS => {
                            let n = asked.len();
                            let next = (format!("op-{n}").parse().unwrap(), self.command(n));
                            asked.push(next.clone());
                            next
                        }
                        None if blade.is_down() => break,
                        None => {
                            let live = begun.iter().any(|id| controller.follow(id).is_some());
                            match (live, last) {
                                (true, _) => continue,
                                (false, true) => return begun.len(),
                                // It dies in its sleep.
                                (false, false) => break,
                            }
                        }
                    };
                    let (id, command) = next;
                    tokio::select! {
                        result = controller.begin(id.clone(), command) => {
                            // Refused as it stands, or under way: answered in any case.
                            if result.is_ok() {
                                begun.insert(id.clone());
                            }
                            answered.insert(id);
                        }
                        () = blade.fallen.notified() => break,
                    }
                }
            }
            self.deaths += 1;
        }
    }

    async fn check(&self) {
        let records = Records::open(self.store(&Guillotine::at(usize::MAX)))
            .await
            .unwrap();
        let world = self.world.lock().unwrap().clone();
        assert_eq!(world.broken, Vec::<String>::new(), "[made once]");
        let volumes = records.volumes().await.unwrap();
        let mut held = world.copies.clone();
        for v in &volumes {
            assert_eq!(v.operation, None, "[ends] {v:?}");
            assert_eq!(v.status, Status::Ready, "[ends] {v:?}");
            let name = v.name.to_string();
            let of = |(key, _): &(&(String, String), &Copy)| key.1 == name;
            let owners = world.copies.iter().filter(of).filter(|(_, c)| c.owner);
            let owners: Vec<_> = owners.map(|(key, _)| key.0.as_str()).collect();
            assert_eq!(owners, [v.owner.as_str()], "[one owner] {world:?}");
            let mut there: Vec<_> = v.replicas.iter().map(|r| r.node.to_string()).collect();
            let mut sent = world.copies[&(v.owner.to_string(), name.clone())]
                .replicas
                .clone();
            there.sort();
            sent.sort();
            assert_eq!(there, sent, "[the record is what the nodes do] {v:?}");
            for node in there.iter().map(String::as_str).chain(owners) {
                let copy = held.remove(&(node.to_owned(), name.clone()));
                let copy = copy.unwrap_or_else(|| panic!("[the record is what is there] {v:?}"));
                assert_eq!(copy.id, v.id.to_string(), "[made once] {v:?}");
            }
            if let Some(former) = &v.forwarding_from {
                held.remove(&(former.to_string(), name));
            }
        }
        assert!(
            held.is_empty(),
            "[nothing is left behind] {held:?}; {volumes:?}"
        );
    }
}

fn run(seed: u64) -> (Run, usize, World) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut run = Run::new(seed);
        let store = run.store(&Guillotine::at(usize::MAX));
        let mut t = Transaction::default();
        for name in NODES {
            let node = Node {
                name: name.parse().unwrap(),
                site: "here".into(),
                address: "127.0.0.1:1".into(),
                replication_address: "127.0.0.1:2".into(),
                nbd_address: "127.0.0.1:3".into(),
            };
            records::put_node(&mut t, &node).unwrap();
        }
        assert_eq!(store.commit(t).await.unwrap(), Commit::Done);
        let begun = run.play().await;
        run.check().await;
        let world = run.world.lock().unwrap().clone();
        (run, begun, world)
    })
}

#[test]
fn whatever_dies_or_does_not_answer_the_log_and_the_nodes_agree_in_the_end() {
    let chosen = std::env::var("FORERUN_SEED").ok();
    let seeds = chosen.map_or(0..SEEDS, |s| {
        let seed = s.parse().unwrap();
        seed..seed + 1
    });
    let all = seeds.end - seeds.start;
    let (mut begun, mut deaths) = (0, 0);
    let (mut lost, mut unanswered, mut refused) = (0, 0, 0);
    for seed in seeds {
        let result = std::panic::catch_unwind(|| run(seed));
        let Ok((run, n, _)) = result else {
            panic!("replay with FORERUN_SEED={seed} cargo nextest run -p forerun --lib simulation");
        };
        begun += n;
        deaths += run.deaths;
        lost += run.fate.lost.load(Ordering::SeqCst);
        unanswered += run.fate.unanswered.load(Ordering::SeqCst);
        refused += run.fate.refused.load(Ordering::SeqCst);
    }
    if all > 100 {
        assert!(
            begun > 600 && deaths > 900 && lost > 100 && unanswered > 100 && refused > 20,
            "a run that gets nowhere proves nothing: {begun} operations, {deaths} deaths, {lost} \
             transactions lost, {unanswered} calls unanswered, {refused} refused"
        );
    }
}

#[test]
fn a_seed_is_one_run() {
    for seed in [2, 5] {
        let (a, b) = (run(seed), run(seed));
        assert_eq!((a.1, a.0.deaths, a.2), (b.1, b.0.deaths, b.2));
    }
}
