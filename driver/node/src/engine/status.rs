//! Answers to block status: holes as the extents thread found them, and what changed since a
//! checkpoint as the dirty map says.

use super::connection::Life;
use super::message::ConnectionIndex;
use super::shard::EngineShard;
use super::volume_cell::VolumeCell;
use block::{AlignedBuf, Block, Result};
use nbd::MetaContext;
use nbd::codec::REPLY_HEAD_MAX;
use nbd::session::Request;
use nbd::status;
use ring::Ring;
use storage::sparse::Run;
use volume::{CheckpointName, CursorName};

/// Blocks looked at for one extent of a dirty bitmap: 4 GiB, the longest that a descriptor can say.
const DIRTY_BLOCKS_MAX: u64 = 1 << 20;

impl EngineShard {
    pub(super) fn extents_found(
        &mut self,
        ring: &mut Ring,
        c: ConnectionIndex,
        request: Request,
        runs: Result<Vec<Run>>,
    ) {
        let connection = &mut self.connections[c as usize];
        connection.open_requests -= 1;
        if connection.life == Life::Gone {
            return self.reap(ring, c);
        }
        let cell = &self.volumes[connection.volume as usize];
        let contexts = connection.session.contexts();
        let described = runs.map_err(|e| {
            tracing::warn!("block status: {e}");
            e.raw_os_error().unwrap_or(libc::EIO)
        });
        match described.and_then(|runs| describe(cell, contexts, &request, &runs)) {
            Ok((out, used)) => {
                connection.held_bytes += out.len();
                connection.out.push_payload(out, 0..used);
            }
            Err(errno) => {
                let mut head = [0; REPLY_HEAD_MAX];
                let n = connection.session.outcome(&request, Err(errno), &mut head);
                connection.out.push_head(&head[..n]);
            }
        }
        self.promise(c, request.charge());
    }
}

/// One chunk a context, and the bytes used.
fn describe(
    cell: &VolumeCell,
    contexts: &[MetaContext],
    request: &Request,
    runs: &[Run],
) -> std::result::Result<(AlignedBuf, usize), i32> {
    let mut out = AlignedBuf::zeroed(contexts.len() * status::STATUS_BYTES_MAX);
    let mut at = 0;
    for (id, context) in contexts.iter().enumerate() {
        let extents = match context {
            // The image here is no longer what the guest reads: claim nothing.
            MetaContext::Allocation if cell.forwarder.is_some() => Vec::new(),
            MetaContext::Allocation => {
                let flags = |run: &Run| {
                    if run.hole {
                        status::HOLE | status::ZERO
                    } else {
                        0
                    }
                };
                runs.iter().map(|run| (run.span.len, flags(run))).collect()
            }
            // A checkpoint that was deleted since the negotiation.
            MetaContext::Dirty(name) => dirty(cell, name, request).ok_or(libc::EINVAL)?,
        };
        let done = id + 1 == contexts.len();
        at += status::describe(request, id as u32, done, extents, &mut out[at..]);
    }
    Ok((out, at))
}

/// What changed since a checkpoint; `None` if there is no such checkpoint.
fn dirty(cell: &VolumeCell, name: &str, request: &Request) -> Option<Vec<(u64, u32)>> {
    let name = CursorName::Checkpoint(name.parse::<CheckpointName>().ok()?);
    let end = request.offset + u64::from(request.len);
    let mut extents = Vec::new();
    let mut at = request.offset;
    while at < end && extents.len() < status::DESCRIPTORS_MAX {
        let from = Block(at / block::BLOCK_BYTES);
        let next = cell.volume.next_dirty(&name, from, DIRTY_BLOCKS_MAX).ok()?;
        let (start, stop) = next.map_or((end, end), |e| (e.start.offset(), e.end().offset()));
        let (start, stop) = (start.clamp(at, end), stop.clamp(at, end));
        extents.push((start - at, 0));
        extents.push((stop - start, status::DIRTY));
        at = stop;
    }
    Some(extents)
}
