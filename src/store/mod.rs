//! Where the controller keeps what it must not forget: an ordered map of text keys to bytes, with
//! transactions that compare before they write. Small enough that an embedded database and etcd
//! serve alike.
//!
//! Keys are paths by kind: `node/NAME`, `volume/NAME`, `operation/ID`, `event/SEQUENCE`. Histories,
//! plans and provisioning records take prefixes of their own.

mod embedded;

pub use embedded::Embedded;

use node::Result;

/// What a transaction requires and does, all or nothing.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// Keys with the value they must have; `None` is absent.
    pub expect: Vec<(String, Option<Vec<u8>>)>,
    /// Keys to write, or with `None` to delete.
    pub write: Vec<(String, Option<Vec<u8>>)>,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a transaction that met a conflict wrote nothing"]
pub enum Commit {
    /// Written, and durable.
    Done,
    /// A key had another value than expected; nothing was written.
    Conflict,
}

/// Keys with their values, in order.
pub type Entries = Vec<(String, Vec<u8>)>;

/// An ordered, durable map.
pub trait Store: Send + Sync + 'static {
    /// The value of a key.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Vec<u8>>>> + Send;

    /// Up to `limit` entries whose keys begin with `prefix` and come after `after`, in order.
    fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> impl Future<Output = Result<Entries>> + Send;

    /// The last `limit` entries whose keys begin with `prefix`, in order.
    fn last(&self, prefix: &str, limit: usize) -> impl Future<Output = Result<Entries>> + Send;

    /// Carry out a transaction; when it answers [`Commit::Done`] it survives power loss.
    fn commit(&self, transaction: Transaction) -> impl Future<Output = Result<Commit>> + Send;
}
