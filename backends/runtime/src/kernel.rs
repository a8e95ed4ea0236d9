//! The few system calls that no crate offers as safe functions.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::Once;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{getpid, gettid};

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

/// What write(2) says of 8 bytes at an address where nothing can be read: nothing
/// is ever written.
pub fn write_from_nowhere(fd: BorrowedFd<'_>) -> io::Error {
    // SAFETY: the kernel looks for the bytes at address 0 by itself, and answers
    // that there are none; nothing in this process is read or written.
    let _ = unsafe { libc::write(fd.as_raw_fd(), ptr::null(), 8) };
    io::Error::last_os_error()
}

/// A thread of this process, by the kernel's number.
pub type Thread = i32;

/// By default it is ignored, and interrupts nothing.
const INTERRUPT: Signal = Signal::SIGURG;

/// The calling thread, which [`interrupt`] reaches from now on: whoever started this
/// process may have had the signal blocked. Cheap but for each thread's first time.
pub fn this_thread() -> Thread {
    thread_local! {
        static THIS: Cell<Thread> = const { Cell::new(0) };
    }
    if THIS.get() == 0 {
        let mut signals = SigSet::empty();
        signals.add(INTERRUPT);
        let _ = signals.thread_unblock();
        THIS.set(gettid().as_raw());
    }
    THIS.get()
}

/// Lets a system call in which a thread of this process waits return with EINTR.
/// Whether it does wait in one cannot be known: ask again until it is where it
/// should be.
pub fn interrupt(thread: Thread) {
    extern "C" fn nothing(_: libc::c_int) {}
    static HANDLED: Once = Once::new();
    HANDLED.call_once(|| {
        // Without SA_RESTART, which would begin the call again.
        let handler = SigHandler::Handler(nothing);
        let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
        // SAFETY: a handler that does nothing is safe at any point.
        let _ = unsafe { sigaction(INTERRUPT, &action) };
    });
    let process = getpid().as_raw();
    // SAFETY: three numbers; nothing in memory is touched. A thread that has ended
    // is not found, and one that has its number now does not mind.
    let _ = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, INTERRUPT as libc::c_int) };
}
