//! How much freed memory the process keeps.

/// Threads share this many arenas of the C library's allocator. It would make eight for each core, and
/// each keeps what its threads once needed, so memory would grow with the number of threads.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS_MAX: libc::c_int = 2;

/// Blocks of at least this many bytes, models for example, go back to the system as soon as they are
/// freed; of smaller ones as much is kept.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: libc::c_int = 1 << 20;

/// Bounds it, before there are other threads.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the C library takes two numbers each time, and no pointer")]
pub(crate) fn bound_memory() {
    // What it does not take stays as it was.
    // SAFETY: nothing but two integers is passed, while the process has one thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}

/// Other allocators have no such arenas.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) const fn bound_memory() {}
