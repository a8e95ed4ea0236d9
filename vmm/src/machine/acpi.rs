//! The ACPI tables: a hardware-reduced machine (ACPI 6.5) with one PCIe bus
//! reached by ECAM, a serial port, and registers for sleep and reset.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name,
    Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use super::ending;
use super::layout;

const OEM: [u8; 6] = *b"OUTBRD";
const TABLE: [u8; 8] = *b"OUTBOARD";
const REVISION: u32 = 1;
/// Tables begin at multiples of this.
const ALIGN: usize = 16;

/// The tables for a machine of `cpus` vCPUs, to be put at the guest-physical
/// address `base`; the root pointer comes first.
pub(crate) fn tables(cpus: u8, base: u64) -> Vec<u8> {
    // The root pointer names a table that comes after it, so it is written last.
    let mut all = Blob {
        base,
        bytes: vec![0; Rsdp::len()],
    };
    let dsdt = all.add(&dsdt());
    let entries = [all.add(&fadt(dsdt)), all.add(&madt(cpus)), all.add(&mcfg())];
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    for entry in entries {
        xsdt.add_entry(entry);
    }
    let xsdt = all.add(&xsdt);
    let mut root = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut root);
    for (to, from) in all.bytes.iter_mut().zip(root) {
        *to = from;
    }
    all.bytes
}

/// Tables one behind the other.
struct Blob {
    base: u64,
    bytes: Vec<u8>,
}

impl Blob {
    /// Appends a table; returns its guest-physical address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let address = self.base + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn port(offset: u64) -> GAS {
    let address = u64::from(layout::ACPI_PORTS.start) + offset;
    GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address)
}

fn fadt(dsdt: u64) -> impl Aml {
    // What PCs have and this machine has not: a VGA card, a CMOS clock. (The
    // keyboard controller and other legacy devices are named by bits that are
    // clear.)
    const NO_VGA: u16 = 1 << 2;
    const NO_CMOS_CLOCK: u16 = 1 << 5;
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.reset_reg = port(ending::RESET);
    fadt.reset_value = ending::RESET_VALUE;
    fadt.sleep_control_reg = port(ending::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(ending::SLEEP_STATUS);
    fadt.finalize()
}

fn madt(cpus: u8) -> MADT {
    let local = LocalInterruptController::Address(layout::LAPIC as u32);
    let mut madt = MADT::new(OEM, TABLE, REVISION, local);
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC as u32, 0));
    madt
}

fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
    mcfg.add_ecam(layout::ECAM.start, 0, 0, 0);
    mcfg
}

fn dsdt() -> Table {
    let mut aml = Vec::new();
    Scope::new(
        "_SB_".into(),
        vec![&PciBus as &dyn Aml, &MotherBoard, &SerialPort],
    )
    .to_aml_bytes(&mut aml);
    // The value for the sleep control register, and unused ones.
    let s5 = Package::new(vec![&ending::SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]);
    Name::new("_S5_".into(), &s5).to_aml_bytes(&mut aml);
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    table.append_slice(&aml);
    Table(table)
}

/// A table as bytes.
struct Table(Sdt);

impl Aml for Table {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.0.as_slice());
    }
}

/// The root of the one PCIe bus, with the windows that it forwards. It has no
/// interrupt routing: all its functions use MSI-X.
struct PciBus;

impl Aml for PciBus {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let memory = &layout::PCI_MEMORY;
        let io = &layout::PCI_IO;
        let bus = AddressSpace::new_bus_number(0u16, 0u16);
        let memory = AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            memory.start as u32,
            (memory.end - 1) as u32,
            None,
        );
        let io = AddressSpace::new_io(io.start as u16, (io.end - 1) as u16, None);
        let windows = ResourceTemplate::new(vec![&bus, &memory, &io]);
        device(
            "PCI0",
            &[
                ("_HID", &EISAName::new("PNP0A08")),
                ("_CID", &EISAName::new("PNP0A03")),
                ("_UID", &ZERO),
                ("_SEG", &ZERO),
                ("_BBN", &ZERO),
                ("_CRS", &windows),
            ],
            sink,
        );
    }
}

/// Reserves ECAM: Linux asks for that before it uses it.
struct MotherBoard;

impl Aml for MotherBoard {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let ecam = &layout::ECAM;
        let memory = Memory32Fixed::new(true, ecam.start as u32, (ecam.end - ecam.start) as u32);
        device(
            "MBRD",
            &[
                ("_HID", &EISAName::new("PNP0C02")),
                ("_UID", &ZERO),
                ("_CRS", &ResourceTemplate::new(vec![&memory])),
            ],
            sink,
        );
    }
}

