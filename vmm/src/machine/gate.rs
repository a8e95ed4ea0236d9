//! The gate that every vCPU passes on its way to the guest: running, paused,
//! ended.
//!
//! ```text
//!            close()            every vCPU is away from the guest
//!  running ─────────▶ closing ────────────────────────────────────▶ paused
//!     ▲  ▲               │                                             │
//!     │  └──── open() ───┘                                             │
//!     └───────────────────────────── open() ───────────────────────────┘
//!  in each: the run ends, and whoever waits at the gate goes on, to its end
//! ```
//! A vCPU is away while it waits at the gate, and while it waits for anybody else
//! ([`Gate::aside`]): for a console that takes nothing, or for a back-end that is to
//! leave guest memory alone. It passes the gate before it runs the guest again, so
//! it need not be waited for, and who it waits for may well not come before the VM
//! runs again. Nobody is waited for here without being told: the thread that closes
//! the gate kicks the vCPUs until [`Gate::as_fd`] is readable.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::ending::End;

/// See the module.
#[derive(Debug)]
pub(crate) struct Gate {
    /// What a vCPU looks at before it runs the guest; written under the lock.
    closed: AtomicBool,
    state: Mutex<State>,
    /// Readable while the gate is open.
    open: EventFd,
    /// Readable once every vCPU is away that was waited for.
    all_away: EventFd,
    end: Arc<End>,
}

#[derive(Debug)]
struct State {
    /// vCPUs that there are.
    vcpus: usize,
    /// How many of them are away from the guest.
    away: usize,
    /// Whether the others are waited for.
    awaited: bool,
}

impl Gate {
    /// An open gate for this number of vCPUs, of a run that ends with `end`.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub(crate) fn new(vcpus: u8, end: &Arc<End>) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            closed: AtomicBool::new(false),
            state: Mutex::new(State {
                vcpus: vcpus.into(),
                away: 0,
                awaited: false,
            }),
            open: EventFd::from_value_and_flags(1, flags)?,
            all_away: EventFd::from_value_and_flags(0, flags)?,
            end: Arc::clone(end),
        })
    }

    /// Why the run ends.
    pub(crate) fn end(&self) -> &Arc<End> {
        &self.end
    }

    /// Whether it is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Closes it, if it is not closed, and waits for nobody: it is readable once
    /// every vCPU is away.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        if !self.closed.swap(true, Ordering::AcqRel) {
            // Nobody else reads it: it is there.
            let _ = self.open.read();
        }
        state.awaited = true;
        self.look(&mut state);
    }

    /// Whether vCPUs are waited for: they are to be kicked.
    pub(crate) fn is_awaited(&self) -> bool {
        self.state().awaited
    }

    /// Whether every vCPU has been away since it was closed; true once for each time
    /// that it was closed.
    pub(crate) fn all_are_away(&self) -> bool {
        self.all_away.read().is_ok()
    }

    /// Opens it, if it is not open. Nobody is waited for any more.
    pub(crate) fn open(&self) {
        let mut state = self.state();
        state.awaited = false;
        let _ = self.all_away.read();
        if self.closed.swap(false, Ordering::AcqRel) {
            // The counter is 0: a write to it cannot fail or wait.
            let _ = self.open.write(1);
        }
    }

    /// Passes it: waits while it is closed and the run has not ended. Returns whether
    /// it was closed.
    pub(crate) fn pass(&self) -> bool {
        let mut waited = false;
        while self.is_closed() && self.end.get().is_none() {
            waited = true;
            self.aside(|| self.wait());
        }
        waited
    }

    /// Waits for somebody on a vCPU's thread, which is away from the guest meanwhile.
    pub(crate) fn aside<T>(&self, wait: impl FnOnce() -> T) -> T {
        {
            let mut state = self.state();
            state.away = state.away.saturating_add(1);
            self.look(&mut state);
        }
        let result = wait();
        // Whoever closes it from here on waits for this vCPU, and whoever has closed
        // it before is seen in `pass`.
        let mut state = self.state();
        state.away = state.away.saturating_sub(1);
        result
    }

    /// Waits until it is open, or the run ends. A kick does not end that, so that who
    /// has arrived stays.
    fn wait(&self) {
        let mut fds = [
            PollFd::new(self.open.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.end.as_fd(), PollFlags::POLLIN),
        ];
        while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
    }

    /// Tells whoever waits for the vCPUs that they are away, if they are.
    fn look(&self, state: &mut State) {
        if state.awaited && state.away >= state.vcpus {
            state.awaited = false;
            // The counter is small: a write to it cannot fail or wait.
            let _ = self.all_away.write(1);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Readable once every vCPU is away, until [`Gate::all_are_away`] has told it.
impl AsFd for Gate {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.all_away.as_fd()
    }
}

#[cfg(test)]
mod tests;
