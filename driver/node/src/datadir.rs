//! The data directory and its lock: two nodes on one directory would each believe that they own its
//! volumes.

use block::{Error, ErrorKind, Result, VolumeName};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// A locked data directory. The lock goes with the process, however it ends.
pub struct DataDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl DataDir {
    /// Make the directory if need be, and lock it.
    pub fn lock(path: &Path) -> Result<DataDir> {
        let asked = format!("use the data directory {}", path.display());
        std::fs::create_dir_all(path.join("volumes")).map_err(|e| Error::io(asked.clone(), e))?;
        let path = path
            .canonicalize()
            .map_err(|e| Error::io(asked.clone(), e))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false) // the holder's pid stays readable if we do not get it
            .open(path.join("node.lock"))
            .map_err(|e| Error::io(asked.clone(), e))?;
        let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(file, errno)| held(&asked, file, errno))?;
        let pid = format!("{}\n", std::process::id());
        lock.set_len(0)
            .and_then(|()| lock.write_all(pid.as_bytes()))
            .map_err(|e| Error::io(asked, e))?;
        Ok(DataDir { path, _lock: lock })
    }

    /// The directory of a volume, whether or not it exists.
    #[must_use]
    pub fn volume(&self, name: &VolumeName) -> PathBuf {
        self.path.join("volumes").join(name.as_str())
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The volumes that have a directory, by name. What is not a volume's name is left alone.
    pub fn volumes(&self) -> Result<Vec<VolumeName>> {
        let dir = self.path.join("volumes");
        let asked = || format!("list the volumes in {}", dir.display());
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(|e| Error::io(asked(), e))? {
            let entry = entry.map_err(|e| Error::io(asked(), e))?;
            if let Some(name) = entry.file_name().to_str().and_then(|n| n.parse().ok()) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
}

fn held(asked: &str, mut file: File, errno: nix::errno::Errno) -> Error {
    if errno != nix::errno::Errno::EWOULDBLOCK {
        return Error::errno(format!("{asked}: lock node.lock"), errno as i32);
    }
    let mut pid = String::new();
    let holder = match file.read_to_string(&mut pid) {
        Ok(_) if !pid.trim().is_empty() => format!("the node with pid {}", pid.trim()),
        _ => "another node".to_owned(),
    };
    Error::new(
        ErrorKind::Busy,
        format!("{asked}: {holder} uses it; stop that node, or give this one a `data` of its own"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_node_is_told_who_holds_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::lock(dir.path()).unwrap();
        let Err(e) = DataDir::lock(dir.path()) else {
            panic!("locked twice")
        };
        assert_eq!(e.kind(), ErrorKind::Busy);
        let pid = format!("pid {}", std::process::id());
        assert!(e.to_string().contains(&pid), "{e}");
        assert!(e.to_string().contains("stop that node"), "{e}");
        drop(first);
        DataDir::lock(dir.path()).unwrap();
    }

    #[test]
    fn only_directories_with_a_volume_name_are_volumes() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::lock(dir.path()).unwrap();
        for name in ["b", "a", ".hidden"] {
            std::fs::create_dir(dir.path().join("volumes").join(name)).unwrap();
        }
        let names: Vec<String> = data
            .volumes()
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(names, ["a", "b"]);
        assert!(data.volume(&"a".parse().unwrap()).ends_with("volumes/a"));
    }
}
