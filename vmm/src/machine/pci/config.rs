//! Configuration space of one function: a type 0 header and capabilities, as
//! bytes with a mask of what software may write (PCI 3.0, section 6).
//!
//! A BAR needs no code of its own for being sized: its size bits are not
//! writable, so writing all ones reads back as the size mask.

/// Bytes of configuration space that exist; ECAM's further ones read as zero.
pub(crate) const SIZE: usize = 256;
/// Offset of the command register.
pub(crate) const COMMAND: usize = 0x04;
/// Command: answer port accesses.
pub(crate) const COMMAND_IO: u16 = 1;
/// Command: answer memory accesses.
pub(crate) const COMMAND_MEMORY: u16 = 2;
/// Command: read and write memory, and send interrupts by it.
pub(crate) const COMMAND_MASTER: u16 = 4;
/// Command bits that software may write: I/O, memory, bus master, parity,
/// SERR, INTx disable.
const COMMAND_WRITABLE: u16 = 0x0547;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u16 = 0x10;
const FIRST_BAR: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// Capabilities start here, after the header.
const FIRST_CAPABILITY: usize = 0x40;

/// What a header says that never changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    /// Vendor id.
    pub(crate) vendor: u16,
    /// Device id.
    pub(crate) device: u16,
    /// Revision.
    pub(crate) revision: u8,
    /// Class, subclass and programming interface, the last in the low byte.
    pub(crate) class: u32,
    /// Subsystem vendor id.
    pub(crate) subsystem_vendor: u16,
    /// Subsystem id.
    pub(crate) subsystem: u16,
}

/// The kind of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bar {
    /// 32-bit memory, not prefetchable.
    Memory,
    /// Ports.
    Io,
}

/// Configuration space as software sees it.
#[derive(Clone, Debug)]
pub(crate) struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    end: usize,
    last_link: usize,
}

impl ConfigSpace {
    /// A function without BARs and capabilities.
    pub(crate) fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            end: FIRST_CAPABILITY,
            last_link: CAPABILITIES,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        let class = identity.class << 8 | u32::from(identity.revision);
        space.put(0x08, &class.to_le_bytes());
        space.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.put(0x2e, &identity.subsystem.to_le_bytes());
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Adds a BAR of `size` bytes, a power of two of at least 16 (memory) or 4
    /// (ports), at address 0.
    pub(crate) fn add_bar(&mut self, index: usize, kind: Bar, size: u32) {
        let at = bar_at(index);
        self.allow(at, &(!(size.wrapping_sub(1))).to_le_bytes());
        if kind == Bar::Io {
            self.put(at, &1u32.to_le_bytes());
        }
    }

    /// Places a BAR, as firmware would; software may move it.
    pub(crate) fn place_bar(&mut self, index: usize, address: u32) {
        self.write(bar_at(index), &address.to_le_bytes());
    }

    /// The address in a BAR, and whether it is what sizing leaves there.
    pub(crate) fn bar(&self, index: usize) -> (u32, bool) {
        let at = bar_at(index);
        let mask = u32::from_le_bytes(self.four(&self.writable, at));
        let address = u32::from_le_bytes(self.four(&self.bytes, at)) & mask;
        (address, address == mask)
    }

    /// Appends a capability: its id, then a link, then `body`; `writable` masks
    /// the body. Returns the offset of the capability.
    pub(crate) fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.end;
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.put(self.last_link, &[at as u8]);
        self.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.last_link = at + 1;
        self.end = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// The command register.
    pub(crate) fn command(&self) -> u16 {
        self.word(COMMAND)
    }

    /// The two bytes at `offset`.
    pub(crate) fn word(&self, offset: usize) -> u16 {
        let [low, high, ..] = self.four(&self.bytes, offset);
        u16::from_le_bytes([low, high])
    }

    /// The four bytes at `offset`.
    pub(crate) fn double_word(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.four(&self.bytes, offset))
    }

    /// Reads; what does not exist reads as zero.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(offset + index).copied().unwrap_or(0);
        }
    }

    /// Writes what is writable.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        for (index, value) in data.iter().enumerate() {
            let at = offset + index;
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = *byte & !mask | value & mask;
            }
        }
    }

    /// Sets bytes, writable or not.
    pub(crate) fn put(&mut self, offset: usize, data: &[u8]) {
        for (byte, value) in self.bytes.iter_mut().skip(offset).zip(data) {
            *byte = *value;
        }
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        for (byte, value) in self.writable.iter_mut().skip(offset).zip(mask) {
            *byte = *value;
        }
    }

    fn four(&self, bytes: &[u8; SIZE], offset: usize) -> [u8; 4] {
        let slice = bytes.get(offset..offset.saturating_add(4));
        slice
            .and_then(|four| four.try_into().ok())
            .unwrap_or([0; 4])
    }
}

/// Offset of a BAR's register; `index` is 0 to 5.
fn bar_at(index: usize) -> usize {
    FIRST_BAR + 4 * index
}

/// Whether an access of `len` bytes at `offset` touches `range`.
pub(crate) fn touches(offset: usize, len: usize, range: std::ops::Range<usize>) -> bool {
    offset < range.end && range.start < offset.saturating_add(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_80_00,
            subsystem_vendor: 0x1af4,
            subsystem: 2,
        });
        space.add_bar(0, Bar::Memory, 0x8000);
        space.add_bar(2, Bar::Io, 0x100);
        space
    }

    fn read(space: &ConfigSpace, offset: usize) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_header_reads_as_it_was_made_and_identity_is_not_writable() {
        let mut space = space();
        for offset in (0..16).chain(0x28..0x34) {
            if !(4..6).contains(&offset) {
                space.write(offset, &[0xff]);
            }
        }
        assert_eq!(read(&space, 0), 0x1042_1af4);
        assert_eq!(read(&space, 8), 0x0180_0001);
        assert_eq!(read(&space, 0x2c), 0x0002_1af4);
        assert_eq!(read(&space, 0x0c), 0);
    }

    #[test]
    fn a_bar_reads_its_size_after_all_ones_and_its_kind_always() {
        let mut space = space();
        for (index, size) in [(0, 0xffff_8000), (2, 0xffff_ff01)] {
            space.place_bar(index, 0xc123_4567);
            space.write(bar_at(index), &[0xff; 4]);
            assert_eq!(read(&space, bar_at(index)), size);
            assert!(space.bar(index).1, "recognised as sizing");
            space.place_bar(index, 0xc000_8000);
            assert_eq!(space.bar(index), (0xc000_8000, false));
        }
        space.write(bar_at(1), &[0xff; 4]);
        assert_eq!(read(&space, bar_at(1)), 0, "no such BAR");
    }

    #[test]
    fn capabilities_form_a_list_that_ends() {
        let mut space = space();
        space.add_capability(9, &[16, 1], &[]);
        space.add_capability(0x11, &[0; 10], &[0, 0xc0]);
        let mut seen = Vec::new();
        let mut at = read(&space, CAPABILITIES) & 0xff;
        while at != 0 {
            let header = read(&space, at as usize);
            seen.push(header & 0xff);
            at = header >> 8 & 0xff;
        }
        assert_eq!(seen, [9, 0x11]);
        assert_eq!(read(&space, COMMAND) >> 16 & 0x10, 0x10);
    }

    #[test]
    fn accesses_across_and_beyond_the_end_are_harmless() {
        let mut space = space();
        let mut data = [0xaa; 8];
        space.read(SIZE - 4, &mut data);
        space.write(SIZE - 4, &data);
        space.read(SIZE + 100, &mut data);
        assert_eq!(data, [0; 8]);
    }
}
