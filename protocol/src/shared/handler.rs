//! What SIGBUS does. All of it is safe in a signal's handler: loads and stores
//! of atomics, and system calls.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

use nix::libc::{self, c_int, c_void, siginfo_t};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::list::Range;

/// Makes the handler the process's, the first time. It stays.
///
/// # Errors
/// Those of sigaction(2).
pub(super) fn install() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*installed {
        // On the thread's signal stack, if it has one; system calls go on.
        let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK | SaFlags::SA_RESTART;
        let action = SigAction::new(SigHandler::SigAction(caught), flags, SigSet::empty());
        // SAFETY: the handler does nothing that a handler must not do.
        unsafe { sigaction(Signal::SIGBUS, &action) }?;
        *installed = true;
    }
    Ok(())
}

extern "C" fn caught(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: each thread has an errno, and no reference to it is kept.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid `siginfo_t`,
    // and that of a SIGBUS of its own making has an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // A code that is not positive is that of a process that sent the signal.
    let sent = code <= 0;
    if sent || !replace(address) {
        die(sent);
    }
    // SAFETY: as above. What was interrupted finds its errno again.
    unsafe { *libc::__errno_location() = errno };
}

/// Puts a fresh page where a guarded one is gone, and rings. Whether it did.
fn replace(address: usize) -> bool {
    let Some(range) = Range::with(address) else {
        return false;
    };
    // SAFETY: this thread accesses the range, and so keeps it mapped; it is on
    // the list until it is about to be unmapped, and its entry holds the alarm.
    let alarm = unsafe { &*range.alarm };
    // Before the page: nobody sees its zeroes without seeing this.
    alarm.ring(range.lost(address));
    let (start, size) = range.page_of(address);
    // Too many pieces make a process run out of them; one is always to be had.
    let replaced = fresh(start, size) || fresh(range.start, range.size);
    let event = alarm.event.as_raw_fd();
    // SAFETY: the kernel reads eight bytes of a number on the stack. If the
    // count is full, the event is readable.
    unsafe { libc::write(event, (&raw const ONE).cast(), size_of_val(&ONE)) };
    replaced
}

static ONE: u64 = 1;

/// Maps fresh memory over pages of a guarded range.
fn fresh(start: usize, size: usize) -> bool {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: these pages are of a guarded range, which its owner has as plain
    // memory that others change at any time, and unmaps as a whole.
    let mapped = unsafe { libc::mmap(start as *mut c_void, size, access, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

/// Lets the process die of the signal, as if nobody had caught it.
fn die(sent: bool) {
    // SAFETY: the default action; a null pointer asks for no old one.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    if sent {
        // SAFETY: a plain system call; the signal comes when this handler ends.
        unsafe { libc::raise(libc::SIGBUS) };
    }
    // Otherwise the access is made again, and there is nobody to catch it.
}
