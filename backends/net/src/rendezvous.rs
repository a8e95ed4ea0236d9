//! How a peer comes, and comes again after it has gone.
//!
//! ```text
//! wanted ──► waiting ──► meet() = a socket
//!               ▲          │ nobody there: a longer wait, or whoever connects
//!               └──────────┘
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use outboard_runtime::listen::{Listening, connect_now};

/// The first wait before another peer is looked for, so that none who comes and
/// goes, or is not there, makes us busy. Each is twice as long as the one before.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest. A connection that has lasted longer begins again with the
/// first.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Who begins.
#[derive(Debug)]
pub enum Way {
    /// The peer connects here.
    Listening(Listening),
    /// The peer listens here.
    Connecting(PathBuf),
    /// There is no second time.
    Once,
}

/// See the module.
pub struct Rendezvous {
    way: Way,
    epoll: Epoll,
    timer: TimerFd,
    pace: Mutex<Pace>,
}

#[derive(Debug)]
struct Pace {
    wait: Duration,
    met: Instant,
}

impl std::fmt::Debug for Rendezvous {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rendezvous({:?})", self.way)
    }
}

/// Readable when it is time for [`Rendezvous::meet`].
impl AsFd for Rendezvous {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

impl Rendezvous {
    /// Nobody is wanted yet.
    ///
    /// # Errors
    /// Those of epoll_create1(2) and timerfd_create(2).
    pub fn new(way: Way) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        let pace = Mutex::new(Pace {
            wait: FIRST_WAIT,
            met: Instant::now(),
        });
        Ok(Self {
            way,
            epoll,
            timer,
            pace,
        })
    }

    /// What happens after a peer has gone, for messages.
    pub fn prospect(&self) -> &'static str {
        match self.way {
            Way::Listening(_) => "until the next one connects",
            Way::Connecting(_) => "until it can be connected to again",
            Way::Once => "start the peer and this program again",
        }
    }

    /// A peer is wanted from now on; the next look for one comes after a wait.
    pub fn want(&self) {
        if matches!(self.way, Way::Once) {
            return;
        }
        let mut pace = self.pace();
        if pace.met.elapsed() > LONGEST_WAIT {
            pace.wait = FIRST_WAIT;
        }
        self.set_timer(pace.wait);
        pace.wait = pace.wait.saturating_mul(2).min(LONGEST_WAIT);
    }

    /// The peer that is there now, if there is one; then none is wanted any
    /// more.
    ///
    /// # Errors
    /// Those of accept(2) that do not pass by themselves; it is tried again
    /// after a wait.
    pub fn meet(&self) -> io::Result<Option<UnixStream>> {
        // Whether it has expired does not matter, and a look that was planned
        // is this one: an expiry that nobody reads would be due for ever.
        let _ = self.timer.unset();
        let _ = self.timer.wait();
        let met = match &self.way {
            Way::Listening(listening) => {
                // It wakes nobody while a peer is there, or after an error.
                let _ = self.epoll.delete(listening);
                let met = listening.try_accept().inspect_err(|_| self.want())?;
                if met.is_none() {
                    let event = EpollEvent::new(EpollFlags::EPOLLIN, 0);
                    self.epoll.add(listening, event)?;
                }
                met
            }
            Way::Connecting(path) => {
                let met = connect_now(path).ok();
                if met.is_none() {
                    self.want();
                }
                met
            }
            Way::Once => None,
        };
        if met.is_some() {
            self.pace().met = Instant::now();
        }
        Ok(met)
    }

    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_timer(&self, wait: Duration) {
        let once = Expiration::OneShot(TimeSpec::from_duration(wait));
        if let Err(errno) = self.timer.set(once, TimerSetTimeFlags::empty()) {
            log::warn!("the peer will not be connected to again: timerfd: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use outboard_runtime::listen::Source;

    use super::*;

    fn is_due(rendezvous: &Rendezvous, wait: PollTimeout) -> bool {
        let mut fds = [PollFd::new(rendezvous.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, wait).unwrap() == 1
    }

    #[test]
    fn peers_that_come_and_go_are_let_in_ever_more_rarely() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer");
        let Source::Listening(listening) = Source::at(&path).unwrap() else {
            panic!("it listens");
        };
        let rendezvous = Rendezvous::new(Way::Listening(listening)).unwrap();
        // The first finds an open door.
        assert!(rendezvous.meet().unwrap().is_none());
        assert!(!is_due(&rendezvous, PollTimeout::ZERO));
        for _ in 0..3 {
            let _peer = UnixStream::connect(&path).unwrap();
            assert!(is_due(&rendezvous, PollTimeout::from(30_000u16)));
            assert!(rendezvous.meet().unwrap().is_some());
            // While one is there, nobody else is wanted.
            let _next = UnixStream::connect(&path).unwrap();
            assert!(!is_due(&rendezvous, PollTimeout::ZERO));
            rendezvous.want();
            assert!(rendezvous.timer.get().unwrap().is_some());
            assert!(is_due(&rendezvous, PollTimeout::from(30_000u16)));
            assert!(rendezvous.meet().unwrap().is_some());
            rendezvous.want();
            assert!(is_due(&rendezvous, PollTimeout::from(30_000u16)));
            assert!(rendezvous.meet().unwrap().is_none());
        }
        assert_eq!(rendezvous.pace().wait, LONGEST_WAIT);
    }

    #[test]
    fn a_peer_that_listens_again_is_found_and_the_waits_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer");
        let rendezvous = Rendezvous::new(Way::Connecting(path.clone())).unwrap();
        assert!(!is_due(&rendezvous, PollTimeout::ZERO));
        rendezvous.want();
        for _ in 0..3 {
            assert!(is_due(&rendezvous, PollTimeout::from(30_000u16)));
            assert!(rendezvous.meet().unwrap().is_none());
        }
        assert_eq!(rendezvous.pace().wait, FIRST_WAIT * 16);
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(is_due(&rendezvous, PollTimeout::from(30_000u16)));
        assert!(rendezvous.meet().unwrap().is_some());
        assert!(!is_due(&rendezvous, PollTimeout::ZERO));
        // An attempt that was planned meanwhile is not made any more: its time
        // would come again and again.
        rendezvous.want();
        assert!(rendezvous.meet().unwrap().is_some());
        assert!(rendezvous.timer.get().unwrap().is_none());
        // One that goes at once is not called at once, but soon enough.
        for _ in 0..10 {
            rendezvous.want();
        }
        assert_eq!(rendezvous.pace().wait, LONGEST_WAIT);
    }
}
