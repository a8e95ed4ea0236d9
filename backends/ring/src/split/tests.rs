//! Rings on a test's words: what their worker cannot show.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use outboard_protocol::inflight::{Region, Shape};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::words::Word;

mod layout;
pub mod model;

const SIZE: u16 = 8;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

fn layout() -> Layout {
    let [descriptors, available, used] = [0, 0x1000, 0x2000].map(GuestAddress);
    Layout::new(SIZE, descriptors, available, used).unwrap()
}

/// The words of a driver on the same thread.
#[derive(Default)]
struct Plain {
    words: RefCell<HashMap<Word, u16>>,
    used: RefCell<Vec<(u16, u32)>>,
}

impl Plain {
    fn get(&self, word: Word) -> u16 {
        self.words.borrow().get(&word).copied().unwrap_or(0)
    }

    fn set(&self, word: Word, value: u16) {
        self.words.borrow_mut().insert(word, value);
    }

    /// The driver makes these heads available, the first one at `from`.
    fn offer(&self, from: u16, heads: &[u16]) {
        let mut index = from;
        for head in heads {
            self.set(Word::AvailHead(index), *head);
            index = index.wrapping_add(1);
        }
        self.set(Word::AvailIdx, index);
    }
}

impl Words for Plain {
    fn load(&self, word: Word, _: Ordering) -> Result<u16, Broken> {
        Ok(self.get(word))
    }

    fn store(&self, word: Word, value: u16, _: Ordering) -> Result<(), Broken> {
        self.set(word, value);
        Ok(())
    }

    fn set_used(&self, _: u16, head: u16, length: u32) -> Result<(), Broken> {
        self.used.borrow_mut().push((head, length));
        Ok(())
    }
}

#[test]
fn the_available_index_may_be_a_whole_ring_ahead_and_no_more() {
    for base in [0, 5, u16::MAX - 3] {
        let words = Plain::default();
        let mut ring = Ring::new(layout(), 0, base, None, &words).unwrap();
        words.set(Word::AvailIdx, base.wrapping_add(SIZE));
        assert_eq!(ring.look(&words), Ok(true));
        assert_eq!(ring.look(&words), Ok(false), "it has not moved since");
        for ahead in [SIZE + 1, SIZE + 2, 1 << 15, u16::MAX] {
            words.set(Word::AvailIdx, base.wrapping_add(ahead));
            let refused = Err(Broken::AvailableIndex);
            assert_eq!(ring.look(&words), refused, "{base} and {ahead}");
            assert_eq!(ring.arm(&words), refused, "{base} and {ahead}");
        }
    }
}

/// A ring that goes on at 0, and these heads available in it.
fn offered(features: u64, heads: &[u16]) -> (Plain, Ring) {
    let words = Plain::default();
    words.offer(0, heads);
    let ring = Ring::new(layout(), features, 0, None, &words).unwrap();
    (words, ring)
}

fn heads(ring: &mut Ring, words: &Plain) -> Vec<u16> {
    std::iter::from_fn(|| ring.next_head(words).unwrap()).collect()
}

#[test]
fn a_head_that_the_ring_has_not_or_the_device_has_already_breaks_it() {
    for bad in [SIZE, u16::MAX, 3] {
        let (words, mut ring) = offered(0, &[3, bad]);
        assert_eq!(ring.next_head(&words), Ok(Some(3)));
        assert_eq!(ring.next_head(&words), Err(Broken::Head), "{bad}");
    }
    // Given back, it may come again.
    let (words, mut ring) = offered(0, &[3, 3]);
    assert_eq!(ring.next_head(&words), Ok(Some(3)));
    ring.complete(3, 0);
    ring.publish(&words).unwrap();
    assert_eq!(heads(&mut ring, &words), [3]);
}

#[test]
fn a_batch_is_given_back_in_the_order_of_its_completion() {
    let (words, mut ring) = offered(0, &[0, 1, 2]);
    assert_eq!(ring.publish(&words), Ok(false), "nothing has completed");
    assert_eq!(heads(&mut ring, &words), [0, 1, 2]);
    ring.complete(2, 0);
    ring.complete(0, 0);
    ring.complete(2, 0);
    assert_eq!(words.get(Word::UsedIdx), 0);
    ring.publish(&words).unwrap();
    assert_eq!(words.get(Word::UsedIdx), 2);
    assert_eq!(*words.used.borrow(), [(2, 0), (0, 0)]);
    // Once each, and only what the device has.
    for head in [2, 0, 5, SIZE] {
        ring.complete(head, 0);
    }
    assert_eq!(ring.tally.unknown_completions, 5);
    assert_eq!(ring.publish(&words), Ok(false));
    assert_eq!((ring.tally.batches, words.get(Word::UsedIdx)), (1, 2));
}

