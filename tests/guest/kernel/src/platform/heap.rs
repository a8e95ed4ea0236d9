//! The heap: memory is handed out once and never taken back. A scenario allocates what it needs and the
//! guest ends.

use super::phys::Span;
use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicU64, Ordering};

struct Heap {
    next: AtomicU64,
    end: AtomicU64,
}

#[global_allocator]
static HEAP: Heap = Heap {
    next: AtomicU64::new(0),
    end: AtomicU64::new(0),
};

/// Gives the heap its memory.
///
/// # Safety
/// The range is mapped memory that nothing else uses.
pub unsafe fn start(base: u64, end: u64) {
    HEAP.end.store(end, Ordering::Relaxed);
    HEAP.next.store(base, Ordering::Release);
}

/// What was not handed out yet.
pub fn unused() -> Vec<Span> {
    let mut unused = Vec::with_capacity(1);
    let next = HEAP.next.load(Ordering::Acquire);
    let length = HEAP.end.load(Ordering::Relaxed).saturating_sub(next);
    // SAFETY: mapped memory that is nobody's until it is handed out.
    unused.push(unsafe { Span::new(next, length) });
    unused
}

// SAFETY: each range between `next` and `end` is handed out at most once.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let align = layout.align() as u64;
        let mut start = 0;
        let taken = self
            .next
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |next| {
                start = next.next_multiple_of(align);
                let end = start.checked_add(layout.size() as u64)?;
                (next != 0 && end <= self.end.load(Ordering::Relaxed)).then_some(end)
            });
        if taken.is_ok() {
            start as *mut u8
        } else {
            null_mut()
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}
