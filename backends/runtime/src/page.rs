//! The page of counters (`outboard_protocol::counters`) that a supervisor reads.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
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
    queues: u16,
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
            queues,
        };
        for (word, value) in [MAGIC, queues.into()].into_iter().enumerate() {
            page.change(word, |_| value);
        }
        Ok(page)
    }

    /// The file, to be given away.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.map.file_offset().map(|offset| offset.file().as_fd())
    }

    /// Adds what has happened on a queue. Of each queue one thread at a time may do
    /// so; what is no queue has no counters.
    pub fn add(&self, queue: u16, tally: &Tally) {
        if queue >= self.queues {
            return;
        }
        let first = usize::from(queue).saturating_add(1).saturating_mul(QUEUE);
        for (word, more) in counts(tally).words().into_iter().enumerate() {
            self.change(first.saturating_add(word), |count| count.wrapping_add(more));
        }
    }

    fn change(&self, word: usize, change: impl FnOnce(u64) -> u64) {
        let offset = word.saturating_mul(size_of::<u64>());
        if let Ok(word) = self.map.get_atomic_ref::<AtomicU64>(offset) {
            // One writes, so nothing is lost between the two.
            word.store(change(word.load(Ordering::Relaxed)), Ordering::Relaxed);
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
        let page = Page::new(3).unwrap();
        let tally = Tally {
            chains: 5,
            broken_rings: 1,
            ..Tally::default()
        };
        for queue in [1, 1, 3] {
            page.add(queue, &tally);
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
