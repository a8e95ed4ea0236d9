//! What a program that was started by hand does in place of a supervisor: the half of
//! it that stays outside, in a process of its own, and serves nobody.
//!
//! ```text
//!          part()
//! program ───┬──► Serving: a back-end like any other, with a line   (what was started)
//!            └──► Outside: the other end of that line               (its child)
//!                   attend() ── the line is closed ──► the end
//! ```
//! The half outside looks at the interface behind a card, and finds the card another
//! peer. The process that was started is the one that serves: a signal reaches it, its
//! status is its own, and when it has ended, nothing serves any more, however it ended.

use std::io::{self, PipeWriter, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, getpid, getppid};
use outboard_line::bound::SocketFile;
use outboard_line::rendezvous::Way;
use outboard_line::{Heard, Line};
use outboard_protocol::kept::Kept;
use rustix::process::{
    self, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use crate::kernel;

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
    /// The one that serves: its line, and what keeps the other one.
    Serving(OwnedFd, Child),
    /// The other one.
    Outside(Outside),
}

/// See the module.
#[derive(Debug)]
pub struct Outside {
    line: Line,
    /// Hangs up when it has nothing of the other half's any more.
    parted: PipeWriter,
}

/// The half outside, as the other one has it: dropped, it is ended and waited for.
#[derive(Debug)]
pub struct Child(OwnedFd);

impl Drop for Child {
    fn drop(&mut self) {
        // It has nothing to finish, and may be stopped.
        let _ = pidfd_send_signal(&self.0, process::Signal::KILL);
        let child = WaitId::PidFd(self.0.as_fd());
        // Where SIGCHLD is ignored it answers that there is none, once there is none.
        while waitid(child.clone(), WaitIdOptions::EXITED).err() == Some(rustix::io::Errno::INTR) {}
    }
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
        let serving = getpid();
        let (mut has_parted, parted) = io::pipe().context("pipe(2)")?;
        let halves = kernel::divide().context(
            "cannot make a second process; of EAGAIN, see how many there may be (ulimit -u, TasksMax=)",
        )?;
        match halves {
            ForkResult::Parent { child } => {
                drop(parted);
                let child = process::Pid::from_raw(child.as_raw()).context("no process")?;
                let child = pidfd_open(child, PidfdFlags::empty()).context("pidfd_open")?;
                let child = Child(child);
                // Should this process be killed from now on, nobody else has its socket.
                let _ = has_parted.read_to_end(&mut Vec::new());
                Ok(Half::Serving(theirs, child))
            }
            ForkResult::Child => {
                // However that ends.
                set_pdeathsig(Signal::SIGKILL).context("PR_SET_PDEATHSIG")?;
                if getppid() != serving {
                    bail!("the process that serves has ended");
                }
                Ok(Half::Outside(Outside { line, parted }))
            }
        }
    }
}

impl Outside {
    /// Does its part until the serving half closes the line. Everything else in this
    /// process that has descriptors has been dropped; signals that end a program stay
    /// blocked, since they are for the other half.
    pub fn attend(self) -> ExitCode {
        let Self { mut line, parted } = self;
        let own = line.descriptors();
        let mut own: Vec<RawFd> = own.iter().map(AsRawFd::as_raw_fd).collect();
        own.push(parted.as_raw_fd());
        if let Err(errno) = kernel::close_all_but(&mut own) {
            log::debug!("descriptors that were inherited stay open in two processes: {errno}");
        }
        drop(parted);
        loop {
            let mut fds = [PollFd::new(line.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => {
                    outboard_log::say(&format!("cannot wait for the process that serves: {errno}"));
                    return ExitCode::FAILURE;
                }
            }
            for heard in line.attend() {
                match heard {
                    Heard::HungUp => return ExitCode::SUCCESS,
                    Heard::Nonsense(why) => {
                        log::warn!("the process that serves is not heard any more: {why}");
                        return ExitCode::FAILURE;
                    }
                    // Nobody has asked it to hold anything back or to resize, and it has no successor that
                    // would have to know.
                    Heard::Ready { .. }
                    | Heard::Keeps(_)
                    | Heard::IoError { .. }
                    | Heard::Resized(_)
                    | Heard::InFlight(_) => {}
                }
            }
        }
    }
}
