//! NBD, the network block device protocol: fixed newstyle negotiation, simple and structured
//! replies, block status. Everything that decides is pure: bytes in, bytes and events out.
//!
//! ```text
//! client                                   server
//!        ◄── greeting ──────────────────
//!        ─── options, one at a time ───►   handshake (a deadline, caps)
//!        ◄── replies ───────────────────
//!        ─── requests, pipelined ──────►   session   (windows of requests and bytes)
//!        ◄── replies, in any order ─────
//! ```

pub mod accept;
pub mod client;
pub mod codec;
mod export;
pub mod handshake;
pub mod session;
pub mod status;
pub mod verify;

pub use export::{Arrival, Export, Exports, MetaContext, Negotiated};
