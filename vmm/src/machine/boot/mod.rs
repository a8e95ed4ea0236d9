//! From a kernel's file to a guest that is ready to run it.
//!
//! Three kinds are told apart by content: a bzImage (entered at its 64-bit
//! entry), an ELF file with a PVH note (entered by it) and one without
//! (entered by the Linux 64-bit boot protocol). Nothing that the file says is
//! believed before it has been compared with the file's size and with RAM.

mod bzimage;
mod elf;
mod image;
mod linux;
pub(crate) mod map;
mod pvh;

use std::fs::File;
use std::io::Seek;
use std::ops::Range;

use anyhow::{Context, Result, bail};
use vm_memory::{Bytes, GuestAddress};

use super::kvm::registers::{Entry, gdt};
use super::memory::Ram;
use super::{ending, layout};
use image::Kind;

/// What to boot.
pub(crate) struct Kernel {
    /// The kernel image, opened for reading.
    pub(crate) kernel: File,
    /// The initial RAM disk, if there is one.
    pub(crate) initrd: Option<File>,
    /// What the user calls the kernel image.
    pub(crate) name: String,
    /// The command line.
    pub(crate) cmdline: String,
}

/// A kernel in guest memory, and how it wants to be entered.
struct Loaded {
    /// The memory that it needs for itself.
    memory: Range<u64>,
    /// The first instruction's guest-physical address.
    entry: u64,
    protocol: Protocol,
}

/// How a kernel is told what it needs to know.
enum Protocol {
    /// By a zero page, in 64-bit mode; a bzImage brings a part of it.
    Linux(Option<Box<linux_loader::loader::bootparam::setup_header>>),
    /// By PVH's start information, in 32-bit mode.
    Pvh,
}

/// What every protocol tells the kernel.
struct Told<'a> {
    initrd: Option<Range<u64>>,
    map: &'a [map::Span],
}

/// What lies at the reset vector: writes to the ACPI reset register, in the same
/// bytes for every mode of the processor. Linux jumps there when its machine is
/// hardware-reduced and has no EFI (its reboot type is EFI's then, which falls
/// back to the BIOS's).
const RESET_CODE: [u8; 12] = {
    let [low, high] = (layout::ACPI_PORTS.start + ending::RESET as u16).to_le_bytes();
    [
        0x31,
        0xd2, // xor edx, edx
        0xb2,
        low, // mov dl, low
        0xb6,
        high, // mov dh, high
        0xb0,
        ending::RESET_VALUE, // mov al, value
        0xee,                // out dx, al
        0xf4,
        0xeb,
        0xfd, // hlt, again and again
    ]
};

/// Puts the kernel, what it is told and the ACPI tables (`acpi`, made for the
/// start of [`map::ACPI`]) into guest memory.
///
/// # Errors
/// Something is not what it should be or does not fit; the text says what.
pub(crate) fn load(ram: &Ram, mut kernel: Kernel, acpi: &[u8]) -> Result<Entry> {
    let loaded = load_kernel(ram, &mut kernel.kernel, &kernel.name)?;
    let limit = match &loaded.protocol {
        Protocol::Linux(Some(header)) => linux::limits(header),
        _ => linux::Limits::default(),
    };
    let initrd = match kernel.initrd {
        Some(file) => Some(load_initrd(ram, file, &loaded, limit.initrd_end)?),
        None => None,
    };
    load_cmdline(ram, &kernel.cmdline, limit.cmdline)?;
    if acpi.len() as u64 > map::RESET_VECTOR - map::ACPI.start {
        bail!("the ACPI tables do not fit below 1 MiB");
    }
    put(ram, acpi, map::ACPI.start)?;
    put(ram, &RESET_CODE, map::RESET_VECTOR)?;
    let told = Told {
        initrd,
        map: &map::memory_map(ram),
    };
    let (mode, argument) = match loaded.protocol {
        Protocol::Linux(header) => linux::write_zero_page(ram, header.as_deref(), &told)?,
        Protocol::Pvh => pvh::write_start_info(ram, &told)?,
    };
    put_words(ram, map::GDT, &gdt(mode))?;
    Ok(Entry {
        mode,
        address: loaded.entry,
        argument,
        gdt: map::GDT,
    })
}

