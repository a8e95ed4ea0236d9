//! Eventfds: kicks that are waited for, calls and errors that are signalled.
//!
//! One that a front-end lends is shared with it, flags, counter and all. What the
//! front-end can do to it at any time must not hold a thread of ours for good.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::fstat;
use outboard_protocol::Deadline;
use rustix::io::{ReadWriteFlags, preadv2};

use crate::kernel::{interrupt, this_thread, write_from_nowhere};

/// How often a descriptor in use is looked at that is to be replaced.
const RETRY: Duration = Duration::from_micros(100);
/// As many reads in a row that give 1 each are of a counter that counts down by
/// one (EFD_SEMAPHORE): any other is empty after the first, unless somebody adds
/// one between each two of them.
const MANY: usize = 256;

/// A worker did not come to an end before its deadline, or died: its rings are
/// lost, and so is this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck;

/// An eventfd.
#[derive(Debug)]
pub struct Event {
    fd: OwnedFd,
    /// Writing to it may block.
    may_block: AtomicBool,
}

/// An eventfd's owner held whoever signalled it: its counter was full, and the
/// descriptor made to block (O_NONBLOCK cleared) after it had been lent. The signal
/// is lost, but a full counter says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held;

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "its counter was full, and O_NONBLOCK cleared after it had been lent: the front-end \
             must read it, or leave its flags alone"
        )
    }
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
            may_block: AtomicBool::new(false),
        })
    }

    /// Adopts one that the front-end lent; `None` if it is no eventfd. Anything
    /// else could be readable for ever, or keep alive what the front-end has
    /// closed, as its own end of a connection.
    pub fn lent(fd: OwnedFd) -> Option<Self> {
        if !is_eventfd(fd.as_fd()) {
            return None;
        }
        let flags = fcntl(&fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
        let may_block = !flags.is_ok_and(|flags| flags.contains(OFlag::O_NONBLOCK));
        Some(Self {
            fd,
            may_block: AtomicBool::new(may_block),
        })
    }

    /// Adds one event. A full counter is no error: whoever reads it has been told.
    ///
    /// One of our own never waits. For one that was lent there is [`Signal`].
    pub fn signal(&self) {
        let _ = self.try_signal();
    }

    /// The same; waits if its owner has changed its mode, or fills it at this very
    /// moment.
    ///
    /// # Errors
    /// [`Held`] when it did wait, and was interrupted.
    fn try_signal(&self) -> Result<(), Held> {
        if self.may_block.load(Ordering::Relaxed) && !self.has(PollFlags::POLLOUT) {
            return Ok(());
        }
        match nix::unistd::write(&self.fd, &1u64.to_ne_bytes()) {
            Err(Errno::EINTR) => {
                self.may_block.store(true, Ordering::Relaxed);
                Err(Held)
            }
            _ => Ok(()),
        }
    }

    /// Forgets the events so far, of an EFD_SEMAPHORE only one; returns their
    /// number. Never blocks, whatever the descriptor's mode and whoever else
    /// reads it.
    pub fn clear(&self) -> u64 {
        let mut bytes = [0; 8];
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        match preadv2(&self.fd, &mut buffers, AS_A_STREAM, ReadWriteFlags::NOWAIT) {
            Ok(8) => u64::from_ne_bytes(bytes),
            _ => 0,
        }
    }

    /// Forgets events as [`Self::clear`] does; whether there is no end of them,
    /// because each read takes one away of a counter with any number
    /// (EFD_SEMAPHORE).
    pub fn is_endless(&self) -> bool {
        (0..MANY).all(|_| self.clear() == 1)
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

/// The offset that preadv2(2) takes for "where a read would go on".
const AS_A_STREAM: u64 = u64::MAX;

/// Whether a descriptor is an eventfd, told by what the kernel refuses: nothing is
/// read or written, and no name under /proc needed.
fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
    // A file without a type, like all that are no more than a descriptor.
    let untyped = fstat(fd).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == 0);
    // Of those, an eventfd takes 8 bytes, for which it looks first; others take
    // nothing, or not as many (fanotify alone takes 8, too).
    let takes = || write_from_nowhere(fd).raw_os_error() == Some(libc::EFAULT);
    // And it is read without waiting, but not fewer bytes than 8.
    let gives = || {
        let mut seven = [0; 7];
        let mut buffers = [IoSliceMut::new(&mut seven)];
        let read = preadv2(fd, &mut buffers, AS_A_STREAM, ReadWriteFlags::NOWAIT);
        read == Err(rustix::io::Errno::INVAL)
    };
    untyped && takes() && gives()
}

