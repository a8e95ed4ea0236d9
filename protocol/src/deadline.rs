//! A point in time after which a wait is given up.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long the processes of a VM wait for one another, each shorter than the
/// one that it stands inside (PROTOCOL.md, section 5). A slow disk is no broken
/// back-end: what waits for its I/O, and only that, may take [`limits::IO`].
pub mod limits {
    use std::time::Duration;

    /// A message that has begun is complete, and one that was sent is read.
    /// Whatever needs no I/O is answered as soon.
    pub const MESSAGE: Duration = Duration::from_secs(10);
    /// The I/O that a back-end has under way is over: the requests of rings that
    /// are being stopped, the sync before a write cache counts as off.
    pub const IO: Duration = Duration::from_secs(60);
    /// What waits for a back-end's I/O is answered: the stop of one ring, a
    /// write to the configuration space, a reset of the device.
    pub const ANSWER: Duration = Duration::from_secs(75);
    /// A back-end whose session is over has ended, or is killed.
    pub const END: Duration = Duration::from_secs(80);
    /// A back-end that has not ended by then is told to (`SIGTERM`): one that does
    /// not heed the end of its session may heed that.
    pub const TELL: Duration = Duration::from_secs(10);
    /// Of two ends that belong together, the other is seen. The machine's last
    /// word finds room.
    pub const LAG: Duration = Duration::from_secs(2);
    /// Every thread of the machine has left the kernel when the run is over.
    pub const STOP: Duration = Duration::from_secs(5);
    /// The machine has ended when the run is over.
    pub const MACHINE: Duration = Duration::from_secs(9);
    /// A killed process is gone; one that is not hangs in the kernel.
    pub const KILLED: Duration = Duration::from_secs(10);
    /// What a service manager gives all of a VM to end, as a rule.
    pub const SERVICE: Duration = Duration::from_secs(90);

    const _: () = {
        assert!(MESSAGE.as_secs() + IO.as_secs() < ANSWER.as_secs());
        assert!(ANSWER.as_secs() < END.as_secs());
        assert!(TELL.as_secs() + IO.as_secs() < END.as_secs());
        assert!(STOP.as_secs() + LAG.as_secs() < MACHINE.as_secs());
        assert!(MACHINE.as_secs() + END.as_secs() < SERVICE.as_secs());
    };
}

/// The end of a wait. Every blocking call of Outboard takes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// A deadline `wait` from now, and not later than in a century.
    pub fn after(wait: Duration) -> Self {
        const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        let now = Instant::now();
        Self(now.checked_add(wait.min(CENTURY)).unwrap_or(now))
    }

    /// A deadline at this time.
    pub fn at(time: Instant) -> Self {
        Self(time)
    }

    /// The time left, zero once the deadline has passed.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether the deadline has passed.
    pub fn passed(self) -> bool {
        self.left().is_zero()
    }

    /// The time left as poll(2) takes it: milliseconds, rounded up so that a
    /// wait never ends before its deadline.
    pub fn poll_timeout(self) -> PollTimeout {
        let millis = self.left().as_nanos().div_ceil(1_000_000);
        PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
    }

    /// Waits until a descriptor is ready for `what`, or has an error to be shown.
    ///
    /// # Errors
    /// `TimedOut` when it is not by then, else those of poll(2).
    pub fn wait_for(self, fd: BorrowedFd<'_>, what: PollFlags) -> io::Result<()> {
        loop {
            let mut fds = [PollFd::new(fd, what)];
            match poll(&mut fds, self.poll_timeout()) {
                Ok(0) if self.passed() => return Err(io::ErrorKind::TimedOut.into()),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
