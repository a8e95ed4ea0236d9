//! One worker that writes patterns to its part of a disk, reads them back and checks every word.
//!
//! ```text
//! Work --target reached--> Drain --nothing in flight--> Rest            (a round ends; the device may be reset)
//!                                 \--last round--> Rewrite -> Flush -> ReadBack -> Rest
//! ```

use super::crew::Worker;
use super::mastering::Pauses;
use super::plan::Plan;
use crate::blk::queue::{Finished, MAX_PIECES};
use crate::blk::{Queue, Request, SECTOR, STATUS_OK, kind};
use crate::virtio::ring::Ring;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use guest_logic::pattern;
use guest_logic::random::Random;

/// What a sector holds: a generation, or one of these.
const UNTOUCHED: u32 = 0;
const ZEROED: u32 = u32::MAX - 1;
const UNKNOWN: u32 = u32::MAX;

/// Writes that reads aim at.
const REMEMBERED: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Work,
    Drain,
    Rewrite,
    Flush,
    ReadBack,
    Rest,
}

#[derive(Clone, Copy, Default)]
struct Pending {
    kind: u32,
    first: u64,
    sectors: u64,
    generation: u32,
}

/// The worker.
pub struct Verifier {
    /// Its queue.
    pub queue: Queue,
    plan: Plan,
    part: Range<u64>,
    holds: Vec<u32>,
    random: Random,
    phase: Phase,
    last_round: bool,
    target: u64,
    issued: u64,
    cursor: u64,
    flush_in_flight: bool,
    next_generation: u32,
    pending: Vec<Option<Pending>>,
    recent: [(u64, u64); REMEMBERED],
    remembered: usize,
    /// Stops devices now and then.
    pub pauses: Option<Pauses>,
    /// Requests that have finished.
    pub requests: u64,
    /// Bytes read and written.
    pub bytes: u64,
    /// Sectors whose content was checked.
    pub checked: u64,
}

impl Verifier {
    /// A worker for these sectors.
    pub fn new(queue: Queue, depth: u16, part: Range<u64>, plan: Plan) -> Verifier {
        Verifier {
            random: Random::new(plan.seed ^ u64::from(queue.index) << 32),
            holds: alloc::vec![UNTOUCHED; (part.end - part.start) as usize],
            queue,
            plan,
            cursor: part.start,
            part,
            phase: Phase::Rest,
            last_round: false,
            target: 0,
            issued: 0,
            flush_in_flight: false,
            next_generation: 1,
            pending: alloc::vec![None; usize::from(depth)],
            recent: [(0, 0); REMEMBERED],
            remembered: 0,
            pauses: None,
            requests: 0,
            bytes: 0,
            checked: 0,
        }
    }

    /// Starts a round of `requests`; after the last one everything is flushed and read back.
    pub fn start_round(&mut self, requests: u64, last: bool) {
        self.target += requests;
        self.last_round = last;
        self.phase = Phase::Work;
    }

    /// Gives up what is in flight, because the device was reset: whether it was done is not known.
    pub fn abandon(&mut self) {
        for slot in 0..self.pending.len() {
            if let Some(lost) = self.pending[slot].take()
                && matches!(lost.kind, kind::WRITE | kind::DISCARD | kind::WRITE_ZEROES)
            {
                (lost.first..lost.first + lost.sectors)
                    .for_each(|sector| *self.holds(sector) = UNKNOWN);
            }
        }
        self.flush_in_flight = false;
    }

    /// Ends a round early.
    pub fn end_round(&mut self) {
        self.target = self.issued;
        self.phase = Phase::Rest;
    }

    /// The digest of what it wrote, and in how many sectors.
    pub fn digest(&self) -> (u64, u64) {
        let written = self
            .holds
            .iter()
            .zip(self.part.clone())
            .filter(|(holds, _)| is_generation(**holds));
        written.fold((0, 0), |(digest, sectors), (holds, sector)| {
            (
                pattern::digest(sector, u64::from(*holds)).wrapping_add(digest),
                sectors + 1,
            )
        })
    }

