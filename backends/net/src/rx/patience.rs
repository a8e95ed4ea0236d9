//! How long a frame that is larger than the stock may keep others, or the end of
//! the peer that sent it, from the driver: one that will never post as many
//! buffers is told nothing that would make it post some. So each wait in vain
//! makes the next one shorter, until one has paid off.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// As long as Linux leaves a card that sends nothing.
const LONGEST: Duration = Duration::from_secs(5);
/// A driver that posts what it has been given back needs less.
const SHORTEST: Duration = Duration::from_millis(10);
/// By how much a wait in vain makes the next one shorter.
const SHORTER: u32 = 8;

/// A wait, or none. Readable when it is over, and never without one.
#[derive(Debug)]
pub(super) struct Patience {
    timer: TimerFd,
    waits: bool,
    /// How long the next wait lasts at most, or the one that there is.
    limit: Duration,
}

impl AsFd for Patience {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

impl Patience {
    /// # Errors
    /// Those of timerfd_create(2).
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self {
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            waits: false,
            limit: LONGEST,
        })
    }

    /// Whether the wait is over, and has been too long. The first question
    /// begins it.
    pub fn is_over(&mut self) -> bool {
        if self.waits {
            self.waits = self.timer.wait().is_err();
            if !self.waits {
                let shorter = self.limit.checked_div(SHORTER);
                self.limit = shorter.unwrap_or(SHORTEST).max(SHORTEST);
            }
        } else {
            let limit = Expiration::OneShot(self.limit.into());
            let begun = self.timer.set(limit, TimerSetTimeFlags::empty());
            self.waits = begun.is_ok();
        }
        !self.waits
    }

    /// Nothing waits any more; a wait that there was has paid off.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.waits) {
            let _ = self.timer.unset();
            self.limit = LONGEST;
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn in_vain(patience: &mut Patience) {
        assert!(!patience.is_over());
        let mut fds = [PollFd::new(patience.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(30_000u16)).unwrap(), 1);
        assert!(patience.is_over());
    }

    #[test]
    fn a_driver_that_has_been_waited_for_in_vain_is_waited_for_less() {
        let mut patience = Patience::new().unwrap();
        assert_eq!(patience.limit, LONGEST);
        patience.limit = SHORTEST * SHORTER * 2;
        in_vain(&mut patience);
        assert_eq!(patience.limit, SHORTEST * 2);
        // One more, and it stays so.
        for _ in 0..3 {
            in_vain(&mut patience);
            assert_eq!(patience.limit, SHORTEST);
        }
        // The end of none says nothing of the driver, that of one does.
        patience.end();
        assert_eq!(patience.limit, SHORTEST);
        assert!(!patience.is_over());
        patience.end();
        assert_eq!(patience.limit, LONGEST);
    }
}
