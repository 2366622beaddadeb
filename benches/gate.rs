//! What the gate costs: a write from its submission to its reply, with nothing around it.
//!
//!     cargo bench --bench gate
//!
//! 4 KiB writes at random places, 32 in flight, as a shard would submit and complete them. *untracked*
//! is a volume without metadata; *tracked* has a checkpoint, so that each write looks up its intent
//! and is marked in the dirty map of an epoch. Every block was written before, as in a running system:
//! the first write to a region also allocates a page, the first to an area waits for the disk.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints"
)]

mod stopwatch;

use block::{BLOCK_BYTES, Epoch, Generation, Nanos, Span, VolumeId};
use stopwatch::measure;
use volume::{
    Action, Admission, Completion, Config, CursorName, Identity, Op, Request, RequestId, Role,
    Start, Volume,
};

/// 32 regions: one page of the dirty map for each write of a window.
const VOLUME_BYTES: u64 = 4 << 30;
const DEPTH: u32 = 32;

fn config() -> Config {
    Config {
        size: VOLUME_BYTES,
        max_requests: 2048,
        align: 1,
        read_only: false,
    }
}

fn tracked() -> Volume {
    let identity = Identity {
        id: VolumeId([1; 16]),
        name: "bench".parse().unwrap(),
        image: "/bench".to_owned(),
    };
    let owner = Role::Owner {
        generation: Generation(1),
        since: Epoch(0),
    };
    let mut volume = Volume::create(config(), identity, owner).unwrap();
    settle(&mut volume);
    let checkpoint = CursorName::Checkpoint("bench".parse().unwrap());
    volume.add_cursor(checkpoint, Start::Now).unwrap();
    settle(&mut volume);
    for offset in (0..VOLUME_BYTES).step_by(BLOCK_BYTES as usize) {
        write(&mut volume, 0, offset);
        settle(&mut volume);
    }
    volume
}

/// Be the disk: everything asked for succeeds at once.
fn settle(volume: &mut Volume) {
    while let Some(action) = volume.poll() {
        match action {
            Action::SyncImage => volume.image_synced(Nanos::ZERO, Ok(())),
            Action::SyncMeta => volume.meta_synced(Nanos::ZERO, Ok(())),
            Action::Issue(id) => assert_eq!(
                volume.complete(Nanos::ZERO, id, Ok(())),
                Completion::Reply(Ok(()))
            ),
            _ => {}
        }
    }
}

/// Submit a write; one that need not wait is completed too.
fn write(volume: &mut Volume, id: u32, offset: u64) {
    if submit(volume, id, offset) == Admission::Issue {
        complete(volume, id);
    }
}

fn submit(volume: &mut Volume, id: u32, offset: u64) -> Admission {
    let request = Request {
        id: RequestId(id),
        op: Op::Write,
        fua: false,
        span: Span::new(offset, BLOCK_BYTES),
    };
    volume.submit(Nanos::ZERO, request)
}

fn complete(volume: &mut Volume, id: u32) {
    let completion = volume.complete(Nanos::ZERO, RequestId(id), Ok(()));
    assert_eq!(completion, Completion::Reply(Ok(())));
}

/// Offsets of a window of writes: at random, and no two the same, so that none waits for another.
fn next_window(seed: &mut u64) -> [u64; DEPTH as usize] {
    let part = VOLUME_BYTES / u64::from(DEPTH) / BLOCK_BYTES;
    std::array::from_fn(|i| {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        (i as u64 * part + *seed % part) * BLOCK_BYTES
    })
}

fn windows(what: &str, mut volume: Volume) {
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    measure(what, DEPTH, || {
        let offsets = next_window(&mut seed);
        for (id, offset) in (0..DEPTH).zip(offsets) {
            assert_eq!(submit(&mut volume, id, offset), Admission::Issue);
        }
        for id in 0..DEPTH {
            complete(&mut volume, id);
        }
        assert!(volume.poll().is_none());
    });
}

fn main() {
    let mut seed = 1;
    measure("choosing the offset (in the lines below)", DEPTH, || {
        next_window(&mut seed)
    });
    windows("write, untracked", Volume::ephemeral(config()));
    windows("write, tracked", tracked());
}