/// Publishes `count` chains of which the first is the `first`-th; whether a
/// driver with this wish wants a call.
fn called(features: u64, first: u16, count: u16, wish: (Word, u16)) -> bool {
    let words = Plain::default();
    words.set(Word::UsedIdx, first);
    words.set(Word::AvailIdx, first);
    let mut ring = Ring::new(layout(), features, first, None, &words).unwrap();
    ring.call_owed = false;
    let all: Vec<_> = (0..count).collect();
    words.offer(first, &all);
    for head in heads(&mut ring, &words) {
        ring.complete(head, 0);
    }
    words.set(wish.0, wish.1);
    let called = ring.publish(&words).unwrap();
    assert_eq!(ring.tally.calls, u64::from(called));
    called
}

#[test]
fn a_driver_is_called_when_the_used_index_passes_its_event() {
    for first in [0, 7, u16::MAX - 1] {
        // It passes those of the three chains, not the one after, nor one that
        // it passed before.
        for (event, expected) in [
            (0, true),
            (1, true),
            (2, true),
            (3, false),
            (u16::MAX, false),
        ] {
            let wish = (Word::UsedEvent, first.wrapping_add(event));
            let found = called(EVENT_IDX, first, 3, wish);
            assert_eq!(found, expected, "{event} after {first}");
        }
    }
    // Without the feature its flag says it, and that alone.
    for (flags, expected) in [(0, true), (1, false), (2, true)] {
        assert_eq!(called(0, 0, 1, (Word::AvailFlags, flags)), expected);
        assert!(called(EVENT_IDX, 0, 1, (Word::AvailFlags, flags)));
    }
    assert!(called(0, 0, 1, (Word::UsedEvent, 1)));
}

#[test]
fn the_first_call_is_made_whatever_the_driver_wishes() {
    let (words, mut ring) = offered(0, &[0, 1]);
    words.set(Word::AvailFlags, 1);
    heads(&mut ring, &words);
    ring.complete(0, 0);
    assert_eq!(ring.publish(&words), Ok(true));
    ring.complete(1, 0);
    assert_eq!(ring.publish(&words), Ok(false));
}

#[test]
fn kicks_are_asked_for_after_what_was_seen_or_by_the_flag() {
    let (words, mut ring) = offered(EVENT_IDX, &[0, 1]);
    assert_eq!(ring.arm(&words), Ok(true), "they had not been seen");
    assert_eq!(ring.arm(&words), Ok(false));
    assert_eq!(words.get(Word::AvailEvent), 2);
    ring.disarm(&words).unwrap();
    assert_eq!(words.get(Word::UsedFlags), 0);

    let (words, mut ring) = offered(0, &[]);
    ring.disarm(&words).unwrap();
    assert_eq!(words.get(Word::UsedFlags), 1);
    assert_eq!(ring.arm(&words), Ok(false));
    assert_eq!(words.get(Word::UsedFlags), 0);
    assert_eq!(words.get(Word::AvailEvent), 0);
}

#[test]
fn what_is_put_back_is_the_next_to_be_taken() {
    let (words, mut ring) = offered(0, &[4, 2]);
    assert_eq!(heads(&mut ring, &words), [4, 2]);
    ring.tally.chains = 2;
    ring.put_back(2).unwrap();
    assert_eq!((ring.next_avail(), ring.tally.chains), (1, 1));
    assert_eq!(heads(&mut ring, &words), [2]);
    assert_eq!(ring.put_back(SIZE), Err(Broken::Head));
}

#[test]
fn what_is_given_back_last_first_is_available_again() {
    let (words, mut ring) = offered(0, &[4, 2, 6]);
    assert_eq!(heads(&mut ring, &words), [4, 2, 6]);
    ring.tally.chains = 3;
    for head in [6, 2] {
        ring.give_back(&words, head).unwrap();
    }
    assert_eq!((ring.next_avail(), ring.tally.chains), (1, 1));
    assert_eq!(heads(&mut ring, &words), [2, 6]);
    // Not the last: it is complete, with nothing written.
    ring.give_back(&words, 4).unwrap();
    assert_eq!((ring.next_avail(), ring.tally.chains), (3, 1));
    ring.publish(&words).unwrap();
    assert_eq!(*words.used.borrow(), [(4, 0)]);
    // Not the device's.
    for head in [4, 1, SIZE] {
        ring.give_back(&words, head).unwrap();
    }
    assert_eq!(ring.tally.unknown_completions, 3);
    assert_eq!(ring.next_avail(), 3);
}

