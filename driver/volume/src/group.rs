//! Volumes whose epochs end together: one point in time of all of them.
//!
//! A guest that writes to one volume only after another has answered must find the same order in the
//! replicas: what is in the later volume's epoch presupposes what is in the earlier one's. Rotations
//! one by one do not give that, because an answer may fall between two of them. The volumes of a shard
//! are rotated in one call, and nothing is answered inside a call.

use crate::cursor::CursorName;
use crate::snapshot::Snapshot;
use crate::sync::Arc;
use crate::volume::Volume;
use block::Result;

/// As [`Volume::rotate`], for several volumes at one point in time: all of them, or none if one of them
/// cannot.
pub fn rotate_together(group: &mut [(&mut Volume, &CursorName)]) -> Result<Vec<Arc<Snapshot>>> {
    for (volume, name) in group.iter() {
        volume.can_rotate(name)?;
    }
    let rotate = |(volume, name): &mut (&mut Volume, &CursorName)| -> Result<Arc<Snapshot>> {
        volume.rotate(name)
    };
    group.iter_mut().map(rotate).collect()
}
