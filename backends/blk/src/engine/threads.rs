//! The engine for where `io_uring` is not to be had: a few threads per queue,
//! each doing one job at a time with an ordinary system call. They are made with
//! the queue and live as long; where there may be none, the queue's own thread does
//! the jobs.
//!
//! ```text
//! start ──► taken ──submit──► waiting ──thread──► done ──reap──► caller
//!                                │                  │
//!                             condvar            eventfd
//! ```

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use outboard_log::rarely;
use outboard_runtime::pulse::system_call;

use super::uring::MORE_TASKS;
use super::{Completion, Engine, Job, perform};

/// Threads per queue: enough to keep a disk busy while one syncs.
const THREADS: u16 = 4;
/// Their stack: they call nothing deep.
const STACK: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub struct Threads {
    pool: Arc<Pool>,
    taken: Vec<(usize, Job)>,
    /// Jobs handed to the threads and not yet reaped.
    out: usize,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Pool {
    file: Arc<File>,
    work: Mutex<Work>,
    /// There is something waiting, or the end has come.
    wake: Condvar,
    done: Mutex<Vec<Completion>>,
    /// Readable while `done` is not empty: both change under its lock.
    ready: EventFd,
}

#[derive(Debug, Default)]
struct Work {
    waiting: VecDeque<(usize, Job)>,
    stop: bool,
}

impl Threads {
    /// Starts the threads, as many as there may be.
    ///
    /// # Errors
    /// No more descriptors are to be had.
    pub fn new(file: Arc<File>, depth: u16) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let pool = Arc::new(Pool {
            file,
            work: Mutex::default(),
            wake: Condvar::new(),
            done: Mutex::default(),
            ready: EventFd::from_flags(flags)?,
        });
        let mut threads = Self {
            pool,
            taken: Vec::new(),
            out: 0,
            threads: Vec::new(),
        };
        let wanted = depth.clamp(1, THREADS);
        for number in 0..wanted {
            let pool = threads.pool.clone();
            let builder = Builder::new().name(format!("io{number}")).stack_size(STACK);
            match builder.spawn(move || pool.work()) {
                Ok(thread) => threads.threads.push(thread),
                Err(error) => {
                    tell_few(number, wanted, &error);
                    break;
                }
            }
        }
        Ok(threads)
    }
}

/// Says that there are fewer threads than wanted.
fn tell_few(there: u16, wanted: u16, error: &io::Error) {
    // A guest can start its queues as often as it likes.
    let how = match there {
        0 => "the queue does its I/O itself, one job at a time",
        _ => "it is slower for it",
    };
    rarely!(
        warn,
        "{there} of {wanted} threads for a queue of the disk ({error}): {how}; {MORE_TASKS}"
    );
}

impl Pool {
    /// The life of a thread: ends when all is done and [`Work::stop`] is set.
    fn work(&self) {
        while let Some((id, mut job)) = self.next() {
            let result = perform(&self.file, &mut job);
            let mut done = lock(&self.done);
            if done.is_empty() {
                // From 0 to 1: this cannot fail.
                let _ = self.ready.write(1);
            }
            done.push(Completion { id, job, result });
        }
    }

    fn next(&self) -> Option<(usize, Job)> {
        let mut work = lock(&self.work);
        loop {
            if let Some(next) = work.waiting.pop_front() {
                return Some(next);
            }
            if work.stop {
                return None;
            }
            work = self.wake.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A thread that does not panic poisons nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine for Threads {
    fn start(&mut self, id: usize, mut job: Job) -> Option<Completion> {
        if self.threads.is_empty() {
            let result = perform(&self.pool.file, &mut job);
            return Some(Completion { id, job, result });
        }
        self.taken.push((id, job));
        None
    }

    fn submit(&mut self) -> io::Result<()> {
        let count = self.taken.len();
        if count == 0 {
            return Ok(());
        }
        lock(&self.pool.work).waiting.extend(self.taken.drain(..));
        self.out = self.out.saturating_add(count);
        for _ in 0..count.min(self.threads.len()) {
            self.pool.wake.notify_one();
        }
        Ok(())
    }

    fn in_kernel(&self) -> usize {
        self.out
    }

    fn ready(&self) -> Option<BorrowedFd<'_>> {
        Some(self.pool.ready.as_fd())
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        let mut found = lock(&self.pool.done);
        if found.is_empty() {
            return Ok(());
        }
        match self.pool.ready.read() {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.out = self.out.saturating_sub(found.len());
        done.append(&mut found);
        Ok(())
    }

    fn drain(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        self.submit()?;
        while self.out > 0 {
            let mut fds = [PollFd::new(self.pool.ready.as_fd(), PollFlags::POLLIN)];
            let _ = system_call(|| poll(&mut fds, PollTimeout::NONE));
            self.reap(done)?;
        }
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // What waits is done first.
        let _ = self.submit();
        lock(&self.pool.work).stop = true;
        self.pool.wake.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a thread of the disk engine panicked");
            }
        }
    }
}
