//! A volume's directory: `image` (a file, or a link to an adopted one) and `meta`.
//!
//! A volume is made under a name that no volume can have, and renamed when it is whole; it is renamed
//! away before it is deleted. What a crash leaves under such names is swept at the start. `growth` is there
//! while a volume grows: see [`super::growth`].

use super::growth::Growth;
use crate::datadir::DataDir;
use crate::engine::{VOLUME_REQUESTS_MAX, VolumeSpec};
use crate::service::NewVolume;
use block::{Epoch, Error, ErrorKind, Generation, Result, VolumeName};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use storage::meta::{MetaFile, SLOT_BYTES};
use storage::{ImageFile, OpenOptions};
use volume::{Config, Identity, Role, Volume, meta_bytes};

/// Directories of volumes that are not yet, or no longer, there. No volume's name begins so.
const MAKING: &str = ".making-";
const GONE: &str = ".gone-";

fn beside(data: &DataDir, prefix: &str, name: &VolumeName) -> PathBuf {
    data.path().join("volumes").join(format!("{prefix}{name}"))
}

/// Remove what a crash left half made or half deleted.
pub(super) fn sweep(data: &DataDir) -> Result<()> {
    let dir = data.path().join("volumes");
    let asked = |e| Error::io(format!("sweep {}", dir.display()), e);
    for entry in std::fs::read_dir(&dir).map_err(asked)? {
        let entry = entry.map_err(asked)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(MAKING) || name.starts_with(GONE) {
            std::fs::remove_dir_all(entry.path()).map_err(asked)?;
        }
    }
    Ok(())
}

/// Make the files of a new volume. It is there, for this and for every later start of the node, once
/// [`publish`] has been called.
pub(super) fn make(data: &DataDir, new: &NewVolume) -> Result<VolumeSpec> {
    let dir = beside(data, MAKING, &new.name);
    make_in(data, &dir, new).map_err(|e| {
        // Nothing of a volume that could not be made is to take room. What stays is swept later.
        let _ = std::fs::remove_dir_all(&dir);
        e.within(format!("make volume {}", new.name))
    })
}

fn make_in(data: &DataDir, dir: &Path, new: &NewVolume) -> Result<VolumeSpec> {
    let io = |what: &str, e| Error::io(format!("{what} {}", dir.display()), e);
    if dir.exists() {
        std::fs::remove_dir_all(dir).map_err(|e| io("sweep", e))?;
    }
    std::fs::create_dir(dir).map_err(|e| io("make directory", e))?;
    let path = dir.join("image");
    let image = match (&new.image, new.size_bytes) {
        (Some(existing), _) => {
            // By its own name, which is what a complaint should be about.
            std::fs::metadata(existing)
                .map_err(|e| Error::io(format!("look for the image {}", existing.display()), e))?;
            let image = ImageFile::open(existing, &OpenOptions::default())?;
            std::os::unix::fs::symlink(existing, &path).map_err(|e| io("link the image in", e))?;
            image
        }
        (None, Some(size)) => {
            let create = OpenOptions {
                create: Some(size),
                ..OpenOptions::default()
            };
            ImageFile::open(&path, &create)?
        }
        (None, None) => {
            return Err(Error::new(
                ErrorKind::Invalid,
                "it has neither a size nor an image",
            ));
        }
    };
    if let Some(size) = new.size_bytes
        && size != image.size
    {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("the image has {} bytes, {size} were asked for", image.size),
        ));
    }
    let role = if new.standby {
        Role::Standby
    } else {
        Role::Owner {
            generation: Generation(1),
            since: Epoch(0),
        }
    };
    let shown = new
        .image
        .clone()
        .unwrap_or_else(|| data.volume(&new.name).join("image"));
    let identity = Identity {
        id: new.id,
        name: new.name.clone(),
        image: shown.to_string_lossy().into_owned(),
    };
    let mut volume = Volume::create(config(&image), identity, role)?;
    volume.know_image(image.mark, false)?;
    let meta = open_meta(dir, image.size)?;
    Ok(VolumeSpec {
        volume,
        image,
        meta: Some(meta),
    })
}

/// Give a made volume its name, durably.
pub(super) fn publish(data: &DataDir, name: &VolumeName) -> Result<()> {
    let from = beside(data, MAKING, name);
    let to = data.volume(name);
    let asked = || format!("name the directory of volume {name}");
    sync_dir(&from)?;
    std::fs::rename(&from, &to).map_err(|e| Error::io(asked(), e))?;
    sync_dir(&data.path().join("volumes"))
}

