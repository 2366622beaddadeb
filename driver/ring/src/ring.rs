//! The ring: starts operations, owns their memory, hands it back with their completions.

use crate::data::{Data, Gather};
use block::{AlignedBuf, Error, Nanos, Result};
use io_uring::{IoUring, opcode, squeue, types};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// Operations in flight on one ring. The completion queue has room for all of them at once, so it
/// cannot overflow. Callers bound their own work far below it.
pub const OPERATIONS_MAX: usize = 8192;
/// Submission queue: a fuller turn is submitted in several enters.
const SUBMISSION_ENTRIES: u32 = 512;
/// Slots for registered files: connections, images and metadata files of one shard.
const FILE_SLOTS: u32 = 512;
/// Kernel worker threads for what cannot run inline (fsync, fallocate, writes into holes). Enough
/// to keep a disk busy, few enough not to crowd out the shards.
const WORKERS_BOUNDED: u32 = 16;
/// Kernel workers for requests that may never end. We have none: sockets are polled.
const WORKERS_UNBOUNDED: u32 = 4;
/// How long operations that probably end together are waited for before the first that ended wakes its shard.
/// It is what a request that comes meanwhile may have to wait, a fraction of what the reads take.
const TOGETHER: Duration = Duration::from_micros(50);
/// How long that patience is for a shard that waits for nothing else: for ever would do.
const TOGETHER_MAX: Duration = Duration::from_secs(1);
/// How long a ring that is dropped waits for its operations before it leaks their memory.
const DROP_PATIENCE: Duration = Duration::from_secs(5);

/// The caller's name for an operation; comes back with its completion.
pub type Token = u64;

/// A file or socket known to the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(u32);

/// A completed operation.
#[derive(Debug)]
pub struct Done {
    /// The token it was started with.
    pub token: Token,
    /// Bytes transferred (0 for those that transfer none), or a positive errno.
    pub result: std::result::Result<usize, i32>,
    /// The memory it was started with.
    pub data: Data,
}

enum Slot {
    Free { next: u32 },
    Busy(Operation),
}

struct Operation {
    token: Token,
    data: Data,
    /// Set for sends, which the ring itself carries on after a short one.
    send: Option<Send>,
}

struct Send {
    file: FileId,
    sent: usize,
}

const NO_SLOT: u32 = u32::MAX;
const WAKE: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;

/// One io_uring and everything the kernel may touch through it.
pub struct Ring {
    uring: IoUring,
    slots: Vec<Slot>,
    free: u32,
    busy: usize,
    files: Vec<Option<OwnedFd>>,
    registered_files: bool,
    batch: Vec<(u64, i32)>,
    wake: Option<(RawFd, Box<u64>)>,
    woken: bool,
    together: usize,
    /// The kernel can (6.12 and newer).
    waits_together: bool,
    started: Instant,
    now: Nanos,
}

