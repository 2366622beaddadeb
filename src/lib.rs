//! The control plane and the command line: decides, never touches a block. The binary `forerun` is
//! [`cli::main`]; the rest is public for the integration tests.

pub mod cli;
pub mod controller;
pub mod demo;
pub mod fleet;
pub mod history;
pub mod identity;
pub mod planner;
pub mod predict;
pub mod provision;
pub mod store;
