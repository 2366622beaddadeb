//! The store in one file of this host: redb, whose commits are atomic and synced.

use super::{Commit, Entries, Store, Transaction};
use node::{Error, ErrorKind, Result};
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("forerun");

/// A store in a file.
#[derive(Clone)]
pub struct Embedded {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    path: PathBuf,
}

impl Embedded {
    /// Open the file, or make it.
    pub fn open(path: &Path) -> Result<Embedded> {
        let asked = format!("open the controller's store {}", path.display());
        let database = Database::create(path).map_err(|e| match e {
            DatabaseError::DatabaseAlreadyOpen => Error::new(
                ErrorKind::Busy,
                format!(
                    "{asked}: another controller has it open; stop that one, or give this one a \
                     data directory of its own"
                ),
            ),
            DatabaseError::Storage(StorageError::Io(e)) => Error::io(asked, e),
            e => Error::new(ErrorKind::Corrupt, format!("{asked}: {e}")),
        })?;
        let store = Embedded {
            inner: Arc::new(Inner {
                database,
                path: path.to_owned(),
            }),
        };
        store.inner.make_table().map_err(|e| store.inner.error(e))?;
        Ok(store)
    }

    /// Run `work` where it may block on the disk.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || work(&inner).map_err(|e| inner.error(e)))
            .await
            .map_err(|e| Error::new(ErrorKind::Broken, format!("the store's thread ended: {e}")))?
    }
}

impl Inner {
    fn error(&self, e: redb::Error) -> Error {
        let asked = format!("use the controller's store {}", self.path.display());
        match e {
            redb::Error::Io(e) => Error::io(asked, e),
            e => Error::new(ErrorKind::Corrupt, format!("{asked}: {e}")),
        }
    }

    fn make_table(&self) -> Result<(), redb::Error> {
        let write = self.database.begin_write()?;
        write.open_table(TABLE)?;
        write.commit()?;
        Ok(())
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, redb::Error> {
        let table = self.database.begin_read()?.open_table(TABLE)?;
        Ok(table.get(key)?.map(|v| v.value().to_vec()))
    }

    fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        from_the_end: bool,
    ) -> Result<Entries, redb::Error> {
        let table = self.database.begin_read()?.open_table(TABLE)?;
        let start = after.map_or(Bound::Included(prefix), Bound::Excluded);
        let end = past(prefix);
        let end = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let range = table.range::<&str>((start, end))?;
        let entry = |e: Result<(redb::AccessGuard<'_, &str>, redb::AccessGuard<'_, &[u8]>), _>| {
            e.map(|(k, v)| (k.value().to_owned(), v.value().to_vec()))
        };
        let entries: Result<Entries, StorageError> = if from_the_end {
            range.rev().take(limit).map(entry).collect()
        } else {
            range.take(limit).map(entry).collect()
        };
        let mut entries = entries?;
        if from_the_end {
            entries.reverse();
        }
        Ok(entries)
    }

    fn commit(&self, t: &Transaction) -> Result<Commit, redb::Error> {
        let write = self.database.begin_write()?;
        {
            let mut table = write.open_table(TABLE)?;
            for (key, expected) in &t.expect {
                let now = table.get(key.as_str())?;
                if now.as_ref().map(|v| v.value()) != expected.as_deref() {
                    return Ok(Commit::Conflict); // dropping the transaction aborts it
                }
            }
            for (key, value) in &t.write {
                match value {
                    Some(value) => table.insert(key.as_str(), value.as_slice())?,
                    None => table.remove(key.as_str())?,
                };
            }
        }
        write.commit()?;
        Ok(Commit::Done)
    }
}

/// The first key after every key with this prefix. Prefixes are ASCII, so the next character exists.
fn past(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    let last = end.pop()?;
    end.push(char::from_u32(u32::from(last) + 1)?);
    Some(end)
}

impl Store for Embedded {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let key = key.to_owned();
        self.blocking(move |s| s.get(&key)).await
    }

    async fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Entries> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.blocking(move |s| s.scan(&prefix, after.as_deref(), limit, false))
            .await
    }

    async fn last(&self, prefix: &str, limit: usize) -> Result<Entries> {
        let prefix = prefix.to_owned();
        self.blocking(move |s| s.scan(&prefix, None, limit, true))
            .await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Commit> {
        self.blocking(move |s| s.commit(&transaction)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Transaction {
        Transaction {
            expect: vec![(key.into(), None)],
            write: vec![(key.into(), Some(value.into()))],
        }
    }

    #[tokio::test]
    async fn a_transaction_that_meets_another_value_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("db")).unwrap();
        assert_eq!(store.commit(put("a", "1")).await.unwrap(), Commit::Done);
        let mut both = put("b", "2");
        both.expect.push(("a".into(), Some("other".into())));
        assert_eq!(store.commit(both).await.unwrap(), Commit::Conflict);
        assert_eq!(store.get("b").await.unwrap(), None);
        assert_eq!(store.get("a").await.unwrap(), Some(b"1".to_vec()));
    }

    #[tokio::test]
    async fn a_scan_sees_its_prefix_only_and_goes_on_where_it_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("db")).unwrap();
        for key in ["event/1", "event/2", "event/3", "evenu", "eve"] {
            assert_eq!(store.commit(put(key, key)).await.unwrap(), Commit::Done);
        }
        let keys = |e: Entries| e.into_iter().map(|(k, _)| k).collect::<Vec<_>>();
        let first = keys(store.scan("event/", None, 2).await.unwrap());
        assert_eq!(first, ["event/1", "event/2"]);
        let rest = keys(store.scan("event/", Some("event/2"), 9).await.unwrap());
        assert_eq!(rest, ["event/3"]);
        assert_eq!(
            keys(store.last("event/", 2).await.unwrap()),
            ["event/2", "event/3"]
        );
    }

    #[tokio::test]
    async fn a_second_controller_on_the_same_store_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let first = Embedded::open(&path).unwrap();
        let Err(e) = Embedded::open(&path) else {
            panic!("opened twice")
        };
        assert_eq!(e.kind(), ErrorKind::Busy);
        assert!(e.to_string().contains("another controller"), "{e}");
        drop(first);
        Embedded::open(&path).unwrap();
    }
}
