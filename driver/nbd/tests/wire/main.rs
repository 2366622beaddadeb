//! Our parts put together over real sockets: a small server of memory, driven by our own client
//! and by everybody else's; and our client against everybody else's servers.

// a test of its own crate: clippy's exemption for tests reaches only test functions
#![allow(clippy::unwrap_used)]

mod foreign;
mod ours;
mod peers;
mod scratch;
mod server;
mod verifier;
