//! What a server offers, and what a client and a server have agreed on.

use crate::codec::{PAYLOAD_MAX, TransmissionFlags};

/// What is said of an export, before and at negotiation. Its name is the key that it was found by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Bytes. Never changes while it is exported.
    pub size: u64,
    /// What it can do. DF is not set here: it follows from structured replies.
    pub flags: TransmissionFlags,
    /// Smallest unit of a request: a power of two.
    pub block_min: u32,
    /// Smallest unit that is fast: a power of two.
    pub block_preferred: u32,
    /// For a person; may be empty.
    pub description: String,
    /// Names of the checkpoints whose dirty bitmaps may be asked for.
    pub checkpoints: Vec<String>,
}

impl Export {
    /// An export of `size` bytes that can do all that the protocol has. CAN_MULTI_CONN is in it,
    /// so a flush must cover the writes of every connection.
    #[must_use]
    pub fn new(size: u64) -> Export {
        use TransmissionFlags as F;
        Export {
            size,
            flags: F::HAS_FLAGS
                | F::SEND_FLUSH
                | F::SEND_FUA
                | F::SEND_TRIM
                | F::SEND_WRITE_ZEROES
                | F::SEND_FAST_ZERO
                | F::SEND_CACHE
                | F::CAN_MULTI_CONN,
            block_min: 1,
            block_preferred: 4096,
            description: String::new(),
            checkpoints: Vec::new(),
        }
    }

    /// The same export, for reading only.
    #[must_use]
    pub fn read_only(mut self) -> Export {
        use TransmissionFlags as F;
        self.flags = self
            .flags
            .with(F::READ_ONLY)
            .without(F::SEND_TRIM | F::SEND_WRITE_ZEROES | F::SEND_FAST_ZERO);
        self
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.flags.has(TransmissionFlags::READ_ONLY)
    }

    /// Largest payload, announced as the maximum block size.
    #[must_use]
    pub const fn payload_max(&self) -> u32 {
        PAYLOAD_MAX
    }
}

/// What a block status reply can describe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaContext {
    /// `base:allocation`: holes and zeroes.
    Allocation,
    /// `qemu:dirty-bitmap:NAME`: what changed since the checkpoint of that name.
    Dirty(String),
}

impl MetaContext {
    /// Prefix of the dirty bitmap contexts, QEMU's namespace, which backup tools already ask for.
    pub const DIRTY_PREFIX: &'static str = "qemu:dirty-bitmap:";
    /// The allocation context.
    pub const ALLOCATION: &'static str = "base:allocation";

    /// The name on the wire.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            MetaContext::Allocation => MetaContext::ALLOCATION.to_owned(),
            MetaContext::Dirty(checkpoint) => format!("{}{checkpoint}", MetaContext::DIRTY_PREFIX),
        }
    }
}

/// The outcome of a negotiation: all that the transmission phase needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The key that the export was found by.
    pub name: String,
    /// The export, with DF in its flags if structured replies were agreed.
    pub export: Export,
    /// Replies to reads and block status are structured.
    pub structured: bool,
    /// The contexts of a block status reply; a context's id on the wire is its index.
    pub contexts: Vec<MetaContext>,
}
