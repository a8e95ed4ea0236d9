//! Whether this process can have an `io_uring` that does what is needed.
//!
//! A sync is always done by a thread that the kernel makes for the ring, so a
//! real one is asked for: where the number of tasks is limited (RLIMIT_NPROC, a
//! pids control group), a ring can be set up and its every sync is cancelled.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::Builder;

use io_uring::{Probe, opcode};
use nix::poll::{PollFd, PollFlags, poll};
use outboard_protocol::Deadline;
use outboard_protocol::deadline::limits;
use rustix::fs::MemfdFlags;

use super::super::{Engine, Job, Operation};
use super::Uring;
use crate::data::Data;

/// What the kernel must be able to do.
const NEEDED: [u8; 6] = [
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

/// What helps where tasks are short.
pub(in crate::engine) const MORE_TASKS: &str = "allow more tasks (ulimit -u, TasksMax= of a service, \
    pids.max of a control group)";

/// Why there is no `io_uring` to be had.
#[derive(Debug)]
pub enum Unusable {
    /// The kernel has none, or not for this process.
    Absent(io::Error),
    /// It can be set up, but there are no threads to do its work.
    NoThreads(io::Error),
}

impl Unusable {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Absent(_) => {
                "allow it (sysctl kernel.io_uring_disabled, the container's seccomp profile)"
            }
            Self::NoThreads(_) => MORE_TASKS,
        }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(error) => error.fmt(f),
            Self::NoThreads(error) => {
                write!(f, "there are no threads for its work: {error}")
            }
        }
    }
}

impl Uring {
    /// Sets up a ring and lets it sync a file, on a thread that ends with it,
    /// since each thread's rings have threads of their own in the kernel. It is
    /// what a queue will need.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub fn probe() -> Result<(), Unusable> {
        let thread = Builder::new().name("probe".into()).spawn(on_this_thread);
        let probed = thread.map_err(Unusable::NoThreads)?.join();
        probed.unwrap_or_else(|_| Err(Unusable::Absent(io::Error::other("its probe panicked"))))
    }
}

fn on_this_thread() -> Result<(), Unusable> {
    // A sync of it does nothing, and never waits for a disk.
    let file = rustix::fs::memfd_create("probe", MemfdFlags::CLOEXEC);
    let file = file.map_err(|errno| Unusable::Absent(errno.into()))?;
    let ring = Uring::new(Arc::new(file.into()), 2).map_err(Unusable::Absent)?;
    knows_what_is_needed(&ring).map_err(Unusable::Absent)?;
    sync(ring).map_err(Unusable::NoThreads)
}

fn knows_what_is_needed(ring: &Uring) -> io::Result<()> {
    let mut probe = Probe::new();
    ring.ring.submitter().register_probe(&mut probe)?;
    if NEEDED.iter().all(|code| probe.is_supported(*code)) {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel's io_uring lacks operations, it is older than 5.6",
        ))
    }
}

/// Syncs the ring's file by it.
fn sync(mut ring: Uring) -> io::Result<()> {
    let job = Job {
        operation: Operation::Sync,
        offset: 0,
        data: Data::Nothing,
    };
    ring.start(0, job);
    ring.submit()?;
    let deadline = Deadline::after(limits::MESSAGE);
    loop {
        if let Some(entry) = ring.ring.completion().next() {
            ring.out = 0;
            return match entry.result() {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
            };
        }
        if deadline.passed() {
            // Dropped, it would wait.
            std::mem::forget(ring);
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut ready = ring.ready().map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let _ = poll(ready.as_mut_slice(), deadline.poll_timeout());
    }
}