    fn holds(&mut self, sector: u64) -> &mut u32 {
        &mut self.holds[(sector - self.part.start) as usize]
    }

    fn overlaps(&self, first: u64, sectors: u64) -> bool {
        self.pending
            .iter()
            .flatten()
            .any(|other| first < other.first + other.sectors && other.first < first + sectors)
    }

    // ------------------------------------------------------------------ finishing

    fn finish(&mut self, finished: Finished) -> Result<(), String> {
        let Some(done) = self.pending[finished.slot].take() else {
            return Err(alloc::format!(
                "reason=slot-not-pending slot={}",
                finished.slot
            ));
        };
        self.requests += 1;
        if finished.status != STATUS_OK {
            return Err(alloc::format!(
                "reason=status status={} kind={} sector={} sectors={}",
                finished.status,
                done.kind,
                done.first,
                done.sectors
            ));
        }
        let range = done.first..done.first + done.sectors;
        match done.kind {
            kind::READ => {
                self.bytes += done.sectors * SECTOR;
                self.check(finished.slot, range)?;
            }
            kind::WRITE => {
                self.bytes += done.sectors * SECTOR;
                range.for_each(|sector| *self.holds(sector) = done.generation);
                self.recent[self.remembered % REMEMBERED] = (done.first, done.sectors);
                self.remembered += 1;
            }
            kind::DISCARD => range.for_each(|sector| *self.holds(sector) = UNKNOWN),
            kind::WRITE_ZEROES => range.for_each(|sector| *self.holds(sector) = ZEROED),
            _ => self.flush_in_flight = false,
        }
        Ok(())
    }

    fn check(&mut self, slot: usize, range: Range<u64>) -> Result<(), String> {
        let mut words = [0; pattern::WORDS];
        for (at, sector) in range.enumerate() {
            let holds = *self.holds(sector);
            if holds == UNKNOWN || (holds == UNTOUCHED && !self.plan.fresh) {
                continue;
            }
            self.queue
                .data(slot)
                .read_words(at as u64 * SECTOR, &mut words);
            let result = if is_generation(holds) {
                pattern::check(&words, sector, u64::from(holds), self.plan.seed)
            } else {
                pattern::check_zero(&words)
            };
            self.checked += 1;
            if let Err(wrong) = result {
                return Err(alloc::format!(
                    "reason=data sector={sector} generation={holds} word={} expected={:#x} found={:#x}",
                    wrong.word,
                    wrong.expected,
                    wrong.found
                ));
            }
        }
        Ok(())
    }

    // ------------------------------------------------------------------ submitting

    fn submit(&mut self, kind: u32, first: u64, sectors: u64) -> bool {
        let Some(slot) = self.queue.free_slot() else {
            return false;
        };
        let mut generation = 0;
        if kind == kind::WRITE {
            generation = self.next_generation;
            let mut words = [0; pattern::WORDS];
            for (at, sector) in (first..first + sectors).enumerate() {
                pattern::fill(&mut words, sector, u64::from(generation), self.plan.seed);
                self.queue
                    .data(slot)
                    .write_words(at as u64 * SECTOR, &words);
            }
        }
        let request = Request {
            kind,
            sector: first,
            length: sectors * SECTOR,
        };
        let mut pieces = [0; MAX_PIECES];
        let count = if matches!(kind, kind::READ | kind::WRITE) {
            self.plan.cut(&mut self.random, request.length, &mut pieces)
        } else {
            0
        };
        if !self.queue.submit(&request, &pieces[..count]) {
            return false;
        }
        self.next_generation += u32::from(kind == kind::WRITE);
        self.pending[slot] = Some(Pending {
            kind,
            first,
            sectors,
            generation,
        });
        true
    }

    /// Chooses a request that touches nothing in flight and submits it. False if there is no room.
    fn submit_random(&mut self) -> bool {
        let flush_due =
            self.plan.flush_every != 0 && (self.issued + 1).is_multiple_of(self.plan.flush_every);
        if flush_due && !self.flush_in_flight {
            self.flush_in_flight = self.submit(kind::FLUSH, 0, 0);
            return self.flush_in_flight;
        }
        let kind = match self.random.below(32) {
            0 if self.plan.discard => kind::DISCARD,
            1 if self.plan.write_zeroes => kind::WRITE_ZEROES,
            0..16 => kind::WRITE,
            _ => kind::READ,
        };
        // In a small part that is full of requests there may be no free place for now.
        for _ in 0..8 {
            let (first, sectors) = self.place(kind);
            if !self.overlaps(first, sectors) {
                return self.submit(kind, first, sectors);
            }
        }
        false
    }

