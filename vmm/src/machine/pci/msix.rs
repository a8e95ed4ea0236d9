//! The MSI-X table as bytes and meaning, without delivery (PCI 3.0, 6.8.2).

use crate::machine::kvm::irq::Message;

/// Bytes of one entry.
pub(crate) const ENTRY: usize = 16;
/// Message control: MSI-X is enabled.
pub(crate) const ENABLE: u16 = 0x8000;
/// Message control: every vector is masked.
pub(crate) const FUNCTION_MASK: u16 = 0x4000;

#[derive(Clone, Copy, Debug)]
struct Entry {
    message: Message,
    masked: bool,
}

/// The table and the two bits of message control.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    entries: Vec<Entry>,
    enabled: bool,
    function_masked: bool,
}

impl Table {
    /// `vectors` entries, all masked, MSI-X disabled.
    pub(crate) fn new(vectors: u16) -> Self {
        let entry = Entry {
            message: Message::default(),
            masked: true,
        };
        Self {
            entries: vec![entry; usize::from(vectors)],
            enabled: false,
            function_masked: false,
        }
    }

    /// Sets what message control says. Returns whether it changed anything.
    pub(crate) fn set_control(&mut self, control: u16) -> bool {
        let (enabled, masked) = (control & ENABLE != 0, control & FUNCTION_MASK != 0);
        let changed = (enabled, masked) != (self.enabled, self.function_masked);
        (self.enabled, self.function_masked) = (enabled, masked);
        changed
    }

    /// The message of a vector that may be delivered now.
    pub(crate) fn deliverable(&self, vector: u16) -> Option<Message> {
        let entry = self.entries.get(usize::from(vector))?;
        (self.enabled && !self.function_masked && !entry.masked).then_some(entry.message)
    }

    /// Reads the table: any width, zero beyond its end.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            let at = offset + index;
            let entry = self.entries.get(at / ENTRY).map(entry_bytes);
            *byte = entry
                .and_then(|bytes| bytes.get(at % ENTRY).copied())
                .unwrap_or(0);
        }
    }

    /// Writes to the table: aligned 4 or 8 bytes, all else is ignored (PCI
    /// 6.8.2 leaves it undefined). Returns the vector that it concerned.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) -> Option<u16> {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len()) {
            return None;
        }
        let vector = offset / ENTRY;
        let entry = self.entries.get_mut(vector)?;
        let mut bytes = entry_bytes(entry);
        bytes
            .get_mut(offset % ENTRY..)?
            .get_mut(..data.len())?
            .copy_from_slice(data);
        let words = bytes.as_chunks::<4>().0;
        if let [low, high, value, control] = words {
            let (low, high) = (u32::from_le_bytes(*low), u32::from_le_bytes(*high));
            entry.message.address = u64::from(high) << 32 | u64::from(low);
            entry.message.data = u32::from_le_bytes(*value);
            entry.masked = u32::from_le_bytes(*control) & 1 != 0;
        }
        u16::try_from(vector).ok()
    }

    /// Number of vectors.
    pub(crate) fn vectors(&self) -> u16 {
        u16::try_from(self.entries.len()).unwrap_or(u16::MAX)
    }
}

fn entry_bytes(entry: &Entry) -> [u8; ENTRY] {
    let address = u128::from(entry.message.address);
    let data = u128::from(entry.message.data);
    let control = u128::from(u32::from(entry.masked));
    (control << 96 | data << 64 | address).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_delivered_only_enabled_and_unmasked_twice() {
        let mut table = Table::new(2);
        table.write(16, &0xfee0_1000u32.to_le_bytes());
        table.write(24, &0x0000_0000_0000_0031u64.to_le_bytes());
        assert_eq!(table.deliverable(1), None, "disabled");
        assert!(table.set_control(ENABLE | FUNCTION_MASK));
        assert_eq!(table.deliverable(1), None, "function masked");
        assert!(table.set_control(ENABLE));
        assert!(!table.set_control(ENABLE), "no change");
        let message = Message {
            address: 0xfee0_1000,
            data: 0x31,
        };
        assert_eq!(table.deliverable(1), Some(message));
        table.write(28, &1u32.to_le_bytes());
        assert_eq!(table.deliverable(1), None, "masked again");
        assert_eq!(table.deliverable(0), None);
        assert_eq!(table.deliverable(2), None);
        assert_eq!(table.deliverable(0xffff), None);
    }

    #[test]
    fn what_is_written_reads_back_and_odd_accesses_change_nothing() {
        let mut table = Table::new(3);
        assert_eq!(table.write(32, &[1, 2, 3, 4, 5, 6, 7, 8]), Some(2));
        let mut data = [0xaa; 16];
        table.read(32, &mut data);
        assert_eq!(data, [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 1, 0, 0, 0]);
        for (offset, len) in [
            (0, 1),
            (0, 2),
            (2, 4),
            (4, 8),
            (14, 4),
            (48, 4),
            (usize::MAX, 4),
        ] {
            assert_eq!(
                table.write(offset, &vec![0xff; len]),
                None,
                "{offset} {len}"
            );
        }
        let mut beyond = [0xaa; 8];
        table.read(44, &mut beyond);
        assert_eq!(beyond, [1, 0, 0, 0, 0, 0, 0, 0]);
    }
}
