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
//! flush ──► flush ⟲ ───────────────────────────────────────► done
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::vec;

use crate::durability::{Durability, Ticket, Verdict};
use crate::engine::{Clear, Job, Operation};
use crate::iovec::{BOUNCE, Bounce, Iovecs};
use crate::request::{Range, Segment, Status};

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
    /// The driver knows how to flush. If not, every write is durable.
    pub flushes: bool,
}

impl Rules<'_> {
    /// Whether a write must be durable when it completes.
    fn write_through(&self) -> bool {
        !self.flushes || !self.durability.writeback()
    }
}

/// What comes next.
#[derive(Debug)]
pub enum Step {
    /// This is to be done, and its result told to [`Task::complete`].
    Next(Job),
    /// The request is over.
    Done(Status),
}

/// A request under way.
#[derive(Debug)]
pub struct Task {
    work: Work,
    written: u64,
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
    pub fn read(offset: u64, data: Iovecs) -> Self {
        Self::transfer(false, offset, data)
    }

    /// Writes `data` to the disk from `offset` on.
    pub fn write(offset: u64, data: Iovecs) -> Self {
        Self::transfer(true, offset, data)
    }

    fn transfer(is_write: bool, offset: u64, data: Iovecs) -> Self {
        Self::of(Work::Transfer(Transfer {
            is_write,
            durable: false,
            offset,
            data,
            bounced: false,
            bounce: None,
        }))
    }

    /// Lets a read or write that has not started go through a bounce buffer.
    pub fn give(&mut self, bounce: Bounce) {
        if let Work::Transfer(transfer) = &mut self.work {
            transfer.bounced = true;
            transfer.bounce = Some(bounce);
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
            written: 0,
            retries: RETRIES,
        }
    }

    /// Bytes of data written to the guest so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The first step.
    pub fn start(&mut self, rules: Rules<'_>) -> Step {
        match &mut self.work {
            Work::Transfer(transfer) => transfer.start(rules),
            Work::Wipe(wipe) => wipe.next_segment(rules),
            Work::Flush(flush) => flush.start(rules),
        }
        .unwrap_or_else(|| self.finish(rules))
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
        match &mut self.work {
            Work::Transfer(transfer) => transfer.complete(job, result, rules, &mut self.written),
            Work::Wipe(wipe) => wipe.complete(job, result, rules),
            Work::Flush(flush) => flush.complete(job, result, rules),
        }
        .unwrap_or_else(|| self.finish(rules))
    }

