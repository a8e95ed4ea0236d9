//! What the machine itself looks at in a ring: where it lies, and how far its
//! device has come.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VRING_USED_F_NO_NOTIFY;
use vm_memory::{ByteValued, Bytes, GuestAddress};

use crate::machine::memory::Ram;
use crate::machine::virtio::Ring;

/// Where a part of a ring lies.
struct Part {
    start: u64,
    length: u64,
    alignment: u64,
}

impl Part {
    /// The descriptor table, the available ring, and the used ring, which the
    /// device writes (virtio 1.3, section 2.7).
    fn all(ring: &Ring) -> [Self; 3] {
        let size = u64::from(ring.size);
        let part = |start, length, alignment| Self {
            start,
            length,
            alignment,
        };
        [
            part(ring.descriptors, 16 * size, 16),
            part(ring.available, 6 + 2 * size, 2),
            part(ring.used, 6 + 8 * size, 4),
        ]
    }

    fn is_placed(&self, ram: &Ram) -> bool {
        let inside = |region: &crate::machine::memory::Region| {
            let start = self.start.checked_sub(region.guest_phys);
            let end = start.and_then(|start| start.checked_add(self.length));
            end.is_some_and(|end| end <= region.size)
        };
        self.start.is_multiple_of(self.alignment) && ram.regions().iter().any(inside)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let end = |part: &Self| part.start.saturating_add(part.length);
        self.start < end(other) && other.start < end(self)
    }
}

/// Whether these rings are such as a back-end can serve side by side: each part
/// is aligned and lies in guest memory in one piece (virtio 1.3, section 2.7),
/// and what a device writes, the used rings, lies over no other part of any. A
/// back-end refuses others, as it may, and what it refuses ends its session.
pub(crate) fn are_sound(rings: &[Ring], ram: &Ram) -> bool {
    let parts: Vec<Part> = rings.iter().flat_map(Part::all).collect();
    let of_used = parts.iter().enumerate().skip(2).step_by(3);
    let apart = |(at, used): (usize, &Part)| {
        let mut others = parts.iter().enumerate().filter(|(other, _)| *other != at);
        others.all(|(_, other)| !used.overlaps(other))
    };
    parts.iter().all(|part| part.is_placed(ram)) && of_used.into_iter().all(apart)
}

/// Whether the device has still to return chains of a ring that it stopped at
/// the available index `base`. It says so by the used index; one that cannot be
/// its own any more was overwritten by the guest and says nothing.
pub(crate) fn is_under_way(ring: &Ring, base: u16, ram: &Ram) -> bool {
    let used = used_index(ring, ram).unwrap_or(base);
    (1..=ring.size).contains(&base.wrapping_sub(used))
}

/// How far driver and device had come when the device was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    available: u16,
    used: u16,
    in_order: bool,
}

impl Progress {
    /// The used index.
    pub(crate) fn used(self) -> u16 {
        self.used
    }

    /// Whether the driver had nothing outstanding.
    pub(crate) fn is_idle(self) -> bool {
        self.available == self.used
    }

    /// Whether everything was returned in the order in which it was made available,
    /// as far as that can still be seen: the available ring has room for as many
    /// entries as may be outstanding, and what is older was overwritten.
    pub(crate) fn is_in_order(self) -> bool {
        self.in_order
    }
}

/// How far a ring has come that lies in guest memory ([`are_sound`]); nothing has,
/// where it does not.
pub(crate) fn progress(ring: &Ring, ram: &Ram) -> Progress {
    let available = index(ring.available, ram).unwrap_or_default();
    let used = used_index(ring, ram).unwrap_or_default();
    let outstanding = available.wrapping_sub(used);
    let seen = ring.size.saturating_sub(outstanding);
    let same = |back: u16| {
        let at = u64::from(used.wrapping_sub(back) & ring.size.wrapping_sub(1));
        let taken: Option<u16> = read(ring.available, 4 + 2 * at, ram);
        let returned: Option<u32> = read(ring.used, 4 + 8 * at, ram);
        taken.map(|head| u32::from(u16::from_le(head))) == returned.map(u32::from_le)
    };
    // A ring that has not come so far yet has older entries that say nothing.
    let in_order = (1..=seen.min(used)).all(same);
    Progress {
        available,
        used,
        in_order,
    }
}

/// Where the two sides of a ring are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Indices {
    /// How many chains the driver has made available, modulo 65536.
    pub(crate) available: u16,
    /// How many the device has returned, modulo 65536.
    pub(crate) used: u16,
    /// The device has asked for a kick with the next chain.
    pub(crate) kicks_wanted: bool,
}

/// Where the two sides of a ring are just now (virtio 1.3, section 2.7); `event_idx`: its
/// driver has acknowledged EVENT_IDX. `None`: the ring is not in memory.
pub(crate) fn indices(ring: &Ring, event_idx: bool, ram: &Ram) -> Option<Indices> {
    let word = |address: Option<u64>| {
        let word: u16 = ram
            .guest()
            .load(GuestAddress(address?), Ordering::Acquire)
            .ok()?;
        Some(u16::from_le(word))
    };
    let available = word(ring.available.checked_add(2))?;
    let kicks_wanted = if event_idx {
        let entries = u64::from(ring.size).saturating_mul(8);
        // The device's event index is behind its ring.
        word(ring.used.checked_add(4 + entries))? == available
    } else {
        word(Some(ring.used))? & VRING_USED_F_NO_NOTIFY as u16 == 0
    };
    Some(Indices {
        available,
        used: used_index(ring, ram)?,
        kicks_wanted,
    })
}

