//! Records in the store: typed reads, and transactions that carry their events with them.

use crate::fleet::{Left, Node, Operation, OperationId, UnixMs, Volume};
use crate::store::{Commit, Store, Transaction};
use node::{Error, ErrorKind, NodeName, Result, VolumeName};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Events kept: weeks of a busy fleet in a few megabytes.
const EVENTS_KEPT: u64 = 20_000;
/// Entries read from the store at a time.
const PAGE: usize = 1000;

/// The last life that a controller began on this store.
const LIFE: &str = "life";

/// Something that happened, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its place in the log.
    pub sequence: u64,
    /// When.
    pub unix_ms: UnixMs,
    /// What, for machines.
    pub kind: String,
    /// To which volume, or empty.
    pub volume: String,
    /// On which node, or empty.
    pub node: String,
    /// What, for people.
    pub text: String,
}

/// An event before it has its place.
#[derive(Clone, Debug, Default)]
pub struct Happening {
    /// As in [`Event`].
    pub kind: &'static str,
    /// As in [`Event`].
    pub volume: String,
    /// As in [`Event`].
    pub node: String,
    /// As in [`Event`].
    pub text: String,
}

/// A record with the bytes it was read from, which a transaction expects unchanged.
pub struct Read<T> {
    /// The record.
    pub record: T,
    key: String,
    bytes: Vec<u8>,
}

impl<T> Read<T> {
    /// Expect the record unchanged.
    pub fn expect(&self, t: &mut Transaction) {
        t.expect.push((self.key.clone(), Some(self.bytes.clone())));
    }
}

/// The controller's records.
pub struct Records<S> {
    store: Arc<S>,
    next_event: AtomicU64,
}

fn volume_key(name: &VolumeName) -> String {
    format!("volume/{name}")
}

fn operation_key(id: &OperationId) -> String {
    format!("operation/{id}")
}

fn node_key(name: &NodeName) -> String {
    format!("node/{name}")
}

fn left_key(left: &Left) -> String {
    format!("left/{}/{}", left.node, left.id)
}

fn event_key(sequence: u64) -> String {
    format!("event/{sequence:020}")
}

fn encode(record: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(record)
        .map_err(|e| Error::new(ErrorKind::Broken, format!("encode a record: {e}")))
}

fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| {
        Error::new(
            ErrorKind::Corrupt,
            format!(
                "read {key} from the controller's store: {e}; was it written by a newer version?"
            ),
        )
    })
}

impl<S: Store> Records<S> {
    /// Records in `store`.
    pub async fn open(store: S) -> Result<Records<S>> {
        let last = store.last("event/", 1).await?;
        let next = match last.first() {
            Some((key, bytes)) => decode::<Event>(key, bytes)?.sequence + 1,
            None => 1,
        };
        Ok(Records {
            store: Arc::new(store),
            next_event: AtomicU64::new(next),
        })
    }

    /// Begin a life of the controller, higher than every one before. Nodes keep the highest and obey no
    /// lower one; a store that was lost and begun anew goes on from the time of day.
    pub async fn begin_life(&self, now: UnixMs) -> Result<u64> {
        let before: Option<Read<u64>> = self.read(LIFE.to_owned()).await?;
        let next = before.as_ref().map_or(1, |r| r.record + 1);
        let life = next.max(now / 1000);
        let mut t = Transaction::default();
        match &before {
            Some(r) => r.expect(&mut t),
            None => t.expect.push((LIFE.to_owned(), None)),
        }
        t.write.push((LIFE.to_owned(), Some(encode(&life)?)));
        match self.store.commit(t).await? {
            Commit::Done => Ok(life),
            Commit::Conflict => Err(Error::new(
                ErrorKind::Busy,
                "begin: another controller began on the same store in this moment; run one",
            )),
        }
    }

    /// The store itself, for records of others.
    pub fn store(&self) -> &Arc<S> {
        &self.store
    }

    async fn read<T: DeserializeOwned>(&self, key: String) -> Result<Option<Read<T>>> {
        let Some(bytes) = self.store.get(&key).await? else {
            return Ok(None);
        };
        let record = decode(&key, &bytes)?;
        Ok(Some(Read { record, key, bytes }))
    }

