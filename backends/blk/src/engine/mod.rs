//! How one operation reaches the kernel and comes back.
//!
//! An engine takes a [`Job`] by value and gives it back with its result: while
//! the kernel may touch the memory of a job, the engine is the one that keeps
//! it. It does each job once, as it is; what a short or interrupted one means
//! is decided above, in [`crate::task`], once for every engine.

mod choice;
mod threads;
#[allow(unsafe_code)]
mod uring;

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;

use nix::fcntl::{FallocateFlags, fallocate};
use outboard_runtime::pulse::system_call;

pub use self::choice::Choice;
pub use self::threads::Threads;
pub use self::uring::Uring;
use crate::data::Data;

/// What the kernel is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read into the buffers.
    Read,
    /// Write the buffers.
    Write {
        /// Complete only when the data is on stable storage (`RWF_DSYNC`).
        durable: bool,
    },
    /// Put all data on stable storage: fdatasync(2).
    Sync,
    /// Make `length` bytes read as zeroes: fallocate(2), never beyond the end.
    Clear {
        /// Whether they stay allocated.
        mode: Clear,
        /// In bytes.
        length: u64,
    },
}

/// Two ways to make a range read as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clear {
    /// As a hole: the space is given back.
    Punch,
    /// As zeroes: the space stays allocated.
    Zero,
}

impl Clear {
    /// The mode of fallocate(2): never one that changes the size.
    fn flags(self) -> FallocateFlags {
        FallocateFlags::FALLOC_FL_KEEP_SIZE
            | match self {
                Self::Punch => FallocateFlags::FALLOC_FL_PUNCH_HOLE,
                Self::Zero => FallocateFlags::FALLOC_FL_ZERO_RANGE,
            }
    }
}

/// One operation at one place of the image.
#[derive(Debug)]
pub struct Job {
    /// What to do.
    pub operation: Operation,
    /// Where, in bytes; 0 for a sync.
    pub offset: u64,
    /// With what; nothing but for a read or a write.
    pub data: Data,
}

impl Job {
    /// The first byte of the image behind what it touches; 0 for a sync.
    pub fn end(&self) -> u64 {
        let length = match self.operation {
            Operation::Clear { length, .. } => length,
            Operation::Read | Operation::Write { .. } | Operation::Sync => self.data.remaining(),
        };
        self.offset.saturating_add(length)
    }
}

/// A job that the kernel is done with.
#[derive(Debug)]
pub struct Completion {
    /// As it was given to [`Engine::start`].
    pub id: usize,
    /// The job; its buffers are not advanced.
    pub job: Job,
    /// Bytes moved, 0 for an operation that moves none.
    pub result: io::Result<u64>,
}

/// A way to the kernel, used by one thread at a time.
pub trait Engine: Send {
    /// Takes a job. `id` is below the number of jobs that are under way at a
    /// time and not that of another one of them. An engine that is done at
    /// once says so.
    fn start(&mut self, id: usize, job: Job) -> Option<Completion>;
    /// Hands what was taken to the kernel.
    ///
    /// # Errors
    /// The engine is broken.
    fn submit(&mut self) -> io::Result<()>;
    /// Number of jobs that the kernel has, or a thread of the engine.
    fn in_kernel(&self) -> usize {
        0
    }
    /// Readable when there is something to reap.
    fn ready(&self) -> Option<BorrowedFd<'_>>;
    /// Appends what is done to `done`, without waiting.
    ///
    /// # Errors
    /// The engine is broken.
    fn reap(&mut self, done: &mut Vec<Completion>) -> io::Result<()>;
    /// Waits for all that was taken, and appends it to `done`.
    ///
    /// There is no deadline: what the kernel may still write to cannot be
    /// given back.
    ///
    /// # Errors
    /// The engine is broken, and what is missing is lost with it.
    fn drain(&mut self, done: &mut Vec<Completion>) -> io::Result<()>;
}

/// Does a job on the spot.
fn perform(file: &File, job: &mut Job) -> io::Result<u64> {
    system_call(|| perform_now(file, job))
}

fn perform_now(file: &File, job: &mut Job) -> io::Result<u64> {
    match job.operation {
        Operation::Read => job.data.read_at(file, job.offset),
        Operation::Write { durable } => job.data.write_at(file, job.offset, durable),
        Operation::Sync => {
            nix::unistd::fdatasync(file)?;
            Ok(0)
        }
        Operation::Clear { mode, length } => {
            let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
            let offset = libc::off_t::try_from(job.offset).map_err(invalid)?;
            let length = libc::off_t::try_from(length).map_err(invalid)?;
            fallocate(file, mode.flags(), offset, length)?;
            Ok(0)
        }
    }
}

/// The engine of a disk that is not there, for measurements: reads give
/// zeroes, all else succeeds.
#[derive(Clone, Copy, Debug)]
pub struct Null;

impl Engine for Null {
    fn start(&mut self, id: usize, mut job: Job) -> Option<Completion> {
        let count = job.data.remaining();
        if job.operation == Operation::Read {
            job.data.zero();
        }
        let result = Ok(count);
        Some(Completion { id, job, result })
    }

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn ready(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn reap(&mut self, _: &mut Vec<Completion>) -> io::Result<()> {
        Ok(())
    }

    fn drain(&mut self, _: &mut Vec<Completion>) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
