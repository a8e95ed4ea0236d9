//! An ELF kernel: its segments are loaded at their physical addresses.
//!
//! The loader itself is linux-loader's; what it does not compare with the
//! file's size and with RAM is compared here, before.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, anyhow, bail};
use linux_loader::loader::{Elf, KernelLoader, PvhBootCapability};

use super::super::memory::Ram;
use super::{Loaded, Protocol, check_memory, image};

const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;

pub(crate) fn load(ram: &Ram, file: &mut File) -> Result<Loaded> {
    let memory = extent(file)?;
    check_memory(ram, &memory)?;
    let result = Elf::load(ram.guest(), None, file, None).map_err(|error| anyhow!("{error}"))?;
    let (entry, protocol) = match result.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => (entry.0, Protocol::Pvh),
        _ => (result.kernel_load.0, Protocol::Linux(None)),
    };
    Ok(Loaded {
        memory,
        entry,
        protocol,
    })
}

/// The memory that the segments need, all of it checked against the file.
fn extent(file: &File) -> Result<Range<u64>> {
    let size = image::size(file)?;
    let mut header = [0; HEADER_SIZE];
    file.read_exact_at(&mut header, 0).map_err(|error| {
        anyhow!("it is truncated: its header is not whole: {error}; copy or build it again")
    })?;
    let word = |at| field::<2>(&header, at).map(u16::from_le_bytes);
    if header.get(4) != Some(&CLASS_64) || header.get(5) != Some(&LITTLE_ENDIAN) {
        bail!("it is not a 64-bit little-endian file");
    }
    let machine = word(18)?;
    if machine != MACHINE_X86_64 {
        bail!("it is for another processor (ELF machine {machine}), not for x86-64");
    }
    if usize::from(word(54)?) != PROGRAM_HEADER_SIZE {
        bail!("its program headers have a wrong size");
    }
    let table = field::<8>(&header, 32).map(u64::from_le_bytes)?;
    let mut extent: Option<Range<u64>> = None;
    for index in 0..u64::from(word(56)?) {
        let mut entry = [0; PROGRAM_HEADER_SIZE];
        let at = table.checked_add(index * PROGRAM_HEADER_SIZE as u64);
        at.filter(|at| *at < size)
            .and_then(|at| file.read_exact_at(&mut entry, at).ok())
            .context("it is truncated: its program headers are not whole")?;
        if let Some(segment) = segment(&entry, size)? {
            extent = Some(match extent {
                Some(all) => all.start.min(segment.start)..all.end.max(segment.end),
                None => segment,
            });
        }
    }
    extent.context("it has nothing to load")
}

/// The memory of one segment, if it is one that is loaded.
fn segment(entry: &[u8], file_size: u64) -> Result<Option<Range<u64>>> {
    let long = |at| field::<8>(entry, at).map(u64::from_le_bytes);
    let kind = field::<4>(entry, 0).map(u32::from_le_bytes)?;
    let (offset, address) = (long(8)?, long(24)?);
    let (in_file, in_memory) = (long(32)?, long(40)?);
    if kind != PT_LOAD || in_memory == 0 {
        return Ok(None);
    }
    if in_file > in_memory {
        bail!("a segment of it is larger in the file than in memory");
    }
    if offset
        .checked_add(in_file)
        .is_none_or(|end| end > file_size)
    {
        bail!(
            "it is truncated: a segment of {in_file} bytes at {offset} does not lie in a file of \
             {file_size} bytes"
        );
    }
    let end = address.checked_add(in_memory);
    Ok(Some(
        address..end.context("a segment of it lies beyond all memory")?,
    ))
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field.copied().context("a field lies outside its header")
}