    async fn all<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<T>> {
        let mut records = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.store.scan(prefix, after.as_deref(), PAGE).await?;
            for (key, bytes) in &page {
                records.push(decode(key, bytes)?);
            }
            match page.last() {
                Some((key, _)) if page.len() == PAGE => after = Some(key.clone()),
                _ => return Ok(records),
            }
        }
    }

    /// A volume's record.
    pub async fn volume(&self, name: &VolumeName) -> Result<Option<Read<Volume>>> {
        self.read(volume_key(name)).await
    }

    /// Every volume, by name.
    pub async fn volumes(&self) -> Result<Vec<Volume>> {
        self.all("volume/").await
    }

    /// An operation.
    pub async fn operation(&self, id: &OperationId) -> Result<Option<Read<Operation>>> {
        self.read(operation_key(id)).await
    }

    /// Every operation, by id.
    pub async fn operations(&self) -> Result<Vec<Operation>> {
        self.all("operation/").await
    }

    /// Every copy that was left on a node that was silent.
    pub async fn left(&self) -> Result<Vec<Left>> {
        self.all("left/").await
    }

    /// Whether that copy is still to go.
    pub async fn is_left(&self, left: &Left) -> Result<bool> {
        Ok(self.store.get(&left_key(left)).await?.is_some())
    }

    /// Every node that ever registered, by name.
    pub async fn nodes(&self) -> Result<Vec<Node>> {
        self.all("node/").await
    }

    /// A node as it registered last.
    pub async fn node(&self, name: &NodeName) -> Result<Option<Node>> {
        Ok(self.read(node_key(name)).await?.map(|r| r.record))
    }

    /// The last `limit` events.
    pub async fn last_events(&self, limit: usize) -> Result<Vec<Event>> {
        let entries = self.store.last("event/", limit).await?;
        entries.iter().map(|(k, v)| decode(k, v)).collect()
    }

    /// Commit, with the events that the transaction means. They come back with their place.
    pub async fn commit(
        &self,
        mut t: Transaction,
        now: UnixMs,
        happenings: Vec<Happening>,
    ) -> Result<Option<Vec<Event>>> {
        let mut events = Vec::with_capacity(happenings.len());
        for h in happenings {
            // A place taken by a transaction that then fails stays empty, which harms nobody.
            let sequence = self.next_event.fetch_add(1, Ordering::Relaxed);
            let event = Event {
                sequence,
                unix_ms: now,
                kind: h.kind.to_owned(),
                volume: h.volume,
                node: h.node,
                text: h.text,
            };
            t.write.push((event_key(sequence), Some(encode(&event)?)));
            if let Some(old) = sequence.checked_sub(EVENTS_KEPT) {
                t.write.push((event_key(old), None));
            }
            events.push(event);
        }
        Ok(match self.store.commit(t).await? {
            Commit::Done => Some(events),
            Commit::Conflict => None,
        })
    }
}

/// Write a volume's record in a transaction, or with `None` delete it.
pub fn put_volume(t: &mut Transaction, name: &VolumeName, v: Option<&Volume>) -> Result<()> {
    let bytes = v.map(encode).transpose()?;
    t.write.push((volume_key(name), bytes));
    Ok(())
}

/// Expect that no volume of this name exists.
pub fn expect_no_volume(t: &mut Transaction, name: &VolumeName) {
    t.expect.push((volume_key(name), None));
}

/// Expect that no operation of this id exists.
pub fn expect_no_operation(t: &mut Transaction, id: &OperationId) {
    t.expect.push((operation_key(id), None));
}

/// Write an operation in a transaction.
pub fn put_operation(t: &mut Transaction, o: &Operation) -> Result<()> {
    t.write.push((operation_key(&o.id), Some(encode(o)?)));
    Ok(())
}

/// Note a copy that is left on a node that is silent.
pub fn put_left(t: &mut Transaction, left: &Left) -> Result<()> {
    t.write.push((left_key(left), Some(encode(left)?)));
    Ok(())
}

/// That copy is gone.
pub fn forget_left(t: &mut Transaction, left: &Left) {
    t.write.push((left_key(left), None));
}

/// Forget a node's registration.
pub fn forget_node(t: &mut Transaction, name: &NodeName) {
    t.write.push((node_key(name), None));
}

/// Write a node's registration in a transaction.
pub fn put_node(t: &mut Transaction, n: &Node) -> Result<()> {
    t.write.push((node_key(&n.name), Some(encode(n)?)));
    Ok(())
}