    fn place(&mut self, kind: u32) -> (u64, u64) {
        let known = self.remembered.min(REMEMBERED) as u64;
        if kind == kind::READ && known > 0 && self.random.chance(3, 4) {
            return self.recent[self.random.below(known) as usize];
        }
        let block = self.plan.block;
        let most = self.plan.size / SECTOR / block;
        let blocks = if self.plan.size_fixed {
            most
        } else {
            1 + self.random.below(most)
        };
        let places = (self.part.end - self.part.start) / block - blocks + 1;
        (
            self.part.start + self.random.below(places) * block,
            blocks * block,
        )
    }

    /// Goes through the part in order and submits `kind` wherever `wants` says so, as far as there is room.
    fn submit_in_order(&mut self, kind: u32, wants: fn(u32) -> bool) -> bool {
        let (block, most) = (self.plan.block, self.plan.size / SECTOR);
        let mut busy = false;
        while self.queue.free_slot().is_some() {
            let wanted = |verifier: &mut Self, at: u64| {
                (at..at + block).any(|sector| wants(*verifier.holds(sector)))
            };
            while self.cursor + block <= self.part.end && !wanted(self, self.cursor) {
                self.cursor += block;
            }
            let first = self.cursor;
            let mut end = first;
            while end + block <= self.part.end && end + block - first <= most && wanted(self, end) {
                end += block;
            }
            if end == first || !self.submit(kind, first, end - first) {
                break;
            }
            self.cursor = end;
            busy = true;
        }
        busy
    }

    // ------------------------------------------------------------------ phases

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.cursor = self.part.start;
    }

    fn next_phase(&mut self) {
        let next = match self.phase {
            Phase::Work => Phase::Drain,
            Phase::Drain if self.last_round => Phase::Rewrite,
            Phase::Rewrite => Phase::Flush,
            Phase::Flush => Phase::ReadBack,
            Phase::Drain | Phase::ReadBack | Phase::Rest => Phase::Rest,
        };
        self.enter(next);
        if next == Phase::Flush {
            self.flush_in_flight = self.plan.flush_every != 0 && self.submit(kind::FLUSH, 0, 0);
        }
    }

    fn submit_more(&mut self) -> bool {
        let before = self.queue.busy();
        match self.phase {
            Phase::Work => {
                while self.issued < self.target && self.submit_random() {
                    self.issued += 1;
                }
                if self.issued >= self.target {
                    self.next_phase();
                }
            }
            Phase::Rewrite => _ = self.submit_in_order(kind::WRITE, |holds| holds == UNKNOWN),
            Phase::ReadBack => _ = self.submit_in_order(kind::READ, |holds| holds != UNTOUCHED),
            Phase::Drain | Phase::Flush | Phase::Rest => {}
        }
        if self.queue.busy() == 0 && !matches!(self.phase, Phase::Work | Phase::Rest) {
            self.next_phase();
            return true;
        }
        self.queue.busy() != before
    }
}

fn is_generation(holds: u32) -> bool {
    !matches!(holds, UNTOUCHED | ZEROED | UNKNOWN)
}

impl Worker for Verifier {
    fn step(&mut self) -> Result<bool, String> {
        let mut busy = false;
        while let Some(finished) = self.queue.take()? {
            self.finish(finished)?;
            busy = true;
        }
        busy |= self.submit_more();
        self.queue.publish();
        if let Some(pauses) = &mut self.pauses {
            pauses.step()?;
        }
        Ok(busy)
    }

    fn finished(&self) -> bool {
        self.phase == Phase::Rest
    }

    fn ring(&mut self) -> &mut Ring {
        &mut self.queue.ring
    }
}
