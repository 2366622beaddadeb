//! An image on a shard.
//!
//! A transfer covers the *wide* span, the guest's span rounded out to the unit that the file
//! really needs. For an unaligned write the first and the last unit are read first and merged with
//! the guest's bytes. Two such writes may share a unit without sharing a byte, so the caller orders
//! writes by their wide spans ([`Image::widen`]).
//!
//! ```text
//! Read    ── body ──► done
//! Write   ── (head) ── (tail) ── body ──► done          body: short transfers go on from an
//! Zero    ── fallocate ──► done                               aligned point
//!                └ not supported: remembered ── write zeroes, piece by piece
//! ```

use crate::buffered::Inline;
use crate::io::{Io, Stage, Work};
use crate::open::ImageFile;
use crate::turns::Turns;
use crate::zero::Sparse;
use block::{AlignedBuf, Span};
use nix::errno::Errno;
use ring::{Data, Done, FileId, Ring, Token};
use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::time::Instant;

/// Whether a request is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A completion with the request's token will come.
    More,
    /// It is over: success or a positive errno.
    Ended(Result<(), i32>),
}

/// An image that belongs to a shard's ring.
#[derive(Debug)]
pub struct Image {
    pub(crate) main: FileId,
    buffered: Option<FileId>,
    size: u64,
    unit: u64,
    pub(crate) device: bool,
    pub(crate) sparse: Sparse,
    inline: Inline,
    /// The file system can read from the page cache alone.
    reads_cached: bool,
    turns: Turns,
    /// Reads that wait for their turn; no more than the caller has requests.
    held: VecDeque<DiskRead>,
}

/// A read past the page cache.
#[derive(Debug)]
struct DiskRead {
    offset: u64,
    buf: AlignedBuf,
    range: Range<usize>,
    token: Token,
}

impl Image {
    /// Hand an open image to a ring.
    pub fn attach(file: ImageFile, ring: &mut Ring) -> Image {
        Image {
            main: ring.add_file(file.main),
            buffered: file.buffered.map(|fd| ring.add_file(fd)),
            size: file.size,
            unit: u64::from(file.unit),
            device: file.device,
            sparse: Sparse::new(file.punches),
            inline: Inline::default(),
            reads_cached: true,
            turns: Turns::default(),
            held: VecDeque::new(),
        }
    }

