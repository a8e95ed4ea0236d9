//! A queue between threads whose receiver can poll for it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Any number of senders, one receiver. A sender never waits.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    queue: Mutex<VecDeque<T>>,
    event: EventFd,
}

impl<T> Mailbox<T> {
    /// An empty one.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self {
            queue: Mutex::new(VecDeque::new()),
            event: EventFd::from_flags(flags)?,
        })
    }

    /// Appends an item and makes the descriptor readable.
    pub(crate) fn post(&self, item: T) {
        self.change(|queue| queue.push_back(item));
    }

    /// Lets `change` append or drop items, then makes the descriptor readable.
    pub(crate) fn change(&self, change: impl FnOnce(&mut VecDeque<T>)) {
        change(&mut self.queue());
        // EAGAIN: the counter is full, so the descriptor is readable already.
        if let Err(errno) = self.event.write(1)
            && errno != Errno::EAGAIN
        {
            log::error!("waking a thread: {errno}");
        }
    }

    /// Takes everything there is and makes the descriptor unreadable.
    pub(crate) fn take(&self) -> VecDeque<T> {
        // First the event: what is appended in between wakes once too often.
        // An error means that it was not signalled.
        let _ = self.event.read();
        std::mem::take(&mut self.queue())
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Readable while there is something to take.
impl<T> AsFd for Mailbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
