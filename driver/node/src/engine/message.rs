//! What other threads say to a shard.

use super::connection::Arrival;
use super::forward::NewLink;
use super::volume_cell::{VolumeCell, VolumeFiles};
use block::{Nanos, Result};
use nbd::session::Request;
use storage::sparse::Run;
use tokio::sync::oneshot;

/// Index of a volume on its shard.
pub(super) type VolumeIndex = u32;
/// Index of a connection on its shard.
pub(super) type ConnectionIndex = u32;

/// A control call that runs on the shard, between two batches.
pub(super) type Call = Box<dyn FnOnce(&mut VolumeCell, Nanos) + Send>;

pub(super) enum Message {
    AddVolume(Box<VolumeFiles>, oneshot::Sender<Result<VolumeIndex>>),
    /// Close its connections, finish its requests, sync it, close it.
    RemoveVolume(VolumeIndex, oneshot::Sender<Result<()>>),
    Connect(Box<Arrival>),
    Call(VolumeIndex, Call),
    /// The extents thread's answer to a block status request.
    Extents {
        connection: ConnectionIndex,
        request: Request,
        runs: Result<Vec<Run>>,
    },
    /// A connection to the volume's owner, asked for by its forwarder.
    Link(VolumeIndex, Box<NewLink>),
    /// As [`Message::RemoveVolume`] for all of them, then end the thread.
    Stop,
}
