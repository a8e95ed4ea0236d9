//! The machine's heap: one for all threads.

/// Has every thread of this process allocate from the same heap. By default libc gives
/// each one of its own, two pages or more that stay; but no vCPU allocates anything
/// while the guest runs, so that there is nobody to wait for.
pub(crate) fn share() {
    // SAFETY: two numbers. If libc refused them, all would be as by default.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
