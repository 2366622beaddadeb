//! The client's side. [`Replies`] is pure and takes a server's bytes apart for whoever has the
//! socket: a shard that forwards to a new owner, or the blocking [`Client`], which our verifying
//! client, the demo and the tests use.
//!
//! A client believes nothing: a reply must answer a request that is out, data must lie inside what
//! was asked for and cover all of it without overlap before the read counts as done, and an error
//! chunk fails the request whatever else was sent.

mod blocking;
mod dial;
mod negotiate;
mod replies;
mod uri;

pub use blocking::{Client, Receipt, Receiver, Sender};
pub use dial::{describe, dial};
pub use negotiate::{Agreed, negotiate};
pub use replies::{Arrival, Breach, OUTSTANDING_MAX, Replies};
pub use uri::{Address, Uri};

#[cfg(test)]
mod tests;