/// The used index: how many chains the device has returned, modulo 65536.
fn used_index(ring: &Ring, ram: &Ram) -> Option<u16> {
    index(ring.used, ram)
}

/// The index of the available or the used ring that lies there.
fn index(part: u64, ram: &Ram) -> Option<u16> {
    let address = GuestAddress(part.checked_add(2)?);
    let index: u16 = ram.guest().load(address, Ordering::Acquire).ok()?;
    Some(u16::from_le(index))
}

fn read<T: ByteValued>(part: u64, offset: u64, ram: &Ram) -> Option<T> {
    let address = GuestAddress(part.checked_add(offset)?);
    ram.guest().read_obj(address).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::Backing;

    #[test]
    fn a_ring_must_be_aligned_and_in_memory_as_a_whole() {
        let ram = Ram::new(4 << 20, Backing::default()).unwrap();
        let good = Ring {
            index: 0,
            size: 256,
            descriptors: 0x1000,
            available: 0x2000,
            used: 0x3000,
        };
        assert!(are_sound(&[good], &ram));
        let end = 4 << 20;
        let last = [
            Ring {
                descriptors: end - 4096,
                ..good
            },
            Ring {
                available: end - 518,
                ..good
            },
            Ring {
                used: end - 2056,
                ..good
            },
        ];
        for last in last {
            assert!(are_sound(&[last], &ram), "up to the last byte");
        }
        for bad in [
            Ring {
                descriptors: 0x1008,
                ..good
            },
            Ring {
                available: 0x2001,
                ..good
            },
            Ring {
                used: 0x3002,
                ..good
            },
            Ring {
                descriptors: end - 4080,
                ..good
            },
            Ring {
                available: end - 516,
                ..good
            },
            Ring {
                used: end - 2052,
                ..good
            },
            Ring { used: end, ..good },
            Ring { used: !3, ..good },
            Ring {
                descriptors: 0xc000_0000,
                ..good
            },
        ] {
            assert!(!are_sound(&[bad], &ram), "{bad:x?}");
        }
    }

    /// What a device reads may lie over what it reads.
    #[test]
    fn a_used_ring_lies_over_nothing_of_any_ring() {
        let ram = Ram::new(4 << 20, Backing::default()).unwrap();
        // 4096, 518 and 2054 bytes.
        let one = Ring {
            index: 0,
            size: 256,
            descriptors: 0x1000,
            available: 0x2000,
            used: 0x3000,
        };
        let with_used = |used| Ring { used, ..one };
        for (used, sound) in [
            (0x1000, false),
            (0x1ffc, false),
            (0x2204, false),
            (0x2208, true),
            (0x0800, false),
            (0x07f8, true),
        ] {
            assert_eq!(are_sound(&[with_used(used)], &ram), sound, "{used:#x}");
        }
        let other = Ring {
            index: 1,
            size: 256,
            descriptors: 0x5000,
            available: 0x6000,
            used: 0x7000,
        };
        assert!(are_sound(&[one, other], &ram));
        let reads_the_same = Ring {
            descriptors: one.descriptors,
            available: one.available,
            ..other
        };
        assert!(are_sound(&[one, reads_the_same], &ram));
        for bad in [
            Ring {
                used: one.used,
                ..other
            },
            Ring {
                used: one.used + 2048,
                ..other
            },
            Ring {
                descriptors: one.used,
                ..other
            },
            Ring {
                used: one.available,
                ..other
            },
        ] {
            assert!(!are_sound(&[one, bad], &ram), "{bad:x?}");
            assert!(!are_sound(&[bad, one], &ram), "{bad:x?}");
        }
    }

    #[test]
    fn requests_are_under_way_as_long_as_the_used_index_can_be_the_device_s() {
        let ram = Ram::new(4 << 20, Backing::default()).unwrap();
        let ring = Ring {
            index: 0,
            size: 256,
            descriptors: 0x1000,
            available: 0x2000,
            used: 0x3000,
        };
        for (base, used, under_way) in [
            (5, 5, false),
            (5, 4, true),
            (5, 0xff05, true),
            (5, 0xff04, false),
            (5, 6, false),
            (0, 0xffff, true),
        ] {
            ram.guest().write_obj(used, GuestAddress(0x3002)).unwrap();
            assert_eq!(is_under_way(&ring, base, &ram), under_way, "{base} {used}");
        }
    }

    #[test]
    fn both_sides_of_a_ring_say_where_they_are_and_whether_a_kick_is_wanted() {
        let ram = Ram::new(4 << 20, Backing::default()).unwrap();
        let ring = Ring {
            index: 0,
            size: 256,
            descriptors: 0x1000,
            available: 0x2000,
            used: 0x3000,
        };
        let write = |address, value: u16| {
            ram.guest().write_obj(value, GuestAddress(address)).unwrap();
        };
        write(0x2002, 9);
        write(0x3002, 7);
        for (flags, event, event_idx, kicks_wanted) in [
            (0, 0, false, true),
            (1, 9, false, false),
            (1, 9, true, true),
            (0, 8, true, false),
        ] {
            write(0x3000, flags);
            write(0x3004 + 8 * 256, event);
            let expected = Indices {
                available: 9,
                used: 7,
                kicks_wanted,
            };
            assert_eq!(indices(&ring, event_idx, &ram), Some(expected));
        }
        let nowhere = Ring { used: !3, ..ring };
        assert_eq!(indices(&nowhere, true, &ram), None);
    }
}
