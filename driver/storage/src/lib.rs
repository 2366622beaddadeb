//! Images: plain raw files and block devices, read and written through a shard's ring.
//!
//! ```text
//! open ──► ImageFile ──attach──► Image ──► start(Io) ──► completed … ──► outcome
//!  (path, lock, size,             (on a shard: alignment, bounce,
//!   real alignment)                sparse operations, short transfers)
//! ```
//!
//! [`meta`] is the volume's metadata file, mapped; [`sparse`] asks a file where its data is, which
//! may block and so runs on a thread of its own.

mod buffered;
mod image;
mod io;
mod mark;
pub mod meta;
pub mod mover;
mod open;
pub mod sparse;
mod turns;
mod zero;

pub use image::{Image, Progress};
pub use io::{Io, Work};
pub use mark::mark;
pub use open::{CacheMode, ImageFile, OpenOptions};
