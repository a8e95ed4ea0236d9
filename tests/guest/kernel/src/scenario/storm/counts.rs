//! What a storm's workers count: requests, and each kind of failure.

use crate::say;
use alloc::string::String;
use core::fmt::Arguments;

/// Failures that are described, of each worker; the rest are counted.
const DESCRIBED: u64 = 6;

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A read found something older than the last completed write, and so did the same read again.
    Lost,
    /// A read found something older, and the same read again did not.
    Stale,
    /// A part of a write, or what is no write's content.
    Torn,
    /// Another place's content.
    Misplaced,
    /// What was not written yet.
    Newer,
    /// A head that is not in flight came back: it had before, or was never given.
    Twice,
    /// The status byte was not written.
    Unwritten,
    /// The status byte says that the request failed.
    Status,
    /// The used length is not what the device had to write.
    Length,
}

const NAMES: [&str; 9] = [
    "lost",
    "stale",
    "torn",
    "misplaced",
    "newer",
    "twice",
    "unwritten",
    "status",
    "length",
];

/// The counts of a worker, or of all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Reads that were completed.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Blocks whose content was looked at.
    pub checked: u64,
    /// Of these, the ones that were between two contents while a write was in flight, or abandoned.
    pub mixed: u64,
    /// Requests that the device was reset under.
    pub abandoned: u64,
    failures: [u64; NAMES.len()],
}

impl Counts {
    /// Counts a failure, and says what it is about.
    pub fn fail(&mut self, failure: Failure, what: Arguments<'_>) {
        if self.failed() < DESCRIBED {
            say!("wrong failure={} {what}", NAMES[failure as usize]);
        }
        self.failures[failure as usize] += 1;
    }

    /// All failures.
    pub fn failed(&self) -> u64 {
        self.failures.iter().sum()
    }

    /// All requests.
    pub fn requests(&self) -> u64 {
        self.reads + self.writes + self.flushes
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Counts) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.flushes += other.flushes;
        self.checked += other.checked;
        self.mixed += other.mixed;
        self.abandoned += other.abandoned;
        for (count, more) in self.failures.iter_mut().zip(other.failures) {
            *count += more;
        }
    }

    /// As words of a result line.
    pub fn words(&self) -> String {
        let mut words = alloc::format!(
            "requests={} reads={} writes={} flushes={} checked={} mixed={} abandoned={}",
            self.requests(),
            self.reads,
            self.writes,
            self.flushes,
            self.checked,
            self.mixed,
            self.abandoned
        );
        for (name, count) in NAMES.iter().zip(self.failures) {
            words.push_str(&alloc::format!(" {name}={count}"));
        }
        words
    }
}
