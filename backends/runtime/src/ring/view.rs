//! The three parts of a split ring in guest memory (virtio 1.3, section 2.7),
//! with accessors that are atomic where the driver writes concurrently.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use vm_memory::{AtomicAccess, Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::Broken;
use crate::device::Memory;

const FLAGS: usize = 0;
const IDX: usize = 2;
const ELEMENTS: usize = 4;

/// Where a ring lies in guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    size: u16,
    descriptors: GuestAddress,
    available: GuestAddress,
    used: GuestAddress,
}

impl Layout {
    /// A ring of `size` entries (a power of two up to 32768) with its parts at
    /// these addresses, aligned to 16, 2 and 4 (virtio 1.3, section 2.7).
    ///
    /// # Errors
    /// Says which rule is broken.
    pub fn new(
        size: u16,
        descriptors: GuestAddress,
        available: GuestAddress,
        used: GuestAddress,
    ) -> Result<Self, &'static str> {
        if !size.is_power_of_two() || size > 32768 {
            return Err("its size is not a power of two up to 32768");
        }
        let aligned = [(descriptors, 16), (available, 2), (used, 4)]
            .iter()
            .all(|(address, to)| address.0.is_multiple_of(*to));
        if !aligned {
            return Err("a part of it is misaligned");
        }
        let layout = Self {
            size,
            descriptors,
            available,
            used,
        };
        let [descriptors, available, used] = layout.parts();
        if overlap(used, descriptors) || overlap(used, available) {
            return Err("its used ring lies over another part of it");
        }
        Ok(layout)
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Bytes of the descriptor table, the available ring and the used ring of
    /// a ring of `size` entries.
    pub fn lengths(size: u16) -> [u64; 3] {
        let size = u64::from(size);
        [16 * size, 6 + 2 * size, 6 + 8 * size]
    }

    /// Whether either ring's used part, which its device writes, lies over any
    /// part of the other.
    pub fn collides(&self, other: &Self) -> bool {
        let hits = |used, parts: [(u64, u64); 3]| parts.iter().any(|part| overlap(used, *part));
        let ([_, _, ours], [_, _, theirs]) = (self.parts(), other.parts());
        hits(ours, other.parts()) || hits(theirs, self.parts())
    }

    /// Start and length of each part.
    fn parts(&self) -> [(u64, u64); 3] {
        let [descriptors, available, used] = Self::lengths(self.size);
        [
            (self.descriptors.0, descriptors),
            (self.available.0, available),
            (self.used.0, used),
        ]
    }
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.0.saturating_add(b.1) && b.0 < a.0.saturating_add(a.1)
}

/// A ring mapped. Borrows the memory, which therefore stays mapped.
#[derive(Clone, Debug)]
pub struct View<'m> {
    size: u16,
    descriptors: VolatileSlice<'m>,
    available: VolatileSlice<'m>,
    used: VolatileSlice<'m>,
}

impl<'m> View<'m> {
    /// Finds the ring in `memory`; `None` unless each part lies in one region.
    pub fn new(memory: &'m Memory, layout: &Layout) -> Option<Self> {
        let [descriptors, available, used] = layout
            .parts()
            .map(|(start, length)| (GuestAddress(start), usize::try_from(length).ok()));
        let slice =
            |(start, length): (GuestAddress, Option<usize>)| memory.get_slice(start, length?).ok();
        Some(Self {
            size: layout.size,
            descriptors: slice(descriptors)?,
            available: slice(available)?,
            used: slice(used)?,
        })
    }

    pub(super) fn descriptors(&self) -> &VolatileSlice<'m> {
        &self.descriptors
    }

    /// The driver's index: where it will put the next head.
    pub fn avail_idx(&self) -> Result<u16, Broken> {
        load(&self.available, IDX, Ordering::Acquire)
    }

    /// The head at a position of the available ring.
    pub fn avail_head(&self, position: u16) -> Result<u16, Broken> {
        let offset = ELEMENTS + 2 * self.slot(position);
        load(&self.available, offset, Ordering::Relaxed)
    }

    /// Whether the driver asked for no call (without EVENT_IDX).
    pub fn calls_suppressed(&self) -> Result<bool, Broken> {
        let flags: u16 = load(&self.available, FLAGS, Ordering::Relaxed)?;
        Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT != 0)
    }

    /// The used index after which the driver wants a call (EVENT_IDX).
    pub fn used_event(&self) -> Result<u16, Broken> {
        let offset = ELEMENTS + 2 * usize::from(self.size);
        load(&self.available, offset, Ordering::Relaxed)
    }

    /// The device's index as it stands in memory.
    pub fn used_idx(&self) -> Result<u16, Broken> {
        load(&self.used, IDX, Ordering::Acquire)
    }

    /// Writes an element that the driver does not look at yet.
    pub fn set_used(&self, position: u16, head: u16, length: u32) -> Result<(), Broken> {
        let offset = ELEMENTS + 8 * self.slot(position);
        store(&self.used, offset, u32::from(head), Ordering::Relaxed)?;
        store(&self.used, offset + 4, length, Ordering::Relaxed)
    }

    /// Gives the driver every element before `index`.
    pub fn set_used_idx(&self, index: u16) -> Result<(), Broken> {
        store(&self.used, IDX, index, Ordering::Release)
    }

    /// Asks for kicks, or for none (without EVENT_IDX).
    pub fn suppress_kicks(&self, suppress: bool) -> Result<(), Broken> {
        let flags = if suppress {
            VRING_USED_F_NO_NOTIFY as u16
        } else {
            0
        };
        store(&self.used, FLAGS, flags, Ordering::Relaxed)
    }

    /// The available index after which the device wants a kick (EVENT_IDX).
    pub fn set_avail_event(&self, index: u16) -> Result<(), Broken> {
        let offset = ELEMENTS + 8 * usize::from(self.size);
        store(&self.used, offset, index, Ordering::Relaxed)
    }

    fn slot(&self, position: u16) -> usize {
        // The size is a power of two, at least 1.
        usize::from(position & self.size.wrapping_sub(1))
    }
}

// The numbers are little-endian, as the only hosts that this is built for are.

fn load<T: AtomicAccess>(
    part: &VolatileSlice<'_>,
    offset: usize,
    order: Ordering,
) -> Result<T, Broken> {
    part.load(offset, order).map_err(|_| Broken::Unreachable)
}

fn store<T: AtomicAccess>(
    part: &VolatileSlice<'_>,
    offset: usize,
    value: T,
    order: Ordering,
) -> Result<(), Broken> {
    part.store(value, offset, order)
        .map_err(|_| Broken::Unreachable)
}
