//! The few system calls that no crate offers as safe functions.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ptr;

use nix::sys::signal::Signal;

/// Whether this process ignores a signal, as whoever started it may have had it
/// do: nohup(1) does so with SIGHUP.
pub fn ignores(signal: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action none is set; the present one is written to
    // `action`, which has room for it.
    let asked = unsafe { libc::sigaction(signal as i32, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all of its fields may be zero, and were so before the kernel wrote.
    let action = unsafe { action.assume_init() };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}