#[test]
fn a_successor_takes_what_its_predecessor_had_and_may_put_it_back() {
    let region = Region::create(Shape::new(1, SIZE).unwrap()).unwrap();
    let block = || region.queue(0);
    let (words, mut ring) = offered(0, &[5, 2, 1, 7]);
    ring = Ring::new(*ring.layout(), 0, 0, block(), &words).unwrap();
    for head in [5, 2, 1] {
        assert_eq!(ring.next_head(&words), Ok(Some(head)));
    }
    ring.put_back(1).unwrap();

    let mut ring = Ring::new(layout(), 0, 99, block(), &words).unwrap();
    assert_eq!((ring.next_avail(), ring.tally.resubmitted), (2, 2));
    assert!(ring.is_recovering());
    assert_eq!(ring.next_head(&words), Ok(Some(5)));
    ring.put_back(5).unwrap();
    assert_eq!(heads(&mut ring, &words), [5, 2, 1, 7]);
    assert!(!ring.is_recovering());
    assert_eq!(ring.next_avail(), 4);
    // What it has taken itself goes back to the ring.
    ring.put_back(7).unwrap();
    assert_eq!(ring.next_avail(), 3);
    assert_eq!(heads(&mut ring, &words), [7]);

    // It has all of them, also those that it took over.
    ring.complete(5, 0);
    assert_eq!(ring.tally.unknown_completions, 0);

    // Its own numbers go on where those that it found end: the order stays.
    ring.give_back(&words, 7).unwrap();
    let found = copy(&region).queue(0).unwrap().recover(0, SIZE).unwrap();
    assert_eq!((found.heads(), found.counter), (vec![5, 2, 1], 7));
}

#[test]
fn a_ring_breaks_once_and_its_first_reason_stays() {
    let (_, mut ring) = offered(0, &[]);
    ring.break_off(Broken::Engine);
    ring.break_off(Broken::Head);
    assert_eq!(ring.broken(), Some(Broken::Engine));
    assert_eq!(ring.tally.broken_rings, 1);
}

#[test]
fn a_ring_moves_to_where_one_of_its_size_lies() {
    let (_, mut ring) = offered(0, &[]);
    let at = |size, used| {
        let [descriptors, available, used] = [0, 0x1000, used].map(GuestAddress);
        Layout::new(size, descriptors, available, used).unwrap()
    };
    ring.relocate(at(2 * SIZE, 0x3000));
    assert_eq!(*ring.layout(), layout());
    ring.relocate(at(SIZE, 0x3000));
    assert_eq!(*ring.layout(), at(SIZE, 0x3000));
}

/// A ring in guest memory of the layout above, with descriptors (address, and
/// length, flags, next in one) at their heads; these two heads are available.
fn in_memory(descriptors: &[(u64, u64, u64)], heads: [u16; 2]) -> Memory {
    let memory = Memory::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
    for (head, address, rest) in descriptors {
        let at = |offset| GuestAddress(16 * head + offset);
        memory.write_obj(*address, at(0)).unwrap();
        memory.write_obj(*rest, at(8)).unwrap();
    }
    memory.write_obj(heads, GuestAddress(0x1004)).unwrap();
    memory.write_obj(2u16, GuestAddress(0x1002)).unwrap();
    memory
}

const NEXT: u64 = 1 << 32;
const WRITE: u64 = 2 << 32;
const INDIRECT: u64 = 4 << 32;

#[test]
fn a_chain_is_taken_whole_and_its_used_length_has_room_in_it() {
    // Head 1: 8 bytes to read, 8 to write. Head 3: itself again.
    let loops = (3, 0, 8 | NEXT | 3 << 48);
    let table = [(1, 0x100, 8 | NEXT | 2 << 48), (2, 0x200, 8 | WRITE), loops];
    let memory = in_memory(&table, [3, 1]);
    let words = View::new(&memory, &layout()).unwrap();
    let mut ring = Ring::new(layout(), 0, 0, None, &words).unwrap();
    let mut chain = Chain::default();
    assert_eq!(ring.take(&words, &memory, &mut chain), Ok(true));
    assert_eq!((chain.head, chain.writable_bytes()), (1, 8));
    assert_eq!(ring.take(&words, &memory, &mut chain), Ok(false));
    assert_eq!((ring.tally.chains, ring.tally.malformed_chains), (1, 1));
    ring.complete(1, 9);
    ring.publish(&words).unwrap();
    assert_eq!(words.used_idx(), Ok(2));
    let used: [u32; 4] = memory.read_obj(GuestAddress(0x2004)).unwrap();
    assert_eq!(used, [3, 0, 1, 8]);
}

