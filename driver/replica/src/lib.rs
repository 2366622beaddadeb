//! Replication: seeding, increments, mirroring, digest comparison, and the cutover they lead to.
//!
//! ```text
//!        source's node                                    receiver's node
//!  volume ── rotate ──► Snapshot                      replica  A/B record: what this copy is
//!  image ─► read ─► compare, elide, shrink ═ wire ═►  staging  the epoch being received
//!           Sender                        Receiver ►  image
//! ```
//!
//! Everything here is generic over `block::{Disk, Transport, Clock}` and over the two seams to the
//! volume, [`Source`] and [`Target`]: production puts tokio-uring and the shards' mailboxes there,
//! the simulator its own world. Nothing spawns, nothing asks the time elsewhere, no decision depends
//! on the order of a hash map. All futures of a session are polled together by one thread.
//!
//! **Seeding** copies the image as it finds it while the guest writes. It is no point in time; the
//! volume has tracked since before it began, and the first increment makes the copy consistent.
//! Until then there is nothing to protect, so that increment goes straight into the image too.
//!
//! **An increment** is staged whole, committed with one record, then applied; a crash after the
//! record redoes the apply, a crash before it drops the staging. The copy is a point in time always.
//!
//! **A mirror** is an increment whose content arrives as the guest writes it. It is staged in a log
//! of its own beside the increment of what was dirty before, and applied after it: that is the whole
//! ordering between old content and new.

mod content;
pub mod cutover;
mod inbox;
mod link;
mod mirror;
mod pacer;
mod receiver;
mod record;
mod seam;
mod sender;
mod staging;

pub use link::{Incoming, greet};
pub use receiver::{Files, Receiver};
pub use record::{Record, State, adopt};
pub use seam::{GuestLoad, MirrorItem, MirrorOp, Pending, Source, Target};
pub use sender::{Event, Increment, Order, Progress, Seeding, Sender, Session, Tuning};
pub use staging::staging_bytes;