/// A call or error descriptor: the session replaces it while a worker uses it. A
/// worker that its owner holds in it is got out by whoever wants something of the
/// worker ([`Self::set`], [`Self::interrupt`]); until then only the front-end's own
/// ring waits.
#[derive(Debug, Default)]
pub struct Signal {
    event: Mutex<Option<Event>>,
    /// The thread that signals, or was the last to do so.
    writer: AtomicI32,
}

impl Signal {
    /// Replaces the descriptor; `None` when the front-end wants no signal. The
    /// old one is not signalled after this returns.
    ///
    /// # Errors
    /// [`Stuck`] when it is still being signalled at `deadline`.
    pub fn set(&self, event: Option<Event>, deadline: Deadline) -> Result<(), Stuck> {
        loop {
            match self.event.try_lock() {
                Ok(mut place) => *place = event,
                Err(TryLockError::Poisoned(place)) => *place.into_inner() = event,
                Err(TryLockError::WouldBlock) if deadline.passed() => return Err(Stuck),
                Err(TryLockError::WouldBlock) => {
                    std::thread::sleep(RETRY);
                    self.interrupt();
                    continue;
                }
            }
            return Ok(());
        }
    }

    /// Signals, if there is a descriptor.
    ///
    /// # Errors
    /// [`Held`] when its owner held this thread in it.
    pub fn signal(&self) -> Result<(), Held> {
        let event = self.event.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(event) = &*event else {
            return Ok(());
        };
        self.writer.store(this_thread(), Ordering::Relaxed);
        event.try_signal()
    }

    /// The same on a thread of its own, for one that must not be held, as whoever
    /// would get it out is held itself.
    pub fn signal_aside(self: &Arc<Self>) {
        let signal = self.clone();
        let thread = std::thread::Builder::new().name("signal".into());
        let _ = thread.spawn(move || {
            let _ = signal.signal();
        });
    }

