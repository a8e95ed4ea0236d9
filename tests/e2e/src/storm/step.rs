//! A process that is led from one system call to the next, and killed between
//! two of them.
//!
//! It stops itself before it becomes the program (`kill -STOP $$; exec …`), is
//! taken over there by ptrace(2), and let go to the next stop again and again: at
//! the entry of each system call of its first thread, and at its end.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::eventually;

/// How long a system call may take that does not wait for others. A start has
/// none that is slower, but on a machine that does something else meanwhile.
const WAITS: Duration = Duration::from_secs(1);

/// A process that is led.
#[derive(Debug)]
pub struct Led {
    pid: Pid,
    /// What it is told when it is let go: a signal that it was stopped by.
    pass: Option<Signal>,
}

/// Where a process stands that was led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// Between two steps.
    Stopped,
    /// In a system call that waits for others.
    Waits,
    /// It has ended.
    Gone,
}

/// Whether a process has stopped itself.
pub fn is_stopped(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ");
    state.is_some_and(|(_, rest)| rest.starts_with('T'))
}

impl Led {
    /// Takes over a process that stops itself, and lets it go on to its first
    /// step.
    ///
    /// # Errors
    /// It does not stop, or the system does not let it be led.
    pub fn take(pid: Pid) -> Result<Self> {
        eventually("the process has stopped", || {
            Ok(is_stopped(pid).then_some(()))
        })?;
        ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD).context("PTRACE_SEIZE")?;
        ptrace::interrupt(pid).context("PTRACE_INTERRUPT")?;
        let mut led = Self { pid, pass: None };
        led.stopped(Instant::now())?;
        led.pass = None;
        kill(pid, Signal::SIGCONT)?;
        Ok(led)
    }

    /// Lets it go so many steps.
    ///
    /// # Errors
    /// Those of ptrace(2).
    pub fn go(&mut self, steps: u32) -> Result<Stand> {
        let mut made = 0;
        while made < steps {
            match ptrace::syscall(self.pid, self.pass.take()) {
                Ok(()) => {}
                Err(Errno::ESRCH) => return Ok(Stand::Gone),
                Err(error) => return Err(error).context("PTRACE_SYSCALL"),
            }
            match self.stopped(Instant::now())? {
                WaitStatus::PtraceSyscall(_) => made += 1,
                WaitStatus::Stopped(_, signal) => self.pass = Some(signal),
                WaitStatus::PtraceEvent(..) => {}
                WaitStatus::StillAlive => return Ok(Stand::Waits),
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return Ok(Stand::Gone),
                other => bail!("{other:?}"),
            }
        }
        Ok(Stand::Stopped)
    }

    fn stopped(&self, since: Instant) -> Result<WaitStatus> {
        loop {
            let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
            match waitpid(self.pid, Some(flags))? {
                WaitStatus::StillAlive if since.elapsed() < WAITS => {
                    std::thread::sleep(Duration::from_micros(100));
                }
                status => return Ok(status),
            }
        }
    }

    /// Kills it where it stands.
    ///
    /// # Errors
    /// Those of kill(2).
    pub fn kill(self) -> Result<()> {
        kill(self.pid, Signal::SIGKILL)?;
        // Its parent is told when this process has been.
        while !matches!(
            waitpid(self.pid, Some(WaitPidFlag::__WALL)),
            Err(_) | Ok(WaitStatus::Signaled(..) | WaitStatus::Exited(..))
        ) {}
        Ok(())
    }

    /// Lets it run on by itself.
    ///
    /// # Errors
    /// Those of ptrace(2).
    pub fn let_go(self) -> Result<()> {
        // Only one that stands can be let go.
        ptrace::interrupt(self.pid)?;
        self.stopped(Instant::now())?;
        ptrace::detach(self.pid, None).context("PTRACE_DETACH")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    use super::*;

    fn stops_and_sleeps() -> (Child, Led) {
        let words = ["-c", "kill -STOP $$; exec sleep 300"];
        let child = Command::new("/bin/sh").args(words).spawn().unwrap();
        let led = Led::take(Pid::from_raw(child.id().cast_signed())).unwrap();
        (child, led)
    }

    #[test]
    fn a_process_is_killed_where_it_stands() {
        let (mut child, mut led) = stops_and_sleeps();
        assert_eq!(led.go(9).unwrap(), Stand::Stopped);
        led.kill().unwrap();
        // Whoever led it has waited for it, as it is its parent too.
        let status = child.wait();
        assert!(status.is_err() || status.unwrap().signal() == Some(9));
    }

    #[test]
    fn a_process_that_waits_is_let_go_and_lives() {
        let (mut child, mut led) = stops_and_sleeps();
        assert_eq!(led.go(10_000).unwrap(), Stand::Waits);
        led.let_go().unwrap();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}
