//! A volume grows: its image and metadata are extended, and it is opened anew with its new size.
//!
//! ```text
//!   metadata file extended ─► `growth` says from where to where (durable) ─► image extended
//!     ─► the volume is closed: its guests' connections end ─► opened with the new size (durable)
//!     ─► `growth` removed
//! ```
//!
//! A connection has its export's size from the handshake, and NBD has no word for a new one, so a guest
//! learns of it when it connects again, which QEMU does by itself (`reconnect-delay`). Whatever a crash
//! leaves, the next opening finds `growth` and goes on. What lies beyond the former end counts as suspect:
//! it is zeroes in a file, but a device may hold anything there.

use super::directory::{open_meta, sync_dir, write_whole};
use super::volumes::Volumes;
use crate::service::Turn;
use block::{Error, ErrorKind, Result, VolumeId, VolumeName};
use proto::v1::VolumeReport;
use std::fs::OpenOptions;
use std::path::Path;

/// The file that says so.
const FILE: &str = "growth";

/// From how many bytes to how many a volume grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Growth {
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Growth {
    /// The growth that was begun in a volume's directory and has not ended.
    pub(super) fn under_way(dir: &Path) -> Result<Option<Growth>> {
        let path = dir.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("read {}", path.display()), e)),
        };
        let mut numbers = text.split_whitespace().map(str::parse);
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(from)), Some(Ok(to)), None) if from < to => Ok(Some(Growth { from, to })),
            _ => Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{} does not say from where to where the volume grows: write both sizes in bytes \
                     into it, or remove it if the image still has its former size",
                    path.display()
                ),
            )),
        }
    }

    /// Write it down, durably, under its name or not at all.
    fn begin(self, dir: &Path) -> Result<()> {
        write_whole(dir, FILE, &format!("{} {}\n", self.from, self.to))
    }

    /// It has ended.
    pub(super) fn end(dir: &Path) -> Result<()> {
        let path = dir.join(FILE);
        match std::fs::remove_file(&path) {
            Ok(()) => sync_dir(dir),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io(format!("remove {}", path.display()), e)),
        }
    }

    /// Give the image file that grows one of its two sizes. A block device has the new one already.
    pub(super) fn set_image(self, dir: &Path, len: u64) -> Result<()> {
        let path = dir.join("image");
        let asked = || format!("give image {} {len} bytes", path.display());
        let file = OpenOptions::new().write(true).open(&path);
        let file = file.map_err(|e| Error::io(asked(), e))?;
        let meta = file.metadata().map_err(|e| Error::io(asked(), e))?;
        // Longer than either it is not the file that grows: opening it says so.
        if !meta.is_file() || meta.len() > self.to || meta.len() < self.from {
            return Ok(());
        }
        file.set_len(len)
            .and_then(|()| file.sync_all())
            .map_err(|e| Error::io(asked(), e))
    }
}

impl Volumes {
    /// See [`NodeOps::resize`](crate::service::NodeOps::resize).
    pub(super) async fn grow(
        &self,
        turn: Option<Turn>,
        name: VolumeName,
        id: VolumeId,
        to: u64,
    ) -> Result<VolumeReport> {
        let asked = format!("resize {name} to {to} bytes");
        let _one = self.turn(&name, turn).await?;
        let hosted = self.hosted(&asked, &name, Some(id))?;
        let from = hosted.size();
        if to <= from {
            // Told before, or larger already: a copy may be.
            return Ok(self.report_hosted(&name, hosted).await);
        }
        let dir = self.dir(&name);
        let growth = Growth { from, to };
        if let Some(has) = hosted.device_size()?
            && has != to
        {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "{asked}: its image is a block device of {has} bytes; make that {to} bytes on this \
                     node first, then repeat the command"
                ),
            ));
        }
        // What could fail for want of room fails before anything has changed.
        open_meta(&dir, to).map_err(|e| e.within(&asked))?;
        growth.begin(&dir).map_err(|e| e.within(&asked))?;
        if let Err(e) = growth.set_image(&dir, to) {
            growth.set_image(&dir, from)?;
            Growth::end(&dir)?;
            return Err(e.within(&asked));
        }
        self.reopen(&name, hosted)
            .await
            .map_err(|e| e.within(&asked))?;
        tracing::info!("volume {name} has {to} bytes now");
        let hosted = self.hosted(&asked, &name, Some(id))?;
        Ok(self.report_hosted(&name, hosted).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growth_is_read_as_it_was_begun_and_nonsense_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Growth::under_way(dir.path()).unwrap(), None);
        let growth = Growth {
            from: 512,
            to: 4096,
        };
        growth.begin(dir.path()).unwrap();
        assert_eq!(Growth::under_way(dir.path()).unwrap(), Some(growth));
        for nonsense in ["", "1", "5 5", "9 8", "1 2 3", "a b"] {
            std::fs::write(dir.path().join(FILE), nonsense).unwrap();
            let e = Growth::under_way(dir.path()).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Corrupt, "{nonsense:?}");
        }
        Growth::end(dir.path()).unwrap();
        assert_eq!(Growth::under_way(dir.path()).unwrap(), None);
        Growth::end(dir.path()).unwrap();
    }
}