    /// Gets a thread that is signalling just now out of it, should it be held. It
    /// may not have begun to wait: ask again until it does what it is wanted for.
    pub fn interrupt(&self) {
        if let Err(TryLockError::WouldBlock) = self.event.try_lock() {
            interrupt(self.writer.load(Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "fanotify has no safe function")]
mod tests {
    use std::os::fd::FromRawFd;

    use nix::sys::signal::SigSet;

    use super::*;

    fn lent(event: &EventFd) -> Event {
        Event::lent(event.as_fd().try_clone_to_owned().unwrap()).unwrap()
    }

    #[test]
    fn clearing_never_blocks_on_a_blocking_eventfd() {
        let event = EventFd::from_value_and_flags(0, EfdFlags::empty()).unwrap();
        let lent = lent(&event);
        assert_eq!(lent.clear(), 0);
        assert!(!lent.is_set());
        event.write(3).unwrap();
        assert!(lent.is_set());
        assert_eq!(lent.clear(), 3);
        assert!(!lent.is_set());
        assert_eq!(lent.clear(), 0);
    }

    #[test]
    fn nothing_but_an_eventfd_is_taken_for_one_and_asking_changes_nothing() {
        use nix::sys::epoll::{Epoll, EpollCreateFlags};
        use nix::sys::signalfd::SignalFd;
        use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
        for flags in [0, libc::EFD_NONBLOCK, libc::EFD_SEMAPHORE] {
            let flags = EfdFlags::from_bits_retain(flags);
            for event in [EventFd::from_flags(flags).unwrap(), full(flags)] {
                assert!(is_eventfd(event.as_fd()), "{flags:?}");
            }
        }
        let event = EventFd::from_value_and_flags(5, EfdFlags::empty()).unwrap();
        assert!(is_eventfd(event.as_fd()));
        assert_eq!(event.read().unwrap(), 5);

        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::empty()).unwrap();
        let signals = SignalFd::new(&SigSet::empty()).unwrap();
        let inotify = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::empty()).unwrap();
        let null = std::fs::File::options();
        let null = null
            .clone()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        let file = tempfile::tempfile().unwrap();
        let others: [(&str, BorrowedFd<'_>); 9] = [
            ("a socket", socket.as_fd()),
            ("a pipe to read", reader.as_fd()),
            ("a pipe to write", writer.as_fd()),
            ("epoll", epoll.0.as_fd()),
            ("a timer", timer.as_fd()),
            ("signals", signals.as_fd()),
            ("inotify", inotify.as_fd()),
            ("/dev/null", null.as_fd()),
            ("a file", file.as_fd()),
        ];
        for (name, other) in others {
            assert!(!is_eventfd(other), "{name}");
        }
        // Whoever may not have one cannot lend one.
        // SAFETY: two numbers.
        let number = unsafe { libc::fanotify_init(0, 0) };
        if number >= 0 {
            // SAFETY: it has just been made, for nobody else.
            let fanotify = unsafe { OwnedFd::from_raw_fd(number) };
            assert!(!is_eventfd(fanotify.as_fd()), "fanotify");
        }
    }

    #[test]
    fn an_endless_counter_is_told_from_one_that_ends() {
        let semaphore = EfdFlags::EFD_SEMAPHORE;
        let few = u32::try_from(MANY).unwrap() - 1;
        for (flags, count, endless) in [
            (semaphore, u32::MAX, true),
            (semaphore, few, false),
            (EfdFlags::empty(), u32::MAX, false),
            (EfdFlags::empty(), 1, false),
        ] {
            let event = EventFd::from_value_and_flags(count, flags).unwrap();
            assert_eq!(lent(&event).is_endless(), endless, "{flags:?} {count}");
            assert_eq!(lent(&event).is_set(), endless, "{flags:?} {count}");
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
            lent(&event).signal();
            assert_eq!(event.read().unwrap(), FULL);
        }
    }

    #[test]
    fn a_writer_that_is_held_is_got_out_and_not_held_again() {
        let deadline = Deadline::after(Duration::from_secs(60));
        for replaced in [true, false] {
            let owner = full(EfdFlags::EFD_NONBLOCK);
            let signal = Arc::new(Signal::default());
            signal.set(Some(lent(&owner)), deadline).unwrap();
            fcntl(&owner, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
            let writer = std::thread::spawn({
                let signal = signal.clone();
                move || {
                    // As it may have been inherited.
                    SigSet::all().thread_block().unwrap();
                    [signal.signal(), signal.signal()]
                }
            });
            while signal.event.try_lock().is_ok() {
                assert!(!deadline.passed(), "it writes");
                std::thread::yield_now();
            }
            if replaced {
                signal.set(None, deadline).unwrap();
            }
            while !writer.is_finished() {
                assert!(!deadline.passed(), "it is held");
                signal.interrupt();
                std::thread::yield_now();
            }
            // The second one looks before.
            assert_eq!(writer.join().unwrap(), [Err(Held), Ok(())]);
            assert_eq!(owner.read().unwrap(), FULL);
        }
    }

    #[test]
    fn whoever_signals_aside_is_never_held() {
        let deadline = Deadline::after(Duration::from_secs(60));
        let owner = full(EfdFlags::EFD_NONBLOCK);
        let signal = Arc::new(Signal::default());
        signal.set(Some(lent(&owner)), deadline).unwrap();
        fcntl(&owner, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        signal.signal_aside();
        signal.set(None, deadline).unwrap();
        assert_eq!(owner.read().unwrap(), FULL);
    }

    #[test]
    fn a_signal_goes_to_the_descriptor_of_the_moment() {
        let signal = Signal::default();
        signal.signal().unwrap();
        let event = Event::new().unwrap();
        let copy = Event::lent(event.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let soon = || Deadline::after(Duration::from_secs(20));
        signal.set(Some(event), soon()).unwrap();
        signal.signal().unwrap();
        assert!(copy.is_set());
        copy.clear();
        signal.set(None, soon()).unwrap();
        signal.signal().unwrap();
        assert!(!copy.is_set());
    }
}
