//! Replication: seeding, increments, mirroring, digest comparison.
