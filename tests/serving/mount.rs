//! A small file system of its own for a test.

use super::client;
use std::path::{Path, PathBuf};

/// A file system image, mounted until this is dropped.
pub struct LoopMount {
    at: PathBuf,
    _folder: Option<tempfile::TempDir>,
}

impl LoopMount {
    /// Mounts `image` at a folder that is there, or at one of its own. None, with the reason printed, where
    /// loop devices do not work.
    pub fn new(image: &Path, at: Option<&Path>) -> Option<LoopMount> {
        let folder = match at {
            Some(_) => None,
            None => Some(tempfile::tempdir().unwrap()),
        };
        let at = at
            .or(folder.as_ref().map(tempfile::TempDir::path))?
            .to_owned();
        let output = client("mount", &["-o", "loop", image.to_str()?, at.to_str()?]);
        if !output.status.success() {
            eprintln!("skipped: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        Some(LoopMount {
            at,
            _folder: folder,
        })
    }

    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        // Lazily, for a test that failed may still have a file open there.
        client("umount", &["-l", self.at.to_str().unwrap_or("")]);
    }
}
