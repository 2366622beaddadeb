//! Identities drawn at random: of volumes, of operations.

use node::{Error, Result, VolumeId};
use std::fs::File;
use std::io::Read;

/// A fresh random UUID.
pub fn draw() -> Result<VolumeId> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .map_err(|e| Error::io("draw an identity from /dev/urandom", e))?;
    Ok(VolumeId::from_random(bytes))
}
