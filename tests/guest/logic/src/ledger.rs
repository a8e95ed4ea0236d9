//! What each block of a disk must hold, for a driver with many requests in flight: each write has a number,
//! its generation, counted up through the whole disk, and a block's content names it.
//!
//! ```text
//!          begin_write            end_write
//! settled ------------> writing ------------> settled (it holds the new generation)
//!                          |  abandon: the device was reset
//!                          v
//!                       unsettled: the old or the new one, whatever a read finds
//! ```
//!
//! A read may find any generation from the one that the block held when the read began to the newest that
//! was begun on it since. That its content is a block's at all says the checksum (`record::Seen`), so no list
//! of such generations is needed. Reads and writes of one block do not overlap, unless `overlap` is on:
//! then a mixture of what a read may find is no failure either, since no disk promises more.

use crate::record::Seen;
use alloc::vec::Vec;

/// The most blocks in a request.
pub const MOST: usize = 16;

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    // The newest generation whose write was completed.
    holds: u32,
    // The newest whose write was begun.
    newest: u32,
    writing: bool,
    readers: u16,
    // It was found wrong: not looked at until it is written again.
    spoiled: bool,
}

/// Blocks of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// The first block.
    pub first: usize,
    /// How many, 1 to `MOST`.
    pub count: usize,
}

/// A read that has begun: what each of its blocks held then.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// What is read.
    pub extent: Extent,
    held: [u32; MOST],
}

/// What a block says, compared with what it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What it may say.
    Right,
    /// Parts of what it may say, while a write was in flight or had been abandoned.
    Mixed,
    /// Something older.
    Older,
    /// Something that was not written yet.
    Newer,
    /// A part of another write, or of none.
    Torn,
    /// Another place's content.
    Misplaced,
}

/// What every block must hold.
#[derive(Clone, Debug)]
pub struct Ledger {
    blocks: Vec<Block>,
    next: u32,
    overlap: bool,
}

impl Ledger {
    /// Of so many blocks, which are all zero; with `overlap`, of a driver that reads what it is writing.
    #[must_use]
    pub fn new(blocks: usize, overlap: bool) -> Ledger {
        Ledger {
            blocks: alloc::vec![Block::default(); blocks],
            next: 1,
            overlap,
        }
    }

