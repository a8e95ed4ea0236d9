//! What a program that was started by hand does in place of a supervisor: the half of
//! it that stays outside, in a process of its own, and serves nobody.
//!
//! ```text
//!          part()
//! program ───┬──► Serving: a back-end like any other, with a line   (the child)
//!            └──► Outside: the other end of that line               (the parent)
//!                   attend() ── the child has ended ──► its status, socket files removed
//! ```
//! The half outside hands signals on, looks at the interface behind a card, and finds
//! the card another peer. Neither half outlives the other.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, getpid, getppid};
use outboard_line::rendezvous::Way;
use outboard_line::{Heard, Line};
use outboard_protocol::kept::Kept;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::kernel;
use crate::listen::SocketFile;
use crate::signals::Stop;

/// Added to the number of the signal that has killed the serving half: what shells do.
const KILLED: u8 = 128;

/// What is behind a device that its supervisor has to do with.
#[derive(Debug, Default)]
pub struct Behind {
    /// How the peer of a card comes.
    pub peer: Option<Way>,
    /// The interface behind a card, by name.
    pub interface: Option<String>,
    /// The file of a socket that was bound for the peer.
    pub file: Option<SocketFile>,
}

/// Which of the two this process is.
#[derive(Debug)]
pub enum Half {
    /// The one that serves: its line.
    Serving(OwnedFd),
    /// The other one.
    Outside(Outside),
}

/// See the module.
#[derive(Debug)]
pub struct Outside {
    line: Line,
    serving: Pid,
    pidfd: OwnedFd,
    _file: Option<SocketFile>,
}

impl Behind {
    /// Makes two of this process. Signals are blocked, and there is one thread.
    ///
    /// # Errors
    /// Those of the line, and of fork(2).
    pub fn part(self) -> anyhow::Result<Half> {
        let line = Line::new(self.peer, self.interface.as_deref());
        let mut line = line.context("cannot make a line between this program and itself")?;
        let theirs = line.begin(Kept::Nothing).context("cannot begin a line")?;
        let outside = getpid();
        match kernel::divide().context("cannot fork")? {
            ForkResult::Parent { child } => {
                let pid = rustix::process::Pid::from_raw(child.as_raw());
                let pidfd = pid.context("no process")?;
                let pidfd = pidfd_open(pidfd, PidfdFlags::empty()).context("cannot wait for it")?;
                Ok(Half::Outside(Outside {
                    line,
                    serving: child,
                    pidfd,
                    _file: self.file,
                }))
            }
            ForkResult::Child => {
                set_pdeathsig(Signal::SIGKILL).context("PR_SET_PDEATHSIG")?;
                if getppid() != outside {
                    bail!("the process that started this one has ended");
                }
                Ok(Half::Serving(theirs))
            }
        }
    }
}

impl Outside {
    /// Does its part until the serving half has ended; how that was. Everything else in
    /// this process that has descriptors, but `stop`, has been dropped.
    pub fn attend(mut self, stop: &Stop) -> ExitCode {
        let mut own: Vec<RawFd> = self
            .line
            .descriptors()
            .iter()
            .map(AsRawFd::as_raw_fd)
            .collect();
        own.extend([self.pidfd.as_raw_fd(), stop.as_fd().as_raw_fd()]);
        if let Err(errno) = kernel::close_all_but(&mut own) {
            log::debug!("descriptors that were inherited stay open in two processes: {errno}");
        }
        while !self.step(stop) {}
        loop {
            match waitpid(self.serving, None) {
                Ok(WaitStatus::Exited(_, status)) => {
                    return ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX));
                }
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    outboard_log::say(&format!("the process that serves was killed by {signal}"));
                    let number = u8::try_from(signal as i32).unwrap_or_default();
                    return ExitCode::from(KILLED.saturating_add(number));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => {
                    outboard_log::say(&format!("cannot wait for the process that serves: {errno}"));
                    return ExitCode::FAILURE;
                }
            }
        }
    }

    /// Waits for one event and sees to it. Whether it was the last.
    fn step(&mut self, stop: &Stop) -> bool {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = [
            readable(self.pidfd.as_fd()),
            readable(stop.as_fd()),
            readable(self.line.as_fd()),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            // The end is waited for, and nothing else seen to.
            Err(_) => return true,
        }
        let [ended, told, line] = fds.map(|fd| fd.any().unwrap_or(false));
        if told {
            stop.forget();
            // It has not been waited for, so the number is its own.
            let _ = kill(self.serving, Signal::SIGTERM);
        }
        if line {
            for heard in self.line.attend() {
                if let Heard::Nonsense(why) = heard {
                    log::warn!("the process that serves is not heard any more: {why}");
                }
            }
        }
        ended
    }
}
