//! The life of a provisioned node as logged operations.
//!
//! ```text
//! grow     begin: node record "wanted" ─► apply ─► register ─► seed ─► done
//! retire   begin ─► drain ─► node record "retiring" ─► destroy ─► record goes
//! resize   grow the new one ─► cut over ─► retire the old one
//! ```
//!
//! [`Lifecycle::drive`] takes every operation as far as it goes. A step's effect comes first and its
//! mark in the log after it, so a controller that dies in between repeats the step; every effect
//! brings the world to what the records say, so repeating does nothing more. A step that fails is
//! tried again with growing waits; when it fails for good what was made is destroyed and the site is
//! quarantined: no new node there until somebody has looked.

use super::Provisioner;
use super::failure::{Backoff, Class, Failed};
use super::gate::Allowance;
use super::progress::Progress;
use super::record::{Kind, NodeRecord, NodeState, Operation, Stage, Step};
use super::token::TokenKey;
use super::workspace::NodeSpec;
use crate::store::{Commit, Store, Transaction};
use node::{Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const NODES: &str = "provision/node/";
const OPERATIONS: &str = "provision/operation/";
const QUARANTINE: &str = "provision/quarantine/";
const KEY: &str = "provision/token-key";
/// Records read at a time.
const PAGE: usize = 1000;

/// What the fleet does for a node's life. Each call may be repeated, and answers whether it is done.
pub trait World: Send + Sync {
    /// Write the node's configuration, with its token, to where its spec says.
    fn configure(&self, node: &NodeRecord, token: &str) -> impl Future<Output = Result<()>> + Send;
    /// Have copies of the volumes made there, coldest blocks first, and kept.
    fn seed(&self, operation: &Operation) -> impl Future<Output = Result<bool>> + Send;
    /// Have the volumes change their owner to the new node.
    fn cut_over(&self, operation: &Operation) -> impl Future<Output = Result<bool>> + Send;
    /// Have every volume and replica leave the operation's leaving node.
    fn drain(&self, operation: &Operation) -> impl Future<Output = Result<bool>> + Send;
    /// Whether the node owns no volume.
    fn is_empty(&self, node: &str) -> impl Future<Output = Result<bool>> + Send;
    /// The node is destroyed: nothing of it is to be left.
    fn forget(&self, node: &NodeRecord) -> impl Future<Output = Result<()>> + Send;
    /// Something to show to people.
    fn report(&self, operation: &Operation, progress: Progress);
}

/// What a site may have, and how patient to be.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The most nodes at a site.
    pub nodes: usize,
    /// The most that they may cost in an hour.
    pub hour: f64,
    /// How long a new node may take to register.
    pub register: Duration,
    /// Waits between tries of a step.
    pub backoff: Backoff,
}

/// Drives nodes' lives.
pub struct Lifecycle<S, P, W> {
    store: Arc<S>,
    provisioner: P,
    world: W,
    key: TokenKey,
    rules: Rules,
}

/// How long what is undone may wait for a node to own nothing. Whoever put a volume there has had time to
/// take it away by then, and a node that is in use is no failure.
const UNDO: Duration = Duration::from_secs(3600);

enum Outcome {
    Done,
    NotYet,
    /// The node that should go is in use and stays.
    Kept,
}

impl<S: Store, P: Provisioner, W: World> Lifecycle<S, P, W> {
    /// Over a store; the key for tokens is made on first use and kept there.
    ///
    /// # Errors
    /// The store fails.
    pub async fn open(store: Arc<S>, provisioner: P, world: W, rules: Rules) -> Result<Self> {
        let fresh = TokenKey::random()?;
        let make = Transaction {
            expect: vec![(KEY.into(), None)],
            write: vec![(KEY.into(), Some(fresh.as_bytes().to_vec()))],
        };
        let key = match store.commit(make).await? {
            Commit::Done => fresh,
            Commit::Conflict => TokenKey::from_bytes(&store.get(KEY).await?.unwrap_or_default())?,
        };
        Ok(Lifecycle {
            store,
            provisioner,
            world,
            key,
            rules,
        })
    }

