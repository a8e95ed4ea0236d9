//! The guest-physical address map: every fixed address of the machine.
//!
//! ```text
//! 0            RAM, up to 3 GiB
//! 0xc000_0000  PCI memory window (BARs)
//! 0xe000_0000  ECAM of bus 0
//! 0xfec0_0000  I/O APIC
//! 0xfee0_0000  local APICs
//! 0xfffb_d000  KVM's own pages (identity map, TSS)
//! 4 GiB        RAM, the rest
//! ```

/// End of RAM below 4 GiB.
pub(crate) const LOW_RAM_END: u64 = 0xc000_0000;
/// Start of RAM above 4 GiB.
pub(crate) const HIGH_RAM_START: u64 = 1 << 32;
/// PCI memory window: BARs are assigned from here.
pub(crate) const PCI_MEMORY: std::ops::Range<u64> = 0xc000_0000..0xe000_0000;
/// PCI I/O window.
pub(crate) const PCI_IO: std::ops::Range<u64> = 0xc000..0x1_0000;
/// ECAM: one bus, 1 MiB.
pub(crate) const ECAM: std::ops::Range<u64> = 0xe000_0000..0xe010_0000;
/// I/O APIC.
pub(crate) const IOAPIC: u64 = 0xfec0_0000;
/// Local APICs.
pub(crate) const LAPIC: u64 = 0xfee0_0000;
/// KVM's identity-map page; its TSS takes the three pages after.
pub(crate) const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// KVM's three TSS pages.
pub(crate) const KVM_TSS: u64 = 0xfffb_d000;
/// First serial port.
pub(crate) const COM1: u16 = 0x3f8;
/// Its interrupt (a GSI).
pub(crate) const COM1_GSI: u32 = 4;
/// ACPI sleep control, sleep status and reset register: ports.
pub(crate) const ACPI_PORTS: std::ops::Range<u16> = 0x600..0x603;
/// GSIs below this one are the I/O APIC's pins; MSI routes come after.
pub(crate) const FIRST_MSI_GSI: u32 = 24;
