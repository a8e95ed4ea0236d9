//! The three parts of a split ring in guest memory (virtio 1.3, section 2.7),
//! and where in there its words lie.

use std::sync::atomic::Ordering;

use outboard_protocol::shared::Alarm;
use vm_memory::{AtomicAccess, Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::broken::Broken;
use crate::memory::{Memory, alarm};
use crate::words::{Word, Words};

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
        let of = |each: u64| size.saturating_mul(each);
        [of(16), of(2).saturating_add(6), of(8).saturating_add(6)]
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
///
/// Once anything that the front-end lent turns out not to be there any more,
/// no word can be accessed: what was read may be zeroes in the place of what
/// was there, and what a device has done with such must not reach the driver.
#[derive(Clone, Debug)]
pub struct View<'m> {
    size: u16,
    descriptors: VolatileSlice<'m>,
    available: VolatileSlice<'m>,
    used: VolatileSlice<'m>,
    alarm: Option<&'m Alarm>,
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
            alarm: alarm(memory),
        })
    }

    /// Whether all that was lent is still there, as far as anybody has noticed.
    fn check(&self) -> Result<(), Broken> {
        match self.alarm.and_then(Alarm::lost) {
            None => Ok(()),
            Some(_) => Err(Broken::Unreachable),
        }
    }

    pub(crate) fn descriptors(&self) -> &VolatileSlice<'m> {
        &self.descriptors
    }

    /// The part that a word lies in, and where in there.
    fn place(&self, word: Word) -> (&VolatileSlice<'m>, usize) {
        match word {
            Word::AvailFlags => (&self.available, FLAGS),
            Word::AvailIdx => (&self.available, IDX),
            Word::AvailHead(position) => (&self.available, element(2, self.slot(position))),
            Word::UsedEvent => (&self.available, element(2, self.size.into())),
            Word::UsedFlags => (&self.used, FLAGS),
            Word::UsedIdx => (&self.used, IDX),
            Word::AvailEvent => (&self.used, element(8, self.size.into())),
        }
    }

    fn slot(&self, position: u16) -> usize {
        // The size is a power of two, at least 1.
        usize::from(position & self.size.wrapping_sub(1))
    }
}

// The numbers are little-endian, as the only hosts that this is built for are.

impl Words for View<'_> {
    fn load(&self, word: Word, order: Ordering) -> Result<u16, Broken> {
        let (part, offset) = self.place(word);
        let value = part.load(offset, order).map_err(|_| Broken::Unreachable)?;
        self.check().map(|()| value)
    }

    fn store(&self, word: Word, value: u16, order: Ordering) -> Result<(), Broken> {
        self.check()?;
        let (part, offset) = self.place(word);
        store(part, offset, value, order)
    }

    fn set_used(&self, position: u16, head: u16, length: u32) -> Result<(), Broken> {
        let offset = element(8, self.slot(position));
        store(&self.used, offset, u32::from(head), Ordering::Relaxed)?;
        store(
            &self.used,
            offset.saturating_add(4),
            length,
            Ordering::Relaxed,
        )
    }
}

/// Where an element of so many bytes lies in its part, or what follows the last.
fn element(bytes: usize, slot: usize) -> usize {
    bytes.saturating_mul(slot).saturating_add(ELEMENTS)
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
