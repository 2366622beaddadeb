//! The one place that names the primitives shared between the shard and a mover, so that a model
//! checker can put its own in their place and nothing else changes.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
pub(crate) use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
