//! Receive buffers that wait for frames: chains in the order in which the
//! driver gave them.
//!
//! A frame is read before it is known how many chains it takes (a tap does not
//! tell a frame's length in advance), so chains are taken in advance, as many
//! as there are. One that cannot be used keeps its place, without any room,
//! and comes back with length 0 when its turn comes: so the chains that are
//! left when the ring is stopped are always the last that were taken, and can
//! be given back.

use std::collections::VecDeque;
use std::sync::Arc;

use outboard_runtime::chain::Chain;
use outboard_runtime::device::Memory;
use outboard_runtime::guest_buffers::{GuestBuffers, Unmapped};

use crate::header::HEADER;

/// Most pieces in stock: 16 times what one call takes.
const MOST_PIECES: usize = 16 * 1024;

#[derive(Clone, Copy, Debug)]
struct Held {
    head: u16,
    /// 0 when it cannot be used.
    bytes: usize,
}

/// What became of a chain that was to be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is in stock.
    Usable,
    /// It is in stock, and has no room: it is smaller than a header.
    Tiny,
    /// It is in stock, and has no room: it is not in memory.
    Unmapped,
    /// It is not in stock, which is full.
    Full,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Stock {
    chains: VecDeque<Held>,
    /// Those of all chains that can be used.
    pub buffers: GuestBuffers,
    /// Bytes in the largest chain so far, whatever has become of it.
    largest: usize,
}

impl Stock {
    /// Adds a chain.
    pub fn add(&mut self, memory: &Arc<Memory>, chain: &Chain) -> Added {
        let pieces = self.buffers.len().saturating_add(chain.writable.len());
        if pieces > MOST_PIECES && !self.chains.is_empty() {
            return Added::Full;
        }
        let lengths = chain.writable.iter().map(|buffer| buffer.length as usize);
        let (added, bytes) = if lengths.sum::<usize>() <= HEADER {
            (Added::Tiny, 0)
        } else {
            let buffers = chain.writable.iter().copied();
            match self.buffers.extend(memory, buffers) {
                Ok(bytes) => (Added::Usable, bytes),
                Err(Unmapped) => (Added::Unmapped, 0),
            }
        };
        self.largest = self.largest.max(bytes);
        self.chains.push_back(Held {
            head: chain.head,
            bytes,
        });
        added
    }

    /// Number of chains.
    pub fn len(&self) -> usize {
        self.chains.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Room for a header and a frame in all chains.
    pub fn room(&self) -> usize {
        self.buffers.bytes()
    }

    /// The most room that there can be, in a ring of so many `entries` whose
    /// driver goes on as it has begun: each entry that is not in stock becomes a
    /// chain like the largest so far.
    pub fn reach(&self, entries: u16) -> usize {
        let free = usize::from(entries).saturating_sub(self.chains.len());
        self.room()
            .saturating_add(free.saturating_mul(self.largest))
    }

    /// Room for a header and a frame in the first usable chain alone.
    pub fn first_room(&self) -> usize {
        let mut usable = self.chains.iter().filter(|held| held.bytes > 0);
        usable.next().map_or(0, |held| held.bytes)
    }

    /// Number of usable chains that this many bytes take.
    pub fn count(&self, length: usize) -> usize {
        let mut left = length;
        let mut count = 0usize;
        for held in self.chains.iter().filter(|held| held.bytes > 0) {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(held.bytes);
            count = count.saturating_add(1);
        }
        count
    }

    /// Completes the chains that `length` bytes have been written to, one
    /// after another, and those without room on the way, before them: the
    /// parts of one frame must follow on each other.
    pub fn complete(&mut self, length: usize, done: &mut dyn FnMut(u16, u32)) {
        let (mut left, mut chains) = (length, 0usize);
        for held in &self.chains {
            if held.bytes > 0 {
                if left == 0 {
                    break;
                }
                left = left.saturating_sub(held.bytes);
            } else {
                done(held.head, 0);
            }
            chains = chains.saturating_add(1);
        }
        let mut left = length;
        for held in self.chains.drain(..chains).filter(|held| held.bytes > 0) {
            let part = left.min(held.bytes);
            left = left.saturating_sub(part);
            self.buffers.advance(held.bytes);
            done(held.head, u32::try_from(part).unwrap_or(u32::MAX));
        }
    }

    /// Gives up every chain, the one added last first.
    pub fn give_back(&mut self, back: &mut dyn FnMut(u16)) {
        for held in self.chains.drain(..).rev() {
            back(held.head);
        }
        self.buffers.clear();
    }
}

#[cfg(test)]
mod tests {
    use outboard_runtime::chain::Buffer;
    use proptest::prelude::*;
    use vm_memory::GuestAddress;

