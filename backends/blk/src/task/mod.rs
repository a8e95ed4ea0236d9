//! The operations that make up a request, one after another.
//!
//! A [`Task`] says what the kernel is to do next, and is told what came of it:
//! short transfers are continued, interrupted ones repeated, what a file system
//! does not support is done in another way. It waits for nothing itself.
//!
//! ```text
//! read, write ──► transfer ⟲ ──────────────────────────────► done
//!                    └─ a write, cache off meanwhile ─► flush ⟲ ─► done
//! discard, write-zeroes ──► wipe ⟲ ────────────────────────► done
//!                             └─ write-zeroes, cache off ─► flush ⟲ ─► done
//!     ⟲ but for a flush: failed on the host, where that is held back ─► held, the job
//!       to be done again
//! flush ──► flush ⟲ ───────────────────────────────────────► done
//! ```

mod flush;
mod transfer;
mod wipe;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use outboard_runtime::guest_buffers::GuestBuffers;

use self::flush::Flush;
use self::transfer::Transfer;
use self::wipe::Wipe;
use crate::data::Bounce;
use crate::durability::Durability;
use crate::engine::{Clear, Job};
use crate::request::{Segment, Status};
use crate::trouble::{Deed, Troubles};

/// How often in a row an operation may be interrupted or put off.
const RETRIES: u32 = 100;

/// What the file system has refused, so that it is not asked again.
#[derive(Debug, Default)]
pub struct Refused {
    punch: AtomicBool,
    zero: AtomicBool,
}

impl Refused {
    fn flag(&self, mode: Clear) -> &AtomicBool {
        match mode {
            Clear::Punch => &self.punch,
            Clear::Zero => &self.zero,
        }
    }
}

/// What a task must know of its disk and its driver.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The disk's write cache.
    pub durability: &'a Arc<Durability>,
    /// The file system's abilities, as far as known.
    pub refused: &'a Refused,
    /// Where it is told what goes wrong with the image.
    pub troubles: &'a Troubles,
    /// The driver knows how to flush. If not, every write is durable.
    pub flushes: bool,
    /// What fails on the host is held back.
    pub holds: bool,
}

impl Rules<'_> {
    /// Whether a write must be durable when it completes.
    fn write_through(&self) -> bool {
        !self.flushes || self.durability.write_through()
    }
}

/// What comes next.
#[derive(Debug)]
pub enum Step {
    /// This is to be done, and its result told to [`Task::complete`].
    Next(Job),
    /// The request is over.
    Done(Status),
    /// Its job has failed, and is to be held back: done again as it is, or told to
    /// [`Task::complete`] with its error under rules that hold nothing back.
    Held(Failed),
}

/// A job that has failed.
#[derive(Debug)]
pub struct Failed {
    /// The job.
    pub job: Job,
    /// What came of it.
    pub result: io::Result<u64>,
}

impl Failed {
    /// What was attempted, what went wrong and what to do.
    pub fn why(&self) -> String {
        let deed = Deed::of(&self.job);
        match &self.result {
            Err(error) => deed.failed(error),
            Ok(_) => deed.fell_short(),
        }
    }
}

impl Step {
    fn has_failed(&self) -> bool {
        matches!(self, Self::Done(Status::IoErr))
    }
}

/// A request under way.
#[derive(Debug)]
pub struct Task {
    work: Work,
    reads: bool,
    /// Bytes of data read from the disk or written to it so far.
    moved: u64,
    retries: u32,
}

#[derive(Debug)]
enum Work {
    Transfer(Transfer),
    Wipe(Wipe),
    Flush(Flush),
}

impl Task {
    /// Reads the disk from `offset` on into `data`.
    pub fn read(offset: u64, data: GuestBuffers) -> Self {
        Self::transfer(false, offset, data)
    }

    /// Writes `data` to the disk from `offset` on.
    pub fn write(offset: u64, data: GuestBuffers) -> Self {
        Self::transfer(true, offset, data)
    }

    fn transfer(is_write: bool, offset: u64, data: GuestBuffers) -> Self {
        Self {
            reads: !is_write,
            ..Self::of(Work::Transfer(Transfer::new(is_write, offset, data)))
        }
    }

    /// Lets a read or write that has not started go through a bounce buffer.
    pub fn give(&mut self, bounce: Bounce) {
        if let Work::Transfer(transfer) = &mut self.work {
            transfer.give(bounce);
        }
    }

    /// Forgets what is in the segments.
    pub fn discard(segments: Vec<Segment>) -> Self {
        Self::of(Work::Wipe(Wipe::new(segments, true)))
    }

