//! The words that every room of Forerun shares: units of a disk, epochs and generations, names,
//! errors that keep their errno, aligned buffers, and the seams (`Disk`, `Transport`, `Clock`)
//! behind which production has io_uring and the simulator has its own world.
//!
//! This crate imports nothing of ours and does no I/O.

mod buffer;
mod error;
mod mark;
mod name;
mod seam;
pub mod sector;
mod time;
mod unit;

pub use buffer::{AlignedBuf, HUGE_PAGE_BYTES};
pub use error::{Error, ErrorKind, Result};
pub use mark::ImageMark;
pub use name::{NodeName, VolumeId, VolumeName};
pub use seam::{Clock, Disk, Transport};
pub use time::Nanos;
pub use unit::{
    AREA_BYTES, Area, BLOCK_BYTES, BLOCKS_PER_AREA, BLOCKS_PER_REGION, Block, Epoch, Extent,
    Generation, REGION_BYTES, Region, SECTOR_BYTES, Span,
};
