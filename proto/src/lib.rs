//! Generated gRPC types and services of `forerun.v1`.