    /// Makes the segments zeroes.
    pub fn write_zeroes(segments: Vec<Segment>) -> Self {
        Self::of(Work::Wipe(Wipe::new(segments, false)))
    }

    /// Makes completed writes durable.
    pub fn flush() -> Self {
        Self::of(Work::Flush(Flush::Begin))
    }

    fn of(work: Work) -> Self {
        Self {
            work,
            reads: false,
            moved: 0,
            retries: RETRIES,
        }
    }

    /// Bytes of data written to the guest so far.
    pub fn written(&self) -> u64 {
        if self.reads { self.moved } else { 0 }
    }

    /// Bytes of the guest's data written to the disk so far.
    pub fn gave(&self) -> u64 {
        if self.reads { 0 } else { self.moved }
    }

    /// The first step.
    pub fn start(&mut self, rules: Rules<'_>) -> Step {
        let step = match &mut self.work {
            Work::Transfer(transfer) => transfer.start(rules),
            Work::Wipe(wipe) => wipe.next_segment(rules),
            Work::Flush(flush) => flush.start(rules),
        };
        let step = step.unwrap_or_else(|| self.finish(rules));
        self.tell(&step, rules);
        step
    }

    /// The step after `job`, which the kernel did with this `result`.
    pub fn complete(&mut self, job: Job, result: io::Result<u64>, rules: Rules<'_>) -> Step {
        if result.as_ref().is_err_and(is_transient) {
            self.retries = self.retries.saturating_sub(1);
            if self.retries > 0 {
                return Step::Next(job);
            }
        } else {
            self.retries = RETRIES;
        }
        if rules.holds && self.is_to_hold(&job, &result, rules) {
            self.retries = RETRIES;
            return Step::Held(Failed { job, result });
        }
        let deed = Deed::of(&job);
        // What the image said, if it was not what was hoped for.
        let trouble = match &result {
            Err(error) => Some(Err(again(error))),
            Ok(0) if job.data.remaining() > 0 => Some(Ok(())),
            Ok(_) => None,
        };
        let step = match &mut self.work {
            Work::Transfer(transfer) => transfer.complete(job, result, rules, &mut self.moved),
            Work::Wipe(wipe) => wipe.complete(job, result, rules),
            Work::Flush(flush) => flush.complete(job, result, rules),
        };
        let step = step.unwrap_or_else(|| self.finish(rules));
        match trouble {
            Some(Err(error)) if step.has_failed() => rules.troubles.failed(deed, &error),
            Some(Ok(())) if step.has_failed() => rules.troubles.fell_short(deed),
            _ => self.tell(&step, rules),
        }
        step
    }

    /// Whether a job has failed, on the host and in a way that another attempt may
    /// mend.
    fn is_to_hold(&self, job: &Job, result: &io::Result<u64>, rules: Rules<'_>) -> bool {
        match &self.work {
            Work::Transfer(transfer) => transfer.has_failed(job, result, rules),
            Work::Wipe(_) => Wipe::has_failed(job, result),
            // What a sync has not written is lost, and the next would not tell.
            Work::Flush(_) => false,
        }
    }

    /// Tells of a step that failed with no error of the image's own: a flush
    /// after a sync has failed.
    fn tell(&self, step: &Step, rules: Rules<'_>) {
        if step.has_failed() && matches!(self.work, Work::Flush(_)) {
            rules.troubles.refused_flush();
        }
    }

    /// The work has succeeded: the end, or a flush before it.
    fn finish(&mut self, rules: Rules<'_>) -> Step {
        // A write that was begun with the cache on may end after it was turned
        // off, and nobody would flush it then.
        let owes_flush = match &self.work {
            Work::Transfer(transfer) => transfer.owes_flush(),
            Work::Wipe(wipe) => wipe.owes_flush(),
            Work::Flush(_) => false,
        };
        if !owes_flush || !rules.write_through() {
            return Step::Done(Status::Ok);
        }
        let mut flush = Flush::Begin;
        let step = flush.start(rules);
        self.work = Work::Flush(flush);
        step.unwrap_or(Step::Done(Status::Ok))
    }

    /// What can be used again, when it is over.
    pub fn dismantle(self) -> (Option<GuestBuffers>, Option<Bounce>) {
        match self.work {
            Work::Transfer(transfer) => {
                let (data, bounce) = transfer.dismantle();
                (Some(data), bounce)
            }
            _ => (None, None),
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

/// The same error once more.
fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => error.kind().into(),
    }
}

/// What a piece of work says: `None` when it has succeeded.
type Progress = Option<Step>;

const FAILED: Progress = Some(Step::Done(Status::IoErr));

#[cfg(test)]
mod tests;
