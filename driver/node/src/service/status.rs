//! Driver errors over gRPC and back. The kind travels beside the sentence, so that the controller
//! can tell a node that refuses from a network that does not answer.

use block::{Error, ErrorKind};
use tonic::{Code, Status};

/// The header that carries the error's kind. A status without it was made by the transport.
const KIND: &str = "forerun-kind";

/// Kinds with their names on the wire and the status code that comes nearest.
const KINDS: [(ErrorKind, &str, Code); 17] = [
    (ErrorKind::Invalid, "invalid", Code::InvalidArgument),
    (ErrorKind::NotFound, "not-found", Code::NotFound),
    (ErrorKind::Exists, "exists", Code::AlreadyExists),
    (ErrorKind::Busy, "busy", Code::FailedPrecondition),
    (ErrorKind::NoSpace, "no-space", Code::ResourceExhausted),
    (ErrorKind::Io, "io", Code::Internal),
    (ErrorKind::Corrupt, "corrupt", Code::DataLoss),
    (ErrorKind::Fenced, "fenced", Code::FailedPrecondition),
    (ErrorKind::NotOwner, "not-owner", Code::FailedPrecondition),
    (ErrorKind::Poisoned, "poisoned", Code::DataLoss),
    (ErrorKind::Denied, "denied", Code::PermissionDenied),
    (ErrorKind::Protocol, "protocol", Code::Internal),
    (ErrorKind::Disconnected, "disconnected", Code::Unavailable),
    (ErrorKind::Timeout, "timeout", Code::DeadlineExceeded),
    (ErrorKind::Unsupported, "unsupported", Code::Unimplemented),
    (ErrorKind::Cancelled, "cancelled", Code::Cancelled),
    (ErrorKind::Broken, "broken", Code::Internal),
];

/// An error as a gRPC status.
#[must_use]
pub fn to_status(e: &Error) -> Status {
    let known = KINDS.iter().find(|(kind, _, _)| *kind == e.kind());
    let (_, name, code) = known.copied().unwrap_or(KINDS[5]); // an unknown kind is an I/O error
    let mut status = Status::new(code, e.to_string());
    if let Ok(value) = name.parse() {
        status.metadata_mut().insert(KIND, value);
    }
    status
}

/// A status as the error that it was; `asked` says what was being done.
#[must_use]
pub fn to_error(asked: &str, status: &Status) -> Error {
    let name = status.metadata().get(KIND).and_then(|v| v.to_str().ok());
    let known = KINDS.iter().find(|(_, n, _)| Some(*n) == name);
    match (known, status.code()) {
        (Some((kind, _, _)), _) => Error::new(*kind, format!("{asked}: {}", status.message())),
        (None, Code::Unimplemented) => Error::new(
            ErrorKind::Unsupported,
            format!("{asked}: the other side is of a version that does not know this call"),
        ),
        (None, Code::DeadlineExceeded) => {
            Error::new(ErrorKind::Timeout, format!("{asked}: no answer in time"))
        }
        (None, _) => Error::new(
            ErrorKind::Disconnected,
            format!("{asked}: {}", status.message()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire() {
        for (kind, _, _) in KINDS {
            let there = to_status(&Error::new(kind, "make volume v: no"));
            let back = to_error("n1", &there);
            assert_eq!(back.kind(), kind);
            assert_eq!(back.to_string(), "n1: make volume v: no");
        }
    }

    #[test]
    fn a_status_of_the_transport_is_a_lost_connection() {
        let back = to_error("n1", &Status::unknown("transport error"));
        assert_eq!(back.kind(), ErrorKind::Disconnected);
    }
}
