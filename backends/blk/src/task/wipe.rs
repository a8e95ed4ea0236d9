//! A discard or write-zeroes: segment by segment, each in the best way that
//! the file system has.

use std::io;
use std::sync::atomic::Ordering;
use std::vec;

use super::{FAILED, Progress, Rules, Step};
use crate::data::{Data, ZEROES};
use crate::engine::{Clear, Job, Operation};
use crate::request::{Range, Segment};

/// Segments on their way to be nothing.
#[derive(Debug)]
pub struct Wipe {
    discard: bool,
    segments: vec::IntoIter<Segment>,
    /// What is left of the segment at hand.
    range: Range,
}

impl Wipe {
    pub fn new(segments: Vec<Segment>, discard: bool) -> Self {
        Self {
            discard,
            segments: segments.into_iter(),
            range: Range {
                offset: 0,
                length: 0,
            },
        }
    }

    /// Zeroes that were made may still have to be made durable; that something
    /// was forgotten need not last.
    pub fn owes_flush(&self) -> bool {
        !self.discard
    }

    pub fn next_segment(&mut self, rules: Rules<'_>) -> Progress {
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
            data: Data::Nothing,
        }))
    }

    /// Zeroes, written one by one.
    fn write(&self) -> Step {
        let length = self.range.length.min(ZEROES as u64);
        Step::Next(Job {
            operation: Operation::Write { durable: false },
            offset: self.range.offset,
            data: Data::Zeroes(length as usize),
        })
    }

    /// Whether a job has failed, and there is no other way to try.
    pub fn has_failed(job: &Job, result: &io::Result<u64>) -> bool {
        match (job.operation, result) {
            (Operation::Clear { .. }, Err(error)) => {
                !is_unsupported(error) && error.raw_os_error() != Some(libc::EINVAL)
            }
            (_, Err(_)) => true,
            (Operation::Clear { .. }, Ok(_)) => false,
            (_, Ok(count)) => *count == 0,
        }
    }

    pub fn complete(&mut self, job: Job, result: io::Result<u64>, rules: Rules<'_>) -> Progress {
        match (job.operation, result) {
            (Operation::Clear { .. }, Ok(_)) => self.next_segment(rules),
            (Operation::Clear { mode, .. }, Err(error)) if is_unsupported(&error) => {
                rules.refused.flag(mode).store(true, Ordering::Relaxed);
                self.clear(mode, rules).or_else(|| self.next_segment(rules))
            }
            // A block device clears whole blocks only, and its blocks can be
            // larger than the sectors that the page cache lets a driver name.
            (Operation::Clear { .. }, Err(error)) if error.raw_os_error() == Some(libc::EINVAL) => {
                match self.discard {
                    true => self.next_segment(rules),
                    false => Some(self.write()),
                }
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
