//! The engine on `io_uring`: one ring per queue, guest memory as its buffers.
//!
//! ```text
//! start ──► backlog ──submit──► in the kernel ──reap──► caller
//!              jobs[id] owns the job all the while
//! ```
//! The kernel does some jobs by threads that it makes on demand, and cancels
//! one for which it may make none. Such a job has not begun: it is done here,
//! on the queue's own thread, as are those after it that would need a thread.

mod probe;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::squeue::Entry;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode};
use outboard_log::rarely;
use outboard_runtime::pulse::system_call;

pub(super) use self::probe::MORE_TASKS;
pub use self::probe::Unusable;
use super::{Completion, Engine, Job, Operation, perform};
use crate::data::Place;

/// Entries of the submission ring; a longer batch goes in parts. Small, since
/// each entry that was ever used is a part of this process's footprint.
const SUBMISSIONS: u16 = 64;

/// Most bytes that the kernel moves in one operation (`MAX_RW_COUNT`).
const MAX_MOVE: usize = 0x7fff_f000;

/// See the module.
pub struct Uring {
    ring: IoUring,
    file: Arc<File>,
    /// Every job that was taken, by its id.
    jobs: Vec<Option<Job>>,
    /// Ids of those that the kernel has not seen yet.
    backlog: VecDeque<usize>,
    /// Entries pushed and not yet reaped.
    out: usize,
    /// The kernel had no thread for a job, and is not asked for one again.
    no_threads: bool,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Uring");
        debug.field("out", &self.out).finish_non_exhaustive()
    }
}

impl Uring {
    /// Sets up a ring for up to `depth` jobs at a time.
    ///
    /// # Errors
    /// Those of `io_uring_setup(2)`.
    pub fn new(file: Arc<File>, depth: u16) -> io::Result<Self> {
        let depth = u32::from(depth.max(1));
        let submissions = depth.min(SUBMISSIONS.into());
        let ring = IoUring::builder()
            .setup_cqsize(depth.max(submissions).next_power_of_two())
            .setup_clamp()
            .build(submissions)?;
        Ok(Self {
            ring,
            file,
            jobs: Vec::new(),
            backlog: VecDeque::new(),
            out: 0,
            no_threads: false,
        })
    }

    /// Moves what fits of the backlog to the submission ring.
    fn push(&mut self) {
        let mut submissions = self.ring.submission();
        while let Some(id) = self.backlog.front() {
            if let Some(job) = self.jobs.get_mut(*id).and_then(Option::as_mut) {
                let entry = entry(&self.file, job).user_data(*id as u64);
                // SAFETY: `jobs` keeps the job, and with it what the entry
                // points to, until its completion is reaped; that is on the
                // heap and stays where it is. If the ring
                // cannot be drained when this is dropped, both are leaked.
                if unsafe { submissions.push(&entry) }.is_err() {
                    return;
                }
                self.out = self.out.saturating_add(1);
            }
            self.backlog.pop_front();
        }
    }

    /// Hands everything to the kernel and waits for `want` completions.
    fn enter(&mut self, want: usize) -> io::Result<()> {
        let mut patience = 1000u32;
        loop {
            self.push();
            // A job that the kernel begins at once may take as long as the disk.
            match system_call(|| self.ring.submit_and_wait(want)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Memory is short, or completions are to be reaped first.
                Err(error) if is_transient(&error) => {
                    let waiting = self.ring.submission().len();
                    if self.out > waiting {
                        // Something completes, and reaping submits again.
                        return Ok(());
                    }
                    patience = patience.saturating_sub(1);
                    if patience == 0 {
                        return Err(error);
                    }
                    std::thread::yield_now();
                }
                Err(error) => return Err(error),
            }
            if self.backlog.is_empty() && self.ring.submission().is_empty() {
                return Ok(());
            }
        }
    }

    /// What came of a job.
    fn outcome(&mut self, job: &mut Job, result: i32) -> io::Result<u64> {
        if result == -libc::ECANCELED {
            rarely!(
                warn,
                "the kernel has no thread for a job of io_uring: the queue does it itself, \
                     one at a time; {MORE_TASKS}"
            );
            self.no_threads = true;
            return perform(&self.file, job);
        }
        u64::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.saturating_neg()))
    }

    fn take(&mut self, id: u64) -> Option<(usize, Job)> {
        let id = usize::try_from(id).ok()?;
        let job = self.jobs.get_mut(id)?.take()?;
        Some((id, job))
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
}

/// The job in the kernel's words.
fn entry(file: &File, job: &mut Job) -> Entry {
    let fd = Fd(file.as_raw_fd());
    match job.operation {
        Operation::Read => match job.data.target() {
            Place::One(start, bytes) => opcode::Read::new(fd, start, length(bytes))
                .offset(job.offset)
                .build(),
            Place::Many(many) => opcode::Readv::new(fd, many.as_ptr(), many.len() as u32)
                .offset(job.offset)
                .build(),
        },
        Operation::Write { durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            match job.data.source() {
                Place::One(start, bytes) => opcode::Write::new(fd, start, length(bytes))
                    .offset(job.offset)
                    .rw_flags(flags)
                    .build(),
                Place::Many(many) => opcode::Writev::new(fd, many.as_ptr(), many.len() as u32)
                    .offset(job.offset)
                    .rw_flags(flags)
                    .build(),
            }
        }
        Operation::Clear { mode, length } => opcode::Fallocate::new(fd, length)
            .offset(job.offset)
            .mode(mode.flags().bits())
            .build(),
        Operation::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
    }
}

fn length(bytes: usize) -> u32 {
    bytes.min(MAX_MOVE) as u32
}

impl Engine for Uring {
    fn start(&mut self, id: usize, mut job: Job) -> Option<Completion> {
        // Nearly every read is done without a thread.
        if self.no_threads && job.operation != Operation::Read {
            let result = perform(&self.file, &mut job);
            return Some(Completion { id, job, result });
        }
        if self.jobs.len() <= id {
            self.jobs.resize_with(id.saturating_add(1), || None);
        }
        let place = self.jobs.get_mut(id)?;
        debug_assert!(place.is_none(), "job {id} is under way");
        *place = Some(job);
        self.backlog.push_back(id);
        None
    }

    fn submit(&mut self) -> io::Result<()> {
        if self.backlog.is_empty() && self.ring.submission().is_empty() {
            return Ok(());
        }
        self.enter(0)
    }

    fn in_kernel(&self) -> usize {
        self.out
    }

    fn ready(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the descriptor is the ring's, which `self` keeps open for
        // longer than the borrow.
        Some(unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) })
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        loop {
            let Some(entry) = self.ring.completion().next() else {
                break;
            };
            self.out = self.out.saturating_sub(1);
            let Some((id, mut job)) = self.take(entry.user_data()) else {
                continue;
            };
            let result = self.outcome(&mut job, entry.result());
            done.push(Completion { id, job, result });
        }
        // What did not go for want of room goes now.
        self.submit()
    }

    fn drain(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        loop {
            self.reap(done)?;
            if self.out == 0 && self.backlog.is_empty() {
                break;
            }
            self.enter(1)?;
        }
        // The next ring begins anew, and asks for threads again.
        self.jobs = Vec::new();
        self.no_threads = false;
        Ok(())
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let mut done = Vec::new();
        if let Err(error) = self.drain(&mut done) {
            // A guest can stop its queues as often as it likes.
            rarely!(
                error,
                "cannot drain a disk's io_uring, its memory is given up: {error}"
            );
            std::mem::forget(std::mem::take(&mut self.jobs));
        }
    }
}
