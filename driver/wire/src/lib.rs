//! Replication frames: a pure codec.
