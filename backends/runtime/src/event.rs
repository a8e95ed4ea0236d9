//! Eventfds: kicks that are waited for, calls and errors that are signalled.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// A descriptor that counts events: an eventfd, or a pipe that stands in for
/// one (vhost-user, "Support for platforms other than Linux").
#[derive(Debug)]
pub struct Event {
    fd: OwnedFd,
}

impl Event {
    /// A fresh eventfd of our own, which never blocks.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self {
            fd: EventFd::from_value_and_flags(0, flags)?.into(),
        })
    }

    /// Adopts one that the front-end lent.
    pub fn lent(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Adds one event. A full or closed counter is no error: whoever reads it
    /// has been told, or has gone.
    ///
    /// On a lent descriptor this can block if its owner keeps the counter full;
    /// it then waits for its own doing, and the deadline on stopping a worker
    /// ends the process.
    pub fn signal(&self) {
        let _ = nix::unistd::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Forgets the events so far; whether there were any. Never blocks, whatever
    /// the descriptor's mode and whoever else reads it.
    pub fn clear(&self) -> bool {
        let mut bytes = [0; 8];
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        // The offset that means "a stream".
        let result = preadv2(&self.fd, &mut buffers, u64::MAX, ReadWriteFlags::NOWAIT);
        match result {
            Err(Errno::OPNOTSUPP | Errno::INVAL) if self.is_set() => {
                nix::unistd::read(&self.fd, &mut bytes).is_ok_and(|count| count > 0)
            }
            result => result.is_ok_and(|count| count > 0),
        }
    }

    /// Whether an event waits.
    pub fn is_set(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::ZERO);
        let [event] = fds;
        event
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLIN))
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A call or error descriptor: the session replaces it while a worker uses it.
#[derive(Debug, Default)]
pub struct Signal {
    event: Mutex<Option<Event>>,
}

impl Signal {
    /// Replaces the descriptor; `None` when the front-end wants no signal. The
    /// old one is not signalled after this returns.
    pub fn set(&self, event: Option<Event>) {
        *self.event.lock().unwrap_or_else(PoisonError::into_inner) = event;
    }

    /// Signals, if there is a descriptor.
    pub fn signal(&self) {
        let event = self.event.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(event) = &*event {
            event.signal();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clearing_never_blocks_on_a_blocking_eventfd_or_pipe() {
        let blocking = EventFd::from_value_and_flags(0, EfdFlags::empty()).unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        for (event, write) in [
            (
                Event::lent(blocking.as_fd().try_clone_to_owned().unwrap()),
                blocking.into(),
            ),
            (Event::lent(reader), writer),
        ] {
            event.clear();
            assert!(!event.is_set());
            Event::lent(write).signal();
            assert!(event.is_set());
            event.clear();
            assert!(!event.is_set());
            event.clear();
        }
    }

    #[test]
    fn a_signal_goes_to_the_descriptor_of_the_moment() {
        let signal = Signal::default();
        signal.signal();
        let event = Event::new().unwrap();
        let copy = Event::lent(event.as_fd().try_clone_to_owned().unwrap());
        signal.set(Some(event));
        signal.signal();
        assert!(copy.is_set());
        copy.clear();
        signal.set(None);
        signal.signal();
        assert!(!copy.is_set());
    }
}
