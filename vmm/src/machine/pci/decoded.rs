//! Where a function's BARs are decoded. Written under the function's lock, read
//! without one: every access to the PCI windows asks this of each function.

use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::{IO_SIZE, MEMORY_SIZE};

/// No address of either window.
const NOWHERE: u64 = u64::MAX;

/// First addresses, while they are decoded.
#[derive(Debug)]
pub(crate) struct Decoded {
    memory: AtomicU64,
    ports: AtomicU64,
}

impl Default for Decoded {
    fn default() -> Self {
        let nowhere = || AtomicU64::new(NOWHERE);
        Self {
            memory: nowhere(),
            ports: nowhere(),
        }
    }
}

impl Decoded {
    /// The memory BAR lies at this guest-physical address, or nowhere.
    pub(crate) fn set_memory(&self, base: Option<u64>) {
        self.memory
            .store(base.unwrap_or(NOWHERE), Ordering::Release);
    }

    /// The I/O BAR lies at this port, or nowhere.
    pub(crate) fn set_ports(&self, base: Option<u16>) {
        let base = base.map_or(NOWHERE, u64::from);
        self.ports.store(base, Ordering::Release);
    }

    /// Where the memory BAR lies.
    pub(crate) fn memory(&self) -> Option<u64> {
        at(&self.memory)
    }

    /// Where the I/O BAR lies.
    pub(crate) fn ports(&self) -> Option<u16> {
        at(&self.ports).and_then(|base| u16::try_from(base).ok())
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

fn at(base: &AtomicU64) -> Option<u64> {
    Some(base.load(Ordering::Acquire)).filter(|base| *base != NOWHERE)
}

fn offset(base: u64, address: u64, size: u32) -> Option<u32> {
    let offset = u32::try_from(address.checked_sub(base)?).ok()?;
    (offset < size).then_some(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
