//! What the page cache already has of a file, read without the disk.
//!
//! A mover goes past the page cache, so that a seeding does not push out what others need. But an image
//! that was imported or restored a moment ago lies in memory as a whole, and reading it from the disk
//! that its copy goes to costs more than all the rest of the seeding.
//!
//! ```text
//! all of the range cached? ─ no ──► None: the disk
//!            │ yes (cachestat, which reads nothing ahead)
//!            ▼
//!   preadv2(RWF_NOWAIT) ─ short ──► None: the disk
//! ```
//! Guests write past the page cache too, so this is right only where a direct write takes what the cache
//! has of its range away before it completes: on ext4 and XFS, and not on a block device, which may be
//! written under another name.

use block::Result;
use nix::errno::Errno;
use nix::sys::statfs::{EXT4_SUPER_MAGIC, FsType, XFS_SUPER_MAGIC, fstatfs};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

/// The system call's number on every architecture that Rust has for Linux; libc does not name it yet.
const SYS_CACHESTAT: libc::c_long = 451;
/// Where the kernel's pages are larger it counts fewer of them, and the disk is read.
const PAGE: u64 = 4096;

#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}

/// Pages, as `struct cachestat` of linux/mman.h.
#[repr(C)]
#[derive(Default)]
struct Counts {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// A regular file whose page cache can be trusted.
pub(super) struct Cached(File);

impl Cached {
    /// `None` where it cannot be.
    pub(super) fn of(buffered: &OwnedFd) -> Result<Option<Cached>> {
        let trusted = fstatfs(buffered).is_ok_and(|fs| {
            let FsType(kind) = fs.filesystem_type();
            [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC].contains(&FsType(kind))
        });
        if !trusted {
            return Ok(None);
        }
        let file = buffered
            .try_clone()
            .map_err(|e| block::Error::io("duplicate a descriptor", e))?;
        Ok(Some(Cached(file.into())))
    }

    /// Fill `bytes` from `offset`, if all of it is cached.
    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) -> bool {
        self.has(offset, bytes.len() as u64) && self.copy(offset, bytes) == Ok(bytes.len())
    }

    fn has(&self, offset: u64, len: u64) -> bool {
        let range = Range { offset, len };
        let mut counts = Counts::default();
        // SAFETY: both structs are as the kernel declares them and outlive the call.
        let result = unsafe {
            libc::syscall(
                SYS_CACHESTAT,
                self.0.as_raw_fd(),
                &raw const range,
                &raw mut counts,
                0,
            )
        };
        let pages = (offset + len).div_ceil(PAGE) - offset / PAGE;
        // Before Linux 6.5 there is no such call: nothing is known to be cached.
        result == 0 && counts.cached >= pages
    }

    fn copy(&self, offset: u64, bytes: &mut [u8]) -> nix::Result<usize> {
        let part = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: the descriptor is open, and the one part is the slice, which is ours to write to.
        let n = unsafe {
            libc::preadv2(
                self.0.as_raw_fd(),
                &raw const part,
                1,
                offset as libc::off_t,
                libc::RWF_NOWAIT,
            )
        };
        Errno::result(n).map(|n| n as usize)
    }
}
