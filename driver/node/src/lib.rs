//! The daemon: wiring, configuration, metrics.
