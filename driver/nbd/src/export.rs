//! What a server offers, and what a client and a server have agreed on.

use crate::codec::TransmissionFlags;
use std::future::Future;
use std::pin::Pin;

/// Ends when an export that was not there may be.
pub type Arrival = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The exports of a server, by name. A name is a key of a map and nothing else: it never becomes
/// a path. All calls are made between bytes of a client, so they must not block.
pub trait Exports {
    /// The names to list, in a stable order.
    fn names(&self) -> Vec<String>;

    /// The export with this name, as the client gave it. The empty name asks for the default.
    fn find(&self, name: &str) -> Option<Export>;

    /// For a name that is not found, but is expected to be within seconds: a client's GO may wait for it.
    fn arrival(&self, _name: &str) -> Option<Arrival> {
        None
    }
}

/// What is said of an export, before and at negotiation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its own name, which is told to a client that asked for the default export.
    pub name: String,
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
    pub fn new(name: impl Into<String>, size: u64) -> Export {
        use TransmissionFlags as F;
        Export {
            name: name.into(),
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
    /// The name that the client asked for; empty for the default export.
    pub requested: String,
    /// The export, with DF in its flags if structured replies were agreed.
    pub export: Export,
    /// Replies to reads and block status are structured.
    pub structured: bool,
    /// The contexts of a block status reply; a context's id on the wire is its index.
    pub contexts: Vec<MetaContext>,
}
