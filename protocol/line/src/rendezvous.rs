//! How a peer comes, and comes again after it has gone.
//!
//! ```text
//! want() ──► waiting ──► meet() = a socket
//!               ▲          │ nobody there: a longer wait, or whoever connects
//!               └──────────┘
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use outboard_protocol::descriptors;

use crate::connect_now;
pub use crate::door::Door;

/// The first wait before another peer is looked for, so that none who comes and
/// goes, or is not there, makes us busy. Each is twice as long as the one before.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// A timer that is set to nothing never expires.
const AT_ONCE: Duration = Duration::from_nanos(1);
/// The longest. A connection that has lasted longer begins again with the
/// first.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Who begins.
#[derive(Debug)]
pub enum Way {
    /// The peer connects here.
    Listening(Door),
    /// The peer listens here.
    Connecting(PathBuf),
}

/// See the module.
#[derive(Debug)]
pub struct Rendezvous {
    way: Way,
    epoll: Epoll,
    timer: TimerFd,
    wait: Duration,
    /// When a peer was met; `None`: none yet.
    met: Option<Instant>,
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
        Ok(Self {
            way,
            epoll,
            timer,
            wait: FIRST_WAIT,
            met: None,
        })
    }

    /// Every descriptor that it has.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let door = match &self.way {
            Way::Listening(door) => Some(door.as_fd()),
            Way::Connecting(_) => None,
        };
        [self.as_fd(), self.timer.as_fd()].into_iter().chain(door)
    }

    /// Nobody is wanted any more, and the next one is met without a wait.
    ///
    /// # Errors
    /// Those of timerfd_settime(2) and epoll_ctl(2).
    pub fn rest(&mut self) -> io::Result<()> {
        (self.wait, self.met) = (FIRST_WAIT, None);
        self.close()
    }

    /// Wakes nobody.
    fn close(&self) -> io::Result<()> {
        // Whether it has expired does not matter: an expiry that nobody reads would
        // be due for ever.
        self.timer.unset()?;
        let _ = self.timer.wait();
        if let Way::Listening(door) = &self.way {
            let _ = self.epoll.delete(door);
        }
        Ok(())
    }

    /// A peer is wanted from now on. The first is looked for at once, another after a
    /// wait.
    ///
    /// # Errors
    /// Those of timerfd_settime(2).
    pub fn want(&mut self) -> io::Result<()> {
        let Some(met) = self.met else {
            return self.set_timer(AT_ONCE);
        };
        if met.elapsed() > LONGEST_WAIT {
            self.wait = FIRST_WAIT;
        }
        self.set_timer(self.wait)?;
        self.wait = self.wait.saturating_mul(2).min(LONGEST_WAIT);
        Ok(())
    }

    /// The peer that is there now, if there is one; then none is wanted any more.
    ///
    /// # Errors
    /// Those of accept(2) that do not pass by themselves; it is tried again after a
    /// wait.
    pub fn meet(&mut self) -> io::Result<Option<UnixStream>> {
        self.close()?;
        let met = match &mut self.way {
            Way::Listening(door) => match door.accept() {
                Ok(None) => {
                    let event = EpollEvent::new(EpollFlags::EPOLLIN, 0);
                    self.epoll.add(door, event)?;
                    None
                }
                Ok(met) => met,
                Err(error) => {
                    self.met.get_or_insert_with(Instant::now);
                    self.want()?;
                    return Err(descriptors::explain(error));
                }
            },
            Way::Connecting(path) => connect_now(path).ok(),
        };
        match (&met, &self.way) {
            (Some(_), _) => self.met = Some(Instant::now()),
            (None, Way::Connecting(_)) => {
                self.met.get_or_insert_with(Instant::now);
                self.want()?;
            }
            (None, Way::Listening(_)) => {}
        }
        Ok(met)
    }

    fn set_timer(&self, wait: Duration) -> io::Result<()> {
        let once = Expiration::OneShot(TimeSpec::from_duration(wait));
        Ok(self.timer.set(once, TimerSetTimeFlags::empty())?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn is_due(rendezvous: &Rendezvous, wait: PollTimeout) -> bool {
        let mut fds = [PollFd::new(rendezvous.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, wait).unwrap() == 1
    }

    const LONG: u16 = 30_000;

    /// Waits until a peer is met.
    fn meets(rendezvous: &mut Rendezvous) -> UnixStream {
        loop {
            assert!(is_due(rendezvous, PollTimeout::from(LONG)));
            if let Some(peer) = rendezvous.meet().unwrap() {
                return peer;
            }
        }
    }

    #[test]
    fn peers_that_come_and_go_are_let_in_ever_more_rarely() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer");
        let listener = UnixListener::bind(&path).unwrap();
        let mut rendezvous = Rendezvous::new(Way::Listening(listener.into())).unwrap();
        let _early = UnixStream::connect(&path).unwrap();
        // Nobody is wanted yet.
        assert!(!is_due(&rendezvous, PollTimeout::ZERO));
        // The first finds an open door.
        rendezvous.want().unwrap();
        meets(&mut rendezvous);
        assert_eq!(rendezvous.wait, FIRST_WAIT);
        for _ in 0..6 {
            // While one is there, nobody else is wanted.
            let _next = UnixStream::connect(&path).unwrap();
            assert!(!is_due(&rendezvous, PollTimeout::ZERO));
            rendezvous.want().unwrap();
            assert!(rendezvous.timer.get().unwrap().is_some());
            meets(&mut rendezvous);
        }
        assert_eq!(rendezvous.wait, LONGEST_WAIT);
        // One that was wanted and is not there is let in whenever it comes.
        rendezvous.rest().unwrap();
        rendezvous.want().unwrap();
        assert!(is_due(&rendezvous, PollTimeout::from(LONG)));
        assert!(rendezvous.meet().unwrap().is_none());
        assert!(!is_due(&rendezvous, PollTimeout::ZERO));
        let _late = UnixStream::connect(&path).unwrap();
        assert!(is_due(&rendezvous, PollTimeout::from(LONG)));
        // Unless nobody wants it any more.
        rendezvous.rest().unwrap();
        assert!(!is_due(&rendezvous, PollTimeout::ZERO));
    }

    /// It says that accept(2) waits, and nobody is there.
    #[test]
    fn who_shares_the_socket_does_not_hold_us_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer");
        let listener = UnixListener::bind(&path).unwrap();
        let shared = listener.try_clone().unwrap();
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut rendezvous = Rendezvous::new(Way::Listening(listener.into())).unwrap();
            shared.set_nonblocking(false).unwrap();
            rendezvous.want().unwrap();
            assert!(is_due(&rendezvous, PollTimeout::from(LONG)));
            assert!(rendezvous.meet().unwrap().is_none());
            let _peer = UnixStream::connect(&path).unwrap();
            meets(&mut rendezvous);
            done.send(()).unwrap();
        });
        let limit = Duration::from_secs(60);
        is_done.recv_timeout(limit).expect("it is held up");
    }

    #[test]
    fn a_peer_that_listens_again_is_found_and_the_waits_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer");
        let mut rendezvous = Rendezvous::new(Way::Connecting(path.clone())).unwrap();
        assert!(!is_due(&rendezvous, PollTimeout::ZERO));
        rendezvous.want().unwrap();
        for _ in 0..4 {
            assert!(is_due(&rendezvous, PollTimeout::from(LONG)));
            assert!(rendezvous.meet().unwrap().is_none());
        }
        assert_eq!(rendezvous.wait, FIRST_WAIT * 16);
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(is_due(&rendezvous, PollTimeout::from(LONG)));
        assert!(rendezvous.meet().unwrap().is_some());
        assert!(!is_due(&rendezvous, PollTimeout::ZERO));
        // An attempt that was planned meanwhile is not made any more: its time would
        // come again and again.
        rendezvous.want().unwrap();
        assert!(rendezvous.meet().unwrap().is_some());
        assert!(rendezvous.timer.get().unwrap().is_none());
        // One that goes at once is not called at once, but soon enough.
        for _ in 0..10 {
            rendezvous.want().unwrap();
        }
        assert_eq!(rendezvous.wait, LONGEST_WAIT);
    }
}
