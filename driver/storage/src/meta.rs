//! A volume's metadata file, mapped: a page is stored with a copy, and made durable by an fdatasync
//! through the ring.
//!
//! An I/O error on a mapped page arrives as SIGBUS. It must not end the process, where other
//! volumes live: the handler maps zero pages over the fault and marks the file, and the store that
//! met it reports EIO, which stops that one volume.

mod sigbus;

use block::{Error, ErrorKind, Result};
use memmap2::MmapMut;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::Path;

/// Bytes of a slot.
pub const SLOT_BYTES: usize = 4096;

/// An open metadata file.
pub struct MetaFile {
    // Before the map: fields are dropped in order, and a watch must not outlive its mapping.
    watch: sigbus::Watch,
    map: MmapMut,
    shown: String,
}

impl MetaFile {
    /// Open `path` with `slots` slots, making it if it is not there. All of its space is reserved
    /// now, so that a full disk is found here and not by a store. Also returns the descriptor that
    /// the ring is to sync.
    pub fn open(path: &Path, slots: usize) -> Result<(MetaFile, OwnedFd)> {
        let shown = path.display().to_string();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options
            .open(path)
            .map_err(|e| Error::io(format!("open metadata file {shown}"), e))?;
        let bytes = slots * SLOT_BYTES;
        reserve(&file, bytes as u64).map_err(|e| {
            Error::io(
                format!("reserve {bytes} bytes for metadata file {shown}"),
                e,
            )
        })?;
        let read_again = file
            .metadata()
            .map_err(|e| Error::io(format!("stat metadata file {shown}"), e))?;
        if read_again.len() < bytes as u64 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("metadata file {shown} stays shorter than {bytes} bytes"),
            ));
        }
        crate::open::read_anew(&file)
            .map_err(|e| Error::io(format!("read metadata file {shown} anew"), e))?;
        // SAFETY: the file is ours and locked with its volume; nobody truncates it. If somebody
        // does, or the disk fails, the SIGBUS handler watches this range.
        let map = unsafe { memmap2::MmapOptions::new().len(bytes).map_mut(&file) }
            .map_err(|e| Error::io(format!("map metadata file {shown}"), e))?;
        let watch = sigbus::Watch::new(map.as_ptr() as usize, map.len())?;
        let meta = MetaFile { watch, map, shown };
        Ok((meta, file.into()))
    }

    /// Everything in the file.
    pub fn read(&self) -> Result<Vec<u8>> {
        let bytes = self.map.to_vec();
        if self.watch.faulted() {
            return Err(Error::new(
                ErrorKind::Io,
                format!(
                    "read metadata file {}: the disk reports an error",
                    self.shown
                ),
            ));
        }
        Ok(bytes)
    }

    /// Store a page. The caller never stores over a page that it has not synced since: the later
    /// content could become durable first. The error is a positive errno.
    pub fn store(&mut self, slot: u32, page: &[u8; SLOT_BYTES]) -> std::result::Result<(), i32> {
        let at = slot as usize * SLOT_BYTES;
        let Some(place) = self.map.get_mut(at..at + SLOT_BYTES) else {
            return Err(libc::EINVAL);
        };
        place.copy_from_slice(page);
        if self.watch.faulted() {
            tracing::error!("metadata file {}: the disk reports an error", self.shown);
            return Err(libc::EIO);
        }
        Ok(())
    }

    /// Whether an I/O error has hit the mapping. What it holds is not to be trusted then.
    #[must_use]
    pub fn faulted(&self) -> bool {
        self.watch.faulted()
    }
}

fn reserve(file: &File, bytes: u64) -> std::io::Result<()> {
    let have = file.metadata()?.len();
    match nix::fcntl::posix_fallocate(file, 0, bytes.max(have) as i64) {
        Ok(()) => {}
        Err(nix::errno::Errno::EOPNOTSUPP) => file.set_len(bytes.max(have))?,
        Err(e) => return Err(e.into()),
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_reads_back_after_reopening() {
        let dir = tempfile::tempdir_in(std::env::temp_dir()).unwrap();
        let path = dir.path().join("meta");
        let (mut meta, _fd) = MetaFile::open(&path, 4).unwrap();
        meta.store(3, &[9; SLOT_BYTES]).unwrap();
        assert_eq!(meta.store(4, &[9; SLOT_BYTES]), Err(libc::EINVAL));
        drop(meta);
        let (meta, _fd) = MetaFile::open(&path, 4).unwrap();
        assert!(
            meta.read().unwrap()[3 * SLOT_BYTES..]
                .iter()
                .all(|b| *b == 9)
        );
    }

    /// A mapped file that loses its pages raises SIGBUS, which would end the process and every
    /// volume in it. The store that hits it must come back with an error, and another file's must
    /// go on working.
    #[test]
    fn a_file_cut_under_the_map_is_an_error_and_no_crash() {
        let dir = tempfile::tempdir_in(std::env::temp_dir()).unwrap();
        let (mut bad, fd) = MetaFile::open(&dir.path().join("bad"), 4).unwrap();
        let (mut good, _fd) = MetaFile::open(&dir.path().join("good"), 4).unwrap();
        File::from(fd).set_len(0).unwrap();
        assert_eq!(bad.store(2, &[1; SLOT_BYTES]), Err(libc::EIO));
        assert!(bad.faulted());
        assert!(bad.read().is_err());
        good.store(2, &[1; SLOT_BYTES]).unwrap();
        assert!(!good.faulted());
    }
}
