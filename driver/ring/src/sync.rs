//! The one place that names the primitives that a mailbox's two sides share, so that a model checker
//! can put its own in their place and nothing else changes. What ships is built without it.

#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
    mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
};

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
    mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
};
