//! Rings on a test's words: what their worker cannot show.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use outboard_protocol::inflight::{Region, Shape};
use vm_memory::GuestAddress;

use super::*;

mod model;

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

    fn fence(&self, _: Ordering) {}
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
        let found = left.recover(used, SIZE).map(|found| found.heads);
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
    let file = |region: &Region| File::from(region.file().unwrap().0.try_clone_to_owned().unwrap());
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

    fn fence(&self, order: Ordering) {
        self.access(|plain| plain.fence(order));
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