/// A 16550 with an edge-triggered interrupt.
struct SerialPort;

impl Aml for SerialPort {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let ports = IO::new(layout::COM1, layout::COM1, 1, 8);
        let interrupt = Interrupt::new(true, true, false, false, layout::COM1_GSI);
        device(
            "COM1",
            &[
                ("_HID", &EISAName::new("PNP0501")),
                ("_UID", &ZERO),
                ("_CRS", &ResourceTemplate::new(vec![&ports, &interrupt])),
            ],
            sink,
        );
    }
}

fn device(name: &str, members: &[(&str, &dyn Aml)], sink: &mut dyn AmlSink) {
    let members: Vec<Name> = members
        .iter()
        .map(|(name, value)| Name::new(Path::new(name), *value))
        .collect();
    let members = members.iter().map(|member| member as &dyn Aml).collect();
    Device::new(name.into(), members).to_aml_bytes(sink);
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0xe_0000;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// The table at a guest-physical address, its checksum proven.
    fn table(blob: &[u8], address: u64) -> &[u8] {
        let start = (address - BASE) as usize;
        let length = u32::from_le_bytes(blob[start + 4..start + 8].try_into().unwrap());
        let table = &blob[start..start + length as usize];
        assert_eq!(sum(table), 0, "{:?}", &table[..4]);
        table
    }

    #[test]
    fn every_table_is_found_from_the_root_with_a_true_checksum() {
        for cpus in [1, 4, 32] {
            let blob = tables(cpus, BASE);
            assert_eq!(&blob[..8], b"RSD PTR ");
            assert_eq!(sum(&blob[..20]), 0);
            assert_eq!(sum(&blob[..36]), 0);
            let xsdt = table(&blob, u64_at(&blob, 24));
            assert_eq!(&xsdt[..4], b"XSDT");
            let found: Vec<&[u8]> = (36..xsdt.len())
                .step_by(8)
                .map(|at| table(&blob, u64_at(xsdt, at)))
                .collect();
            let names: Vec<&[u8]> = found.iter().map(|table| &table[..4]).collect();
            assert_eq!(names, [b"FACP", b"APIC", b"MCFG"]);
            let fadt = found[0];
            assert_eq!(&table(&blob, u64_at(fadt, 140))[..4], b"DSDT");
            let madt = found[1];
            let processors = madt[44..].chunks(8).take_while(|entry| entry[0] == 0);
            assert_eq!(processors.count(), usize::from(cpus));
            assert_eq!(u64_at(found[2], 44), layout::ECAM.start);
        }
    }

    #[test]
    fn the_fixed_table_names_the_registers_that_the_machine_answers() {
        let blob = tables(1, BASE);
        let xsdt = table(&blob, u64_at(&blob, 24));
        let fadt = table(&blob, u64_at(xsdt, 36));
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_ne!(flags & Flags::HwReducedAcpi as u32, 0);
        assert_ne!(flags & Flags::ResetRegSup as u32, 0);
        // Generic addresses: I/O space, 8 bits wide; the address is 4 bytes on.
        for (at, register) in [(116, 0x602), (244, 0x600), (256, 0x601)] {
            assert_eq!(&fadt[at..at + 2], [1, 8]);
            assert_eq!(u64_at(fadt, at + 4), register);
        }
        assert_eq!(fadt[128], ending::RESET_VALUE);
    }

    /// For `iasl -d`, when the tables are to be looked at: set the variable to
    /// a folder, and each table is put there.
    #[test]
    fn tables_can_be_written_out() {
        let Some(folder) = std::env::var_os("OUTBOARD_TEST_ACPI_DIR") else {
            return;
        };
        let folder = std::path::Path::new(&folder);
        let blob = tables(4, BASE);
        let xsdt = table(&blob, u64_at(&blob, 24));
        let mut all = vec![xsdt];
        all.extend(
            (36..xsdt.len())
                .step_by(8)
                .map(|at| table(&blob, u64_at(xsdt, at))),
        );
        all.push(table(&blob, u64_at(all[1], 140)));
        for table in all {
            let name = format!("{}.dat", String::from_utf8_lossy(&table[..4]));
            std::fs::write(folder.join(name), table).unwrap();
        }
    }
}
