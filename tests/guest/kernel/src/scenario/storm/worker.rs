//! One queue of a storm: it submits requests on blocks that all queues share, judges what comes back by the
//! ledger, and notes when.

use super::counts::{Counts, Failure};
use super::{Goal, Plan, Shared};
use crate::blk::queue::{Completion, Finished};
use crate::blk::{Queue, Request, SECTOR, STATUS_NONE, STATUS_OK, kind};
use crate::platform::clock;
use crate::say;
use crate::scenario::crew;
use crate::virtio::ring::Ring;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use guest_logic::histogram::Histogram;
use guest_logic::ledger::{Extent, MOST, Reading, Verdict};
use guest_logic::pattern::{self, WORDS};
use guest_logic::random::Random;
use guest_logic::record::{ENTRIES, Look, Page, STOP, Seen};

/// Writes that reads aim at.
const REMEMBERED: usize = 64;
/// What a sector to be read into begins with: no pattern, and not zero.
const UNFILLED: u64 = 0x5a5a_0bad_5a5a_0bad;

#[derive(Clone, Copy)]
enum What {
    Read {
        reading: Reading,
        // Why it is done a second time, if it is: it had found this in that block.
        again: Option<(usize, Seen)>,
    },
    Write(Extent, u32),
    Flush,
    /// Of the stop block.
    Stop,
    /// A page of the table is written.
    Page,
}

#[derive(Clone, Copy)]
struct Pending {
    what: What,
    since: u64,
}

/// The worker.
pub struct Worker<'a> {
    /// Its queue.
    pub queue: Queue,
    /// What it has counted.
    pub counts: Counts,
    /// What it is to do.
    pub goal: Goal,
    /// How long requests took, in ticks.
    pub latency: Box<Histogram>,
    shared: &'a Shared,
    plan: Plan,
    random: Random,
    pending: Vec<Option<Pending>>,
    recent: [Extent; REMEMBERED],
    remembered: usize,
    // The next block or page of the goal.
    cursor: usize,
    next_stop: u64,
    next_report: u64,
}

