//! MSI-X (PCI 3.0, 6.8.2): the table that says which message each of a function's vectors sends.

use super::Function;
use crate::platform::phys::Span;
use alloc::string::String;

const CAPABILITY: u8 = 0x11;
const CONTROL: u64 = 2;
const TABLE: u64 = 4;
const PENDING: u64 = 8;
const ENABLE: u16 = 0x8000;
const MASK_ALL: u16 = 0x4000;
const ENTRY: u64 = 16;
const ENTRY_CONTROL: u64 = 12;
const MASKED: u32 = 1;
const MESSAGE_ADDRESS: u32 = 0xfee0_0000;

/// A function's MSI-X capability.
#[derive(Clone)]
pub struct Msix {
    config: Span,
    capability: u64,
    /// The table, 16 bytes for each vector.
    pub table: Span,
    /// The pending bits, 8 bytes for 64 vectors.
    pub pending: Span,
    /// The number of vectors.
    pub vectors: u16,
}

impl Msix {
    /// Finds it; a function may have none.
    pub fn find(function: &Function) -> Result<Option<Msix>, String> {
        let Some(capability) = function.capabilities(CAPABILITY).first().copied() else {
            return Ok(None);
        };
        let config = function.config;
        let vectors = (config.read::<u16>(capability + CONTROL) & 0x7ff) + 1;
        let place = |at: u64, length: u64| {
            let word: u32 = config.read(capability + at);
            function.memory((word & 7) as u8, u64::from(word & !7), length)
        };
        let table = place(TABLE, u64::from(vectors) * ENTRY)?;
        let pending = place(PENDING, u64::from(vectors).div_ceil(64) * 8)?;
        Ok(Some(Msix {
            config,
            capability,
            table,
            pending,
            vectors,
        }))
    }

    /// Switches it on, or off.
    pub fn enable(&self, on: bool) {
        self.set_control(if on { ENABLE } else { 0 });
    }

    /// Masks all vectors of an enabled function at once, or lets them through.
    pub fn mask_all(&self, on: bool) {
        self.set_control(if on { ENABLE | MASK_ALL } else { ENABLE });
    }

    fn set_control(&self, bits: u16) {
        let control: u16 = self.config.read(self.capability + CONTROL);
        self.config.write(
            self.capability + CONTROL,
            control & !(ENABLE | MASK_ALL) | bits,
        );
    }

    /// Lets vector `index` interrupt the processor with this APIC identity (below 256) at `vector`.
    pub fn route(&self, index: u16, apic_id: u32, vector: u8) {
        let at = u64::from(index) * ENTRY;
        self.table.write(at + ENTRY_CONTROL, MASKED);
        self.table
            .write(at, MESSAGE_ADDRESS | (apic_id & 0xff) << 12);
        self.table.write(at + 4, 0u32);
        self.table.write(at + 8, u32::from(vector));
        self.table.write(at + ENTRY_CONTROL, 0u32);
    }

    /// Masks one vector, or lets it through.
    pub fn mask(&self, index: u16, on: bool) {
        self.table.write(
            u64::from(index) * ENTRY + ENTRY_CONTROL,
            if on { MASKED } else { 0 },
        );
    }
}
