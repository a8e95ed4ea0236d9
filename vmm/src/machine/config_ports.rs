//! The chipset's ports 0xcf8 to 0xcff: PCI configuration mechanism #1 (PCI
//! Local Bus 3.0, section 3.2.2.3.2) and the reset control register between.
//!
//! Everything on the bus is reached by ECAM; but Linux does not use ECAM before it
//! has read the DSDT, and without these ports it says on its console "PCI: Fatal:
//! No config space access function found".

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use outboard_protocol::launch::Ending;

use super::bus::Target;
use super::ending::End;

/// The ports.
pub(crate) const PORTS: Range<u64> = 0xcf8..0xd00;

/// Offset of the reset control register.
const RESET_CONTROL: u64 = 1;
/// Its bit that resets the processor.
const RESET_CPU: u8 = 1 << 2;
/// Offset of the data register, 4 bytes.
const DATA: u64 = 4;
/// The address register's bit that makes the data register answer.
const ENABLE: u32 = 1 << 31;

/// The ports' state.
pub(crate) struct ConfigPorts {
    address: AtomicU32,
    ecam: Arc<dyn Target>,
    end: Arc<End>,
}

impl ConfigPorts {
    /// Ports to what `ecam` reaches, of bus 0.
    pub(crate) fn new(ecam: Arc<dyn Target>, end: Arc<End>) -> Self {
        Self {
            address: AtomicU32::new(0),
            ecam,
            end,
        }
    }

    /// The ECAM offset that an access to the data register at `offset` names.
    fn target(&self, offset: u64) -> Option<u64> {
        const BUS: u32 = 0x00ff_0000;
        let address = self.address.load(Ordering::Relaxed);
        let byte = offset.checked_sub(DATA)?;
        if address & ENABLE == 0 || address & BUS != 0 {
            return None;
        }
        let (function, register) = (address >> 8 & 0xff, address & 0xfc);
        Some((u64::from(function) << 12) + u64::from(register) + byte)
    }
}

impl Target for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes()),
            (RESET_CONTROL, 1) => data.fill(0),
            _ => {
                if let Some(target) = self.target(offset) {
                    self.ecam.read(target, data);
                }
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            // Only a whole double word is the address.
            (0, &[a, b, c, d]) => {
                let address = u32::from_le_bytes([a, b, c, d]);
                self.address.store(address, Ordering::Relaxed);
            }
            (RESET_CONTROL, &[value]) if value & RESET_CPU != 0 => self.end.set(Ending::Reset),
            _ => {
                if let Some(target) = self.target(offset) {
                    self.ecam.write(target, data);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Ecam(Mutex<Vec<(u64, Vec<u8>)>>);

    impl Target for Ecam {
        fn read(&self, offset: u64, data: &mut [u8]) {
            for (at, byte) in (offset..).zip(data) {
                *byte = at as u8;
            }
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn ports() -> (ConfigPorts, Arc<Ecam>, Arc<End>) {
        let (ecam, end) = (Arc::new(Ecam::default()), Arc::new(End::new().unwrap()));
        (
            ConfigPorts::new(Arc::clone(&ecam) as _, Arc::clone(&end)),
            ecam,
            end,
        )
    }

    #[test]
    fn an_address_and_a_data_access_reach_ecam() {
        let (ports, ecam, _) = ports();
        // Device 3, function 1, register 0x44.
        ports.write(0, &0x8000_1944u32.to_le_bytes());
        let mut address = [0; 4];
        ports.read(0, &mut address);
        assert_eq!(u32::from_le_bytes(address), 0x8000_1944);
        let mut data = [0; 2];
        ports.read(6, &mut data);
        assert_eq!(data, [0x46, 0x47]);
        ports.write(7, &[9]);
        assert_eq!(
            *ecam.0.lock().unwrap(),
            [(3 << 15 | 1 << 12 | 0x47, vec![9])]
        );
    }

    #[test]
    fn other_buses_and_a_disabled_address_reach_nothing() {
        let (ports, ecam, _) = ports();
        for address in [0x8001_0000u32, 0x0000_1944] {
            ports.write(0, &address.to_le_bytes());
            let mut data = [0xff; 4];
            ports.read(4, &mut data);
            assert_eq!(data, [0xff; 4]);
            ports.write(4, &data);
        }
        assert!(ecam.0.lock().unwrap().is_empty());
    }

    #[test]
    fn a_byte_of_the_address_is_no_address_and_a_reset_is_one() {
        let (ports, _, end) = ports();
        ports.write(0, &0x8000_0000u32.to_le_bytes());
        ports.write(3, &[1]);
        ports.write(RESET_CONTROL, &[2]);
        let mut address = [0; 4];
        ports.read(0, &mut address);
        assert_eq!(u32::from_le_bytes(address), 0x8000_0000);
        assert!(end.get().is_none());
        ports.write(RESET_CONTROL, &[6]);
        assert_eq!(end.get(), Some(&Ending::Reset));
    }
}