fn load_kernel(ram: &Ram, file: &mut File, name: &str) -> Result<Loaded> {
    let kind = image::identify(file).with_context(|| format!("the kernel {name}"))?;
    let loaded = match kind {
        Kind::BzImage => {
            bzimage::load(ram, file).with_context(|| format!("the kernel {name} (a bzImage)"))?
        }
        Kind::Elf => {
            elf::load(ram, file).with_context(|| format!("the kernel {name} (an ELF file)"))?
        }
    };
    if !loaded.memory.contains(&loaded.entry) {
        bail!(
            "the kernel {name} is to be entered at {:#x}, outside itself ({:#x?}): the file is broken",
            loaded.entry,
            loaded.memory
        );
    }
    Ok(loaded)
}

/// Puts the initial RAM disk as high as it may lie; returns where.
fn load_initrd(ram: &Ram, mut file: File, kernel: &Loaded, end: u64) -> Result<Range<u64>> {
    const PAGE: u64 = 4096;
    let size = image::size(&file).context("the initrd")?;
    let end = end.min(map::low_ram_end(ram));
    let start = end.checked_sub(size).map(|start| start / PAGE * PAGE);
    let Some(start) = start.filter(|start| *start >= kernel.memory.end) else {
        bail!(
            "the initrd of {} does not fit into guest memory: between the kernel and {} only {} \
             are free; give the guest more --memory",
            mib(size),
            mib(end),
            mib(end.saturating_sub(kernel.memory.end))
        );
    };
    file.rewind().context("reading the initrd")?;
    copy(ram, &mut file, start, size).context("reading the initrd")?;
    Ok(start..start + size)
}

fn load_cmdline(ram: &Ram, cmdline: &str, limit: u64) -> Result<()> {
    let length = cmdline.len() as u64;
    if length > limit.min(map::CMDLINE_ROOM - 1) {
        bail!("the kernel command line has {length} bytes, {limit} at most");
    }
    if cmdline.bytes().any(|byte| byte == 0) {
        bail!("the kernel command line contains a zero byte");
    }
    put(ram, cmdline.as_bytes(), map::CMDLINE)?;
    put(ram, &[0], map::CMDLINE + length)
}

/// Reads `size` bytes from the file's position to a guest-physical address.
fn copy(ram: &Ram, file: &mut File, address: u64, size: u64) -> Result<()> {
    let size = usize::try_from(size).context("larger than an address space")?;
    ram.guest()
        .read_exact_volatile_from(GuestAddress(address), file, size)
        .with_context(|| format!("putting {size} bytes at {address:#x} of guest memory"))
}

/// Writes numbers of the loader's own.
fn put_words(ram: &Ram, address: u64, words: &[u64]) -> Result<()> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    put(ram, &bytes, address)
}

/// Writes a few bytes of the loader's own.
fn put(ram: &Ram, bytes: &[u8], address: u64) -> Result<()> {
    ram.guest()
        .write_slice(bytes, GuestAddress(address))
        .with_context(|| format!("writing boot data at {address:#x} of guest memory"))
}

/// A size for a person.
fn mib(bytes: u64) -> String {
    if bytes >= 1 << 20 {
        format!("{} MiB", bytes >> 20)
    } else {
        format!("{} KiB", bytes.div_ceil(1 << 10))
    }
}

/// Refuses a kernel that needs memory where there is none.
fn check_memory(ram: &Ram, memory: &Range<u64>) -> Result<()> {
    let end = map::low_ram_end(ram);
    if memory.start < map::KERNEL_MIN {
        bail!(
            "it wants to lie at {:#x}, below 1 MiB, where firmware data is: it is a program rather \
             than a kernel; give a vmlinux or a bzImage",
            memory.start
        );
    }
    if memory.end > end {
        bail!(
            "it needs memory up to {}, and the guest has {}{}; give the guest more --memory",
            mib(memory.end),
            mib(end),
            if end == layout::LOW_RAM_END {
                " below 4 GiB"
            } else {
                ""
            }
        );
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