    /// Log an operation; `spec` is the new node's, for grow and resize. The same operation again is
    /// the same operation.
    ///
    /// # Errors
    /// Another operation has that id, the node exists or is not there, or its site is quarantined.
    pub async fn begin(&self, operation: Operation, spec: Option<NodeSpec>) -> Result<Operation> {
        let key = format!("{OPERATIONS}{}", operation.id);
        if let Some(known) = self.read::<Operation>(&key).await? {
            let same = (&known.kind, &known.site, &known.node)
                == (&operation.kind, &operation.site, &operation.node);
            return if same {
                Ok(known)
            } else {
                Err(taken(&operation.id))
            };
        }
        let leaving = match &operation.kind {
            Kind::Grow => None,
            Kind::Retire => Some(&operation.node),
            Kind::Resize { old } => Some(old),
        };
        if let Some(node) = leaving {
            let all = self.all::<Operation>(OPERATIONS).await?;
            if let Some(other) = (all.iter()).find(|o| o.next().is_some() && o.touches(node)) {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!(
                        "node {node}: operation {} is still changing it; wait until it has ended",
                        other.id
                    ),
                ));
            }
        }
        let mut begin = Transaction {
            expect: vec![(key.clone(), None)],
            write: vec![(key, Some(encode(&operation)?))],
        };
        if operation.kind != Kind::Retire {
            let record = self.new_node(&operation, spec).await?;
            let node = format!("{NODES}{}", record.name);
            begin.expect.push((node.clone(), None));
            begin.write.push((node, Some(encode(&record)?)));
        }
        if let Some(node) = leaving {
            let key = format!("{NODES}{node}");
            let bytes = self.store.get(&key).await?.ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!("retire node {node}: it was not made by provisioning"),
                )
            })?;
            begin.expect.push((key, Some(bytes)));
        }
        match self.store.commit(begin).await? {
            Commit::Done => Ok(operation),
            Commit::Conflict => Err(taken(&operation.id)),
        }
    }

    /// Have what is emptying a node put up with volumes meeting that are kept apart; that operation, if one is
    /// under way.
    ///
    /// # Errors
    /// The store fails, or the operation goes on at the same moment.
    pub async fn ignore_apart(&self, node: &str) -> Result<Option<Operation>> {
        let all = self.operations().await?;
        let empties = |o: &&Operation| {
            let leaves = o.steps().contains(&Step::Drain) && o.stage == Stage::Running;
            leaves && o.leaving() == node
        };
        let Some(before) = all.iter().find(empties) else {
            return Ok(None);
        };
        let after = Operation {
            ignore_apart: true,
            ..before.clone()
        };
        let key = format!("{OPERATIONS}{}", after.id);
        let set = Transaction {
            expect: vec![(key.clone(), Some(encode(before)?))],
            write: vec![(key, Some(encode(&after)?))],
        };
        match self.store.commit(set).await? {
            Commit::Done => Ok(Some(after)),
            Commit::Conflict => Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "retire node {node}: operation {} went on at the same moment; ask again",
                    after.id
                ),
            )),
        }
    }

    /// The record of a node that an operation is to make.
    async fn new_node(&self, operation: &Operation, spec: Option<NodeSpec>) -> Result<NodeRecord> {
        let site = &operation.site;
        let spec = spec.ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("make node {}: no shape was given", operation.node),
            )
        })?;
        if let Some(why) = self.read::<String>(&format!("{QUARANTINE}{site}")).await? {
            return Err(Error::new(
                ErrorKind::Denied,
                format!(
                    "make a node at site {site}: it is quarantined because {why}. When that is mended: \
                     forerun provision end-quarantine {site}"
                ),
            ));
        }
        Ok(NodeRecord {
            name: operation.node.clone(),
            site: site.clone(),
            spec,
            made_by: operation.id.clone(),
            state: NodeState::Wanted,
        })
    }

    /// A node registers. Its token is good once: for the first identity that shows it, which may
    /// repeat it if the answer got lost.
    ///
    /// # Errors
    /// The node is unknown, the token is wrong, or it was used by somebody else.
    pub async fn register(&self, node: &str, token: &str, identity: &str) -> Result<()> {
        let key = format!("{NODES}{node}");
        let denied =
            |why: &str| Error::new(ErrorKind::Denied, format!("register node {node}: {why}"));
        let Some(bytes) = self.store.get(&key).await? else {
            return Err(denied("no such node was provisioned"));
        };
        let mut record: NodeRecord = decode(&key, &bytes)?;
        if !self.key.verify(&record.made_by, node, token) {
            return Err(denied("the token is not this node's"));
        }
        match &record.state {
            NodeState::Serving { identity: first } if first == identity => return Ok(()),
            // its create was cut off and is repeated: what registered before is no more
            NodeState::Serving { .. } if self.is_being_made(&record).await? => {}
            NodeState::Serving { .. } => {
                return Err(denied("the token was used already, by another address"));
            }
            NodeState::Retiring => return Err(denied("it is being retired")),
            NodeState::Wanted => {}
        }
        record.state = NodeState::Serving {
            identity: identity.to_owned(),
        };
        let serve = Transaction {
            expect: vec![(key.clone(), Some(bytes))],
            write: vec![(key, Some(encode(&record)?))],
        };
        match self.store.commit(serve).await? {
            Commit::Done => Ok(()),
            Commit::Conflict => Err(denied("somebody else registered at the same moment")),
        }
    }

    /// Take every operation of a site as far as it goes now; how many are still on their way. Sites
    /// are driven apart, because a Terraform that hangs at one is no reason for another to wait.
    ///
    /// # Errors
    /// The store fails. A step's failure is in its operation's record instead.
    pub async fn drive(&self, site: &str, now: u64) -> Result<usize> {
        let mut running = 0;
        let all = self.all::<Operation>(OPERATIONS).await?;
        for mut operation in all.into_iter().filter(|o| o.site == site) {
            while let Some(step) = operation.next() {
                if now < operation.not_before {
                    break;
                }
                let before = operation.clone();
                match self.step(&operation, step, now).await {
                    Ok(Outcome::NotYet) => break,
                    Ok(Outcome::Done) => self.advance(&mut operation, step, now),
                    Ok(Outcome::Kept) => keep(&mut operation, now),
                    Err(failed) => self.fail(&mut operation, &failed, now),
                }
                self.mark(&before, &operation, step).await?;
            }
            running += usize::from(operation.next().is_some());
        }
        Ok(running)
    }

    /// Whether a site is no longer what was made there. Nothing is asked where nothing was made.
    ///
    /// # Errors
    /// The store or Terraform fails.
    pub async fn drifted(&self, site: &str) -> Result<bool, Failed> {
        let nodes = self.nodes().await?;
        Ok(nodes.iter().any(|n| n.site == site) && self.provisioner.drifted(site).await?)
    }

    /// Operations, as logged.
    ///
    /// # Errors
    /// The store fails.
    pub async fn operations(&self) -> Result<Vec<Operation>> {
        self.all(OPERATIONS).await
    }

    /// Nodes that provisioning made or is making.
    ///
    /// # Errors
    /// The store fails.
    pub async fn nodes(&self) -> Result<Vec<NodeRecord>> {
        self.all(NODES).await
    }

    /// Sites that get no new nodes, and why.
    ///
    /// # Errors
    /// The store fails.
    pub async fn quarantines(&self) -> Result<BTreeMap<String, String>> {
        let all = self.store.scan(QUARANTINE, None, PAGE).await?;
        let read = |(key, bytes): (String, Vec<u8>)| {
            let why = decode(&key, &bytes)?;
            Ok((key[QUARANTINE.len()..].to_owned(), why))
        };
        all.into_iter().map(read).collect()
    }

    /// Let a site have new nodes again.
    ///
    /// # Errors
    /// The store fails.
    pub async fn end_quarantine(&self, site: &str) -> Result<()> {
        let free = Transaction {
            expect: vec![],
            write: vec![(format!("{QUARANTINE}{site}"), None)],
        };
        // without an expectation there is no conflict
        self.store.commit(free).await.map(|_: Commit| ())
    }

    async fn step(&self, operation: &Operation, step: Step, now: u64) -> Result<Outcome, Failed> {
        let done = |yes| if yes { Outcome::Done } else { Outcome::NotYet };
        match step {
            Step::Apply => {
                let Some(record) = self.node(&operation.node).await? else {
                    return Err(gone(&operation.node));
                };
                let token = self.key.token(&record.made_by, &record.name);
                self.world.configure(&record, &token).await?;
                self.converge(operation).await?;
                Ok(Outcome::Done)
            }
            Step::Register => match self.node(&operation.node).await?.map(|n| n.state) {
                Some(NodeState::Serving { .. }) => Ok(Outcome::Done),
                Some(_) if now.saturating_sub(operation.since) <= self.rules.register.as_secs() => {
                    Ok(Outcome::NotYet)
                }
                Some(_) => Err(Failed::new(
                    // waiting longer is no answer, a new node may be
                    Class::Quota,
                    format!(
                        "node {} did not register within {:?} of its creation: see its log",
                        operation.node, self.rules.register
                    ),
                )),
                None => Err(gone(&operation.node)),
            },
            Step::Seed => Ok(done(self.world.seed(operation).await?)),
            Step::CutOver => Ok(done(self.world.cut_over(operation).await?)),
            Step::Drain => Ok(done(self.world.drain(operation).await?)),
            // a node that failed to become what it should may have been given volumes meanwhile
            Step::Destroy if !self.world.is_empty(operation.leaving()).await? => {
                let undone_for = now.saturating_sub(operation.since);
                if operation.stage == Stage::Undoing && undone_for > UNDO.as_secs() {
                    return Ok(Outcome::Kept);
                }
                Ok(Outcome::NotYet)
            }
            Step::Destroy => {
                self.set_retiring(operation.leaving()).await?;
                self.converge(operation).await?;
                if let Some(record) = self.node(operation.leaving()).await? {
                    self.world.forget(&record).await?;
                }
                Ok(Outcome::Done)
            }
        }
    }

    /// Bring the operation's site to what the records say.
    async fn converge(&self, operation: &Operation) -> Result<(), Failed> {
        let site = &operation.site;
        let mut allow = Allowance {
            nodes: self.rules.nodes,
            hour: self.rules.hour,
            ..Allowance::default()
        };
        let mut wanted = BTreeMap::new();
        for n in self.all::<NodeRecord>(NODES).await? {
            if n.site != *site {
                continue;
            }
            let serves = matches!(n.state, NodeState::Serving { .. });
            if serves && !self.is_being_made(&n).await? {
                allow.keep.insert(n.name.clone());
            } else {
                // nothing was put on it yet: a create that failed may be repeated
                allow.destroy.insert(n.name.clone());
            }
            if n.state != NodeState::Retiring {
                wanted.insert(n.name, n.spec);
            }
        }
        let report = |p| self.world.report(operation, p);
        self.provisioner
            .converge(site, &wanted, &allow, &report)
            .await?;
        Ok(())
    }

    /// Whether a node's create has not ended. It may have registered by then, and a controller that
    /// was killed may have left it in no state.
    async fn is_being_made(&self, node: &NodeRecord) -> Result<bool> {
        let made_by: Option<Operation> =
            self.read(&format!("{OPERATIONS}{}", node.made_by)).await?;
        Ok(made_by.is_some_and(|o| o.next() == Some(Step::Apply)))
    }

    async fn set_retiring(&self, node: &str) -> Result<()> {
        let key = format!("{NODES}{node}");
        let Some(bytes) = self.store.get(&key).await? else {
            return Ok(());
        };
        let mut record: NodeRecord = decode(&key, &bytes)?;
        record.state = NodeState::Retiring;
        let retire = Transaction {
            expect: vec![(key.clone(), Some(bytes))],
            write: vec![(key, Some(encode(&record)?))],
        };
        match self.store.commit(retire).await? {
            Commit::Done => Ok(()),
            Commit::Conflict => Err(Error::new(
                ErrorKind::Busy,
                format!("retire node {node}: its record changed at the same moment"),
            )),
        }
    }

    fn advance(&self, operation: &mut Operation, step: Step, now: u64) {
        if operation.stage == Stage::Undoing {
            operation.stage = Stage::Failed;
            operation.ended = Some(now);
        } else {
            debug_assert_eq!(operation.steps()[operation.done], step);
            operation.done += 1;
            operation.since = now;
            if step == Step::Register {
                operation.registered = Some(now);
            }
            operation.error = None;
            if operation.done == operation.steps().len() {
                operation.stage = Stage::Done;
                operation.ended = Some(now);
            }
        }
        (operation.failures, operation.not_before) = (0, 0);
    }

    fn fail(&self, operation: &mut Operation, failed: &Failed, now: u64) {
        operation.failures += 1;
        let wait = self.rules.backoff.after(operation.failures);
        let hopeless = !failed.class.may_pass() || wait.is_none();
        if operation.stage == Stage::Running {
            operation.error = Some(failed.to_string());
            if hopeless && operation.may_undo() {
                operation.stage = Stage::Undoing;
                (operation.failures, operation.not_before, operation.since) = (0, now, now);
                return;
            }
        }
        // past the point of undoing there is only trying again: nothing may be left behind
        let wait = wait.unwrap_or(self.rules.backoff.longest);
        operation.not_before = now + wait.as_secs().max(1);
    }

    /// Write down how a step ended. A node's record goes with the mark of its destruction.
    async fn mark(&self, before: &Operation, after: &Operation, step: Step) -> Result<()> {
        let key = format!("{OPERATIONS}{}", after.id);
        let mut mark = Transaction {
            expect: vec![(key.clone(), Some(encode(before)?))],
            write: vec![(key, Some(encode(after)?))],
        };
        let ended = after.stage == Stage::Failed || after.done > before.done;
        let destroyed = step == Step::Destroy && ended && !after.kept;
        if destroyed {
            mark.write
                .push((format!("{NODES}{}", before.leaving()), None));
        }
        if before.stage == Stage::Running && after.stage == Stage::Undoing {
            let why = after.error.clone().unwrap_or_default();
            mark.write
                .push((format!("{QUARANTINE}{}", after.site), Some(encode(&why)?)));
        }
        match self.store.commit(mark).await? {
            Commit::Done => Ok(()),
            Commit::Conflict => Err(Error::new(
                ErrorKind::Busy,
                format!("operation {}: another controller is driving it", after.id),
            )),
        }
    }

    async fn node(&self, name: &str) -> Result<Option<NodeRecord>> {
        self.read(&format!("{NODES}{name}")).await
    }

    async fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        match self.store.get(key).await? {
            Some(bytes) => decode(key, &bytes).map(Some),
            None => Ok(None),
        }
    }

    async fn all<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<T>> {
        let mut all = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.store.scan(prefix, after.as_deref(), PAGE).await?;
            let more = page.len() == PAGE;
            for (key, bytes) in page {
                all.push(decode(&key, &bytes)?);
                after = Some(key);
            }
            if !more {
                return Ok(all);
            }
        }
    }
}

fn taken(id: &str) -> Error {
    Error::new(
        ErrorKind::Exists,
        format!("operation {id}: another operation has that id, or its node exists already"),
    )
}

/// Undoing ends without its last step, and says so.
fn keep(operation: &mut Operation, now: u64) {
    let why = operation.error.take().unwrap_or_default();
    operation.error = Some(format!(
        "{why}. Node {node} owns volumes and is kept: when they are elsewhere, `forerun provision retire {node}`",
        node = operation.leaving()
    ));
    (operation.stage, operation.ended, operation.kept) = (Stage::Failed, Some(now), true);
}

fn gone(node: &str) -> Failed {
    Failed::new(Class::Gate, format!("the record of node {node} is gone"))
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| {
        Error::new(
            ErrorKind::Broken,
            format!("write a provisioning record: {e}"),
        )
    })
}

fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| {
        Error::new(
            ErrorKind::Corrupt,
            format!("record {key} in the store: {e}"),
        )
    })
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
