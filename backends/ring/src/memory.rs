//! The guest's memory as a device uses it: mappings of files that stay the
//! front-end's, which may cut them at any time. Every mapping is guarded
//! (`outboard_protocol::shared`).

use std::sync::atomic::Ordering;

use outboard_protocol::shared::{Alarm, Guard};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MmapRegion, VolatileSlice};

/// The guest's memory as one session has mapped it. Where it turns out not to be
/// there any more, zeroes are read instead, and the session ends.
pub type Memory = vm_memory::GuestMemoryMmap<Guard>;

/// The smallest that a page of it can be, in bytes.
pub const PAGE: u64 = 4096;

/// Looks at every page of guest memory that the kernel could not access for us
/// (EFAULT). If it is not there any more, that is found out by this, and the
/// session ends: the fault is the front-end's, not that of a file or a tap.
pub fn touch(slice: &VolatileSlice<'_>) {
    let offsets = (0..slice.len()).step_by(PAGE as usize);
    for offset in offsets.chain(slice.len().checked_sub(1)) {
        // Volatile: it is not left out.
        let _ = slice.load::<u8>(offset, Ordering::Relaxed);
    }
}

/// Whether anything that was lent with this memory has turned out not to be
/// there any more: what was read of it may be zeroes, and must not be kept.
pub fn is_lost(memory: &Memory) -> bool {
    alarm(memory).is_some_and(|alarm| alarm.lost().is_some())
}

/// Whether every mapping of `former` is one of `memory`, too: whoever keeps that
/// keeps those mapped.
pub fn keeps(memory: &Memory, former: &Memory) -> bool {
    former.iter().all(|region| {
        let same = memory.find_region(region.start_addr());
        same.is_some_and(|same| std::ptr::eq(same, region))
    })
}

/// What rings when memory is found to be gone: the same for all of a session.
pub(crate) fn alarm(memory: &Memory) -> Option<&Alarm> {
    let region: &MmapRegion<Guard> = memory.iter().next()?;
    region.bitmap().alarm()
}
