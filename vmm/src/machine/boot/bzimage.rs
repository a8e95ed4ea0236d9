//! A bzImage: a setup part, and a kernel that unpacks itself.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, anyhow, bail};
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{ByteValued, GuestAddress};

use super::super::memory::Ram;
use super::{Loaded, Protocol, check_memory, image, map};

/// Where the setup header lies in the file.
const HEADER: u64 = 0x1f1;
/// The 64-bit entry, from the start of the loaded part.
const ENTRY_64: u64 = 0x200;
/// First version of the protocol whose header names a 64-bit entry.
const VERSION_64: u16 = 0x20c;
/// XLF_KERNEL_64: the kernel has a 64-bit entry.
const KERNEL_64: u16 = 1;

pub(crate) fn load(ram: &Ram, file: &mut File) -> Result<Loaded> {
    let size = image::size(file)?;
    let header = read_header(file)?;
    let (version, flags) = (header.version, header.xloadflags);
    if version < VERSION_64 || flags & KERNEL_64 == 0 {
        bail!(
            "it has no 64-bit entry (boot protocol {}.{:02}): a 64-bit kernel of Linux 3.8 or \
             later is needed",
            version >> 8,
            version & 0xff
        );
    }
    let setup = (u64::from(header.setup_sects.max(1)) + 1) * 512;
    let setup = if header.setup_sects == 0 {
        5 * 512
    } else {
        setup
    };
    // What the header says of its own size, in units of 16 bytes.
    let told = setup + u64::from(header.syssize) * 16;
    // The last unit may be begun only.
    if size + 15 < told {
        bail!(
            "it is truncated: its header tells of {told} bytes, the file has {size}; copy or build \
             it again"
        );
    }
    let (preferred, default) = (header.pref_address, header.code32_start);
    let address = if preferred >= map::KERNEL_MIN {
        preferred
    } else {
        u64::from(default)
    };
    let need = u64::from(header.init_size).max(size.saturating_sub(setup));
    let memory = address
        ..address
            .checked_add(need)
            .context("it lies beyond all memory")?;
    check_memory(ram, &memory)?;
    let result = BzImage::load(ram.guest(), Some(GuestAddress(address)), file, None)
        .map_err(|error| anyhow!("{error}"))?;
    let header = result.setup_header.context("it has no setup header")?;
    Ok(Loaded {
        memory,
        entry: address + ENTRY_64,
        protocol: Protocol::Linux(Some(Box::new(header))),
    })
}

fn read_header(file: &File) -> Result<setup_header> {
    let mut header = setup_header::default();
    file.read_exact_at(header.as_mut_slice(), HEADER)
        .map_err(|error| {
            let whole = "it is truncated: its setup header is not whole";
            anyhow!("{whole}: {error}; copy or build it again")
        })?;
    Ok(header)
}
