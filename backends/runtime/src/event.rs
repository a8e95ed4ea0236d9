//! Eventfds: kicks that are waited for, calls and errors that are signalled.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use outboard_protocol::Deadline;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::worker::Stuck;

/// How often a descriptor in use is looked at that is to be replaced.
const RETRY: Duration = Duration::from_micros(100);

/// A descriptor that counts events: an eventfd, or a pipe that stands in for
/// one (vhost-user, "Support for platforms other than Linux").
#[derive(Debug)]
pub struct Event {
    fd: OwnedFd,
    /// Writing to it may block.
    may_block: bool,
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
            may_block: false,
        })
    }

    /// Adopts one that the front-end lent.
    pub fn lent(fd: OwnedFd) -> Self {
        let flags = fcntl(&fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
        let may_block = !flags.is_ok_and(|flags| flags.contains(OFlag::O_NONBLOCK));
        Self { fd, may_block }
    }

    /// Adds one event. A full or closed counter is no error: whoever reads it
    /// has been told, or has gone.
    ///
    /// On a lent descriptor this can still block, if its owner changes its mode
    /// or fills it at that very moment. Whoever waits for the one who signals
    /// has a deadline: [`Signal::set`], and the stop of a worker.
    pub fn signal(&self) {
        if !self.may_block || self.has(PollFlags::POLLOUT) {
            let _ = nix::unistd::write(&self.fd, &1u64.to_ne_bytes());
        }
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
        self.has(PollFlags::POLLIN)
    }

    fn has(&self, wanted: PollFlags) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), wanted)];
        let _ = poll(&mut fds, PollTimeout::ZERO);
        let [event] = fds;
        event
            .revents()
            .is_some_and(|events| events.contains(wanted))
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
    ///
    /// # Errors
    /// [`Stuck`] when it is still being signalled at `deadline`: its owner does
    /// not let it be written to.
    pub fn set(&self, event: Option<Event>, deadline: Deadline) -> Result<(), Stuck> {
        loop {
            match self.event.try_lock() {
                Ok(mut place) => *place = event,
                Err(TryLockError::Poisoned(place)) => *place.into_inner() = event,
                Err(TryLockError::WouldBlock) if deadline.passed() => return Err(Stuck),
                Err(TryLockError::WouldBlock) => {
                    std::thread::sleep(RETRY);
                    continue;
                }
            }
            return Ok(());
        }
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

    /// A count that takes nothing more.
    const FULL: u64 = u64::MAX - 1;

    fn full(flags: EfdFlags) -> EventFd {
        let event = EventFd::from_value_and_flags(0, flags).unwrap();
        event.write(FULL).unwrap();
        event
    }

    #[test]
    fn a_full_counter_holds_nobody() {
        for flags in [EfdFlags::empty(), EfdFlags::EFD_NONBLOCK] {
            let event = full(flags);
            Event::lent(event.as_fd().try_clone_to_owned().unwrap()).signal();
            assert_eq!(event.read().unwrap(), FULL);
        }
    }

    #[test]
    fn a_descriptor_that_holds_its_writer_is_not_waited_for_forever() {
        let owner = full(EfdFlags::EFD_NONBLOCK);
        let signal = std::sync::Arc::new(Signal::default());
        let lent = Event::lent(owner.as_fd().try_clone_to_owned().unwrap());
        let deadline = Deadline::after(Duration::from_secs(20));
        signal.set(Some(lent), deadline).unwrap();
        fcntl(&owner, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        let writer = std::thread::spawn({
            let signal = signal.clone();
            move || signal.signal()
        });
        while signal.event.try_lock().is_ok() {
            assert!(!deadline.passed(), "it writes");
            std::thread::yield_now();
        }
        let soon = Deadline::after(Duration::from_millis(20));
        assert_eq!(signal.set(None, soon), Err(Stuck));
        assert_eq!(owner.read().unwrap(), FULL);
        writer.join().unwrap();
        signal.set(None, deadline).unwrap();
    }

    #[test]
    fn a_signal_goes_to_the_descriptor_of_the_moment() {
        let signal = Signal::default();
        signal.signal();
        let event = Event::new().unwrap();
        let copy = Event::lent(event.as_fd().try_clone_to_owned().unwrap());
        let soon = || Deadline::after(Duration::from_secs(20));
        signal.set(Some(event), soon()).unwrap();
        signal.signal();
        assert!(copy.is_set());
        copy.clear();
        signal.set(None, soon()).unwrap();
        signal.signal();
        assert!(!copy.is_set());
    }
}
