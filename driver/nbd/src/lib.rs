//! NBD: a pure codec and session, and its binding to the ring.
