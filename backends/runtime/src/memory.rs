//! The guest's memory as a front-end describes it: regions of files, each with
//! a guest address and the front-end's own address (vhost-user, "Memory
//! access").
//!
//! A table is a value: a change makes another, and the old one stays mapped
//! for as long as anything uses it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::stat::fstat;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::device::Memory;

/// Most regions (GET_MAX_MEM_SLOTS).
pub const MAX_REGIONS: usize = 32;

const PAGE: u64 = 4096;

#[derive(Clone, Debug)]
struct Region {
    guest: u64,
    user: u64,
    size: u64,
    /// Device and inode of its file, and where in there.
    file: (u64, u64, u64),
    /// How often it was added.
    times: u32,
    mapping: Arc<GuestRegionMmap<()>>,
}

/// A memory table.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Sorted by guest address.
    regions: Vec<Region>,
    memory: Arc<Memory>,
}

impl Table {
    /// The table of these regions alone (SET_MEM_TABLE).
    ///
    /// # Errors
    /// Says which region cannot be had and why; nothing stays mapped then.
    pub fn new(
        regions: impl IntoIterator<Item = (VhostUserMemoryRegion, OwnedFd)>,
    ) -> Result<Self, String> {
        let mut table = Self::default();
        for (region, fd) in regions {
            table = table.with_another(&region, fd)?;
        }
        Ok(table)
    }

    /// The table with one region more (ADD_MEM_REG). One that is there already,
    /// of the same file, is noted once more and is to be removed as often: QEMU
    /// before 8.1 describes all of memory anew for each pair of a card's queues,
    /// and takes all of it away for each.
    ///
    /// # Errors
    /// Says why the region cannot be had.
    pub fn with(&self, described: &VhostUserMemoryRegion, fd: OwnedFd) -> Result<Self, String> {
        let Some(place) = self.place(described) else {
            return self.with_another(described, fd);
        };
        let file = fstat(&fd).map(|stat| (stat.st_dev, stat.st_ino, described.mmap_offset));
        let mut table = self.clone();
        match table.regions.get_mut(place) {
            Some(region) if file == Ok(region.file) && region.times < u32::MAX => {
                region.times = region.times.saturating_add(1);
                Ok(table)
            }
            // Another file: it overlaps.
            _ => self.with_another(described, fd),
        }
    }

    /// Where a region with these addresses is.
    fn place(&self, described: &VhostUserMemoryRegion) -> Option<usize> {
        let wanted = (
            described.guest_phys_addr,
            described.user_addr,
            described.memory_size,
        );
        let mut regions = self.regions.iter();
        regions.position(|region| (region.guest, region.user, region.size) == wanted)
    }

    fn with_another(&self, described: &VhostUserMemoryRegion, fd: OwnedFd) -> Result<Self, String> {
        let region = self
            .check(described)
            .and_then(|()| map(described, fd))
            .map_err(|why| {
                let (guest, size) = (described.guest_phys_addr, described.memory_size);
                format!("cannot use the memory region of {size:#x} bytes at {guest:#x}: {why}")
            })?;
        let mut regions = self.regions.clone();
        regions.push(region);
        Self::of(regions)
    }

    /// The table without one region (REM_MEM_REG); the offset is ignored. One
    /// that was added several times stays until it is removed as often.
    ///
    /// # Errors
    /// When it has no such region.
    pub fn without(&self, described: &VhostUserMemoryRegion) -> Result<Self, String> {
        let Some(place) = self.place(described) else {
            let guest = described.guest_phys_addr;
            return Err(format!("there is no memory region at {guest:#x}"));
        };
        let mut table = self.clone();
        match table.regions.get_mut(place) {
            Some(region) if region.times > 1 => {
                region.times = region.times.saturating_sub(1);
                Ok(table)
            }
            _ => {
                table.regions.remove(place);
                Self::of(table.regions)
            }
        }
    }

    fn of(mut regions: Vec<Region>) -> Result<Self, String> {
        regions.sort_by_key(|region| region.guest);
        let mapped: Vec<_> = regions
            .iter()
            .map(|region| region.mapping.clone())
            .collect();
        let memory = if mapped.is_empty() {
            Memory::default()
        } else {
            GuestMemoryMmap::from_arc_regions(mapped).map_err(|error| error.to_string())?
        };
        Ok(Self {
            regions,
            memory: Arc::new(memory),
        })
    }

    /// Guest memory as devices use it.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The guest address of the front-end's address `user`, if the `length`
    /// bytes from there lie in one region.
    pub fn guest_address(&self, user: u64, length: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|region| {
            let offset = user.checked_sub(region.user)?;
            let end = offset.checked_add(length)?;
            (end <= region.size).then_some(())?;
            region.guest.checked_add(offset).map(GuestAddress)
        })
    }

    /// Checks what can be said of a region without its file.
    fn check(&self, described: &VhostUserMemoryRegion) -> Result<(), String> {
        let size = described.memory_size;
        let (guest, user) = (described.guest_phys_addr, described.user_addr);
        if self.regions.len() >= MAX_REGIONS {
            return Err(format!("there are {MAX_REGIONS} already"));
        }
        if size == 0 {
            return Err("it is empty".into());
        }
        if !guest.is_multiple_of(PAGE) || !described.mmap_offset.is_multiple_of(PAGE) {
            return Err("its address or its offset is not a multiple of 4096".into());
        }
        let ends = [guest, user, described.mmap_offset].map(|start| start.checked_add(size));
        if ends.contains(&None) {
            return Err("its end is beyond 64 bits".into());
        }
        let hits = |ours: u64, theirs: u64, their_size: u64| {
            ours < theirs.saturating_add(their_size) && theirs < ours.saturating_add(size)
        };
        let overlaps = |region: &Region| {
            hits(guest, region.guest, region.size) || hits(user, region.user, region.size)
        };
        if self.regions.iter().any(overlaps) {
            return Err("it overlaps another".into());
        }
        Ok(())
    }
}

/// Maps the file, once it is known that nothing of the region lies outside it:
/// touching what does would kill the process.
fn map(described: &VhostUserMemoryRegion, fd: OwnedFd) -> Result<Region, String> {
    let (size, offset) = (described.memory_size, described.mmap_offset);
    let file = File::from(fd);
    let stat = fstat(&file).map_err(|errno| format!("its file: {errno}"))?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err("its descriptor is not of a regular file".into());
    }
    let length = u64::try_from(stat.st_size).unwrap_or(0);
    if offset.checked_add(size).is_none_or(|end| end > length) {
        return Err(format!("its file has only {length:#x} bytes"));
    }
    let kind = fstatfs(&file).map_err(|errno| format!("its file: {errno}"))?;
    if kind.filesystem_type() == HUGETLBFS_MAGIC {
        let huge = u64::try_from(kind.block_size()).unwrap_or(PAGE).max(1);
        if !size.is_multiple_of(huge) || !offset.is_multiple_of(huge) {
            return Err(format!(
                "it does not begin and end at huge pages of {huge:#x}"
            ));
        }
    }
    let bytes = usize::try_from(size).map_err(|_| "it is too large".to_owned())?;
    let mapping = MmapRegion::from_file(FileOffset::new(file, offset), bytes)
        .map_err(|error| format!("cannot map its file: {error}"))?;
    let mapping = GuestRegionMmap::new(mapping, GuestAddress(described.guest_phys_addr))
        .ok_or("its end is beyond 64 bits")?;
    Ok(Region {
        guest: described.guest_phys_addr,
        user: described.user_addr,
        size,
        file: (stat.st_dev, stat.st_ino, offset),
        times: 1,
        mapping: Arc::new(mapping),
    })
}
