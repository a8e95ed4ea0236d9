//! How long a frame that is larger than the stock may keep others, or the end of
//! the peer that sent it, from the driver: one that will never post as many
//! buffers is told nothing that would make it post some.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// As long as Linux leaves a card that sends nothing.
const LIMIT: Duration = Duration::from_secs(5);

/// A wait, or none. Readable when it is over, and never without one.
#[derive(Debug)]
pub(super) struct Patience {
    timer: TimerFd,
    waits: bool,
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
        })
    }

    /// Whether the wait is over, and has been too long. The first question
    /// begins it.
    pub fn is_over(&mut self) -> bool {
        if self.waits {
            self.waits = self.timer.wait().is_err();
        } else {
            let limit = Expiration::OneShot(LIMIT.into());
            let begun = self.timer.set(limit, TimerSetTimeFlags::empty());
            self.waits = begun.is_ok();
        }
        !self.waits
    }

    /// Nothing waits any more.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.waits) {
            let _ = self.timer.unset();
        }
    }
}
