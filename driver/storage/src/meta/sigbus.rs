//! The SIGBUS handler: zero pages over the fault, a mark on the file, and on goes the process.

use block::{Error, ErrorKind, Result};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Mapped metadata files of one process: one a volume and one a replica.
const WATCHED_MAX: usize = 4096;

struct Range {
    start: AtomicUsize,
    len: AtomicUsize,
    faulted: AtomicBool,
}

// A handler may use neither lock nor allocation: a fixed table of atomics.
static RANGES: [Range; WATCHED_MAX] = [const {
    Range {
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        faulted: AtomicBool::new(false),
    }
}; WATCHED_MAX];

static INSTALL: Once = Once::new();

/// A mapped range that survives SIGBUS. Drop it before the mapping goes away.
pub(super) struct Watch(usize);

impl Watch {
    pub(super) fn new(start: usize, len: usize) -> Result<Watch> {
        INSTALL.call_once(install);
        for (i, range) in RANGES.iter().enumerate() {
            let free = range
                .start
                .compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed);
            if free.is_ok() {
                range.faulted.store(false, Ordering::Relaxed);
                range.len.store(len, Ordering::Release);
                return Ok(Watch(i));
            }
        }
        Err(Error::new(
            ErrorKind::NoSpace,
            format!("more than {WATCHED_MAX} metadata files are open in this process"),
        ))
    }

    pub(super) fn faulted(&self) -> bool {
        RANGES[self.0].faulted.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        RANGES[self.0].len.store(0, Ordering::Release);
        RANGES[self.0].start.store(0, Ordering::Release);
    }
}

fn install() {
    // SAFETY: sigaction is a C struct; all zero is a valid value of it.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and does nothing that is not
    // async-signal-safe.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } != 0 {
        tracing::warn!(
            "cannot handle SIGBUS: a failing disk under a metadata file ends the process"
        );
    }
}

extern "C" fn on_sigbus(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let address = unsafe { (*info).si_addr() } as usize;
    for range in &RANGES {
        let start = range.start.load(Ordering::Acquire);
        let len = range.len.load(Ordering::Acquire);
        if start != 0 && (start..start + len).contains(&address) {
            range.faulted.store(true, Ordering::Release);
            // SAFETY: the page belongs to a mapping of ours that the table describes; mapping zero
            // pages in its place is what this handler is for. mmap is a plain system call.
            let mapped = unsafe {
                libc::mmap(
                    (address & !4095) as *mut libc::c_void,
                    4096,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            if mapped != libc::MAP_FAILED {
                return;
            }
        }
    }
    // Not ours: let the fault happen again with its default effect.
    // SAFETY: resetting a signal's disposition is async-signal-safe.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}
