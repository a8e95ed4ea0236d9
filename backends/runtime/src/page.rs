//! The page of counters (`outboard_protocol::counters`) that a supervisor reads.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use outboard_protocol::counters::{self, Counts, MAGIC, QUEUE};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use outboard_ring::Tally;

/// See the module.
#[derive(Debug)]
pub struct Page {
    map: MmapRegion,
}

impl Page {
    /// A page for so many queues, all of whose counters are 0.
    ///
    /// # Errors
    /// Those of memfd_create(2), ftruncate(2), fcntl(2) and mmap(2).
    pub fn new(queues: u16) -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"counters", flags)?);
        let bytes = counters::bytes(queues);
        file.set_len(bytes as u64)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let map = MmapRegion::from_file(FileOffset::new(file, 0), bytes);
        let page = Self {
            map: map.map_err(io::Error::other)?,
        };
        for (number, value) in [MAGIC, queues.into()].into_iter().enumerate() {
            if let Some(word) = page.word(number) {
                word.store(value, Ordering::Relaxed);
            }
        }
        Ok(page)
    }

    /// The file, to be given away.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.map.file_offset().map(|offset| offset.file().as_fd())
    }

    /// The part of a queue whose ring is to be started. One at a time has it.
    pub fn part(self: &Arc<Self>, queue: u16) -> Part {
        let first = usize::from(queue).saturating_add(1).saturating_mul(QUEUE);
        let mut before = Counts::default().words();
        for (word, count) in before.iter_mut().enumerate() {
            let word = self.word(first.saturating_add(word));
            *count = word.map_or(0, |word| word.load(Ordering::Relaxed));
        }
        Part {
            page: self.clone(),
            first,
            before,
        }
    }

    /// What lies beyond the last queue is no word.
    fn word(&self, number: usize) -> Option<&AtomicU64> {
        let offset = number.saturating_mul(size_of::<u64>());
        self.map.get_atomic_ref::<AtomicU64>(offset).ok()
    }
}

/// What is shown of one queue, by whoever serves its ring.
#[derive(Debug)]
pub struct Part {
    page: Arc<Page>,
    /// The first of its words.
    first: usize,
    /// What they were when its ring was started.
    before: [u64; 7],
}

impl Part {
    /// Shows what has happened since.
    pub fn show(&self, tally: &Tally) {
        let words = counts(tally).words().into_iter().zip(self.before);
        for (number, (count, before)) in words.enumerate() {
            if let Some(word) = self.page.word(self.first.saturating_add(number)) {
                word.store(before.wrapping_add(count), Ordering::Relaxed);
            }
        }
    }
}

fn counts(tally: &Tally) -> Counts {
    Counts {
        chains: tally.chains,
        batches: tally.batches,
        calls: tally.calls,
        sleeps: tally.sleeps,
        resubmitted: tally.resubmitted,
        malformed_chains: tally.malformed_chains,
        broken_rings: tally.broken_rings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_read_by_another_and_stays_in_its_queue() {
        let page = Arc::new(Page::new(3).unwrap());
        let tally = Tally {
            chains: 5,
            broken_rings: 1,
            ..Tally::default()
        };
        for queue in [1, 1, 3] {
            page.part(queue).show(&tally);
        }
        let expected = Counts {
            chains: 10,
            broken_rings: 2,
            ..Counts::default()
        };
        let file = page.file().unwrap();
        let read = counters::read(file, 3).unwrap();
        assert_eq!(read, [Counts::default(), expected, Counts::default()]);
        assert!(
            File::from(file.try_clone_to_owned().unwrap())
                .set_len(0)
                .is_err()
        );
    }
}
