//! The page of counters (`outboard_protocol::counters`) that a supervisor reads.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use outboard_protocol::counters::{
    self, COUNTS, Counts, IN_KERNEL, MAGIC, PULSE, Pulse, QUEUE, TIMED,
};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use outboard_ring::Tally;
use outboard_ring::counters::add;

use crate::device::Done;

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
        let first = first_of(queue);
        let read = |at: usize| {
            let word = self.word(first.saturating_add(at));
            word.map_or(0, |word| word.load(Ordering::Relaxed))
        };
        let words: [u64; COUNTS] = std::array::from_fn(read);
        Part {
            page: self.clone(),
            first,
            shown: words,
            before: Counts::of(&words),
            more: Counts::default(),
            timed: None,
        }
    }

    /// Shows the pulse of the worker that serves this queue.
    pub fn set_pulse(&self, queue: u16, pulse: Pulse) {
        self.store(first_of(queue).saturating_add(PULSE), pulse.word());
    }

    fn store(&self, number: usize, value: u64) {
        if let Some(word) = self.word(number) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// What lies beyond the last queue is no word.
    fn word(&self, number: usize) -> Option<&AtomicU64> {
        let offset = number.saturating_mul(size_of::<u64>());
        self.map.get_atomic_ref::<AtomicU64>(offset).ok()
    }
}

/// Where the words of a queue begin.
fn first_of(queue: u16) -> usize {
    usize::from(queue).saturating_add(1).saturating_mul(QUEUE)
}

/// What is shown of one queue, by whoever serves its ring.
#[derive(Debug)]
pub struct Part {
    page: Arc<Page>,
    /// The first of its words.
    first: usize,
    /// What they are.
    shown: [u64; COUNTS],
    /// What they were when its ring was started.
    before: Counts,
    /// What has happened since, but for what the ring itself counts.
    more: Counts,
    /// The chain that is timed, and since when it has been with the device.
    timed: Option<(u16, Instant)>,
}

impl Part {
    /// Shows what has happened since, and how many requests the kernel has.
    pub fn show(&mut self, tally: &Tally, in_kernel: usize) {
        let now = counts(tally).with(&self.more).with(&self.before).words();
        let words = now.into_iter().zip(&mut self.shown);
        for (number, (now, shown)) in words.enumerate() {
            if now != *shown {
                *shown = now;
                self.page.store(self.first.saturating_add(number), now);
            }
        }
        let word = self.first.saturating_add(IN_KERNEL);
        self.page.store(word, in_kernel as u64);
    }

    /// So many kicks were seen.
    pub fn kicked(&mut self, kicks: u64) {
        add(&mut self.more.kicks, kicks);
    }

    /// The device has done this besides.
    pub fn did(&mut self, done: Done) {
        add(&mut self.more.bytes_read, done.read);
        add(&mut self.more.bytes_written, done.written);
        add(&mut self.more.errors, done.errors);
    }

    /// The ring's chain number `count`, with this head, is about to be handed to the
    /// device. Only one of many costs a look at the clock.
    pub fn taken(&mut self, count: u64, head: u16) {
        if count.is_multiple_of(TIMED) && self.timed.is_none() {
            self.timed = Some((head, Instant::now()));
        }
    }

    /// The device is done with this chain.
    pub fn returned(&mut self, head: u16) {
        if let Some(since) = self.untimed(head) {
            let time = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
            add(&mut self.more.timed, 1);
            add(&mut self.more.time, time);
            self.more.longest = self.more.longest.max(time);
        }
    }

    /// This chain is not timed any more, if it was: since when it was.
    pub fn untimed(&mut self, head: u16) -> Option<Instant> {
        let timed = self.timed.take_if(|(timed, _)| *timed == head);
        timed.map(|(_, since)| since)
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
        suppressed: tally.suppressed,
        ..Counts::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outboard_protocol::counters::{Doing, Reading};

    use super::*;

    fn read(page: &Page) -> Vec<Reading> {
        counters::read(page.file().unwrap(), 3).unwrap()
    }

    #[test]
    fn what_is_added_is_read_by_another_and_stays_in_its_queue() {
        let page = Arc::new(Page::new(3).unwrap());
        let tally = Tally {
            chains: 5,
            broken_rings: 1,
            ..Tally::default()
        };
        let done = Done {
            read: 7,
            written: 8,
            errors: 9,
        };
        for queue in [1, 1, 3] {
            let mut part = page.part(queue);
            part.did(done);
            part.kicked(2);
            part.show(&tally, 4);
        }
        let expected = Counts {
            chains: 10,
            broken_rings: 2,
            bytes_read: 14,
            bytes_written: 16,
            errors: 18,
            kicks: 4,
            ..Counts::default()
        };
        let counts: Vec<_> = read(&page).iter().map(|queue| queue.counts).collect();
        assert_eq!(counts, [Counts::default(), expected, Counts::default()]);
        let in_kernel: Vec<_> = read(&page).iter().map(|queue| queue.in_kernel).collect();
        assert_eq!(in_kernel, [0, 4, 0]);
        let file = page.file().unwrap().try_clone_to_owned().unwrap();
        assert!(File::from(file).set_len(0).is_err());
    }

    #[test]
    fn a_pulse_is_that_of_one_queue_and_of_none_beyond_the_last() {
        let page = Arc::new(Page::new(3).unwrap());
        let pulse = Pulse {
            doing: Doing::Working,
            rounds: 3,
        };
        page.set_pulse(2, pulse);
        page.set_pulse(3, pulse);
        page.set_pulse(u16::MAX, pulse);
        let pulses: Vec<_> = read(&page).iter().map(|queue| queue.pulse).collect();
        assert_eq!(pulses, [Pulse::default(), Pulse::default(), pulse]);
    }

    #[test]
    fn one_of_many_is_timed_from_its_taking_to_its_return() {
        let page = Arc::new(Page::new(3).unwrap());
        let mut part = page.part(0);
        part.taken(1, 5);
        part.returned(5);
        assert_eq!(part.more.timed, 0, "not every one");
        part.taken(TIMED, 6);
        part.taken(2 * TIMED, 7);
        part.returned(7);
        assert_eq!(part.more.timed, 0, "one at a time");
        std::thread::sleep(Duration::from_millis(2));
        part.returned(6);
        part.taken(3 * TIMED, 8);
        part.untimed(8);
        part.returned(8);
        part.show(&Tally::default(), 0);
        let counts = read(&page)[0].counts;
        assert_eq!(counts.timed, 1);
        assert!(counts.time >= 2_000_000 && counts.longest == counts.time);
        let mut next = page.part(0);
        next.show(&Tally::default(), 0);
        assert_eq!(read(&page)[0].counts, counts, "a ring that was idle");
    }
}
