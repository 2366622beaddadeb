//! Tracking that outlives the process: `forerun serve --state FILE`.
//!
//! ```text
//! no FILE ─► FILE.new: identity, owner ─► durable ─► renamed to FILE
//! FILE    ─► is it this image's? ─► what its intents cover counts as changed
//! ```
//!
//! The file is a volume's metadata, as a node keeps it. It knows nothing of what other programs write
//! to the image, so it names the image and is refused for another.

use crate::engine::{Engine, VolumeHandle, VolumeSpec};
use block::{Epoch, Error, ErrorKind, Generation, Result, VolumeId};
use std::fs::File;
use std::path::{Path, PathBuf};
use storage::ImageFile;
use storage::meta::{MetaFile, SLOT_BYTES};
use volume::{
    CheckpointName, Config, Cursor, CursorName, Identity, Role, Start, Volume, meta_bytes,
};

/// What is tracked, and where.
#[derive(Clone, Debug)]
pub struct Tracking {
    /// The metadata file. Made if it is not there.
    pub file: PathBuf,
    /// The volume's identity, if it is made.
    pub id: VolumeId,
    /// Checkpoints to be made, each where there is none of that name.
    pub checkpoints: Vec<CheckpointName>,
    /// Go on with an image that was exchanged: all of it counts as changed.
    pub adopt_image: bool,
}

/// Put the image with its metadata on a shard.
pub(super) async fn host(
    engine: &Engine,
    image: ImageFile,
    path: &Path,
    config: Config,
    tracking: &Tracking,
) -> Result<VolumeHandle> {
    let file = &tracking.file;
    let asked = || format!("track changes in {}", file.display());
    let path = std::fs::canonicalize(path).map_err(|e| Error::io(asked(), e))?;
    let known = file.try_exists().map_err(|e| Error::io(asked(), e))?;
    let at = match known {
        true => file.clone(),
        false => unfinished(file),
    };
    if !known && at.exists() {
        // Its first record never became durable: nobody was promised anything.
        std::fs::remove_file(&at).map_err(|e| Error::io(asked(), e))?;
    }
    let slots = usize::try_from(meta_bytes(config.size)).unwrap_or(usize::MAX) / SLOT_BYTES;
    let (pages, fd) = MetaFile::open(&at, slots)?;
    let volume = if known {
        let mut volume = Volume::open(config, None, &pages.read()?)
            .map_err(|e| e.within(path.display()).within(asked()))?;
        belongs(&volume, &path).map_err(|e| e.within(asked()))?;
        let adopted = volume
            .know_image(image.mark, tracking.adopt_image)
            .map_err(|e| exchanged(&path, &e).within(asked()))?;
        if adopted {
            tracing::warn!("the image was exchanged: all of it counts as changed");
        }
        volume
    } else {
        let owner = Role::Owner {
            generation: Generation(1),
            since: Epoch(0),
        };
        let mut volume = Volume::create(config, identity(tracking.id, &path)?, owner)?;
        volume.know_image(image.mark, false)?;
        volume
    };
    let spec = VolumeSpec {
        volume,
        image,
        meta: Some((pages, fd)),
    };
    let handle = engine.add_volume(spec).await?;
    handle.opened().await?;
    if !known {
        publish(&at, file).map_err(|e| Error::io(asked(), e))?;
    }
    for name in &tracking.checkpoints {
        let name = CursorName::Checkpoint(name.clone());
        let known = name.clone();
        let has = handle.call(move |v, _| v.cursors().iter().any(|c| c.name == known));
        if !has.await? {
            handle
                .control(move |v, _| v.add_cursor(name, Start::Now))
                .await?;
        }
    }
    Ok(handle)
}

/// Names of the checkpoints among a volume's cursors.
pub(crate) fn checkpoints(cursors: &[Cursor]) -> Vec<String> {
    let name = |c: &Cursor| match &c.name {
        CursorName::Checkpoint(name) => Some(name.as_str().to_owned()),
        CursorName::Replica(_) | CursorName::FormerOwner => None,
    };
    cursors.iter().filter_map(name).collect()
}

fn unfinished(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn identity(id: VolumeId, image: &Path) -> Result<Identity> {
    let image = image.to_str().ok_or_else(|| {
        Error::new(
            ErrorKind::Invalid,
            format!("image {} has a name that is not UTF-8", image.display()),
        )
    })?;
    Ok(Identity {
        id,
        name: "image".parse()?,
        image: image.to_owned(),
    })
}

fn belongs(volume: &Volume, image: &Path) -> Result<()> {
    let its = volume.identity().map_or("", |i| i.image.as_str());
    if Path::new(its) == image {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Corrupt,
        format!(
            "it belongs to the image {its}, not to {}: use another --state, or remove this one to \
             begin anew (then take a full backup first)",
            image.display()
        ),
    ))
}

fn exchanged(image: &Path, e: &Error) -> Error {
    Error::new(
        e.kind(),
        format!(
            "{} ({}), and what it tracks is of that one. Put the image back; or, to go on with this \
             one, add --adopt-image once: every checkpoint then counts all of it as changed",
            e.context(),
            image.display()
        ),
    )
}

fn publish(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::rename(from, to)?;
    let folder = to.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
