//! Thread-per-core io_uring loop: submissions, completions, buffers.
