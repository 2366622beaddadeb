//! Types and services of `forerun.v1`, generated from `proto/forerun/v1/*.proto`.
//!
//! The generated file is checked in, so that building Forerun needs neither protoc nor a code
//! generator. `tests/current.rs` regenerates it and fails if it is not what the .proto files say;
//! `UPDATE_PROTO=1 cargo test -p forerun-proto` writes it anew.

/// Version 1 of the interface. Fields are only ever added.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)] // generated; the .proto files hold the documentation
#[rustfmt::skip]
pub mod v1 {
    include!("forerun.v1.rs");
}
