//! Guest memory that a test lends to a back-end.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Context;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::{VhostUserMemoryRegion, VhostUserSingleMemoryRegion};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// What a front-end's own addresses differ by from guest addresses here, so
/// that a back-end that mistakes one for the other is found out.
pub const USER_OFFSET: u64 = 0x7000_0000_0000;

/// One region, backed by a file of its own.
#[derive(Debug)]
pub struct Region {
    /// Guest address.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    file: File,
}

impl Region {
    /// As SET_MEM_TABLE describes it.
    pub fn described(&self) -> VhostUserMemoryRegion {
        VhostUserMemoryRegion::new(self.guest, self.size, self.guest + USER_OFFSET, 0)
    }

    /// As ADD_MEM_REG and REM_MEM_REG describe it.
    pub fn single(&self) -> VhostUserSingleMemoryRegion {
        VhostUserSingleMemoryRegion::new(self.guest, self.size, self.guest + USER_OFFSET, 0)
    }
}

impl AsFd for Region {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Guest memory in sealed memfds.
#[derive(Debug)]
pub struct Memory {
    /// The regions, by guest address.
    pub regions: Vec<Region>,
    /// The same, mapped here.
    pub guest: GuestMemoryMmap<()>,
}

impl Memory {
    /// Memory of these regions: guest address and size, in order.
    ///
    /// # Errors
    /// Those of memfd_create(2) and mmap(2).
    pub fn new(ranges: &[(u64, u64)]) -> anyhow::Result<Self> {
        let files = ranges
            .iter()
            .map(|&(guest, size)| Ok((guest, sealed(size)?)));
        Self::of(files.collect::<anyhow::Result<_>>()?)
    }

    /// Memory of these files: guest address and file, in order. They can be cut
    /// or empty of room; who touches the memory here then dies of it.
    ///
    /// # Errors
    /// Those of fstat(2) and mmap(2).
    pub fn of(files: Vec<(u64, File)>) -> anyhow::Result<Self> {
        let mut regions = Vec::new();
        let mut mapped = Vec::new();
        for (guest, file) in files {
            let size = file.metadata()?.len();
            let offset = FileOffset::new(file.try_clone()?, 0);
            let mapping = MmapRegion::from_file(offset, usize::try_from(size)?)?;
            let region = GuestRegionMmap::new(mapping, GuestAddress(guest));
            mapped.push(region.context("a region beyond 64 bits")?);
            regions.push(Region { guest, size, file });
        }
        Ok(Self {
            regions,
            guest: GuestMemoryMmap::from_regions(mapped)?,
        })
    }

    /// One region at `guest` that can be cut, and the file to do it by.
    ///
    /// # Errors
    /// Those of memfd_create(2) and mmap(2).
    pub fn cuttable(guest: u64, size: u64) -> anyhow::Result<(Self, File)> {
        let file = unsealed(size)?;
        Ok((Self::of(vec![(guest, file.try_clone()?)])?, file))
    }

    /// Writes to it.
    ///
    /// # Panics
    /// There is no such memory.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.guest.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    /// Reads from it.
    ///
    /// # Panics
    /// There is no such memory.
    pub fn get(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.guest.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
}

/// A memfd of this size that can be cut.
///
/// # Errors
/// Those of memfd_create(2).
pub fn unsealed(size: u64) -> anyhow::Result<File> {
    let file = File::from(memfd_create(c"not sealed", MFdFlags::MFD_CLOEXEC)?);
    file.set_len(size)?;
    Ok(file)
}

/// A memfd of this size that nobody can resize.
///
/// # Errors
/// Those of memfd_create(2).
pub fn sealed(size: u64) -> anyhow::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"guest-memory", flags)?);
    file.set_len(size)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}
