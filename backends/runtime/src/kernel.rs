//! The few system calls that no crate offers as safe functions.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::sync::Once;
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{ForkResult, fork, getpid, gettid};

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

/// Makes two of this process, which has one thread.
///
/// # Errors
/// Those of fork(2); EBUSY when there is another thread.
pub fn divide() -> nix::Result<ForkResult> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        return Err(nix::errno::Errno::EBUSY);
    }
    // SAFETY: no other thread is in the midst of anything, with a lock held that the
    // second process would find held for ever.
    unsafe { fork() }
}

/// Closes every descriptor from 3 on but these.
///
/// # Errors
/// ENOSYS before Linux 5.9.
pub fn close_all_but(kept: &mut [RawFd]) -> nix::Result<()> {
    kept.sort_unstable();
    let mut first: RawFd = 3;
    for next in kept.iter().copied().chain([RawFd::MAX]) {
        if first < next {
            let last = next.saturating_sub(1);
            // SAFETY: three numbers. Whoever owned one of these in this process is
            // gone: the caller has dropped what it had, and keeps what it has.
            let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            nix::errno::Errno::result(closed)?;
        }
        first = first.max(next.saturating_add(1));
    }
    Ok(())
}

/// What write(2) says of 8 bytes at an address where nothing can be read: nothing
/// is ever written.
pub fn write_from_nowhere(fd: BorrowedFd<'_>) -> io::Error {
    // SAFETY: the kernel looks for the bytes at address 0 by itself, and answers
    // that there are none; nothing in this process is read or written.
    let _ = unsafe { libc::write(fd.as_raw_fd(), ptr::null(), 8) };
    io::Error::last_os_error()
}

/// A descriptor for [`poll_by_number`].
pub type Polled = libc::pollfd;

/// Waits as poll(2) does; without a time, for as long as it takes. Nobody need keep
/// the descriptors open meanwhile: a number that is none is reported, and one that
/// is another's by now is waited for in vain.
///
/// # Errors
/// Those of poll(2), EINTR among them.
pub fn poll_by_number(fds: &mut [Polled], timeout: Option<Duration>) -> nix::Result<()> {
    let millis = timeout.map_or(-1, |time| i32::try_from(time.as_millis()).unwrap_or(-1));
    let count = fds.len() as libc::nfds_t;
    // SAFETY: the kernel reads and writes as many entries as there are, and does
    // nothing to a descriptor but look at it.
    let polled = unsafe { libc::poll(fds.as_mut_ptr(), count, millis) };
    nix::errno::Errno::result(polled).map(drop)
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