    /// Close the image. Nothing of it may be in flight.
    pub fn detach(self, ring: &mut Ring) {
        ring.remove_file(self.main);
        if let Some(id) = self.buffered {
            ring.remove_file(id);
        }
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// `span` rounded out to whole units. The last unit may lie partly past the end of the image.
    #[must_use]
    pub fn widen(&self, span: Span) -> Span {
        let offset = span.offset & !(self.unit - 1);
        let end = span.end().next_multiple_of(self.unit);
        Span::new(offset, end - offset)
    }

    /// What a write of `span` touches: what writes are to be ordered by.
    #[must_use]
    pub fn touched(&self, span: Span) -> Span {
        let wide = self.widen(span);
        Span::new(wide.offset, wide.end().min(self.size) - wide.offset)
    }

    /// A request for `span`, which lies in the image. A read or write then needs a buffer of
    /// [`Image::widen`]'s length, the guest's bytes at [`Io::payload`].
    #[must_use]
    pub fn prepare(&self, work: Work, span: Span) -> Io {
        assert!(span.fits(self.size), "request {span} outside the image");
        Io {
            work,
            span,
            wide: self.widen(span),
            ..Io::default()
        }
    }

    /// Make what was written durable: fdatasync. Completes with `token`.
    pub fn sync(&self, ring: &mut Ring, token: Token) {
        ring.sync(self.main, token);
    }

    /// Begin.
    pub fn start(&mut self, ring: &mut Ring, io: &mut Io, token: Token) -> Progress {
        match io.work {
            Work::Read => {
                io.moved = 0;
                self.body(ring, io, token)
            }
            Work::Write => self.start_write(ring, io, token),
            Work::Zero { .. } | Work::Trim => self.start_zero(ring, io, token),
            Work::Cache if self.unit > 1 => Progress::Ended(Ok(())),
            Work::Cache => {
                io.stage = Stage::Range;
                ring.read_ahead(self.main, io.span.offset, io.span.len, token);
                Progress::More
            }
        }
    }

    /// One of the request's operations completed.
    pub fn completed(&mut self, ring: &mut Ring, io: &mut Io, done: Done) -> Progress {
        let token = done.token;
        let result = done.result;
        if let Data::Buf(buf) = done.data {
            match io.stage {
                Stage::Head | Stage::Tail => return self.edge_read(ring, io, token, result, &buf),
                Stage::Body | Stage::Idle | Stage::Range => io.buf = Some(buf),
            }
        }
        match io.stage {
            Stage::Body => self.body_moved(ring, io, token, result),
            Stage::Range => match io.work {
                // Advice that was not taken is no failure.
                Work::Cache => Progress::Ended(Ok(())),
                _ => self.range_done(ring, io, token, result),
            },
            Stage::Head | Stage::Tail | Stage::Idle => {
                unreachable!("an edge is read into a buffer, and an idle request has no operation")
            }
        }
    }

    pub(crate) fn start_write(&mut self, ring: &mut Ring, io: &mut Io, token: Token) -> Progress {
        io.moved = 0;
        if io.span.offset != io.wide.offset {
            return self.read_edge(ring, io, token, Stage::Head);
        }
        self.after_head(ring, io, token)
    }

    fn after_head(&mut self, ring: &mut Ring, io: &mut Io, token: Token) -> Progress {
        let end = io.span.end();
        let tail_known = io.stage == Stage::Head && io.wide.len == self.unit;
        if end != io.wide.end() && end != self.size && !tail_known {
            return self.read_edge(ring, io, token, Stage::Tail);
        }
        self.body(ring, io, token)
    }

    fn read_edge(&mut self, ring: &mut Ring, io: &mut Io, token: Token, stage: Stage) -> Progress {
        io.stage = stage;
        let offset = self.edge_offset(io);
        let unit = self.unit as usize;
        ring.read(self.main, offset, AlignedBuf::zeroed(unit), 0..unit, token);
        Progress::More
    }

    fn edge_offset(&self, io: &Io) -> u64 {
        match io.stage {
            Stage::Head => io.wide.offset,
            _ => io.wide.end() - self.unit,
        }
    }

    /// Merge an old unit with the guest's bytes: copy what lies outside the guest's span.
    fn edge_read(
        &mut self,
        ring: &mut Ring,
        io: &mut Io,
        token: Token,
        result: Result<usize, i32>,
        edge: &[u8],
    ) -> Progress {
        let stage = io.stage;
        let offset = self.edge_offset(io);
        let wanted = (self.size - offset).min(self.unit) as usize;
        match result {
            Ok(n) if n >= wanted => {}
            Ok(_) => return Progress::Ended(Err(libc::EIO)),
            Err(libc::EINTR | libc::EAGAIN) => return self.read_edge(ring, io, token, stage),
            Err(e) => return Progress::Ended(Err(e)),
        }
        let payload = io.payload();
        let at = (offset - io.wide.offset) as usize;
        let Some(buf) = io.buf.as_mut() else {
            return Progress::Ended(Err(libc::EIO));
        };
        let before = at..payload.start.clamp(at, at + edge.len());
        let after = payload.end.clamp(at, at + edge.len())..at + edge.len();
        for range in [before, after] {
            buf[range.clone()].copy_from_slice(&edge[range.start - at..range.end - at]);
        }
        match stage {
            Stage::Head => self.after_head(ring, io, token),
            _ => self.body(ring, io, token),
        }
    }

    /// Transfer what is left of the wide span.
    fn body(&mut self, ring: &mut Ring, io: &mut Io, token: Token) -> Progress {
        io.stage = Stage::Body;
        let offset = io.wide.offset + io.moved as u64;
        let Some(buf) = io.buf.take() else {
            return Progress::Ended(Err(libc::EIO));
        };
        // O_DIRECT would make the file longer by the rest of the last unit.
        let spills = io.wide.end() > self.size;
        let range = io.moved..buf.len();
        match (io.work == Work::Read, self.buffered) {
            (true, Some(_)) => self.disk_read(ring, offset, buf, range, token),
            (true, None) => return self.cached_read(ring, io, token, buf),
            (false, Some(buffered)) if spills => {
                let range = io.moved..(self.size - io.wide.offset) as usize;
                ring.write(buffered, offset, buf, range, token);
            }
            (false, Some(_)) => ring.write(self.main, offset, buf, range, token),
            (false, None) => return self.buffered_write(ring, io, token, buf),
        }
        Progress::More
    }

    /// A read past the page cache, now or when its turn comes.
    fn disk_read(
        &mut self,
        ring: &mut Ring,
        offset: u64,
        buf: AlignedBuf,
        range: Range<usize>,
        token: Token,
    ) {
        let read = DiskRead {
            offset,
            buf,
            range,
            token,
        };
        if self.held.is_empty() && self.turns.admits() {
            self.fly(ring, read);
        } else {
            self.held.push_back(read);
        }
    }

    fn fly(&mut self, ring: &mut Ring, read: DiskRead) {
        self.turns.started(read.range.len());
        ring.read(self.main, read.offset, read.buf, read.range, read.token);
    }

    /// All that the shard was woken for is known, and guests have not been answered: start the reads whose
    /// turn has come, so that the disk works meanwhile. To be called in every turn in which a read has ended or
    /// come short.
    pub fn take_turns(&mut self, ring: &mut Ring) {
        self.turns.look(ring.now(), self.held.len());
        let held = self.held.len();
        while self.turns.admits()
            && let Some(read) = self.held.pop_front()
        {
            self.fly(ring, read);
        }
        if self.held.len() < held {
            ring.submit();
        }
    }

    /// Reads under way that most likely end together: see [`Ring::await_together`].
    #[must_use]
    pub fn ending_together(&self) -> usize {
        self.turns.together()
    }

    /// A read from the page cache: what is there is copied at once, and only what is missing is the
    /// ring's. A long one that is not alone goes to a worker as it is.
    fn cached_read(
        &mut self,
        ring: &mut Ring,
        io: &mut Io,
        token: Token,
        mut buf: AlignedBuf,
    ) -> Progress {
        let offset = |io: &Io| io.wide.offset + io.moved as u64;
        let range = io.moved..buf.len();
        if self.inline.leaves(range.len() as u64, io.has_company) {
            io.is_copied = true;
            ring.read_by_worker(self.main, offset(io), buf, range, token);
            return Progress::More;
        }
        if self.reads_cached
            && let Some(fd) = ring.fd(self.main)
        {
            match read_cached(fd, offset(io), &mut buf[io.moved..]) {
                Ok(n) => io.moved += n,
                Err(Errno::EOPNOTSUPP) => self.reads_cached = false,
                // Not there; or an error, which the ring will meet again and report.
                Err(_) => {}
            }
        }
        if io.moved >= self.needed(io) {
            io.buf = Some(buf);
            return self.piece_done(ring, io, token);
        }
        let range = io.moved..buf.len();
        ring.read(self.main, offset(io), buf, range, token);
        Progress::More
    }

    /// Bytes of the buffer that must be transferred.
    fn needed(&self, io: &Io) -> usize {
        (io.span.end().max(io.wide.end().min(self.size)) - io.wide.offset) as usize
    }

    /// A write into the page cache: by ourselves where that does not sleep, else by a worker.
    fn buffered_write(
        &mut self,
        ring: &mut Ring,
        io: &mut Io,
        token: Token,
        buf: AlignedBuf,
    ) -> Progress {
        let mut offset = io.wide.offset + io.moved as u64;
        let left = (buf.len() - io.moved) as u64;
        if let Some(fd) = ring.fd(self.main)
            && self.inline.allows(ring.now(), offset, left)
        {
            let began = Instant::now();
            let written = pwrite(fd, offset, &buf[io.moved..]);
            self.inline.took(ring.now(), began.elapsed());
            match written {
                Ok(n) if n as u64 == left => {
                    io.moved += n;
                    io.buf = Some(buf);
                    return self.piece_done(ring, io, token);
                }
                // What is left is a worker's.
                Ok(n) => {
                    io.moved += n;
                    offset += n as u64;
                }
                // A worker will meet the error again and report it.
                Err(_) => {}
            }
        }
        self.inline.workers += 1;
        let range = io.moved..buf.len();
        ring.write(self.main, offset, buf, range, token);
        Progress::More
    }

    fn body_moved(
        &mut self,
        ring: &mut Ring,
        io: &mut Io,
        token: Token,
        result: Result<usize, i32>,
    ) -> Progress {
        if io.work != Work::Read && self.buffered.is_none() {
            self.inline.workers -= 1;
        }
        if io.work == Work::Read && self.buffered.is_some() {
            self.turns.landed(io.wide.len as usize - io.moved);
        }
        if std::mem::take(&mut io.is_copied) {
            self.inline.copied();
        }
        match result {
            // The end of the file inside the span: somebody made it shorter.
            Ok(0) => return Progress::Ended(Err(libc::EIO)),
            Ok(n) => io.moved += n,
            Err(libc::EINTR | libc::EAGAIN) => return self.body(ring, io, token),
            Err(e) => return Progress::Ended(Err(e)),
        }
        if io.moved >= self.needed(io) {
            return self.piece_done(ring, io, token);
        }
        // O_DIRECT goes on only from a whole unit; what came short inside one is done again.
        let before = io.moved;
        io.moved -= io.moved % self.unit as usize;
        if io.moved == 0 && before < self.unit as usize && self.unit > 1 {
            return Progress::Ended(Err(libc::EIO));
        }
        self.body(ring, io, token)
    }

    fn piece_done(&mut self, ring: &mut Ring, io: &mut Io, token: Token) -> Progress {
        match io.work {
            Work::Zero { .. } | Work::Trim => self.next_piece(ring, io, token),
            Work::Read | Work::Write | Work::Cache => Progress::Ended(Ok(())),
        }
    }

    pub(crate) fn range_begins(&mut self) {
        self.inline.workers += 1;
    }

    pub(crate) fn range_ends(&mut self) {
        self.inline.workers -= 1;
    }
}

/// Read what the page cache has, without waiting for the disk.
fn read_cached(fd: &impl AsRawFd, offset: u64, bytes: &mut [u8]) -> nix::Result<usize> {
    let part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: the descriptor is open, and the one part is the slice, which is ours to write to.
    let n = unsafe {
        libc::preadv2(
            fd.as_raw_fd(),
            &raw const part,
            1,
            offset as libc::off_t,
            libc::RWF_NOWAIT,
        )
    };
    Errno::result(n).map(|n| n as usize)
}

fn pwrite(fd: &impl AsRawFd, offset: u64, bytes: &[u8]) -> nix::Result<usize> {
    // SAFETY: the descriptor is open, and the kernel only reads from the slice.
    let n = unsafe {
        libc::pwrite(
            fd.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            offset as libc::off_t,
        )
    };
    Errno::result(n).map(|n| n as usize)
}
