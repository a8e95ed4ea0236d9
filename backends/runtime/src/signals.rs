//! The signals that end a program.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Context;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::kernel;

/// SIGTERM, SIGINT and SIGHUP, for all threads: readable when one has come. The last
/// two are left alone where they were ignored from the start, as nohup(1) does with
/// SIGHUP.
#[derive(Debug)]
pub struct Stop(SignalFd);

impl Stop {
    /// Blocks them, to be waited for.
    ///
    /// # Errors
    /// Those of sigprocmask(2) and signalfd(2).
    pub fn catch() -> anyhow::Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGTERM);
        for signal in [Signal::SIGINT, Signal::SIGHUP] {
            // A blocked signal comes also when it is ignored.
            if !kernel::ignores(signal) {
                signals.add(signal);
            }
        }
        signals.thread_block().context("cannot block signals")?;
        // A write beyond RLIMIT_FSIZE is an error (EFBIG), not the end.
        let blocked = SigSet::from(Signal::SIGXFSZ).thread_block();
        blocked.context("cannot block SIGXFSZ")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&signals, flags).context("cannot wait for signals")?;
        Ok(Self(signals))
    }

    /// Waits for one.
    pub fn wait(&self) {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        while matches!(poll(&mut fds, PollTimeout::NONE), Err(Errno::EINTR)) {}
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
