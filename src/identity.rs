//! Random bytes, and the identities drawn from them: of volumes, of operations.

use node::{Error, Result, VolumeId};
use std::fs::File;
use std::io::Read;

/// Bytes that nobody can guess.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .map_err(|e| Error::io("read random bytes from /dev/urandom", e))?;
    Ok(bytes)
}

/// A fresh random UUID.
pub fn draw() -> Result<VolumeId> {
    random().map(VolumeId::from_random)
}
