//! The NBD client and its verifier, for the control plane's demo: it reaches the driver through this
//! crate only.

pub use nbd::client::{Client, Uri};
pub use nbd::verify;
