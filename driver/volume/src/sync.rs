//! The one place that names the primitives shared between the shard and a mover, so that a model
//! checker can put its own in their place and nothing else changes.
//!
//! With the feature `shuttle` every one of them is a point where the model checker may let another
//! thread go on; `races` holds what is explored so. What ships is built without it.

#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

// Only a mover makes what is in one, so nobody ever waits for another's making of it.
pub(crate) use std::sync::OnceLock;

#[cfg(all(test, not(feature = "shuttle")))]
pub(crate) use std::thread;

#[cfg(all(test, feature = "shuttle"))]
pub(crate) use shuttle::thread;
