//! Where a function's BARs are decoded. Written under the function's lock, read
//! without one: every access to the PCI windows asks this.
//!
//! ```text
//! address ── Places ──▶ slots that may have it, mostly one
//!                          └── Decoded ──▶ its BAR is there: offset in it
//! ```

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::layout::{IO_SIZE, MEMORY_SIZE};

/// No address of either window.
const NOWHERE: u64 = u64::MAX;
/// Places of one address space: BARs side by side share none.
const PLACES: u64 = 64;

/// The slots that have a BAR at an address, of one address space. A BAR lies at
/// a multiple of its size, and all have the same one, so each is at one place;
/// of the addresses that differ by [`PLACES`] BARs, all are at the same.
#[derive(Debug)]
pub(crate) struct Places {
    /// Bytes in a BAR.
    size: u64,
    /// A bit for each slot.
    slots: [AtomicU32; PLACES as usize],
}

impl Places {
    /// Those of BARs of this size.
    pub(crate) fn of(size: u32) -> Self {
        Self {
            size: size.into(),
            slots: [const { AtomicU32::new(0) }; PLACES as usize],
        }
    }

    /// The slots whose BAR may be at this address, from the lowest on.
    pub(crate) fn at(&self, address: u64) -> impl Iterator<Item = usize> {
        let place = self.slots.get(self.place(address));
        let mut left = place.map_or(0, |slots| slots.load(Ordering::Acquire));
        std::iter::from_fn(move || {
            let slot = left.trailing_zeros();
            left &= left.checked_sub(1)?;
            Some(slot as usize)
        })
    }

