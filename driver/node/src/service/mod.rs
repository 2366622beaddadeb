//! The node's gRPC service: what the controller may ask of it.

mod status;

pub use status::{to_error, to_status};