    /// The number of blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    fn of(&self, extent: Extent) -> &[Block] {
        &self.blocks[extent.first..extent.first + extent.count]
    }

    fn of_mut(&mut self, extent: Extent) -> &mut [Block] {
        &mut self.blocks[extent.first..extent.first + extent.count]
    }

    /// Begins a write and returns its generation; `None` if one of its blocks is in use.
    pub fn begin_write(&mut self, extent: Extent) -> Option<u32> {
        let overlap = self.overlap;
        let is_free = |block: &Block| !block.writing && (overlap || block.readers == 0);
        if !self.of(extent).iter().all(is_free) {
            return None;
        }
        let generation = self.next;
        self.next += 1;
        for block in self.of_mut(extent) {
            block.writing = true;
            block.newest = generation;
        }
        Some(generation)
    }

    /// The write of this generation was completed.
    pub fn end_write(&mut self, extent: Extent, generation: u32) {
        for block in self.of_mut(extent) {
            block.writing = false;
            block.holds = generation;
            block.spoiled = false;
        }
    }

    /// It is not known what became of a write.
    pub fn abandon_write(&mut self, extent: Extent) {
        for block in self.of_mut(extent) {
            block.writing = false;
        }
    }

    /// Begins a read; `None` if one of its blocks is being written, unless reads may overlap.
    pub fn begin_read(&mut self, extent: Extent) -> Option<Reading> {
        if !self.overlap && self.of(extent).iter().any(|block| block.writing) {
            return None;
        }
        let mut reading = Reading {
            extent,
            ..Reading::default()
        };
        for (block, held) in self.of_mut(extent).iter_mut().zip(&mut reading.held) {
            block.readers += 1;
            *held = block.holds;
        }
        Some(reading)
    }

    /// A read was completed or abandoned.
    pub fn end_read(&mut self, reading: &Reading) {
        for block in self.of_mut(reading.extent) {
            block.readers -= 1;
        }
    }

    /// Judges what a read has found in the block with this index among its blocks. Of an unsettled block the
    /// first whole generation that is found is what it holds from now on.
    pub fn judge(&mut self, reading: &Reading, at: usize, seen: Seen) -> Verdict {
        let held = reading.held[at];
        let block = &mut self.blocks[reading.extent.first + at];
        let open = held != block.newest || block.writing;
        let may = held..=block.newest;
        if block.spoiled {
            return Verdict::Right;
        }
        match seen {
            Seen::Whole(generation) if may.contains(&generation) => {
                if !block.writing && held == block.holds {
                    (block.holds, block.newest) = (generation, generation);
                }
                Verdict::Right
            }
            Seen::Whole(generation) if generation < held => Verdict::Older,
            Seen::Whole(_) => Verdict::Newer,
            Seen::Mixture(low, high) if open && may.contains(&low) && may.contains(&high) => {
                Verdict::Mixed
            }
            // What is copied while it is written may be cut anywhere.
            Seen::Broken(..) if open && self.overlap => Verdict::Mixed,
            Seen::Mixture(..) | Seen::Broken(..) => Verdict::Torn,
            Seen::Elsewhere(_) => Verdict::Misplaced,
        }
    }

    /// A failure was counted: the block is not looked at until it is written again.
    pub fn spoil(&mut self, block: usize) {
        self.blocks[block].spoiled = true;
    }

    /// What a block holds; `None` while that is not known.
    #[must_use]
    pub fn holds(&self, block: usize) -> Option<u32> {
        let block = self.blocks.get(block)?;
        let settled = !block.writing && !block.spoiled && block.holds == block.newest;
        settled.then_some(block.holds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Extent = Extent { first: 3, count: 1 };

    fn written(ledger: &mut Ledger, extent: Extent) -> u32 {
        let generation = ledger.begin_write(extent).unwrap();
        ledger.end_write(extent, generation);
        generation
    }

    fn read(ledger: &mut Ledger, seen: Seen) -> Verdict {
        let reading = ledger.begin_read(ONE).unwrap();
        let verdict = ledger.judge(&reading, 0, seen);
        ledger.end_read(&reading);
        verdict
    }

    #[test]
    fn a_block_holds_its_last_completed_write_and_nothing_else() {
        let mut ledger = Ledger::new(8, false);
        assert_eq!(read(&mut ledger, Seen::Whole(0)), Verdict::Right);
        let old = written(&mut ledger, ONE);
        let new = written(&mut ledger, ONE);
        assert_eq!(read(&mut ledger, Seen::Whole(new)), Verdict::Right);
        assert_eq!(read(&mut ledger, Seen::Whole(old)), Verdict::Older);
        assert_eq!(read(&mut ledger, Seen::Whole(0)), Verdict::Older);
        assert_eq!(read(&mut ledger, Seen::Whole(new + 1)), Verdict::Newer);
        assert_eq!(read(&mut ledger, Seen::Mixture(old, new)), Verdict::Torn);
        assert_eq!(read(&mut ledger, Seen::Broken(3, 0)), Verdict::Torn);
        assert_eq!(read(&mut ledger, Seen::Elsewhere(9)), Verdict::Misplaced);
        assert_eq!(ledger.holds(3), Some(new));
    }

    #[test]
    fn a_block_in_use_is_not_written_nor_one_being_written_read() {
        let mut ledger = Ledger::new(8, false);
        let pair = Extent { first: 2, count: 2 };
        let reading = ledger.begin_read(pair).unwrap();
        assert!(ledger.begin_read(ONE).is_some());
        assert_eq!(ledger.begin_write(ONE), None);
        ledger.end_read(&reading);
        assert_eq!(ledger.begin_write(ONE), None, "there is another reader");
        assert!(ledger.begin_write(Extent { first: 4, count: 1 }).is_some());
        assert!(ledger.begin_read(Extent { first: 3, count: 2 }).is_none());
    }

    #[test]
    fn after_a_reset_it_is_the_old_or_the_new_until_one_was_seen() {
        for (which, other) in [(0, 1), (1, 0)] {
            let mut ledger = Ledger::new(8, false);
            let old = written(&mut ledger, ONE);
            let new = ledger.begin_write(ONE).unwrap();
            ledger.abandon_write(ONE);
            assert_eq!(ledger.holds(3), None);
            assert_eq!(read(&mut ledger, Seen::Mixture(old, new)), Verdict::Mixed);
            assert_eq!(ledger.holds(3), None);
            let generations = [old, new];
            assert_eq!(
                read(&mut ledger, Seen::Whole(generations[which])),
                Verdict::Right
            );
            assert_eq!(ledger.holds(3), Some(generations[which]));
            assert_ne!(
                read(&mut ledger, Seen::Whole(generations[other])),
                Verdict::Right
            );
        }
    }

    #[test]
    fn a_read_that_overlaps_writes_may_see_each_of_them_but_nothing_older() {
        let mut ledger = Ledger::new(8, true);
        let before = written(&mut ledger, ONE);
        let old = written(&mut ledger, ONE);
        let reading = ledger.begin_read(ONE).unwrap();
        let first = written(&mut ledger, ONE);
        let second = ledger.begin_write(ONE).unwrap();
        for generation in [old, first, second] {
            let verdict = ledger.judge(&reading, 0, Seen::Whole(generation));
            assert_eq!(verdict, Verdict::Right, "{generation}");
        }
        let cut = ledger.judge(&reading, 0, Seen::Broken(5, 0));
        assert_eq!(cut, Verdict::Mixed);
        let verdict = ledger.judge(&reading, 0, Seen::Whole(before));
        assert_eq!(verdict, Verdict::Older);
        ledger.end_read(&reading);
        ledger.end_write(ONE, second);
        assert_eq!(ledger.holds(3), Some(second));
        // One that begins now sees the last one only.
        assert_eq!(read(&mut ledger, Seen::Whole(first)), Verdict::Older);
        assert_eq!(read(&mut ledger, Seen::Broken(5, 0)), Verdict::Torn);
    }

    #[test]
    fn a_failure_is_counted_once() {
        let mut ledger = Ledger::new(8, false);
        written(&mut ledger, ONE);
        assert_eq!(read(&mut ledger, Seen::Whole(0)), Verdict::Older);
        ledger.spoil(3);
        assert_eq!(read(&mut ledger, Seen::Whole(0)), Verdict::Right);
        assert_eq!(ledger.holds(3), None);
        let new = written(&mut ledger, ONE);
        assert_eq!(ledger.holds(3), Some(new));
        assert_eq!(read(&mut ledger, Seen::Whole(0)), Verdict::Older);
    }
}
