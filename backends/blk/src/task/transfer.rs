//! A read or write: continued where it fell short, through a bounce buffer
//! where the guest's buffers are not fit for direct I/O.

use std::io;

use super::{FAILED, Progress, Rules, Step};
use crate::engine::{Job, Operation};
use crate::iovec::{BOUNCE, Bounce, Iovecs};

/// Data on its way.
#[derive(Debug)]
pub struct Transfer {
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
    /// From or to the disk at `offset`.
    pub fn new(is_write: bool, offset: u64, data: Iovecs) -> Self {
        Self {
            is_write,
            durable: false,
            offset,
            data,
            bounced: false,
            bounce: None,
        }
    }

    /// Before the start: to go through this buffer.
    pub fn give(&mut self, bounce: Bounce) {
        self.bounced = true;
        self.bounce = Some(bounce);
    }

    /// A write that has succeeded may still have to be made durable.
    pub fn owes_flush(&self) -> bool {
        self.is_write && !self.durable
    }

    /// What can be used again.
    pub fn dismantle(mut self) -> (Iovecs, Option<Bounce>) {
        self.data.clear();
        (self.data, self.bounce)
    }

    pub fn start(&mut self, rules: Rules<'_>) -> Progress {
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
            if self.data.is_lost() {
                self.bounce = Some(bounce);
                return FAILED;
            }
        }
        let iovecs = Iovecs::of_bounce(bounce, length);
        Some(Step::Next(self.job(iovecs)))
    }

    pub fn complete(
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
                if error.raw_os_error() == Some(libc::EFAULT) {
                    job.iovecs.touch();
                }
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
