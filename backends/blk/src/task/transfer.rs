//! A read or write: continued where it fell short, through a bounce buffer
//! where the guest's buffers are not fit for direct I/O.

use std::io;

use outboard_runtime::guest_buffers::{GuestBuffers, is_fault};

use super::{FAILED, Progress, Rules, Step};
use crate::data::{BOUNCE, Bounce, Data};
use crate::engine::{Job, Operation};

/// Data on its way.
#[derive(Debug)]
pub struct Transfer {
    is_write: bool,
    durable: bool,
    /// Of the next byte.
    offset: u64,
    /// What is left of the guest's buffers; in the job meanwhile, unless there
    /// is a bounce buffer, which is there then.
    data: GuestBuffers,
    bounce: Option<Bounce>,
}

impl Transfer {
    /// From or to the disk at `offset`.
    pub fn new(is_write: bool, offset: u64, data: GuestBuffers) -> Self {
        Self {
            is_write,
            durable: false,
            offset,
            data,
            bounce: None,
        }
    }

    /// Before the start: to go through this buffer.
    pub fn give(&mut self, bounce: Bounce) {
        self.bounce = Some(bounce);
    }

    /// A write that has succeeded may still have to be made durable.
    pub fn owes_flush(&self) -> bool {
        self.is_write && !self.durable
    }

    /// What can be used again.
    pub fn dismantle(self) -> (GuestBuffers, Option<Bounce>) {
        (self.data, self.bounce)
    }

    pub fn start(&mut self, rules: Rules<'_>) -> Progress {
        self.durable = self.is_write && rules.write_through();
        if self.data.is_empty() {
            return None;
        }
        if self.bounce.is_some() {
            return self.next_bounce();
        }
        let data = std::mem::take(&mut self.data);
        Some(Step::Next(self.job(Data::Guest(data))))
    }

    fn job(&self, data: Data) -> Job {
        let operation = match self.is_write {
            true => Operation::Write {
                durable: self.durable,
            },
            false => Operation::Read,
        };
        Job {
            operation,
            offset: self.offset,
            data,
        }
    }

    /// The next part that fits a bounce buffer.
    fn next_bounce(&mut self) -> Progress {
        let length = self.data.bytes().min(BOUNCE);
        if length == 0 {
            return None;
        }
        let Some(bounce) = &mut self.bounce else {
            return FAILED;
        };
        let bytes = bounce.take(length);
        if self.is_write {
            self.data.copy_to(0, bytes);
            self.data.advance(length);
            if self.data.is_lost() {
                return FAILED;
            }
        }
        let bounce = self.bounce.take().map(Data::Bounce);
        bounce.map(|bounce| Step::Next(self.job(bounce)))
    }

    /// Whether its job has failed, and through no fault of the guest's.
    pub fn has_failed(&self, job: &Job, result: &io::Result<u64>, rules: Rules<'_>) -> bool {
        match result {
            Ok(count) => *count == 0,
            Err(error) if is_fault(error) => false,
            Err(error) => {
                self.note(error, rules);
                matches!(job.operation, Operation::Read | Operation::Write { .. })
            }
        }
    }

    /// The kernel may have told a durable write of a failure that belongs to others,
    /// and will not tell it again.
    fn note(&self, error: &io::Error, rules: Rules<'_>) {
        if self.durable && error.raw_os_error() == Some(libc::EIO) {
            rules.durability.lose();
        }
    }

    pub fn complete(
        &mut self,
        mut job: Job,
        result: io::Result<u64>,
        rules: Rules<'_>,
        moved: &mut u64,
    ) -> Progress {
        let count = match result {
            // The image ends where it did not when it was opened, or takes
            // nothing more.
            Ok(0) => return self.fail(job),
            Ok(count) => count.min(job.data.remaining()),
            Err(error) => {
                if let Data::Guest(buffers) = &job.data
                    && is_fault(&error)
                {
                    buffers.touch();
                }
                self.note(&error, rules);
                return self.fail(job);
            }
        };
        self.offset = self.offset.saturating_add(count);
        *moved = moved.saturating_add(count);
        if !self.is_write
            && let Data::Bounce(bounce) = job.data
        {
            let bytes = bounce.left().get(..count as usize).unwrap_or_default();
            self.data.copy_from(0, bytes);
            self.data.advance(bytes.len());
            self.bounce = Some(bounce);
            return self.next_bounce();
        }
        job.data.advance(count);
        if job.data.remaining() > 0 {
            return Some(Step::Next(self.job(job.data)));
        }
        self.take_back(job.data);
        // Nothing is left, but behind a bounce buffer.
        self.next_bounce()
    }

    fn fail(&mut self, job: Job) -> Progress {
        self.take_back(job.data);
        FAILED
    }

    fn take_back(&mut self, data: Data) {
        match data {
            Data::Guest(buffers) => self.data = buffers,
            Data::Bounce(bounce) => self.bounce = Some(bounce),
            Data::Nothing | Data::Zeroes(_) => {}
        }
    }
}
