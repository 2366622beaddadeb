//! The errnos that the gate itself gives.

/// A write on a read-only volume.
pub const EPERM: i32 = 1;
/// The volume is poisoned.
pub const EIO: i32 = 5;
/// A span that is empty or, where nothing is written, past the end.
pub const EINVAL: i32 = 22;
/// A write past the end of the volume.
pub const ENOSPC: i32 = 28;
