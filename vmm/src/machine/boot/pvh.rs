//! The PVH entry: start information and its lists ("x86/HVM direct boot ABI",
//! version 1 of the structure).

use anyhow::Result;
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};

use super::super::kvm::registers::Mode;
use super::super::memory::Ram;
use super::{Told, map, put_words};

const MODULES: u64 = map::START_INFO + size_of::<hvm_start_info>() as u64;
const MEMORY_MAP: u64 = MODULES + size_of::<hvm_modlist_entry>() as u64;

/// Writes the start information; returns the mode of the entry and its
/// argument.
pub(crate) fn write_start_info(ram: &Ram, told: &Told) -> Result<(Mode, u64)> {
    // The structures are made of 64-bit words, or of pairs of 32-bit ones.
    put_words(
        ram,
        map::START_INFO,
        &[
            u64::from(XEN_HVM_START_MAGIC_VALUE) | 1 << 32,
            // No flags; the initial RAM disk is the only module.
            u64::from(told.initrd.is_some()) << 32,
            MODULES,
            map::CMDLINE,
            map::ACPI.start,
            MEMORY_MAP,
            told.map.len() as u64,
        ],
    )?;
    if let Some(initrd) = &told.initrd {
        let size = initrd.end - initrd.start;
        put_words(ram, MODULES, &[initrd.start, size, 0, 0])?;
    }
    let step = size_of::<hvm_memmap_table_entry>();
    for (address, span) in (MEMORY_MAP..).step_by(step).zip(told.map) {
        put_words(ram, address, &[span.start, span.size, span.kind as u64])?;
    }
    Ok((Mode::Protected, map::START_INFO))
}
