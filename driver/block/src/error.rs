//! One error type for the driver: a kind to branch on, a sentence to read, the source and, where
//! the kernel spoke, its errno.

use std::fmt;
use std::io;

/// What went wrong, for code that must decide. The sentence is in the [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request makes no sense: bad name, bad length, bad configuration.
    Invalid,
    /// What was named does not exist.
    NotFound,
    /// What was to be made exists already, and differs.
    Exists,
    /// Somebody else holds it: a lock, a socket, an image.
    Busy,
    /// No space left for the image, the metadata or the staging area.
    NoSpace,
    /// The kernel reported an I/O error.
    Io,
    /// A checksum, magic or identity does not match: data or metadata is not what it claims.
    Corrupt,
    /// A generation lower than the highest seen: the sender is a former owner.
    Fenced,
    /// This node does not own the volume.
    NotOwner,
    /// An earlier fsync failed: nothing about durability is known any more, the volume stopped.
    Poisoned,
    /// The volume is read-only, or the process may not.
    Denied,
    /// The peer broke the protocol.
    Protocol,
    /// The peer went away or could not be reached.
    Disconnected,
    /// A deadline passed.
    Timeout,
    /// Not supported by this kernel, file system, peer or version.
    Unsupported,
    /// Given up on request.
    Cancelled,
    /// An invariant of ours does not hold: a bug. The volume stops rather than risk its data.
    Broken,
}

/// A driver error.
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A result with a driver [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`; `context` says what was asked, what happened and what to do.
    #[must_use]
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Error {
        Error {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// An I/O error with what was being done. The kind follows from the errno.
    #[must_use]
    pub fn io(context: impl Into<String>, source: io::Error) -> Error {
        Error {
            kind: kind_of(&source),
            context: context.into(),
            source: Some(Box::new(source)),
        }
    }

    /// An error from a raw errno (positive).
    #[must_use]
    pub fn errno(context: impl Into<String>, errno: i32) -> Error {
        Error::io(context, io::Error::from_raw_os_error(errno))
    }

    /// The same error with one more sentence of context in front.
    #[must_use]
    pub fn within(mut self, context: impl fmt::Display) -> Error {
        self.context = format!("{context}: {}", self.context);
        self
    }

    /// The kind, to branch on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The sentence, without the source.
    #[must_use]
    pub fn context(&self) -> &str {
        &self.context
    }

    /// The errno that the kernel gave, if it did.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source
            .as_ref()
            .and_then(|s| s.downcast_ref::<io::Error>())
            .and_then(io::Error::raw_os_error)
    }
}

fn kind_of(e: &io::Error) -> ErrorKind {
    use io::ErrorKind as K;
    match e.kind() {
        K::NotFound => ErrorKind::NotFound,
        K::AlreadyExists => ErrorKind::Exists,
        K::PermissionDenied | K::ReadOnlyFilesystem => ErrorKind::Denied,
        K::AddrInUse | K::ResourceBusy | K::WouldBlock => ErrorKind::Busy,
        K::StorageFull | K::QuotaExceeded => ErrorKind::NoSpace,
        K::InvalidInput => ErrorKind::Invalid,
        K::TimedOut => ErrorKind::Timeout,
        K::Unsupported => ErrorKind::Unsupported,
        K::ConnectionRefused
        | K::ConnectionReset
        | K::ConnectionAborted
        | K::NotConnected
        | K::BrokenPipe
        | K::UnexpectedEof
        | K::HostUnreachable
        | K::NetworkUnreachable => ErrorKind::Disconnected,
        _ => ErrorKind::Io,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_io_error_keeps_its_errno_and_says_what_was_done() {
        let e = Error::errno("write intents of volume vm1", 28);
        assert_eq!(e.kind(), ErrorKind::NoSpace);
        assert_eq!(e.raw_os_error(), Some(28));
        assert!(e.to_string().starts_with("write intents of volume vm1: "));
    }
}
