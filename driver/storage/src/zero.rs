//! Zeroing and trimming: by fallocate where the file can, by writing zeroes where it cannot. What a
//! file cannot do is remembered, so it is asked once.

use crate::image::{Image, Progress};
use crate::io::{Io, Piece, Stage, Work};
use block::{AlignedBuf, Span};
use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};
use ring::{Ring, Token};

/// Longest range of one fallocate: it holds the inode's lock and a journal transaction.
const RANGE_MAX: u64 = 1 << 30;
/// Longest piece that is zeroed by writing at once.
const WRITE_MAX: u64 = 1 << 20;

/// What a file is known to be able to do.
#[derive(Debug)]
pub(crate) struct Sparse {
    punch: bool,
    zero_range: bool,
}

impl Sparse {
    pub(crate) fn new(punch: bool) -> Sparse {
        Sparse {
            punch,
            zero_range: true,
        }
    }

    /// The best mode left for this work.
    fn mode(&self, work: Work) -> Option<i32> {
        let keeps = matches!(work, Work::Zero { no_hole: true, .. });
        if self.punch && !keeps {
            Some(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
        } else if self.zero_range {
            Some(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE)
        } else {
            None
        }
    }

    fn forget(&mut self, mode: i32) {
        if mode & FALLOC_FL_PUNCH_HOLE != 0 {
            self.punch = false;
        } else {
            self.zero_range = false;
        }
    }
}

impl Image {
    pub(crate) fn start_zero(&mut self, ring: &mut Ring, io: &mut Io, token: Token) -> Progress {
        let whole = io.span;
        let piece = |from: u64, to: u64, write| {
            (from < to).then(|| Piece {
                span: Span::new(from, to - from),
                write,
            })
        };
        if self.sparse.mode(io.work).is_none() {
            if matches!(io.work, Work::Zero { fast: true, .. }) {
                return Progress::Ended(Err(libc::EOPNOTSUPP));
            }
            io.pieces = [None, None, piece(whole.offset, whole.end(), true)];
        } else if self.device {
            // A device zeroes whole sectors only.
            let inner = whole.offset.next_multiple_of(4096);
            let outer = whole.end() & !4095;
            io.pieces = if inner < outer {
                [
                    piece(outer, whole.end(), true),
                    piece(inner, outer, false),
                    piece(whole.offset, inner, true),
                ]
            } else {
                [None, None, piece(whole.offset, whole.end(), true)]
            };
        } else {
            io.pieces = [None, None, piece(whole.offset, whole.end(), false)];
        }
        io.punched = false;
        self.next_piece(ring, io, token)
    }

    /// Go on with a zeroing: the first step of the last piece on the stack.
    pub(crate) fn next_piece(&mut self, ring: &mut Ring, io: &mut Io, token: Token) -> Progress {
        let Some(slot) = io.pieces.iter_mut().rev().find(|p| p.is_some()) else {
            return Progress::Ended(Ok(()));
        };
        let Some(piece) = slot else {
            return Progress::Ended(Ok(()));
        };
        let step = if piece.write { WRITE_MAX } else { RANGE_MAX };
        let now = Span::new(piece.span.offset, piece.span.len.min(step));
        let (write, rest) = (piece.write, piece.span.len - now.len);
        piece.span = Span::new(now.end(), rest);
        if rest == 0 {
            *slot = None;
        }
        io.span = now;
        if write {
            io.wide = self.widen(now);
            io.buf = Some(AlignedBuf::zeroed(io.wide.len as usize));
            return self.start_write(ring, io, token);
        }
        self.fallocate(ring, io, token)
    }

    fn fallocate(&mut self, ring: &mut Ring, io: &mut Io, token: Token) -> Progress {
        let Some(mode) = self.sparse.mode(io.work) else {
            return self.write_instead(ring, io, token);
        };
        io.stage = Stage::Range;
        self.range_begins();
        ring.fallocate(self.main, mode, io.span.offset, io.span.len, token);
        Progress::More
    }

    pub(crate) fn range_done(
        &mut self,
        ring: &mut Ring,
        io: &mut Io,
        token: Token,
        result: Result<usize, i32>,
    ) -> Progress {
        self.range_ends();
        match result {
            Ok(_) => {
                io.punched = true;
                self.next_piece(ring, io, token)
            }
            Err(libc::EINTR | libc::EAGAIN) => self.fallocate(ring, io, token),
            // EINVAL and ENODEV are what some devices say instead.
            Err(libc::EOPNOTSUPP | libc::ENODEV | libc::ENOSYS | libc::EINVAL) => {
                // Another request may have learned this first, so ask what was tried here.
                if let Some(mode) = self.sparse.mode(io.work) {
                    self.sparse.forget(mode);
                    tracing::info!("fallocate mode {mode:#x} is not supported by this image");
                }
                self.fallocate(ring, io, token)
            }
            Err(e) => Progress::Ended(Err(e)),
        }
    }

    /// Nothing but writing is left, for this step and what follows it.
    fn write_instead(&mut self, ring: &mut Ring, io: &mut Io, token: Token) -> Progress {
        if matches!(io.work, Work::Zero { fast: true, .. }) && !io.punched {
            return Progress::Ended(Err(libc::EOPNOTSUPP));
        }
        let here = io.span;
        for piece in io.pieces.iter_mut().flatten() {
            piece.write = true;
        }
        // The piece under way, if any of it is left, begins where this step ends.
        let slot = io.pieces.iter_mut().rev().find(|p| p.is_some());
        match slot {
            Some(Some(piece)) if piece.span.offset == here.end() => {
                piece.span = Span::new(here.offset, here.len + piece.span.len);
            }
            _ => {
                // Its slot is free, and it is above every other on the stack.
                if let Some(free) = io
                    .pieces
                    .iter_mut()
                    .rev()
                    .take_while(|p| p.is_none())
                    .last()
                {
                    *free = Some(Piece {
                        span: here,
                        write: true,
                    });
                }
            }
        }
        self.next_piece(ring, io, token)
    }
}