#[test]
fn an_indirect_table_is_read_if_it_was_agreed_on() {
    // Head 0 refers to a copy of head 1, which lies in the same table.
    let memory = in_memory(&[(0, 16, 16 | INDIRECT), (1, 0x100, 8)], [0, 1]);
    let words = View::new(&memory, &layout()).unwrap();
    let agreed = 1 << VIRTIO_RING_F_INDIRECT_DESC;
    for (features, expected) in [(agreed, 0), (0, 1), (!agreed, 1)] {
        let mut ring = Ring::new(layout(), features, 0, None, &words).unwrap();
        let mut chain = Chain::default();
        assert_eq!(ring.take(&words, &memory, &mut chain), Ok(true));
        assert_eq!(chain.head, expected, "features {features:#x}");
        assert_eq!(chain.readable.len(), 1);
    }
}

/// Words whose device may be killed before and after each access to them: each
/// time, a successor is to find in the inflight region what the driver has made
/// available and not got back.
struct Mortal {
    plain: Plain,
    region: Region,
    /// What the device was given, in order.
    given: RefCell<Vec<u16>>,
    deaths: Cell<u32>,
}

impl Mortal {
    fn die(&self) {
        self.deaths.set(self.deaths.get() + 1);
        let used = self.plain.get(Word::UsedIdx);
        let returned = self.plain.used.borrow();
        let returned = &returned[..used.into()];
        let mut expected = self.given.borrow().clone();
        expected.retain(|head| !returned.contains(&(*head, 0)));

        let left = copy(&self.region).queue(0).unwrap();
        let found = left.recover(used, SIZE).map(|found| found.heads());
        assert_eq!(found, Ok(expected), "when the used index is {used}");
    }

    fn access<T>(&self, act: impl FnOnce(&Plain) -> T) -> T {
        self.die();
        let result = act(&self.plain);
        self.die();
        result
    }
}

/// The region as it stands, for a successor to change.
fn copy(region: &Region) -> Region {
    let file = |region: &Region| File::from(region.file().try_clone_to_owned().unwrap());
    let mut bytes = vec![0; region.shape().size() as usize];
    file(region).read_exact_at(&mut bytes, 0).unwrap();
    let copy = Region::create(region.shape()).unwrap();
    file(&copy).write_all_at(&bytes, 0).unwrap();
    copy
}

impl Words for Mortal {
    fn load(&self, word: Word, order: Ordering) -> Result<u16, Broken> {
        self.access(|plain| plain.load(word, order))
    }

    fn store(&self, word: Word, value: u16, order: Ordering) -> Result<(), Broken> {
        self.access(|plain| plain.store(word, value, order))
    }

    fn set_used(&self, position: u16, head: u16, length: u32) -> Result<(), Broken> {
        self.access(|plain| plain.set_used(position, head, length))
    }
}

#[test]
fn a_device_killed_at_any_access_to_the_ring_leaves_what_the_driver_has_not_got_back() {
    let words = Mortal {
        plain: Plain::default(),
        region: Region::create(Shape::new(1, SIZE).unwrap()).unwrap(),
        given: RefCell::default(),
        deaths: Cell::new(0),
    };
    words.plain.offer(0, &[6, 1, 4, 3, 7]);
    let block = words.region.queue(0).unwrap();
    let mut ring = Ring::new(layout(), EVENT_IDX, 0, Some(block), &words).unwrap();
    while let Some(head) = ring.next_head(&words).unwrap() {
        words.given.borrow_mut().push(head);
    }
    // Two batches, in another order than they came.
    for batch in [&[3, 6][..], &[4, 7]] {
        for head in batch {
            ring.complete(*head, 0);
        }
        let deaths = words.deaths.get();
        ring.publish(&words).unwrap();
        // Around each element and the used index.
        assert!(words.deaths.get() >= deaths + 6);
    }
    words.die();
    assert_eq!(words.plain.get(Word::UsedIdx), 4);
}