impl<'a> Worker<'a> {
    /// A worker with nothing to do.
    pub fn new(queue: Queue, depth: u16, plan: Plan, shared: &'a Shared) -> Worker<'a> {
        Worker {
            random: Random::new(plan.seed ^ u64::from(queue.index) << 32),
            queue,
            counts: Counts::default(),
            goal: Goal::Rest,
            latency: Box::new(Histogram::new()),
            shared,
            plan,
            pending: alloc::vec![None; usize::from(depth)],
            recent: [Extent::default(); REMEMBERED],
            remembered: 0,
            cursor: 0,
            next_stop: 0,
            next_report: 0,
        }
    }

    /// Begins something else. Nothing is in flight, or the device was reset.
    pub fn begin(&mut self, goal: Goal) {
        self.goal = goal;
        self.cursor = 0;
    }

    /// Gives up what is in flight, because the device is to be reset: whether it was done is not known.
    pub fn abandon(&mut self) {
        let mut ledger = self.shared.ledger.lock();
        for pending in self.pending.iter_mut().filter_map(Option::take) {
            self.counts.abandoned += 1;
            match pending.what {
                What::Read { reading, .. } => ledger.end_read(&reading),
                What::Write(extent, _) => ledger.abandon_write(extent),
                What::Flush | What::Stop | What::Page => {}
            }
        }
    }

    fn is_first(&self) -> bool {
        self.queue.index == 0
    }

    // ------------------------------------------------------------------ finishing

    fn finish(&mut self, completion: Completion, now: u64) {
        let (finished, room) = match completion {
            Completion::Of(finished, room) => (finished, room),
            Completion::OfNothing(head) => {
                let queue = self.queue.index;
                let what = format_args!("queue={queue} head={head}");
                return self.counts.fail(Failure::Twice, what);
            }
        };
        let Some(pending) = self.pending[finished.slot].take() else {
            let (queue, slot) = (self.queue.index, finished.slot);
            let what = format_args!("queue={queue} slot={slot}");
            return self.counts.fail(Failure::Twice, what);
        };
        self.latency.record(now.wrapping_sub(pending.since));
        let (queue, written) = (self.queue.index, finished.written);
        let failure = match finished.status {
            STATUS_OK if written == room => None,
            STATUS_OK => Some(Failure::Length),
            STATUS_NONE => Some(Failure::Unwritten),
            _ => Some(Failure::Status),
        };
        if let Some(failure) = failure {
            let status = finished.status;
            let what = format_args!("queue={queue} status={status} length={written} room={room}");
            self.counts.fail(failure, what);
        }
        let done = finished.status == STATUS_OK;
        match pending.what {
            What::Read { reading, again } => {
                self.counts.reads += 1;
                self.finish_read(&finished, reading, again, done);
            }
            What::Write(extent, generation) => {
                self.counts.writes += 1;
                let mut ledger = self.shared.ledger.lock();
                if done {
                    ledger.end_write(extent, generation);
                    self.recent[self.remembered % REMEMBERED] = extent;
                    self.remembered += 1;
                } else {
                    ledger.abandon_write(extent);
                }
            }
            What::Flush => self.counts.flushes += 1,
            What::Stop => {
                if done && self.queue.data(finished.slot).read::<u64>(0) == STOP {
                    self.shared.stop.store(true, Ordering::Release);
                }
            }
            What::Page => {}
        }
    }

    fn finish_read(
        &mut self,
        finished: &Finished,
        reading: Reading,
        again: Option<(usize, Seen)>,
        done: bool,
    ) {
        let extent = reading.extent;
        let mut seen = [Seen::Whole(0); MOST];
        if done {
            for (at, seen) in seen.iter_mut().enumerate().take(extent.count) {
                *seen = self.look(finished.slot, at, extent.first + at);
            }
        }
        let shared = self.shared;
        let mut ledger = shared.ledger.lock();
        let mut older = None;
        for (at, seen) in seen.iter().enumerate().take(extent.count) {
            if !done {
                break;
            }
            let block = extent.first + at;
            self.counts.checked += 1;
            let failure = match ledger.judge(&reading, at, *seen) {
                Verdict::Right => continue,
                Verdict::Mixed => {
                    self.counts.mixed += 1;
                    continue;
                }
                Verdict::Older => {
                    older = older.or(Some((block, *seen)));
                    continue;
                }
                Verdict::Newer => Failure::Newer,
                Verdict::Torn => Failure::Torn,
                Verdict::Misplaced => Failure::Misplaced,
            };
            let holds = ledger.holds(block);
            let what = format_args!("block={block} holds={holds:?} seen={seen:?}");
            self.counts.fail(failure, what);
            ledger.spoil(block);
        }
        if let (Some((block, seen)), None) = (older, again) {
            // The same once more, to tell what is gone from what was not seen. Its slot is free now, and
            // the next to be taken.
            drop(ledger);
            if self.submit(
                What::Read {
                    reading,
                    again: Some((block, seen)),
                },
                extent,
            ) {
                return;
            }
            ledger = shared.ledger.lock();
        }
        if let Some((block, seen)) = older.or(again) {
            let failure = match older {
                Some(_) => Failure::Lost,
                None => Failure::Stale,
            };
            let holds = ledger.holds(block);
            let what = format_args!("block={block} holds={holds:?} seen={seen:?}");
            self.counts.fail(failure, what);
            ledger.spoil(block);
        }
        ledger.end_read(&reading);
    }

    fn look(&self, slot: usize, at: usize, block: usize) -> Seen {
        let sectors = self.shared.layout.block;
        let mut look = Look::new(self.plan.seed);
        let mut words = [0; WORDS];
        for sector in 0..sectors {
            let place = (at as u64 * sectors + sector) * SECTOR;
            self.queue.data(slot).read_words(place, &mut words);
            look.sector(&words, block as u64 * sectors + sector);
        }
        look.seen().unwrap_or(Seen::Whole(0))
    }

    // ------------------------------------------------------------------ submitting

    // Puts a request into the ring. What a write writes is in the slot's data already. The extent is in
    // blocks, also of the stop block; in sectors for a page.
    fn submit(&mut self, what: What, extent: Extent) -> bool {
        let Some(slot) = self.queue.free_slot() else {
            return false;
        };
        let unit = match what {
            What::Page => 1,
            _ => self.shared.layout.block,
        };
        let length = extent.count as u64 * unit * SECTOR;
        let kind = match what {
            What::Read { .. } | What::Stop => {
                let sectors = (0..length).step_by(SECTOR as usize);
                sectors.for_each(|at| self.queue.data(slot).write(at, UNFILLED));
                kind::READ
            }
            What::Write(..) | What::Page => kind::WRITE,
            What::Flush => kind::FLUSH,
        };
        let request = Request {
            kind,
            sector: extent.first as u64 * unit,
            length,
        };
        let half = (length / 2 / SECTOR * SECTOR) as u32;
        let pieces = [half, length as u32 - half];
        // Every other request's data is in two pieces.
        let pieces = match half != 0 && self.random.chance(1, 2) {
            true => &pieces[..],
            false => &[],
        };
        let submitted = self.queue.submit(&request, pieces);
        if submitted {
            self.pending[slot] = Some(Pending {
                what,
                since: clock::now(),
            });
        }
        submitted
    }

    fn write(&mut self, extent: Extent) -> bool {
        let Some(slot) = self.queue.free_slot() else {
            return false;
        };
        let Some(generation) = self.shared.ledger.lock().begin_write(extent) else {
            return false;
        };
        let sectors = self.shared.layout.block;
        let first = extent.first as u64 * sectors;
        let mut words = [0; WORDS];
        for at in 0..extent.count as u64 * sectors {
            pattern::fill(
                &mut words,
                first + at,
                u64::from(generation),
                self.plan.seed,
            );
            self.queue.data(slot).write_words(at * SECTOR, &words);
        }
        let submitted = self.submit(What::Write(extent, generation), extent);
        if !submitted {
            self.shared.ledger.lock().abandon_write(extent);
        }
        submitted
    }

    fn read(&mut self, extent: Extent) -> bool {
        if self.queue.free_slot().is_none() {
            return false;
        }
        let Some(reading) = self.shared.ledger.lock().begin_read(extent) else {
            return false;
        };
        let again = None;
        let submitted = self.submit(What::Read { reading, again }, extent);
        if !submitted {
            self.shared.ledger.lock().end_read(&reading);
        }
        submitted
    }

    // Chooses a request and submits it. False if there is no room, or no free block was hit.
    fn submit_random(&mut self) -> bool {
        if self.random.chance(self.plan.flush, 1000) {
            return self.submit(What::Flush, Extent::default());
        }
        let write = self.random.chance(self.plan.write, 100);
        (0..8).any(|_| {
            let extent = self.place(write);
            match write {
                true => self.write(extent),
                false => self.read(extent),
            }
        })
    }

    fn place(&mut self, write: bool) -> Extent {
        let known = self.remembered.min(REMEMBERED) as u64;
        if !write && known > 0 && self.random.chance(3, 4) {
            return self.recent[self.random.below(known) as usize];
        }
        let most = self.plan.most as u64;
        let count = match self.random.chance(3, 4) {
            true => 1,
            false => 1 + self.random.below(most),
        };
        let places = self.shared.layout.blocks - count + 1;
        Extent {
            first: self.random.below(places) as usize,
            count: count as usize,
        }
    }

    // ------------------------------------------------------------------ goals

    fn work(&mut self, now: u64) {
        if self.shared.is_over(now) {
            return;
        }
        if self.is_first() && self.plan.stop && now >= self.next_stop {
            let stop = self.shared.layout.stop / self.shared.layout.block;
            let extent = Extent {
                first: stop as usize,
                count: 1,
            };
            if self.submit(What::Stop, extent) {
                self.next_stop = now + self.plan.look;
            }
        }
        while self.shared.may_issue() && self.submit_random() {
            self.shared.issued.fetch_add(1, Ordering::Relaxed);
        }
    }

    // Its share of all blocks, one by one; of these, the ones that nobody knows or all.
    fn sweep(&mut self, rewrite: bool) {
        while self.cursor < self.shared.layout.blocks as usize {
            let block = self.cursor;
            let mine = block % self.plan.queues == usize::from(self.queue.index);
            let wanted = !rewrite || self.shared.ledger.lock().holds(block).is_none();
            let extent = Extent {
                first: block,
                count: 1,
            };
            let submitted = match (mine && wanted, rewrite) {
                (false, _) => true,
                (true, true) => self.write(extent),
                (true, false) => self.read(extent),
            };
            if !submitted {
                return;
            }
            self.cursor += 1;
        }
    }

    fn record(&mut self) {
        let layout = self.shared.layout;
        while self.is_first() && self.cursor < layout.table_sectors as usize {
            let Some(slot) = self.queue.free_slot() else {
                return;
            };
            let first = self.cursor * ENTRIES;
            let count = (layout.blocks as usize - first).min(ENTRIES);
            let mut entries = [0; ENTRIES];
            let ledger = self.shared.ledger.lock();
            for (entry, block) in entries[..count].iter_mut().zip(first..) {
                // What is not known now was found wrong: no image passes with this.
                *entry = ledger.holds(block).unwrap_or(u32::MAX);
            }
            drop(ledger);
            let page = Page {
                first: first as u64,
                count,
                entries,
            };
            let words = page.words(self.plan.seed);
            self.queue.data(slot).write_words(0, &words);
            let extent = Extent {
                first: layout.table as usize + self.cursor,
                count: 1,
            };
            if !self.submit(What::Page, extent) {
                return;
            }
            self.cursor += 1;
        }
    }

    fn submit_more(&mut self, now: u64) {
        match self.goal {
            Goal::Work => self.work(now),
            Goal::Rewrite => self.sweep(true),
            Goal::ReadBack => self.sweep(false),
            Goal::Record => self.record(),
            Goal::Flush if self.is_first() && self.cursor == 0 => {
                self.cursor = usize::from(self.submit(What::Flush, Extent::default()));
            }
            Goal::Flush | Goal::Rest => {}
        }
    }

    fn has_submitted_all(&self) -> bool {
        let layout = &self.shared.layout;
        match self.goal {
            Goal::Work => self.shared.is_over(clock::now()) || !self.shared.may_issue(),
            Goal::Rewrite | Goal::ReadBack => self.cursor >= layout.blocks as usize,
            Goal::Record => !self.is_first() || self.cursor >= layout.table_sectors as usize,
            Goal::Flush => !self.is_first() || self.cursor > 0,
            Goal::Rest => true,
        }
    }

    fn report(&mut self, now: u64) {
        if !self.is_first() || self.plan.report == 0 || now < self.next_report {
            return;
        }
        if self.next_report != 0 {
            let issued = self.shared.issued.load(Ordering::Relaxed);
            let elapsed = now.wrapping_sub(self.shared.began) / clock::kilohertz();
            say!("progress scenario=storm millis={elapsed} requests={issued}");
        }
        self.next_report = now + self.plan.report;
    }
}

impl crew::Worker for Worker<'_> {
    fn step(&mut self) -> Result<bool, String> {
        let mut any = false;
        while let Some(completion) = self.queue.take_any()? {
            let now = clock::now();
            if !any && self.goal == Goal::Work {
                self.shared.note(now);
            }
            any = true;
            self.finish(completion, now);
        }
        let before = self.queue.busy();
        let now = clock::now();
        self.submit_more(now);
        self.queue.publish();
        self.report(now);
        Ok(any || self.queue.busy() != before)
    }

    fn finished(&self) -> bool {
        let interrupted = self.goal == Goal::Work && self.shared.is_interrupted(clock::now());
        interrupted || (self.has_submitted_all() && self.queue.busy() == 0)
    }

    fn ring(&mut self) -> &mut Ring {
        &mut self.queue.ring
    }
}
