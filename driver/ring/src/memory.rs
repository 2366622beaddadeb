//! What the allocator keeps of memory that nobody uses.

/// Free memory at the end of an arena beyond this goes back to the system.
const KEEP_BYTES: libc::c_int = 4 << 20;
/// A buffer of this size or more is mapped by itself, and its memory goes back when it is freed. It is what
/// glibc begins with.
const MAPPED_BYTES: libc::c_int = 128 << 10;

/// Have the process give back what it frees. By itself glibc learns from large buffers that come and go to
/// keep up to 64 MiB for each of its arenas: a node that had 25 MB in use held 79 MB after some
/// minutes of broken links, and more with every minute.
pub fn give_back_what_is_freed() {
    #[cfg(target_env = "gnu")]
    {
        // Setting either ends the learning of both.
        for (parameter, bytes) in [
            (libc::M_TRIM_THRESHOLD, KEEP_BYTES),
            (libc::M_MMAP_THRESHOLD, MAPPED_BYTES),
        ] {
            // SAFETY: it takes two numbers and changes settings of the allocator under its own lock.
            let taken = unsafe { libc::mallopt(parameter, bytes) };
            if taken == 0 {
                tracing::warn!("the allocator refused parameter {parameter}: memory may grow");
            }
        }
    }
}
