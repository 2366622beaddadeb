//! The errors that may travel. The protocol has eight; every errno of ours must become one of them.

/// An error number of the protocol. Zero, success, is the absence of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum NbdError {
    /// Operation not permitted: a write to a read-only export.
    Perm = 1,
    /// Input/output error.
    Io = 5,
    /// Cannot allocate memory.
    NoMem = 12,
    /// Invalid argument.
    Inval = 22,
    /// No space left on device, also a write past the end.
    NoSpc = 28,
    /// Value too large: a structured read that cannot honour DF.
    Overflow = 75,
    /// Operation not supported: FAST_ZERO where zeroing would not be fast.
    NotSup = 95,
    /// The server is shutting down.
    Shutdown = 108,
}

impl NbdError {
    /// What a client is told for a positive Linux errno. Those that have no number of their own
    /// become the nearest that has; the rest is an I/O error.
    #[must_use]
    pub fn from_errno(errno: i32) -> NbdError {
        match errno {
            // EPERM EACCES EROFS
            1 | 13 | 30 => NbdError::Perm,
            // ENOMEM
            12 => NbdError::NoMem,
            // EINVAL
            22 => NbdError::Inval,
            // ENOSPC EFBIG EDQUOT
            28 | 27 | 122 => NbdError::NoSpc,
            // EOVERFLOW
            75 => NbdError::Overflow,
            // EOPNOTSUPP
            95 => NbdError::NotSup,
            // ESHUTDOWN
            108 => NbdError::Shutdown,
            _ => NbdError::Io,
        }
    }

    /// The errno that a number on the wire stands for. A number outside the protocol counts as
    /// EINVAL, as the specification has it. `None` is success.
    #[must_use]
    pub fn from_wire(number: u32) -> Option<NbdError> {
        Some(match number {
            0 => return None,
            1 => NbdError::Perm,
            5 => NbdError::Io,
            12 => NbdError::NoMem,
            28 => NbdError::NoSpc,
            75 => NbdError::Overflow,
            95 => NbdError::NotSup,
            108 => NbdError::Shutdown,
            _ => NbdError::Inval,
        })
    }

    /// The number on the wire.
    #[must_use]
    pub const fn wire(self) -> u32 {
        self as u32
    }

    /// The positive Linux errno. The protocol's numbers are Linux's.
    #[must_use]
    pub const fn errno(self) -> i32 {
        self as i32
    }
}

impl std::fmt::Display for NbdError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NbdError::Perm => "EPERM",
            NbdError::Io => "EIO",
            NbdError::NoMem => "ENOMEM",
            NbdError::Inval => "EINVAL",
            NbdError::NoSpc => "ENOSPC",
            NbdError::Overflow => "EOVERFLOW",
            NbdError::NotSup => "ENOTSUP",
            NbdError::Shutdown => "ESHUTDOWN",
        })
    }
}
