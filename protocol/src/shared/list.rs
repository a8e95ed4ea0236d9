//! The list of guarded ranges: written under a lock, read by a signal's handler
//! without one.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Alarm, INFLIGHT, Place};

/// Ranges in a block; more blocks are made as they are needed and never freed,
/// so that the handler can walk over them at any time.
const BLOCK: usize = 64;

/// A place for one range.
struct Slot {
    /// Odd while the rest is being changed.
    turn: AtomicUsize,
    /// 0 when the place is free.
    start: AtomicUsize,
    size: AtomicUsize,
    page: AtomicUsize,
    /// [`INFLIGHT`], or the guest address of the start.
    place: AtomicU64,
    alarm: AtomicPtr<Alarm>,
}

struct Block {
    slots: [Slot; BLOCK],
    next: AtomicPtr<Block>,
}

static FIRST: Block = Block::new();
/// Held by whoever changes the list.
static WRITING: Mutex<()> = Mutex::new(());

impl Slot {
    const fn new() -> Self {
        Self {
            turn: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            size: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            place: AtomicU64::new(0),
            alarm: AtomicPtr::new(null_mut()),
        }
    }

    /// Makes it another range's. One thread at a time.
    fn set(&self, range: Range) {
        self.turn.fetch_add(1, SeqCst);
        self.start.store(range.start, SeqCst);
        self.size.store(range.size, SeqCst);
        self.page.store(range.page, SeqCst);
        self.place.store(range.place, SeqCst);
        self.alarm.store(range.alarm.cast_mut(), SeqCst);
        self.turn.fetch_add(1, SeqCst);
    }

    /// The range as it is, unless it is just being changed.
    fn get(&self) -> Option<Range> {
        let before = self.turn.load(SeqCst);
        let range = Range {
            start: self.start.load(SeqCst),
            size: self.size.load(SeqCst),
            page: self.page.load(SeqCst),
            place: self.place.load(SeqCst),
            alarm: self.alarm.load(SeqCst),
        };
        let whole = before.is_multiple_of(2) && self.turn.load(SeqCst) == before;
        whole.then_some(range)
    }
}

impl Block {
    const fn new() -> Self {
        Self {
            slots: [const { Slot::new() }; BLOCK],
            next: AtomicPtr::new(null_mut()),
        }
    }

    fn next(&self) -> Option<&'static Self> {
        // SAFETY: null, or a block that was leaked, and so stays.
        unsafe { self.next.load(SeqCst).as_ref() }
    }
}

fn blocks() -> impl Iterator<Item = &'static Block> {
    std::iter::successors(Some(&FIRST), |block| block.next())
}

/// A guarded range, as the handler sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub start: usize,
    pub size: usize,
    /// Size of its pages.
    pub page: usize,
    place: u64,
    /// Valid for as long as the range is on the list.
    pub alarm: *const Alarm,
}

impl Range {
    /// The range on the list that an address lies in. Safe in a signal's
    /// handler.
    pub fn with(address: usize) -> Option<Self> {
        let mut slots = blocks().flat_map(|block| &block.slots);
        slots.find_map(|slot| {
            let range = slot.get()?;
            let within = address.checked_sub(range.start)? < range.size;
            (range.start != 0 && within).then_some(range)
        })
    }

    /// The page of the range that an address in it lies in: start and size.
    pub fn page_of(&self, address: usize) -> (usize, usize) {
        let into = address.wrapping_sub(self.start);
        let first = into.wrapping_sub(into.checked_rem(self.page).unwrap_or(0));
        let left = self.size.wrapping_sub(first);
        (self.start.wrapping_add(first), left.min(self.page))
    }

    /// The number by which an [`Alarm`] is told of an address in the range.
    pub fn lost(&self, address: usize) -> u64 {
        if self.place == INFLIGHT {
            return INFLIGHT;
        }
        let (page, _) = self.page_of(address);
        let into = page.wrapping_sub(self.start) as u64;
        // A guest address of a page is less than the numbers with a meaning.
        self.place.wrapping_add(into) & !0xfff
    }
}

/// A range on the list; dropping it takes it off.
#[derive(Debug)]
pub(super) struct Entry {
    slot: &'static Slot,
    /// Keeps alive what the handler is told.
    alarm: Arc<Alarm>,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Slot").field(&self.get()).finish()
    }
}

impl Entry {
    /// Puts a range of pages on the list.
    pub fn new(start: usize, size: usize, page: usize, place: Place, alarm: &Arc<Alarm>) -> Self {
        let range = Range {
            start,
            size,
            page,
            place: match place {
                Place::Guest(address) => address,
                Place::Inflight => INFLIGHT,
            },
            alarm: Arc::as_ptr(alarm),
        };
        let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = free();
        slot.set(range);
        let alarm = alarm.clone();
        Self { slot, alarm }
    }

    /// What rings.
    pub fn alarm(&self) -> &Alarm {
        &self.alarm
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        self.slot.set(Range {
            start: 0,
            size: 0,
            page: 0,
            place: 0,
            alarm: null_mut(),
        });
    }
}

/// A free place, in a new block if need be.
fn free() -> &'static Slot {
    let mut last = &FIRST;
    for block in blocks() {
        let mut slots = block.slots.iter();
        if let Some(slot) = slots.find(|slot| slot.start.load(SeqCst) == 0) {
            return slot;
        }
        last = block;
    }
    let block: &'static Block = Box::leak(Box::new(Block::new()));
    last.next
        .store(std::ptr::from_ref(block).cast_mut(), SeqCst);
    let [first, ..] = &block.slots;
    first
}
