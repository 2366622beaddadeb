//! What forecasts learned of each series, in a file of its own: a controller that is killed goes on with
//! it. It is derived from the history, so that nothing is lost for good with it: what cannot be read is
//! replayed.

use crate::predict::Memory;
use node::{Error, ErrorKind, Result};
use redb::{Database, ReadableDatabase, TableDefinition};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

const MEMORIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("memories");

/// Memories in a file, by name.
pub struct Learned {
    database: Database,
    path: PathBuf,
}

impl Learned {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// The file cannot be opened, or is none of ours.
    pub fn open(path: &Path) -> Result<Learned> {
        let opened = Database::create(path).map_err(redb::Error::from);
        let learned = Learned {
            database: opened.map_err(|e| failed(path, e))?,
            path: path.to_owned(),
        };
        let make = || -> Result<(), redb::Error> {
            let write = learned.database.begin_write()?;
            write.open_table(MEMORIES)?;
            Ok(write.commit()?)
        };
        make().map_err(|e| failed(path, e))?;
        Ok(learned)
    }

    /// What was learned under a name; nothing where it is unknown or was written by another version.
    /// Blocks on the disk.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Memory>> {
        let read = || -> Result<Option<Memory>, redb::Error> {
            let memories = self.database.begin_read()?.open_table(MEMORIES)?;
            let bytes = memories.get(name)?;
            Ok(bytes.and_then(|bytes| Memory::from_bytes(bytes.value()).ok()))
        };
        read().map_err(|e| failed(&self.path, e))
    }

    /// Stores memories, and forgets those whose name is not wanted any more. Blocks on the disk.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, memories: &[(String, Vec<u8>)], wanted: &HashSet<String>) -> Result<()> {
        let write = || -> Result<(), redb::Error> {
            let write = self.database.begin_write()?;
            {
                let mut table = write.open_table(MEMORIES)?;
                table.retain(|name, _| wanted.contains(name))?;
                for (name, bytes) in memories {
                    table.insert(name.as_str(), bytes.as_slice())?;
                }
            }
            Ok(write.commit()?)
        };
        write().map_err(|e| failed(&self.path, e))
    }
}

fn failed(path: &Path, e: redb::Error) -> Error {
    let asked = format!("use what forecasts learned, {}", path.display());
    match e {
        redb::Error::Io(e) => Error::io(asked, e),
        redb::Error::DatabaseAlreadyOpen => Error::new(
            ErrorKind::Busy,
            format!("{asked}: another process has it open; stop that one"),
        ),
        e => Error::new(
            ErrorKind::Corrupt,
            format!("{asked}: {e}; remove the file, and all is learned again"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_come_back_and_those_of_nobody_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("learned");
        let learned = Learned::open(&path).unwrap();
        let bytes = Memory::new(7).to_bytes();
        let wanted: HashSet<String> = ["a", "b", "spoilt"].map(String::from).into();
        let all = [
            ("a".to_owned(), bytes.clone()),
            ("b".to_owned(), bytes),
            ("spoilt".to_owned(), vec![1, 2, 3]),
        ];
        learned.write(&all, &wanted).unwrap();
        drop(learned);
        let learned = Learned::open(&path).unwrap();
        let read = |name: &str| learned.read(name).unwrap();
        assert_eq!(read("a"), Some(Memory::new(7)));
        assert_eq!(read("b"), Some(Memory::new(7)));
        assert_eq!((read("spoilt"), read("unknown")), (None, None));
        learned.write(&[], &["b".to_owned()].into()).unwrap();
        assert!(read("a").is_none() && read("b").is_some());
    }
}
