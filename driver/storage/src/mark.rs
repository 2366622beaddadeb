//! The mark of an open image: what its file system says that tells it from other files.

use crate::open::ImageFile;
use block::{Error, ImageMark, Result};
use nix::sys::statfs::{FsType, fstatfs};
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// File systems that make inode numbers up as files are looked at: FUSE, FAT, exFAT.
const MADE_UP: [i64; 3] = [0x6573_5546, 0x4d44, 0x2011_bab0];

impl ImageFile {
    /// Make the mark durable, once nothing is written any more. A sync of the data leaves the time of the
    /// last change to the file system's leisure, and a power cut would make it look older than it was.
    pub fn settle(&self) -> Result<()> {
        let file = self.duplicate()?;
        file.sync_all()
            .map_err(|e| Error::io(format!("sync image {}", self.path.display()), e))
    }

    /// Bytes of the block device that this is, as of now; `None` if it is a file.
    pub fn device_size(&self) -> Result<Option<u64>> {
        if !self.device {
            return Ok(None);
        }
        let shown = self.path.display();
        let size = crate::open::device_size(&self.duplicate()?);
        let size = size.map_err(|e| Error::io(format!("size of device {shown}"), e))?;
        Ok(Some(size))
    }

    /// Whether the image's path leads to another file by now, or to none. What is served then is a file
    /// without a name, which is gone when it is closed.
    #[must_use]
    pub fn is_displaced(&self, path: &Path) -> bool {
        let Ok(held) = self
            .duplicate()
            .and_then(|f| f.metadata().map_err(|e| Error::io("stat an open image", e)))
        else {
            return false;
        };
        match std::fs::metadata(path) {
            Ok(there) => (there.dev(), there.ino()) != (held.dev(), held.ino()),
            Err(e) => e.kind() == std::io::ErrorKind::NotFound,
        }
    }
}

/// The mark of an open image. A block device has none: nothing but its size tells it from another.
pub fn mark(file: &File) -> Result<ImageMark> {
    let meta = file
        .metadata()
        .map_err(|e| Error::io("stat an open image", e))?;
    if meta.file_type().is_block_device() {
        return Ok(ImageMark::default());
    }
    let lasting = fstatfs(file).is_ok_and(|fs| {
        let FsType(kind) = fs.filesystem_type();
        !MADE_UP.contains(&kind)
    });
    Ok(read(&meta, lasting))
}

fn read(meta: &Metadata, lasting: bool) -> ImageMark {
    let nanos = |t: std::io::Result<SystemTime>| {
        let since = t.ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        since.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(0))
    };
    ImageMark {
        inode: if lasting { meta.ino() } else { 0 },
        born: nanos(meta.created()),
        modified: nanos(meta.modified()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open::OpenOptions;

    #[test]
    fn a_copy_in_its_place_is_another_image_and_a_moved_one_is_the_same() {
        let dir = tempfile::tempdir_in(std::env::temp_dir()).unwrap();
        let at = |name| dir.path().join(name);
        let found = |path: &Path| mark(&File::open(path).unwrap()).unwrap();
        std::fs::write(at("a"), [1; 4096]).unwrap();
        let first = ImageFile::open(&at("a"), &OpenOptions::default()).unwrap();
        assert!(first.mark.inode != 0 && first.mark.modified != 0);
        assert!(!first.is_displaced(&at("a")));
        assert_eq!(found(&at("a")), first.mark, "to open it is no change");
        std::fs::rename(at("a"), at("b")).unwrap();
        assert!(first.is_displaced(&at("a")), "nothing is there");
        assert_eq!(first.mark.difference(&found(&at("b"))), None);
        std::fs::copy(at("b"), at("a")).unwrap();
        assert!(first.is_displaced(&at("a")));
        let said = first.mark.difference(&found(&at("a")));
        assert!(said.unwrap().contains("another file"), "{said:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(at("b"), [2; 4096]).unwrap();
        let said = first.mark.difference(&found(&at("b")));
        assert!(said.unwrap().contains("written to"), "{said:?}");
    }
}