    /// The BAR of a slot was moved. One that stays where it is, is there all the
    /// time: another vCPU may be about to access it.
    fn moved(&self, slot: u8, from: u64, to: u64) {
        let [old, new] = [from, to].map(|base| (base != NOWHERE).then(|| self.place(base)));
        let get = |place: Option<usize>| self.slots.get(place?);
        let bit = 1 << slot;
        if old == new {
            return;
        }
        if let Some(slots) = get(new) {
            slots.fetch_or(bit, Ordering::AcqRel);
        }
        if let Some(slots) = get(old) {
            slots.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    fn place(&self, address: u64) -> usize {
        (address / self.size % PLACES) as usize
    }
}

/// First addresses, while they are decoded.
#[derive(Debug, Default)]
pub(crate) struct Decoded {
    memory: Base,
    ports: Base,
}

impl Decoded {
    /// The function is in this slot, 1 to 31: whatever becomes of its BARs from
    /// now on is told to these.
    pub(crate) fn seat(&self, slot: u8, memory: &Arc<Places>, ports: &Arc<Places>) {
        for (base, places) in [(&self.memory, memory), (&self.ports, ports)] {
            base.seat.get_or_init(|| (slot, Arc::clone(places)));
        }
    }

    /// The memory BAR lies at this guest-physical address, or nowhere.
    pub(crate) fn set_memory(&self, base: Option<u64>) {
        self.memory.set(base);
    }

    /// The I/O BAR lies at this port, or nowhere.
    pub(crate) fn set_ports(&self, base: Option<u16>) {
        self.ports.set(base.map(u64::from));
    }

    /// Where the memory BAR lies.
    pub(crate) fn memory(&self) -> Option<u64> {
        self.memory.get()
    }

    /// Where the I/O BAR lies.
    pub(crate) fn ports(&self) -> Option<u16> {
        self.ports.get().and_then(|base| u16::try_from(base).ok())
    }

    /// Offset of a guest-physical address in the memory BAR, if it lies there.
    pub(crate) fn in_memory(&self, address: u64) -> Option<u32> {
        offset(self.memory()?, address, MEMORY_SIZE)
    }

    /// Offset of a port in the I/O BAR, if it lies there.
    pub(crate) fn in_ports(&self, port: u16) -> Option<u32> {
        offset(self.ports()?.into(), port.into(), IO_SIZE)
    }
}

/// The first address of one BAR.
#[derive(Debug)]
struct Base {
    address: AtomicU64,
    /// The slot, and who else is to know.
    seat: OnceLock<(u8, Arc<Places>)>,
}

impl Default for Base {
    fn default() -> Self {
        Self {
            address: AtomicU64::new(NOWHERE),
            seat: OnceLock::new(),
        }
    }
}

impl Base {
    fn set(&self, base: Option<u64>) {
        let to = base.unwrap_or(NOWHERE);
        let from = self.address.swap(to, Ordering::AcqRel);
        if let Some((slot, places)) = self.seat.get() {
            places.moved(*slot, from, to);
        }
    }

    fn get(&self) -> Option<u64> {
        Some(self.address.load(Ordering::Acquire)).filter(|base| *base != NOWHERE)
    }
}

fn offset(base: u64, address: u64, size: u32) -> Option<u32> {
    let offset = u32::try_from(address.checked_sub(base)?).ok()?;
    (offset < size).then_some(offset)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    const WINDOW: u64 = 0xc000_0000;
    const SIZE: u64 = MEMORY_SIZE as u64;

    #[test]
    fn an_address_is_within_a_bar_from_its_first_to_its_last_byte() {
        let decoded = Decoded::default();
        for address in [0, 0xc000_0000, u64::MAX] {
            assert_eq!(decoded.in_memory(address), None);
        }
        assert_eq!(decoded.in_ports(u16::MAX), None);
        decoded.set_memory(Some(0xc000_8000));
        decoded.set_ports(Some(0xc100));
        for (address, offset) in [
            (0xc000_7fff, None),
            (0xc000_8000, Some(0)),
            (0xc000_ffff, Some(0x7fff)),
            (0xc001_0000, None),
        ] {
            assert_eq!(decoded.in_memory(address), offset, "{address:#x}");
        }
        let ports = [0xc0ff, 0xc100, 0xc1ff, 0xc200].map(|port| decoded.in_ports(port));
        assert_eq!(ports, [None, Some(0), Some(0xff), None]);
        decoded.set_memory(None);
        decoded.set_ports(None);
        assert_eq!((decoded.memory(), decoded.ports()), (None, None));
    }

    /// Of as many functions as there are slots, what their BARs are told to.
    fn seated() -> (Vec<Decoded>, Arc<Places>, Arc<Places>) {
        let (memory, ports) = (
            Arc::new(Places::of(MEMORY_SIZE)),
            Arc::new(Places::of(IO_SIZE)),
        );
        let seat = |slot| {
            let decoded = Decoded::default();
            decoded.seat(slot, &memory, &ports);
            decoded
        };
        ((1..=31).map(seat).collect(), memory, ports)
    }

    fn list(places: &Places, address: u64) -> Vec<usize> {
        places.at(address).collect()
    }

    #[test]
    fn of_bars_side_by_side_one_is_asked_whichever_it_is() {
        let (functions, memory, ports) = seated();
        for (decoded, slot) in functions.iter().zip(1u16..) {
            decoded.set_memory(Some(WINDOW + u64::from(slot) * SIZE));
            decoded.set_ports(Some(0xc000 + slot * IO_SIZE as u16));
        }
        for slot in 1..=31u64 {
            let base = WINDOW + slot * SIZE;
            assert_eq!(list(&memory, base), [slot as usize]);
            assert_eq!(list(&memory, base + SIZE - 1), [slot as usize]);
            let port = 0xc000 + slot * u64::from(IO_SIZE);
            assert_eq!(list(&ports, port), [slot as usize]);
        }
        for slot in [0, 32] {
            assert_eq!(list(&memory, WINDOW + slot * SIZE), [0; 0]);
        }
    }

    #[test]
    fn a_bar_is_found_at_all_times_while_others_come_to_its_place_and_go() {
        let (functions, memory, _) = seated();
        let [stays, moves, far, ..] = functions.as_slice() else {
            panic!("31 functions");
        };
        let (here, there) = (WINDOW + SIZE, WINDOW + (1 + PLACES) * SIZE);
        stays.set_memory(Some(here));
        let turns = 100_000u64;
        thread::scope(|scope| {
            scope.spawn(|| {
                for turn in 0..turns {
                    // As each write to the command register does.
                    stays.set_memory(Some(here));
                    let place = WINDOW + turn % (3 * PLACES) * SIZE;
                    moves.set_memory(Some(place));
                    assert!(memory.at(place).any(|slot| slot == 2), "{turn}");
                    moves.set_memory(None);
                    assert!(!memory.at(place).any(|slot| slot == 2), "{turn}");
                }
            });
            scope.spawn(|| {
                for _ in 0..turns {
                    far.set_memory(Some(there));
                    far.set_memory(None);
                }
            });
            for _ in 0..turns {
                assert_eq!(memory.at(here).next(), Some(1));
            }
        });
        assert_eq!(list(&memory, here), [1]);
    }

    proptest! {
        /// The model asks each function in turn.
        #[test]
        fn who_is_asked_are_all_those_that_a_search_through_all_finds(
            moves in prop::collection::vec((0..31usize, prop::option::of(0..200u64)), 1..200),
        ) {
            let (functions, memory, _) = seated();
            for (function, place) in moves {
                functions[function].set_memory(place.map(|place| WINDOW + place * SIZE));
            }
            for place in 0..200 {
                let address = WINDOW + place * SIZE + 0x123;
                let has = |slot: &usize| functions[slot - 1].in_memory(address).is_some();
                let found: Vec<_> = memory.at(address).filter(has).collect();
                let model: Vec<_> = (1..=31).filter(has).collect();
                prop_assert_eq!(found, model);
            }
        }
    }
}
