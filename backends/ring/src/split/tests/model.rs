//! Driver and device at the same time, in every order and with every outcome
//! that the memory model allows: `loom` runs the ring on words of its own.
//!
//! Each side writes a word, then reads another of the other side's. Between
//! the two both must have a fence, or each may read what was there before the
//! other wrote: a chain is not seen and nobody is told of it. On x86 that takes
//! a store that waits in its buffer just then; here it takes one run.

use std::array;
use std::panic::{self, AssertUnwindSafe};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU16, AtomicU32};
use loom::thread;

use super::*;

/// The words of a ring whose first two elements alone are used.
struct Shared {
    words: HashMap<Word, AtomicU16>,
    used: [AtomicU32; 2],
}

impl Shared {
    fn new() -> Self {
        use Word::*;
        let words = [
            AvailFlags,
            AvailIdx,
            AvailHead(0),
            AvailHead(1),
            UsedEvent,
            UsedFlags,
            UsedIdx,
            AvailEvent,
        ];
        Self {
            words: words.map(|word| (word, AtomicU16::new(0))).into(),
            used: array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// The driver makes its next head available (section 2.7.13.3).
    fn offer(&self, position: u16, head: u16) {
        self.words[&Word::AvailHead(position)].store(head, Ordering::Relaxed);
        self.words[&Word::AvailIdx].store(position + 1, Ordering::Release);
    }
}

impl Words for Shared {
    fn load(&self, word: Word, order: Ordering) -> Result<u16, Broken> {
        Ok(self.words[&word].load(order))
    }

    fn store(&self, word: Word, value: u16, order: Ordering) -> Result<(), Broken> {
        self.words[&word].store(value, order);
        Ok(())
    }

    fn set_used(&self, position: u16, head: u16, _: u32) -> Result<(), Broken> {
        self.used[usize::from(position)].store(head.into(), Ordering::Relaxed);
        Ok(())
    }
}

thread_local! {
    static MODELLED: Cell<bool> = const { Cell::new(false) };
}

/// The fence of the ring under test: the model's in a model's run.
pub fn fence(order: Ordering) {
    if MODELLED.get() {
        loom::sync::atomic::fence(order);
    } else {
        std::sync::atomic::fence(order);
    }
}

/// Runs this in every way that there is.
fn model(run: impl Fn() + Send + Sync + 'static) {
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            MODELLED.set(false);
        }
    }
    let _end = End;
    MODELLED.set(true);
    loom::model(run);
}

/// What one side does between its write and its read.
type Fence = fn();

fn full() {
    fence(Ordering::SeqCst);
}

/// What is there before the two sides start: the first chain is with the
/// device, and each side has asked for no word of the next.
fn one_chain_ahead(features: u64) -> (Arc<Shared>, Ring) {
    let words = Arc::new(Shared::new());
    let mut ring = Ring::new(layout(), features, 0, None, &*words).unwrap();
    ring.disarm(&*words).unwrap();
    words.offer(0, 5);
    assert_eq!(ring.next_head(&*words), Ok(Some(5)));
    (words, ring)
}

/// The device asks for kicks while the driver makes a chain available and
/// looks whether a kick is wanted. It is kicked, or it has seen the chain.
fn arm_against_a_driver(features: u64, driver_fence: Fence) {
    model(move || {
        let (words, mut ring) = one_chain_ahead(features);
        let driver = thread::spawn({
            let words = words.clone();
            move || {
                words.offer(1, 3);
                driver_fence();
                if features & EVENT_IDX == 0 {
                    return words.words[&Word::UsedFlags].load(Ordering::Relaxed) == 0;
                }
                // vring_need_event() for the move from 1 to 2.
                words.words[&Word::AvailEvent].load(Ordering::Relaxed) == 1
            }
        });
        let seen = ring.arm(&*words).unwrap();
        if seen {
            assert_eq!(
                ring.next_head(&*words),
                Ok(Some(3)),
                "what was seen is there"
            );
        }
        let kicked = driver.join().unwrap();
        assert!(kicked || seen, "neither kicked nor seen");
    });
}

/// The device gives a chain back while the driver asks for calls and looks
/// whether one has come back. It is called, or it has seen the chain.
fn publish_against_a_driver(features: u64, driver_fence: Fence) {
    model(move || {
        let (words, mut ring) = one_chain_ahead(features);
        // The first call of a ring is always due; this is about those after.
        ring.complete(5, 0);
        assert_eq!(ring.publish(&*words), Ok(true));
        words.words[&Word::AvailFlags].store(1, Ordering::Relaxed);
        words.offer(1, 3);
        assert_eq!(ring.next_head(&*words), Ok(Some(3)));
        ring.complete(3, 0);
        let driver = thread::spawn({
            let words = words.clone();
            move || {
                let (wish, value) = match features & EVENT_IDX {
                    0 => (Word::AvailFlags, 0),
                    _ => (Word::UsedEvent, 1),
                };
                words.words[&wish].store(value, Ordering::Relaxed);
                driver_fence();
                let seen = words.words[&Word::UsedIdx].load(Ordering::Acquire) == 2;
                if seen {
                    let head = words.used[1].load(Ordering::Relaxed);
                    assert_eq!(head, 3, "what was seen is there");
                }
                seen
            }
        });
        let called = ring.publish(&*words).unwrap();
        let seen = driver.join().unwrap();
        assert!(called || seen, "neither called nor seen");
    });
}

#[test]
fn a_chain_made_available_while_the_device_arms_is_kicked_or_seen() {
    arm_against_a_driver(EVENT_IDX, full);
}

#[test]
fn a_chain_made_available_while_the_device_allows_kicks_is_kicked_or_seen() {
    arm_against_a_driver(0, full);
}

#[test]
fn a_chain_given_back_while_the_driver_arms_is_called_for_or_seen() {
    publish_against_a_driver(EVENT_IDX, full);
}

#[test]
fn a_chain_given_back_while_the_driver_allows_calls_is_called_for_or_seen() {
    publish_against_a_driver(0, full);
}

/// The model itself: with a driver that lacks its fence, or has one that does
/// not order a write before a read, the same runs find the loss.
#[test]
fn a_driver_without_its_fence_is_one_that_misses_a_chain() {
    let none: Fence = || {};
    let weak: Fence = || fence(Ordering::AcqRel);
    for fence in [none, weak] {
        for features in [0, EVENT_IDX] {
            for run in [arm_against_a_driver, publish_against_a_driver] {
                let run = || run(features, fence);
                let loss = panic::catch_unwind(AssertUnwindSafe(run)).unwrap_err();
                let words = loss.downcast_ref::<&str>();
                assert!(words.is_some_and(|words| words.starts_with("neither")));
            }
        }
    }
}