    /// The work has succeeded: the end, or a flush before it.
    fn finish(&mut self, rules: Rules<'_>) -> Step {
        // A write that was begun with the cache on may end after it was turned
        // off, and nobody would flush it then.
        let owes_flush = match &self.work {
            Work::Transfer(transfer) => transfer.is_write && !transfer.durable,
            Work::Wipe(wipe) => !wipe.discard,
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
    pub fn dismantle(self) -> (Option<Iovecs>, Option<Bounce>) {
        match self.work {
            Work::Transfer(mut transfer) => {
                transfer.data.clear();
                (Some(transfer.data), transfer.bounce)
            }
            _ => (None, None),
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

/// Below, `None` means that the work has succeeded.
type Progress = Option<Step>;

const FAILED: Progress = Some(Step::Done(Status::IoErr));

/// Data on its way.
#[derive(Debug)]
struct Transfer {
    is_write: bool,
    durable: bool,
    /// Of the next byte.
    offset: u64,
    /// What is left of the guest's buffers; in the job meanwhile, unless
    /// `bounced`.
    data: Iovecs,
    bounced: bool,
    /// In the job meanwhile.
    bounce: Option<Bounce>,
}

impl Transfer {
    fn start(&mut self, rules: Rules<'_>) -> Progress {
        self.durable = self.is_write && rules.write_through();
        if self.data.remaining() == 0 {
            return None;
        }
        if self.bounced {
            return self.next_bounce();
        }
        let iovecs = std::mem::take(&mut self.data);
        Some(Step::Next(self.job(iovecs)))
    }

    fn job(&self, iovecs: Iovecs) -> Job {
        let operation = match self.is_write {
            true => Operation::Write {
                durable: self.durable,
            },
            false => Operation::Read,
        };
        Job {
            operation,
            offset: self.offset,
            iovecs,
        }
    }

    /// The next part that fits a bounce buffer.
    fn next_bounce(&mut self) -> Progress {
        let length = self.data.remaining().min(BOUNCE as u64) as usize;
        if length == 0 {
            return None;
        }
        let Some(mut bounce) = self.bounce.take() else {
            return FAILED;
        };
        if self.is_write {
            let bytes = bounce.bytes();
            self.data
                .copy_to(bytes.get_mut(..length).unwrap_or_default());
        }
        let iovecs = Iovecs::of_bounce(bounce, length);
        Some(Step::Next(self.job(iovecs)))
    }

    fn complete(
        &mut self,
        mut job: Job,
        result: io::Result<u64>,
        rules: Rules<'_>,
        written: &mut u64,
    ) -> Progress {
        let count = match result {
            // The image ends where it did not when it was opened, or takes
            // nothing more.
            Ok(0) => return self.fail(job),
            Ok(count) => count.min(job.iovecs.remaining()),
            Err(error) => {
                if self.durable && error.raw_os_error() == Some(libc::EIO) {
                    // The kernel may have told this write of a failure that
                    // belongs to others, and will not tell it again.
                    rules.durability.lose();
                }
                return self.fail(job);
            }
        };
        self.offset = self.offset.saturating_add(count);
        if !self.is_write {
            *written = written.saturating_add(count);
        }
        if self.bounced && !self.is_write {
            self.bounce = job.iovecs.take_bounce();
            if let Some(bounce) = &mut self.bounce {
                let bytes = bounce.bytes();
                self.data
                    .copy_from(bytes.get(..count as usize).unwrap_or_default());
            }
            return self.next_bounce();
        }
        job.iovecs.advance(count);
        if job.iovecs.remaining() > 0 {
            return Some(Step::Next(self.job(job.iovecs)));
        }
        if self.bounced {
            self.bounce = job.iovecs.take_bounce();
            return self.next_bounce();
        }
        self.data = job.iovecs;
        None
    }

    fn fail(&mut self, mut job: Job) -> Progress {
        if self.bounced {
            self.bounce = job.iovecs.take_bounce();
        } else {
            self.data = job.iovecs;
        }
        FAILED
    }
}

/// Segments on their way to be nothing.
#[derive(Debug)]
struct Wipe {
    discard: bool,
    segments: vec::IntoIter<Segment>,
    /// What is left of the segment at hand.
    range: Range,
}

impl Wipe {
    fn new(segments: Vec<Segment>, discard: bool) -> Self {
        Self {
            discard,
            segments: segments.into_iter(),
            range: Range {
                offset: 0,
                length: 0,
            },
        }
    }

    fn next_segment(&mut self, rules: Rules<'_>) -> Progress {
        loop {
            let segment = self.segments.next()?;
            if segment.range.length == 0 {
                continue;
            }
            self.range = segment.range;
            let first = match segment.unmap {
                true => Clear::Punch,
                false => Clear::Zero,
            };
            if let Some(step) = self.clear(first, rules) {
                return Some(step);
            }
        }
    }

    /// Clears the range at hand by `mode` or what is left to try after it;
    /// `None` when nothing need be done.
    fn clear(&mut self, mode: Clear, rules: Rules<'_>) -> Progress {
        let refused = |mode| rules.refused.flag(mode).load(Ordering::Relaxed);
        let mode = match mode {
            Clear::Punch if !refused(Clear::Punch) => Clear::Punch,
            // A discard is a hint.
            Clear::Punch if self.discard => return None,
            _ if !refused(Clear::Zero) => Clear::Zero,
            _ => return Some(self.write()),
        };
        Some(Step::Next(Job {
            operation: Operation::Clear {
                mode,
                length: self.range.length,
            },
            offset: self.range.offset,
            iovecs: Iovecs::default(),
        }))
    }

    /// Zeroes, written one by one.
    fn write(&self) -> Step {
        Step::Next(Job {
            operation: Operation::Write { durable: false },
            offset: self.range.offset,
            iovecs: Iovecs::of_zeroes(self.range.length),
        })
    }

    fn complete(&mut self, job: Job, result: io::Result<u64>, rules: Rules<'_>) -> Progress {
        match (job.operation, result) {
            (Operation::Clear { .. }, Ok(_)) => self.next_segment(rules),
            (Operation::Clear { mode, .. }, Err(error)) if is_unsupported(&error) => {
                rules.refused.flag(mode).store(true, Ordering::Relaxed);
                self.clear(mode, rules).or_else(|| self.next_segment(rules))
            }
            (Operation::Write { .. }, Ok(count)) if count > 0 => {
                let count = count.min(self.range.length);
                self.range.offset = self.range.offset.saturating_add(count);
                self.range.length = self.range.length.saturating_sub(count);
                match self.range.length {
                    0 => self.next_segment(rules),
                    _ => Some(self.write()),
                }
            }
            _ => FAILED,
        }
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

/// A flush: see [`crate::durability`].
#[derive(Debug)]
enum Flush {
    Begin,
    Running(Ticket),
    /// Succeeded; others that ran beside it have not told yet.
    Checking(u64),
    Over,
}

impl Flush {
    fn start(&mut self, rules: Rules<'_>) -> Progress {
        let Some(ticket) = rules.durability.begin() else {
            return FAILED;
        };
        *self = Self::Running(ticket);
        Some(Step::Next(Job {
            operation: Operation::Sync,
            offset: 0,
            iovecs: Iovecs::default(),
        }))
    }

    fn complete(&mut self, job: Job, result: io::Result<u64>, rules: Rules<'_>) -> Progress {
        let this = std::mem::replace(self, Self::Over);
        let verdict = match (this, result) {
            (_, Err(_)) => {
                rules.durability.lose();
                return FAILED;
            }
            (Self::Running(ticket), Ok(_)) => ticket.end(),
            (Self::Checking(before), Ok(_)) => rules.durability.judge(before),
            (Self::Begin | Self::Over, Ok(_)) => return FAILED,
        };
        match verdict {
            Verdict::Durable => None,
            Verdict::Lost => FAILED,
            Verdict::Unsure(before) => {
                *self = Self::Checking(before);
                Some(Step::Next(job))
            }
        }
    }
}
