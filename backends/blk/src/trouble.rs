//! What goes wrong with the image: said, and counted.
//!
//! The guest is told that a request has failed, and no more. Whoever can do
//! something about it reads the messages of this program: a line for each kind
//! of operation and error, the first time, the second, the fourth, and so on.
//! What the guest itself has done wrong is not the image's.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use outboard_log::rarely::{Rarely, Times};

use crate::engine::{Job, Operation};

/// The errors of one image.
#[derive(Debug, Default)]
pub struct Troubles {
    /// By the operation and its errno, 0 where there is none.
    said: Mutex<BTreeMap<(&'static str, i32), Rarely>>,
    /// Since they were last asked for.
    count: AtomicU64,
}

/// An operation, as it is told.
#[derive(Clone, Copy, Debug)]
pub struct Deed {
    verb: &'static str,
    /// In bytes.
    offset: u64,
    /// In bytes; 0 for the whole image.
    length: u64,
}

impl Deed {
    /// A sync of the whole image.
    pub const SYNC: Self = Self {
        verb: "sync",
        offset: 0,
        length: 0,
    };

    /// What a job does.
    pub fn of(job: &Job) -> Self {
        let (verb, length) = match job.operation {
            Operation::Read => ("read", job.data.remaining()),
            Operation::Write { .. } => ("write", job.data.remaining()),
            Operation::Sync => return Self::SYNC,
            Operation::Clear { length, .. } => ("clear", length),
        };
        Self {
            verb,
            offset: job.offset,
            length,
        }
    }

    /// That it has failed, and what to do.
    pub fn failed(&self, error: &io::Error) -> String {
        let remedy = remedy(error.raw_os_error().unwrap_or(0));
        format!("cannot {self}: {error}{remedy}")
    }

    /// That it has moved nothing, and what to do.
    pub fn fell_short(&self) -> String {
        format!(
            "cannot {self}: it ends before that, it was cut short while it was served; make it \
             as long again as it was (truncate -s)"
        )
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            verb,
            offset,
            length,
        } = self;
        match length {
            0 => write!(f, "{verb} the image"),
            _ => write!(f, "{verb} {length} bytes at offset {offset} of the image"),
        }
    }
}

impl Troubles {
    /// An operation has failed, and with it a request of the guest.
    pub fn failed(&self, deed: Deed, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(0);
        self.note((deed.verb, errno), |times| {
            log::warn!("{}{times}", deed.failed(error));
        });
    }

    /// An operation has moved nothing, and with it a request of the guest has
    /// failed: the image ends before its place.
    pub fn fell_short(&self, deed: Deed) {
        self.note((deed.verb, 0), |times| {
            log::warn!("{}{times}", deed.fell_short());
        });
    }

    /// A flush has failed since an earlier sync has.
    pub fn refused_flush(&self) {
        self.note(("flush", 0), |times| {
            log::warn!(
                "a flush of the guest failed: a sync of the image has failed before, \
                 and the VM must be ended and started anew, or this program where it was \
                 started by hand{times}"
            );
        });
    }

    /// How many since this was last asked.
    pub fn take_count(&self) -> u64 {
        self.count.swap(0, Ordering::Relaxed)
    }

    fn note(&self, kind: (&'static str, i32), say: impl FnOnce(Times)) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let times = said.entry(kind).or_default().again();
        drop(said);
        if let Some(times) = times {
            say(times);
        }
    }
}

/// What to do about it, as the end of a sentence.
fn remedy(errno: i32) -> &'static str {
    match errno {
        libc::ENOSPC => "; make room where the image is stored",
        libc::EDQUOT => "; raise the quota of the image's owner, or free some of it",
        libc::EFBIG => {
            "; raise the limit on the size of files (ulimit -f, LimitFSIZE= of a service), \
             or move the image to a file system that allows larger ones"
        }
        libc::EROFS | libc::EPERM | libc::EACCES => {
            "; the image or its file system has become read-only: make it writable, \
             and look at the host's kernel log for why it was not"
        }
        libc::EIO | libc::ENXIO | libc::ENODEV | libc::EREMOTEIO | libc::EILSEQ | libc::ENODATA => {
            "; look at the host's kernel log: the storage behind the image fails or has gone"
        }
        libc::ESTALE | libc::ETIMEDOUT | libc::ENOLINK => {
            "; look at the server that the image is on, and at the way to it"
        }
        libc::EINVAL => {
            "; if the image is served with direct I/O, its storage may need larger blocks \
             than it did at the start"
        }
        libc::ENOMEM | libc::ENOBUFS => "; the host is short of memory",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Data;
    use crate::engine::Clear;

    fn job(operation: Operation) -> Job {
        Job {
            operation,
            offset: 4096,
            data: Data::Zeroes(512),
        }
    }

    #[test]
    fn what_was_attempted_is_told_with_its_place() {
        let clear = Operation::Clear {
            mode: Clear::Punch,
            length: 8192,
        };
        for (operation, told) in [
            (
                Operation::Read,
                "read 512 bytes at offset 4096 of the image",
            ),
            (
                Operation::Write { durable: true },
                "write 512 bytes at offset 4096 of the image",
            ),
            (clear, "clear 8192 bytes at offset 4096 of the image"),
            (Operation::Sync, "sync the image"),
        ] {
            assert_eq!(Deed::of(&job(operation)).to_string(), told);
        }
    }

    #[test]
    fn all_are_counted_until_they_are_asked_for() {
        let troubles = Troubles::default();
        for errno in [libc::EIO, libc::ENOSPC, libc::EIO] {
            troubles.failed(Deed::SYNC, &io::Error::from_raw_os_error(errno));
        }
        troubles.refused_flush();
        assert_eq!(troubles.take_count(), 4);
        assert_eq!(troubles.take_count(), 0);
    }
}
