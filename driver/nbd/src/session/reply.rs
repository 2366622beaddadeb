//! Replies in the form that was agreed: reads and block status structured if the client asked for
//! that, all else simple, which every client takes and is shorter.

use super::{Answer, Request, Session};
use crate::codec::{Command, Cookie, NbdError, Reply};
use crate::session::Op;

impl Session {
    /// The head of a successful read's reply; the request's bytes follow it. `out` needs
    /// [`crate::codec::REPLY_HEAD_MAX`] bytes; returns those used.
    #[inline]
    pub fn read_head(&self, request: &Request, out: &mut [u8]) -> usize {
        debug_assert!(matches!(request.op, Op::Read { .. }));
        let reply = if self.rules.structured {
            Reply::Data {
                done: true,
                offset: request.offset,
                len: request.len,
            }
        } else {
            Reply::Simple { error: None }
        };
        reply.encode(request.cookie, out)
    }

    /// The whole reply of a structured read all of whose bytes are zero, if the client can take it.
    #[inline]
    pub fn hole(&self, request: &Request, out: &mut [u8]) -> Option<usize> {
        let reply = Reply::Hole {
            done: true,
            offset: request.offset,
            len: request.len,
        };
        (self.rules.structured && request.op == Op::Read { df: false })
            .then(|| reply.encode(request.cookie, out))
    }

    /// The reply of a request that has no data to return: success of anything but a read or a
    /// block status, or the failure of anything. The failure is a positive errno.
    #[inline]
    pub fn outcome(&self, request: &Request, outcome: Result<(), i32>, out: &mut [u8]) -> usize {
        let error = outcome.err().map(NbdError::from_errno);
        let structured = matches!(request.op, Op::Read { .. } | Op::BlockStatus { .. });
        debug_assert!(error.is_some() || !structured, "data is due");
        self.put(structured, request.cookie, error, "", out)
    }

    /// The reply that an [`Answer`] is.
    pub fn answer(&self, answer: &Answer, out: &mut [u8]) -> usize {
        let structured = matches!(answer.command, Command::Read | Command::BlockStatus);
        self.put(structured, answer.cookie, answer.error, answer.why, out)
    }

    fn put(
        &self,
        structured: bool,
        cookie: Cookie,
        error: Option<NbdError>,
        message: &str,
        out: &mut [u8],
    ) -> usize {
        let reply = match error {
            Some(error) if structured && self.rules.structured => Reply::Error {
                done: true,
                error,
                message,
            },
            None if structured && self.rules.structured => Reply::None,
            error => Reply::Simple { error },
        };
        reply.encode(cookie, out)
    }
}
