//! Our parts put together over real sockets: a small server of memory, driven by our own client
//! and by everybody else's.

// a test of its own crate: clippy's exemption for tests reaches only test functions
#![allow(clippy::unwrap_used)]

mod ours;
mod peers;
mod server;
