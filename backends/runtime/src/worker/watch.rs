//! What a worker that sleeps waits for.
//!
//! Its rings and queues are not in its hands then: the session may close at any time
//! what is waited for. So it is known by number alone, and what is found tells no
//! more than to look. A number that is another descriptor's by then wakes the worker
//! in vain, once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::event::Event;
use crate::kernel::{Polled, poll_by_number};

/// How often a ring is looked at whose front-end lent no kick, and an engine
/// that has no descriptor to wait for.
const TICK: Duration = Duration::from_millis(1);

/// Readable when the kick is that it stands for at the moment, if there is any.
pub(super) struct Bell(Epoll);

impl Bell {
    /// # Errors
    /// Those of epoll_create1(2).
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self(epoll))
    }

    /// Stands for this kick, too. Whether that is so: there may be no room for it.
    pub fn hang(&self, kick: &Event) -> bool {
        let readable = EpollEvent::new(EpollFlags::EPOLLIN, 0);
        self.0.add(kick, readable).is_ok()
    }

    /// Stands for it no more.
    pub fn take_down(&self, kick: &Event) {
        let _ = self.0.delete(kick);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

/// What has happened to one ring.
#[derive(Clone, Copy, Default)]
pub(super) struct Found {
    /// Its driver has kicked.
    pub kick: bool,
    /// The chain at its head, if there is one, is worth another look.
    pub look: bool,
}

/// See the module.
pub(super) struct Watch<'a> {
    wake: &'a Event,
    /// That of the wake; kick and device of each ring, by its place.
    fds: Vec<Polled>,
    /// Something else may happen, of which no descriptor tells.
    blind: bool,
}

impl<'a> Watch<'a> {
    pub fn new(wake: &'a Event) -> Self {
        Self {
            wake,
            fds: Vec::new(),
            blind: false,
        }
    }

    /// Waits for nothing but the wake.
    pub fn clear(&mut self) {
        self.fds.clear();
        self.fds.push(polled(Some(self.wake.as_fd())));
        self.blind = false;
    }

    /// Waits for what this ring's driver and its device announce, too; `blind`: and for what
    /// they do not. The places come in order.
    pub fn add(
        &mut self,
        place: usize,
        kick: Option<BorrowedFd<'_>>,
        ready: Option<BorrowedFd<'_>>,
        blind: bool,
    ) {
        self.fds.resize(kick_of(place), polled(None));
        self.fds.extend([polled(kick), polled(ready)]);
        self.blind |= blind;
    }

    /// Waits.
    pub fn wait(&mut self) {
        let timeout = self.blind.then_some(TICK);
        if poll_by_number(&mut self.fds, timeout).is_err() {
            // Whatever it was: everything is looked at.
            self.blind = true;
        }
        if self.is_set(0) {
            self.wake.clear();
        }
    }

    /// What has happened to the ring at this place.
    pub fn found(&self, place: usize) -> Found {
        let kick = kick_of(place);
        let (kick, ready) = (self.is_set(kick), self.is_set(kick.saturating_add(1)));
        let look = kick || ready || self.blind;
        Found { kick, look }
    }

    fn is_set(&self, at: usize) -> bool {
        self.fds.get(at).is_some_and(|fd| fd.revents != 0)
    }
}

/// Where a ring's kick is among the descriptors.
fn kick_of(place: usize) -> usize {
    place.saturating_mul(2).saturating_add(1)
}

/// Without a descriptor, a place that reports nothing.
fn polled(fd: Option<BorrowedFd<'_>>) -> Polled {
    Polled {
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    }
}
