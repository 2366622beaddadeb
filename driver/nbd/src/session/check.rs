//! Whether a request is one that this connection may make, and which error the specification has
//! for it if not.

use super::{Answer, Command, CommandFlags, Op, Request, RequestHeader};
use crate::codec::{NbdError, PAYLOAD_MAX, TransmissionFlags};
use crate::export::Negotiated;
use block::Span;

#[derive(Debug)]
pub(super) struct Rules {
    size: u64,
    flags: TransmissionFlags,
    align: u64,
    pub(super) structured: bool,
    has_contexts: bool,
}

pub(super) enum Refusal {
    Answer(Answer),
    Goodbye,
}

impl Rules {
    pub(super) fn new(agreed: &Negotiated) -> Rules {
        let align = u64::from(agreed.export.block_min);
        assert!(align.is_power_of_two(), "block_min is a power of two");
        Rules {
            size: agreed.export.size,
            flags: agreed.export.flags,
            align,
            structured: agreed.structured,
            has_contexts: !agreed.contexts.is_empty(),
        }
    }

    #[inline]
    pub(super) fn check(&self, header: &RequestHeader) -> Result<Request, Refusal> {
        use Command as C;
        use CommandFlags as F;
        use TransmissionFlags as T;

        let answer = |error, why| {
            Err(Refusal::Answer(Answer {
                cookie: header.cookie,
                command: header.command,
                error,
                why,
            }))
        };
        let refuse = |error, why| answer(Some(error), why);
        let flags = header.flags;
        let (op, own_flags, needs) = match header.command {
            C::Read => (
                Op::Read {
                    df: flags.has(F::DF),
                },
                if self.flags.has(T::SEND_DF) {
                    F::DF
                } else {
                    F::NONE
                },
                T::NONE,
            ),
            C::Write => (Op::Write, F::NONE, T::NONE),
            C::Flush => (Op::Flush, F::NONE, T::SEND_FLUSH),
            C::Trim => (Op::Trim, F::NONE, T::SEND_TRIM),
            C::Cache => (Op::Cache, F::NONE, T::SEND_CACHE),
            C::WriteZeroes => (
                Op::Zero {
                    no_hole: flags.has(F::NO_HOLE),
                    fast: flags.has(F::FAST_ZERO),
                },
                if self.flags.has(T::SEND_FAST_ZERO) {
                    F::NO_HOLE | F::FAST_ZERO
                } else {
                    F::NO_HOLE
                },
                T::SEND_WRITE_ZEROES,
            ),
            C::BlockStatus => (
                Op::BlockStatus {
                    one: flags.has(F::REQ_ONE),
                },
                F::REQ_ONE,
                T::NONE,
            ),
            C::Disconnect => return Err(Refusal::Goodbye),
            C::Unknown(_) => return refuse(NbdError::Inval, "unknown command"),
        };
        // clients are known to set FUA on anything, and the specification makes us bear it
        let common = if self.flags.has(T::SEND_FUA) {
            F::FUA
        } else {
            F::NONE
        };
        if !flags.only(own_flags | common) {
            return refuse(NbdError::Inval, "a flag that this command does not have");
        }
        let writes = matches!(op, Op::Write | Op::Trim | Op::Zero { .. });
        if writes && self.flags.has(T::READ_ONLY) {
            return refuse(NbdError::Perm, "the export is read-only");
        }
        if !self.flags.has(needs) {
            return refuse(NbdError::Inval, "a command that the export does not offer");
        }
        let span = Span::new(header.offset, u64::from(header.len));
        let request = Request {
            cookie: header.cookie,
            op,
            fua: writes && flags.has(F::FUA),
            offset: header.offset,
            len: header.len,
        };
        match op {
            Op::Flush if span != Span::default() => {
                return refuse(NbdError::Inval, "a flush has neither offset nor length");
            }
            Op::Flush => return Ok(request),
            Op::Read { .. } | Op::Write if header.len > PAYLOAD_MAX => {
                return refuse(NbdError::Inval, "more than the maximum payload of 32 MiB");
            }
            Op::BlockStatus { .. } if !self.has_contexts => {
                return refuse(NbdError::Inval, "no meta context was agreed");
            }
            Op::BlockStatus { .. } if header.len == 0 => {
                return refuse(NbdError::Inval, "block status of no bytes");
            }
            _ => {}
        }
        if !span.fits(self.size) {
            let error = match op {
                Op::Write | Op::Zero { .. } => NbdError::NoSpc,
                _ => NbdError::Inval,
            };
            return refuse(error, "past the end of the export");
        }
        if !span.is_aligned(self.align) {
            return refuse(NbdError::Inval, "not a multiple of the minimum block size");
        }
        if header.len == 0 {
            return answer(None, "");
        }
        Ok(request)
    }
}
