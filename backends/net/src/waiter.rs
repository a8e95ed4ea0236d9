//! A descriptor that is readable when something else is true of a socket: what
//! a worker waits for is always readability.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// An epoll instance of a few descriptors, or of none.
pub struct Waiter(Epoll);

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiter")
    }
}

impl AsFd for Waiter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

impl Waiter {
    /// Readable when `events` are true of one of `fds`; without any, never.
    ///
    /// # Errors
    /// Those of epoll_create1(2) and epoll_ctl(2).
    pub fn new<'a>(
        fds: impl IntoIterator<Item = BorrowedFd<'a>>,
        events: EpollFlags,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for fd in fds {
            epoll.add(fd, EpollEvent::new(events, 0))?;
        }
        Ok(Self(epoll))
    }

    /// Whether it is readable now.
    pub fn is_readable(&self) -> bool {
        let mut events = [EpollEvent::empty()];
        let found = self.0.wait(&mut events, EpollTimeout::ZERO);
        found.is_ok_and(|count| count > 0)
    }
}
