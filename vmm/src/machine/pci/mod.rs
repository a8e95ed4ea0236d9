//! The PCI bus: a host bridge in slot 0, a virtio function in each further slot.
//!
//! Configuration space is reached through ECAM alone. Only addresses inside the
//! two PCI windows of the address map are ever decoded, so a BAR that a guest
//! moves over RAM, or anywhere else, is a BAR that nobody can reach; of two
//! that overlap the one in the lower slot answers.

mod config;
mod decoded;
mod doorbells;
mod function;
mod interrupts;
mod layout;
mod mastering;
mod msix;
mod ringer;
mod slots;

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

use self::config::{ConfigSpace, Identity};
pub use self::doorbells::Doorbells;
pub(crate) use self::function::Function;
pub(crate) use self::mastering::Clearing;
use self::slots::Slots;
use crate::machine::bus::Target;
use crate::machine::layout as map;

/// Bytes of configuration space that ECAM gives each function.
const ECAM_FUNCTION: u64 = 0x1000;
/// ECAM functions in a slot.
const FUNCTIONS_PER_SLOT: u64 = 8;

/// Bus 0.
#[derive(Debug)]
pub(crate) struct Host {
    bridge: Mutex<ConfigSpace>,
    slots: Slots,
}

impl Host {
    /// A bus with nothing but its bridge.
    pub(crate) fn new() -> Self {
        // Red Hat's generic host bridge, which no driver claims.
        let bridge = ConfigSpace::new(Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: 0x06_00_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        });
        Self {
            bridge: Mutex::new(bridge),
            slots: Slots::default(),
        }
    }

    /// Puts a function in the next slot, and its BARs in the windows.
    ///
    /// # Errors
    /// The bus is full.
    pub(crate) fn add(&mut self, function: Arc<Function>) -> Result<()> {
        self.slots.add(function)
    }

    /// What answers in the three ranges: ECAM, the memory window, the I/O
    /// window, offsets counted from their starts.
    pub(crate) fn targets(self) -> Targets {
        let host = Arc::new(self);
        Targets {
            ecam: Arc::new(Ecam(Arc::clone(&host))),
            memory: Arc::new(Memory(Arc::clone(&host))),
            io: Arc::new(Io(host)),
        }
    }

    /// The configuration space that an ECAM offset names.
    fn locate(&self, offset: u64) -> Option<(Located<'_>, usize)> {
        let register = (offset % ECAM_FUNCTION) as usize;
        let device = offset / ECAM_FUNCTION;
        if !device.is_multiple_of(FUNCTIONS_PER_SLOT) {
            return None;
        }
        let slot = usize::try_from(device / FUNCTIONS_PER_SLOT).ok()?;
        let located = match slot {
            0 => Located::Bridge(&self.bridge),
            slot => Located::Function(self.slots.get(slot)?),
        };
        Some((located, register))
    }
}

enum Located<'a> {
    Bridge(&'a Mutex<ConfigSpace>),
    Function(&'a Function),
}

/// The bus as the vCPUs reach it.
#[derive(Clone)]
pub(crate) struct Targets {
    /// For `layout::ECAM`.
    pub(crate) ecam: Arc<dyn Target>,
    /// For `layout::PCI_MEMORY`.
    pub(crate) memory: Arc<dyn Target>,
    /// For `layout::PCI_IO`.
    pub(crate) io: Arc<dyn Target>,
}

struct Ecam(Arc<Host>);
struct Memory(Arc<Host>);
struct Io(Arc<Host>);

impl Target for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.0.locate(offset) {
            Some((Located::Bridge(bridge), register)) => {
                let bridge = bridge.lock().unwrap_or_else(PoisonError::into_inner);
                bridge.read(register, data);
            }
            Some((Located::Function(function), register)) => function.read_config(register, data),
            // No device: all ones, which the bus has put there.
            None => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match self.0.locate(offset) {
            Some((Located::Bridge(bridge), register)) => {
                let mut bridge = bridge.lock().unwrap_or_else(PoisonError::into_inner);
                bridge.write(register, data);
            }
            Some((Located::Function(function), register)) => function.write_config(register, data),
            None => {}
        }
    }
}

impl Target for Memory {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let address = map::PCI_MEMORY.start.saturating_add(offset);
        let mut functions = self.0.slots.at_address(address);
        functions.any(|function| function.read_memory(address, data));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let address = map::PCI_MEMORY.start.saturating_add(offset);
        let mut functions = self.0.slots.at_address(address);
        functions.any(|function| function.write_memory(address, data));
    }
}

impl Target for Io {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let Some(port) = port(offset) else { return };
        let mut functions = self.0.slots.at_port(port);
        functions.any(|function| function.read_port(port, data));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(port) = port(offset) else { return };
        let mut functions = self.0.slots.at_port(port);
        functions.any(|function| function.write_port(port, data));
    }
}

fn port(offset: u64) -> Option<u16> {
    u16::try_from(map::PCI_IO.start.saturating_add(offset)).ok()
}
