//! The Linux 64-bit boot protocol: a zero page, page tables, registers
//! (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use anyhow::{Context, Result};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress};

use super::super::kvm::registers::Mode;
use super::super::memory::Ram;
use super::{Told, map, put_words};

/// What a kernel's header says of where things may lie and how long they are.
pub(crate) struct Limits {
    /// Longest command line in bytes, without the terminating zero.
    pub(crate) cmdline: u64,
    /// The initial RAM disk ends here or lower.
    pub(crate) initrd_end: u64,
}

impl Default for Limits {
    /// Those of a kernel whose format names none.
    fn default() -> Self {
        Self {
            cmdline: map::CMDLINE_ROOM - 1,
            initrd_end: u64::MAX,
        }
    }
}

pub(crate) fn limits(header: &setup_header) -> Limits {
    Limits {
        cmdline: u64::from(header.cmdline_size),
        initrd_end: u64::from(header.initrd_addr_max) + 1,
    }
}

/// Writes the zero page and the page tables; returns the mode of the entry and
/// its argument.
pub(crate) fn write_zero_page(
    ram: &Ram,
    header: Option<&setup_header>,
    told: &Told,
) -> Result<(Mode, u64)> {
    let mut zero_page = boot_params {
        hdr: header.copied().unwrap_or_else(made_up_header),
        acpi_rsdp_addr: map::ACPI.start,
        ..Default::default()
    };
    // 0xff: a loader without a number of its own.
    zero_page.hdr.type_of_loader = 0xff;
    zero_page.hdr.cmd_line_ptr = map::CMDLINE as u32;
    if let Some(initrd) = &told.initrd {
        // Both below 4 GiB: it lies in low memory.
        zero_page.hdr.ramdisk_image = initrd.start as u32;
        zero_page.hdr.ramdisk_size = (initrd.end - initrd.start) as u32;
    }
    zero_page.e820_entries = told.map.len() as u8;
    let mut table = zero_page.e820_table;
    for (entry, span) in table.iter_mut().zip(told.map) {
        *entry = boot_e820_entry {
            addr: span.start,
            size: span.size,
            r#type: span.kind as u32,
        };
    }
    zero_page.e820_table = table;
    ram.guest()
        .write_obj(zero_page, GuestAddress(map::ZERO_PAGE))
        .context("writing the zero page")?;
    write_page_tables(ram)?;
    let mode = Mode::Long {
        page_tables: map::PAGE_TABLES,
    };
    Ok((mode, map::ZERO_PAGE))
}

/// The header for a kernel that brings none: an ELF vmlinux.
fn made_up_header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        // "HdrS"
        header: 0x5372_6448,
        version: 0x20f,
        // LOADED_HIGH
        loadflags: 1,
        kernel_alignment: 0x100_0000,
        cmdline_size: (map::CMDLINE_ROOM - 1) as u32,
        ..Default::default()
    }
}

/// Maps the first 4 GiB to themselves by pages of 2 MiB.
fn write_page_tables(ram: &Ram) -> Result<()> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const PAGE: u64 = 4096;
    let pointers = map::PAGE_TABLES + PAGE;
    let directories = pointers + PAGE;
    put_words(ram, map::PAGE_TABLES, &[pointers | PRESENT_WRITABLE])?;
    for gib in 0..4 {
        let directory = directories + gib * PAGE;
        put_words(ram, pointers + gib * 8, &[directory | PRESENT_WRITABLE])?;
        let entry = |index: u64| gib << 30 | index << 21 | LARGE | PRESENT_WRITABLE;
        let entries: Vec<u64> = (0..512).map(entry).collect();
        put_words(ram, directory, &entries)?;
    }
    Ok(())
}