/// Open the files of a volume, and go on with its growth if it is growing. An image that is not the one on
/// record is refused, unless it is to be adopted.
pub(super) fn open(data: &DataDir, name: &VolumeName, adopt_image: bool) -> Result<VolumeSpec> {
    let dir = data.volume(name);
    let growth = Growth::under_way(&dir)?;
    if let Some(growth) = &growth {
        growth.set_image(&dir, growth.to)?;
    }
    let image = ImageFile::open(&dir.join("image"), &OpenOptions::default())
        .map_err(|e| e.within(format!("open volume {name}")))?;
    let (meta, fd) = open_meta(&dir, image.size)?;
    let mut volume = match &growth {
        Some(growth) => Volume::open_grown(config(&image), None, &meta.read()?, growth.from)?,
        None => Volume::open(config(&image), None, &meta.read()?)?,
    };
    if let Some(its) = volume.identity().map(|i| &i.name)
        && its != name
    {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "open volume {name}: the metadata in {} is that of volume {its}: the directory was \
                 renamed or copied. Name it {its} again; or, if it is a copy, move it out of {} and \
                 import its image as a volume of its own",
                dir.display(),
                data.path().join("volumes").display()
            ),
        ));
    }
    let adopted = volume
        .know_image(image.mark, adopt_image)
        .map_err(|e| exchanged(name, &image, &e))?;
    if adopted {
        tracing::warn!(
            "volume {name}: its image was exchanged, and every copy is compared with it"
        );
        if !volume.role().is_owner() {
            forget_copy(&dir)?;
        }
    }
    Ok(VolumeSpec {
        volume,
        image,
        meta: Some((meta, fd)),
    })
}

fn exchanged(name: &VolumeName, image: &ImageFile, e: &Error) -> Error {
    Error::new(
        e.kind(),
        format!(
            "open volume {name}: {} ({}), so that it is not what the metadata says of it. Put the \
             volume's own image back; or, to go on with this one, start the node once with \
             --adopt-image {name}: replicas are then compared with all of it",
            e.context(),
            image.path.display()
        ),
    )
}

/// The copy that is here is not what its record says: its source is to compare all of it. The record
/// goes before the image is adopted, or a crash in between would leave it believed.
fn forget_copy(dir: &Path) -> Result<()> {
    for file in ["replica", "staging"] {
        let path = dir.join(file);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(format!("remove {}", path.display()), e));
            }
            _ => {}
        }
    }
    sync_dir(dir)
}

/// Delete a volume's directory. An adopted image is only linked there, and stays.
pub(super) fn delete(data: &DataDir, name: &VolumeName) -> Result<()> {
    let asked = |e| Error::io(format!("delete the directory of volume {name}"), e);
    let gone = beside(data, GONE, name);
    if gone.exists() {
        std::fs::remove_dir_all(&gone).map_err(asked)?;
    }
    std::fs::rename(data.volume(name), &gone).map_err(asked)?;
    sync_dir(&data.path().join("volumes"))?;
    std::fs::remove_dir_all(&gone).map_err(asked)
}

fn config(image: &ImageFile) -> Config {
    Config {
        size: image.size,
        max_requests: VOLUME_REQUESTS_MAX,
        align: u64::from(image.unit()),
        read_only: false,
    }
}

pub(super) fn open_meta(dir: &Path, size: u64) -> Result<(MetaFile, std::os::fd::OwnedFd)> {
    let slots = meta_bytes(size) / SLOT_BYTES as u64;
    MetaFile::open(
        &dir.join("meta"),
        usize::try_from(slots).unwrap_or(usize::MAX),
    )
}

/// The file, beside the volumes, that says which life of the controller was the last to command here.
const CONTROLLER: &str = "controller";

/// The last life of the controller that commanded this node; zero if none has.
pub(super) fn controllers_life(data: &DataDir) -> Result<u64> {
    let path = data.path().join(CONTROLLER);
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| {
            Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{} is not the number of a controller's life: remove it, and no command of a killed \
                     controller that is still on its way is refused until the next one comes",
                    path.display()
                ),
            )
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(Error::io(format!("read {}", path.display()), e)),
    }
}

/// Remember it, durably.
pub(super) fn keep_controllers_life(data: &DataDir, life: u64) -> Result<()> {
    write_whole(data.path(), CONTROLLER, &format!("{life}\n"))
}

/// Write a file of a directory durably, whole or not at all: beside, synced, renamed, and the directory synced.
pub(super) fn write_whole(dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    let beside = dir.join(format!(".{name}"));
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, &path)
    };
    write().map_err(|e| Error::io(format!("write {}", path.display()), e))?;
    sync_dir(dir)
}

/// Make the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|e| Error::io(format!("sync directory {}", dir.display()), e))
}
