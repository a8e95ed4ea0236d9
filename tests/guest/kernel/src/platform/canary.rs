//! `canary=N`: memory that no device may write is poisoned and checked: what is unused, what lies between
//! two pieces that `dma` handed out, and, by the drivers' queues, buffers of which the device has said that
//! it is done with them. Of these, N are kept aside in each queue before they are used again.

use super::phys::Span;
use super::{clock, dma, heap};
use alloc::string::String;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use guest_logic::poison;

/// Microseconds after a device's reset in which it is watched for writing.
const AFTER_RESET: u64 = 1000;

static KEEP: AtomicUsize = AtomicUsize::new(0);
static BUFFERS: AtomicU64 = AtomicU64::new(0);

/// Begins: from now on `keep` is not 0.
pub fn start(keep: usize) {
    KEEP.store(keep, Ordering::Relaxed);
    if keep != 0 {
        heap::unused().iter().for_each(fill);
        dma::unused().iter().for_each(fill);
    }
}

/// How many buffers a queue keeps aside; 0: nothing is checked.
pub fn keep() -> usize {
    KEEP.load(Ordering::Relaxed)
}

/// Poisons memory that no device has.
pub fn fill(span: &Span) {
    // SAFETY: unused, or handed out by `dma` and the caller's; no device is to have it.
    poison::fill(span.address(), unsafe { span.bytes_mut() });
}

/// Fails if poisoned memory was written.
pub fn check(span: &Span, what: &str) -> Result<(), String> {
    // SAFETY: as in `fill`.
    let bytes = unsafe { span.bytes() };
    let Some(at) = poison::first_wrong(span.address(), bytes) else {
        return Ok(());
    };
    let found = &bytes[at..bytes.len().min(at + 16)];
    Err(alloc::format!(
        "reason=canary what={what} base={:#x} length={} at={at} found={found:02x?}",
        span.address(),
        span.length()
    ))
}

/// `check` of a buffer that a device was done with, or of what it left of one; it is counted.
pub fn check_buffer(span: &Span, what: &str) -> Result<(), String> {
    BUFFERS.fetch_add(1, Ordering::Relaxed);
    check(span, what)
}

/// Fails if memory that was sent is not what it was.
pub fn check_sum(span: &Span, sum: u64, what: &str) -> Result<(), String> {
    BUFFERS.fetch_add(1, Ordering::Relaxed);
    if self::sum(span) == sum {
        return Ok(());
    }
    Err(alloc::format!(
        "reason=canary what={what} base={:#x} length={}",
        span.address(),
        span.length()
    ))
}

/// The sum of memory that a device may only read.
pub fn sum(span: &Span) -> u64 {
    // SAFETY: handed out by `dma` and the caller's; the device does not write it.
    poison::sum(unsafe { span.bytes() })
}

/// For a queue whose device was just reset and has no buffers: poisons them, and fails if they are
/// written all the same.
pub fn watch<'a>(buffers: impl Iterator<Item = &'a Span> + Clone) -> Result<(), String> {
    buffers.clone().for_each(fill);
    let begin = clock::now();
    while clock::now().wrapping_sub(begin) < clock::microseconds(AFTER_RESET) {
        core::hint::spin_loop();
    }
    for buffer in buffers {
        check_buffer(buffer, "after-reset")?;
    }
    Ok(())
}

/// Checks all memory that is unused, and says what was checked.
pub fn finish() -> Result<String, String> {
    if keep() == 0 {
        return Ok(String::new());
    }
    let mut memory = 0;
    for (spans, what) in [
        (dma::unused(), "unused"),
        (dma::gaps(), "gap"),
        // The last one: the others came from there.
        (heap::unused(), "heap"),
    ] {
        for span in spans {
            check(&span, what)?;
            memory += span.length();
        }
    }
    let buffers = BUFFERS.load(Ordering::Relaxed);
    Ok(alloc::format!(
        " canary_memory={memory} canary_buffers={buffers}"
    ))
}