impl Ring {
    /// A ring of the calling thread, which alone may use it.
    pub fn new() -> Result<Ring> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(OPERATIONS_MAX as u32)
            .build(SUBMISSION_ENTRIES)
            .map_err(|e| {
                Error::io(
                    "set up an io_uring (Linux 6.1 or newer is needed, and io_uring must be \
                     allowed: see sysctl kernel.io_uring_disabled and the container's seccomp \
                     profile)",
                    e,
                )
            })?;
        let registered_files = match uring.submitter().register_files_sparse(FILE_SLOTS) {
            Ok(()) => true,
            Err(e) => {
                tracing::warn!(
                    "io_uring refused {FILE_SLOTS} registered files ({e}): going on with plain \
                     descriptors, a little slower; raise RLIMIT_NOFILE or RLIMIT_MEMLOCK"
                );
                false
            }
        };
        let mut workers = [WORKERS_BOUNDED, WORKERS_UNBOUNDED];
        if let Err(e) = uring.submitter().register_iowq_max_workers(&mut workers) {
            tracing::warn!("io_uring refused a bound on its worker threads: {e}");
        }
        let waits_together = uring.params().is_feature_min_timeout();
        Ok(Ring {
            uring,
            slots: Vec::with_capacity(OPERATIONS_MAX),
            free: NO_SLOT,
            busy: 0,
            files: Vec::new(),
            registered_files,
            batch: Vec::with_capacity(OPERATIONS_MAX),
            wake: None,
            woken: false,
            together: 0,
            waits_together,
            started: Instant::now(),
            now: Nanos::ZERO,
        })
    }

    /// Monotonic time as of the beginning of this turn, or of the last [`Ring::look_at_clock`].
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// Something in this turn took time that [`Ring::now`] should know of.
    pub fn look_at_clock(&mut self) {
        self.now = self.read_clock();
    }

    /// So many operations will most likely end together: the next wait may go on until they have, for
    /// some microseconds, though another ends before. A shard that is woken once for many saves processor.
    pub fn await_together(&mut self, operations: usize) {
        self.together = operations;
    }

    /// Hand what is queued to the kernel now, and not at the end of the turn.
    pub fn submit(&mut self) {
        self.submit_queued();
    }

    /// Operations in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.busy
    }

    /// Hand a file or socket to the ring.
    pub fn add_file(&mut self, fd: OwnedFd) -> FileId {
        let free = self.files.iter().position(Option::is_none);
        let index = free.unwrap_or_else(|| {
            self.files.push(None);
            self.files.len() - 1
        });
        if self.registered_files && index < FILE_SLOTS as usize {
            let update = self
                .uring
                .submitter()
                .register_files_update(index as u32, &[fd.as_raw_fd()]);
            if let Err(e) = update {
                // A file table in which some slots are stale would do I/O on the wrong file.
                assert!(
                    self.busy == 0,
                    "io_uring refused to register a file while others are in use: {e}"
                );
                self.registered_files = false;
            }
        }
        self.files[index] = Some(fd);
        FileId(index as u32)
    }

    /// Forget a file and close it. Operations in flight keep it open until they complete.
    pub fn remove_file(&mut self, id: FileId) {
        // Queued operations name the file by number: the kernel must see them before the number
        // can mean another file.
        self.submit_queued();
        let index = id.0 as usize;
        if self.registered_files && id.0 < FILE_SLOTS {
            let _ = self
                .uring
                .submitter()
                .register_files_update(id.0, &[-1 as RawFd]);
        }
        self.files[index] = None;
    }

    /// The descriptor behind a file id, for system calls that the ring does not do.
    #[must_use]
    pub fn fd(&self, id: FileId) -> Option<&OwnedFd> {
        self.files.get(id.0 as usize).and_then(Option::as_ref)
    }

    /// Read `range` of `buf` from `offset` of a file.
    pub fn read(
        &mut self,
        file: FileId,
        offset: u64,
        buf: AlignedBuf,
        range: Range<usize>,
        token: Token,
    ) {
        self.read_with(squeue::Flags::empty(), file, offset, buf, range, token);
    }

    /// As [`Ring::read`], by a kernel worker from the start: this thread copies nothing when it submits.
    pub fn read_by_worker(
        &mut self,
        file: FileId,
        offset: u64,
        buf: AlignedBuf,
        range: Range<usize>,
        token: Token,
    ) {
        self.read_with(squeue::Flags::ASYNC, file, offset, buf, range, token);
    }

    fn read_with(
        &mut self,
        flags: squeue::Flags,
        file: FileId,
        offset: u64,
        mut buf: AlignedBuf,
        range: Range<usize>,
        token: Token,
    ) {
        let bytes = &mut buf[range];
        let (ptr, len) = (bytes.as_mut_ptr(), bytes.len() as u32);
        let entry = self.with_file(file, |fd| match fd {
            Target::Fixed(fd) => opcode::Read::new(fd, ptr, len).offset(offset).build(),
            Target::Plain(fd) => opcode::Read::new(fd, ptr, len).offset(offset).build(),
        });
        self.start(entry.flags(flags), token, Data::Buf(buf), None);
    }

    /// Write `range` of `buf` at `offset` of a file.
    pub fn write(
        &mut self,
        file: FileId,
        offset: u64,
        buf: AlignedBuf,
        range: Range<usize>,
        token: Token,
    ) {
        let bytes = &buf[range];
        let (ptr, len) = (bytes.as_ptr(), bytes.len() as u32);
        let entry = self.with_file(file, |fd| match fd {
            Target::Fixed(fd) => opcode::Write::new(fd, ptr, len).offset(offset).build(),
            Target::Plain(fd) => opcode::Write::new(fd, ptr, len).offset(offset).build(),
        });
        self.start(entry, token, Data::Buf(buf), None);
    }

    /// Make the file's data durable (fdatasync).
    pub fn sync(&mut self, file: FileId, token: Token) {
        let flags = types::FsyncFlags::DATASYNC;
        let entry = self.with_file(file, |fd| match fd {
            Target::Fixed(fd) => opcode::Fsync::new(fd).flags(flags).build(),
            Target::Plain(fd) => opcode::Fsync::new(fd).flags(flags).build(),
        });
        self.start(entry, token, Data::None, None);
    }

    /// fallocate(2) with the given mode.
    pub fn fallocate(&mut self, file: FileId, mode: i32, offset: u64, len: u64, token: Token) {
        let entry = self.with_file(file, |fd| match fd {
            Target::Fixed(fd) => opcode::Fallocate::new(fd, len)
                .offset(offset)
                .mode(mode)
                .build(),
            Target::Plain(fd) => opcode::Fallocate::new(fd, len)
                .offset(offset)
                .mode(mode)
                .build(),
        });
        self.start(entry, token, Data::None, None);
    }

    /// Ask the kernel to read a range of the file ahead.
    pub fn read_ahead(&mut self, file: FileId, offset: u64, len: u64, token: Token) {
        let (len, advice) = (len.min(i32::MAX as u64) as i64, libc::POSIX_FADV_WILLNEED);
        let entry = self.with_file(file, |fd| match fd {
            Target::Fixed(fd) => opcode::Fadvise::new(fd, len, advice).offset(offset).build(),
            Target::Plain(fd) => opcode::Fadvise::new(fd, len, advice).offset(offset).build(),
        });
        self.start(entry, token, Data::None, None);
    }

    /// Receive into `range` of `buf`: what there is, or with `all` the whole range. `poll_first`
    /// says that the socket is probably empty, which saves a futile attempt.
    pub fn recv(
        &mut self,
        socket: FileId,
        mut buf: AlignedBuf,
        range: Range<usize>,
        all: bool,
        poll_first: bool,
        token: Token,
    ) {
        const RECVSEND_POLL_FIRST: u16 = 1;
        let bytes = &mut buf[range];
        let (ptr, len) = (bytes.as_mut_ptr(), bytes.len() as u32);
        let flags = if all { libc::MSG_WAITALL } else { 0 };
        let prio = if poll_first { RECVSEND_POLL_FIRST } else { 0 };
        let entry = self.with_file(socket, |fd| match fd {
            Target::Fixed(fd) => opcode::Recv::new(fd, ptr, len)
                .flags(flags)
                .ioprio(prio)
                .build(),
            Target::Plain(fd) => opcode::Recv::new(fd, ptr, len)
                .flags(flags)
                .ioprio(prio)
                .build(),
        });
        self.start(entry, token, Data::Buf(buf), None);
    }

    /// Send everything gathered. Completes when all is sent, or with an error.
    pub fn send(&mut self, socket: FileId, gather: Gather, token: Token) {
        self.send_from(socket, gather, 0, token);
    }

    fn send_from(&mut self, socket: FileId, gather: Gather, sent: usize, token: Token) {
        let send = Send { file: socket, sent };
        let mut data = Data::Gather(gather);
        let entry = self.send_entry(&mut data, &send);
        self.start(entry, token, data, Some(send));
    }

    /// Send at once what the socket takes without waiting. `Some`: that was all, and here is the
    /// gather again. `None`: the rest follows as with [`Ring::send`], which also reports what error
    /// the socket may have.
    ///
    /// A reply nearly always fits. Sent through the ring it would complete inside the next enter,
    /// which then returns for it instead of waiting for the client's next request.
    #[must_use]
    pub fn send_now(&mut self, socket: FileId, mut gather: Gather, token: Token) -> Option<Gather> {
        let fd = self.fd(socket).map_or(-1, AsRawFd::as_raw_fd);
        let message = gather.message(0);
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: the message and what its parts point to belong to the gather, which outlives the
        // call and is not touched during it; the kernel only reads them.
        let sent = unsafe { libc::sendmsg(fd, message, flags) };
        let sent = usize::try_from(sent).unwrap_or(0);
        if sent == gather.bytes() {
            return Some(gather);
        }
        self.send_from(socket, gather, sent, token);
        None
    }

    /// Cancel what is in flight on a file. Every operation still completes, most with ECANCELED.
    pub fn cancel(&mut self, file: FileId) {
        let builder = if self.registered_files && file.0 < FILE_SLOTS {
            types::CancelBuilder::fd(types::Fixed(file.0)).all()
        } else if let Some(fd) = self.fd(file) {
            types::CancelBuilder::fd(types::Fd(fd.as_raw_fd())).all()
        } else {
            return;
        };
        let entry = opcode::AsyncCancel2::new(builder).build().user_data(CANCEL);
        self.queue(entry);
    }

    fn send_entry(&self, data: &mut Data, send: &Send) -> squeue::Entry {
        let Data::Gather(gather) = data else {
            unreachable!("a send owns a gather")
        };
        let message = gather.message(send.sent);
        // With MSG_WAITALL the kernel itself carries on after a full socket buffer.
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
        self.with_file(send.file, |fd| match fd {
            Target::Fixed(fd) => opcode::SendMsg::new(fd, message).flags(flags).build(),
            Target::Plain(fd) => opcode::SendMsg::new(fd, message).flags(flags).build(),
        })
    }

    fn with_file<T>(&self, id: FileId, f: impl FnOnce(Target) -> T) -> T {
        if self.registered_files && id.0 < FILE_SLOTS {
            f(Target::Fixed(types::Fixed(id.0)))
        } else {
            let fd = self.fd(id).map_or(-1, AsRawFd::as_raw_fd);
            f(Target::Plain(types::Fd(fd)))
        }
    }

    fn start(&mut self, entry: squeue::Entry, token: Token, data: Data, send: Option<Send>) {
        let operation = Slot::Busy(Operation { token, data, send });
        let index = if self.free == NO_SLOT {
            assert!(
                self.slots.len() < OPERATIONS_MAX,
                "ring: too many operations in flight"
            );
            self.slots.push(operation);
            self.slots.len() as u32 - 1
        } else {
            let index = self.free;
            let old = std::mem::replace(&mut self.slots[index as usize], operation);
            let Slot::Free { next } = old else {
                unreachable!("the free list names only free slots")
            };
            self.free = next;
            index
        };
        self.busy += 1;
        self.queue(entry.user_data(u64::from(index)));
    }

    fn queue(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: every pointer in the entry leads into memory owned by the operation's slot
            // (or the wake word's box), which is neither freed nor handed out before the
            // completion of this entry: `complete` is the only place that takes it out, and `drop`
            // leaks what has not completed.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.submit_queued();
        }
    }

    fn submit_queued(&mut self) {
        while let Err(e) = self.uring.submit() {
            // EINTR, EAGAIN (kernel memory) and EBUSY (completions to be reaped) are all "again".
            // Completions cannot be reaped here, but their queue holds every operation there is.
            assert!(
                matches!(
                    e.raw_os_error(),
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
                ),
                "io_uring submit: {e}"
            );
        }
    }

    /// Let a word be read from `event` whenever it is signalled; [`Ring::take_woken`] tells.
    pub(crate) fn watch(&mut self, event: RawFd) {
        self.wake = Some((event, Box::new(0)));
        self.rearm();
    }

    fn rearm(&mut self) {
        if let Some((fd, word)) = &mut self.wake {
            let ptr: *mut u64 = &mut **word;
            let entry = opcode::Read::new(types::Fd(*fd), ptr.cast(), 8).build();
            self.queue(entry.user_data(WAKE));
        }
    }

    pub(crate) fn take_woken(&mut self) -> bool {
        std::mem::take(&mut self.woken)
    }

    /// Submit what is queued and wait for a completion, no longer than until `deadline`.
    pub(crate) fn enter(&mut self, deadline: Option<Nanos>) -> Result<()> {
        let together = std::mem::take(&mut self.together);
        let wait = deadline.map(|at| at.since(self.read_clock()));
        let (mut operations, mut longest) = (1, wait);
        let mut args = types::SubmitArgs::new();
        if together > 1 && self.waits_together && wait.is_none_or(|w| w > TOGETHER) {
            operations = together;
            longest = Some(wait.unwrap_or(TOGETHER_MAX));
            args = args.min_wait_usec(TOGETHER.as_micros() as u32);
        }
        let longest = longest.map(types::Timespec::from);
        if let Some(longest) = &longest {
            args = args.timespec(longest);
        }
        let entered = self.uring.submitter().submit_with_args(operations, &args);
        if let Err(e) = entered
            && !matches!(
                e.raw_os_error(),
                Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY)
            )
        {
            return Err(Error::io("enter the io_uring", e));
        }
        self.now = self.read_clock();
        self.batch.clear();
        for cqe in self.uring.completion() {
            self.batch.push((cqe.user_data(), cqe.result()));
        }
        Ok(())
    }

    fn read_clock(&self) -> Nanos {
        Nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// How many completions the last enter brought.
    pub(crate) fn batch_len(&self) -> usize {
        self.batch.len()
    }

    /// The completion number `i` of the batch, `None` if it was the ring's own business.
    pub(crate) fn complete(&mut self, i: usize) -> Option<Done> {
        let (user_data, result) = self.batch[i];
        match user_data {
            WAKE => {
                self.woken = true;
                self.rearm();
                return None;
            }
            CANCEL => return None,
            _ => {}
        }
        let index = user_data as usize;
        let free = Slot::Free { next: self.free };
        let Slot::Busy(mut operation) = std::mem::replace(&mut self.slots[index], free) else {
            unreachable!("the kernel completed an operation twice")
        };
        self.free = index as u32;
        self.busy -= 1;

        let mut result = usize::try_from(result).map_err(|_| -result);
        if let Some(mut send) = operation.send.take() {
            let again = matches!(result, Err(libc::EINTR));
            send.sent += *result.as_ref().unwrap_or(&0);
            let total = match &operation.data {
                Data::Gather(g) => g.bytes(),
                Data::None | Data::Buf(_) => 0,
            };
            if again || (matches!(result, Ok(1..)) && send.sent < total) {
                let entry = self.send_entry(&mut operation.data, &send);
                self.start(entry, operation.token, operation.data, Some(send));
                return None;
            }
            if result.is_ok() {
                result = if send.sent == total {
                    Ok(total)
                } else {
                    Err(libc::EPIPE)
                };
            }
        }
        Some(Done {
            token: operation.token,
            result,
            data: operation.data,
        })
    }
}

enum Target {
    Fixed(types::Fixed),
    Plain(types::Fd),
}

impl Drop for Ring {
    fn drop(&mut self) {
        let all = types::CancelBuilder::any().all();
        self.queue(opcode::AsyncCancel2::new(all).build().user_data(CANCEL));
        let give_up = Instant::now() + DROP_PATIENCE;
        while self.busy > 0 && Instant::now() < give_up {
            let soon = self.read_clock() + Duration::from_millis(100);
            if self.enter(Some(soon)).is_err() {
                break;
            }
            for i in 0..self.batch.len() {
                let (user_data, _) = self.batch[i];
                if user_data < CANCEL
                    && let Slot::Busy(_) = std::mem::replace(
                        &mut self.slots[user_data as usize],
                        Slot::Free { next: NO_SLOT },
                    )
                {
                    self.busy -= 1;
                }
            }
        }
        // The kernel may still write into what has not completed, so that memory is never freed.
        if self.busy > 0 {
            tracing::error!("{} operations did not end: leaking their memory", self.busy);
            std::mem::forget(std::mem::take(&mut self.slots));
        }
        if let Some((_, word)) = self.wake.take() {
            // Its read was cancelled above, but eight bytes are not worth proving it.
            Box::leak(word);
        }
    }
}