    use super::*;

    fn memory() -> Arc<Memory> {
        Arc::new(Memory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap())
    }

    fn chain(head: u16, lengths: &[u32]) -> Chain {
        let writable = lengths.iter().map(|length| Buffer {
            address: GuestAddress(0x100),
            length: *length,
        });
        Chain {
            head,
            writable: writable.collect(),
            ..Chain::default()
        }
    }

    #[test]
    fn a_frame_over_several_chains_follows_on_itself() {
        let memory = memory();
        let mut stock = Stock::default();
        let bad = Chain {
            head: 2,
            writable: vec![Buffer {
                address: GuestAddress(0xffff),
                length: 100,
            }],
            ..Chain::default()
        };
        assert_eq!(stock.add(&memory, &chain(0, &[12])), Added::Tiny);
        assert_eq!(stock.add(&memory, &chain(1, &[20, 30])), Added::Usable);
        assert_eq!(stock.add(&memory, &bad), Added::Unmapped);
        assert_eq!(stock.add(&memory, &chain(3, &[40])), Added::Usable);
        assert_eq!(stock.add(&memory, &chain(4, &[])), Added::Tiny);
        assert_eq!(stock.add(&memory, &chain(5, &[50])), Added::Usable);
        assert_eq!((stock.room(), stock.first_room()), (140, 50));
        assert_eq!(
            [50, 51, 90, 91, 999].map(|n| stock.count(n)),
            [1, 2, 2, 3, 3]
        );
        let mut used = Vec::new();
        stock.complete(60, &mut |head, length| used.push((head, length)));
        assert_eq!(used, [(0, 0), (2, 0), (4, 0), (1, 50), (3, 10)]);
        assert_eq!((stock.room(), stock.buffers.len()), (50, 1));
        let mut back = Vec::new();
        stock.give_back(&mut |head| back.push(head));
        assert_eq!(back, [5]);
        assert!(stock.is_empty() && stock.buffers.is_empty());
    }

    #[test]
    fn a_ring_has_room_for_as_much_as_its_entries_can_hold() {
        let memory = memory();
        let mut stock = Stock::default();
        assert_eq!(stock.reach(4), 0);
        stock.add(&memory, &chain(0, &[100]));
        assert_eq!((stock.room(), stock.reach(4)), (100, 400));
        stock.add(&memory, &chain(1, &[300, 100]));
        assert_eq!((stock.room(), stock.reach(4)), (500, 1300));
        // One without room takes an entry all the same.
        stock.add(&memory, &chain(2, &[3]));
        assert_eq!(stock.reach(4), 900);
        stock.add(&memory, &chain(3, &[50]));
        assert_eq!((stock.room(), stock.reach(4)), (550, 550));
        // What has been used will be given again.
        stock.complete(500, &mut |_, _| {});
        assert_eq!((stock.room(), stock.reach(4)), (50, 1250));
    }

    #[test]
    fn stock_is_bounded_whatever_the_chains() {
        let memory = memory();
        let mut stock = Stock::default();
        let long = chain(0, &[12; 1024]);
        let added = (0..100).take_while(|_| stock.add(&memory, &long) == Added::Usable);
        assert_eq!(added.count(), 16);
        // One alone is taken whatever its length.
        let mut stock = Stock::default();
        let added = stock.add(&memory, &chain(0, &[1; 20000]));
        assert_eq!(added, Added::Usable);
    }

    proptest! {
        /// Every chain comes back once, in order but for those without room.
        #[test]
        fn every_chain_comes_back_once(
            lengths in proptest::collection::vec(0u32..200, 1..40),
            frames in proptest::collection::vec(26usize..500, 0..20),
        ) {
            let memory = memory();
            let mut stock = Stock::default();
            for (head, length) in lengths.iter().enumerate() {
                stock.add(&memory, &chain(head as u16, &[*length]));
            }
            let mut heads = Vec::new();
            for frame in frames {
                if frame > stock.room() {
                    break;
                }
                let count = stock.count(frame);
                let (mut bytes, mut parts) = (0, 0);
                stock.complete(frame, &mut |head, length| {
                    heads.push(head);
                    bytes += length as usize;
                    parts += usize::from(length > 0);
                });
                prop_assert_eq!((bytes, parts), (frame, count));
            }
            let taken = heads.len();
            let mut back = Vec::new();
            stock.give_back(&mut |head| back.push(head));
            prop_assert!(back.iter().rev().eq(&(taken as u16..lengths.len() as u16).collect::<Vec<_>>()));
            heads.sort_unstable();
            prop_assert!(heads.into_iter().eq(0..taken as u16));
        }
    }
}
