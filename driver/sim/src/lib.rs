//! Simulated disk, network and clock, and the oracles. Tests only.
