//! The guest's memory as a front-end describes it: regions of files, each with
//! a guest address and the front-end's own address (vhost-user, "Memory
//! access").
//!
//! A table is a value: a change makes another, and the old one stays mapped
//! for as long as anything uses it. Its files stay the front-end's, which may
//! cut them at any time: every mapping is guarded (`outboard_protocol::shared`).

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::stat::fstat;
use outboard_protocol::shared::{self, Alarm, Guard, Place};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

pub use outboard_ring::memory::{Memory, PAGE, is_lost, keeps, touch};

/// Most regions (GET_MAX_MEM_SLOTS): what QEMU asks for at most, and what other
/// back-ends have.
pub const MAX_REGIONS: usize = 509;

#[derive(Clone, Debug)]
struct Region {
    guest: u64,
    user: u64,
    size: u64,
    /// Device and inode of its file, and where in there.
    file: (u64, u64, u64),
    /// How often it was added.
    times: u32,
    mapping: Arc<GuestRegionMmap<Guard>>,
}

/// A memory table.
#[derive(Clone, Debug)]
pub struct Table {
    /// Sorted by guest address.
    regions: Vec<Region>,
    memory: Arc<Memory>,
    alarm: Arc<Alarm>,
}

impl Table {
    /// A table without a region; `alarm` rings when memory of it, or of a table
    /// made from it, is touched and not there.
    pub fn empty(alarm: Arc<Alarm>) -> Self {
        Self {
            regions: Vec::new(),
            memory: Arc::default(),
            alarm,
        }
    }

    /// The table of these regions alone (SET_MEM_TABLE).
    ///
    /// # Errors
    /// Says which region cannot be had and why; nothing stays mapped then.
    pub fn replaced(
        &self,
        regions: impl IntoIterator<Item = (VhostUserMemoryRegion, OwnedFd)>,
    ) -> Result<Self, String> {
        let mut table = Self::empty(self.alarm.clone());
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
            .and_then(|()| map(described, fd, &self.alarm))
            .map_err(|why| {
                let (guest, size) = (described.guest_phys_addr, described.memory_size);
                format!("cannot use the memory region of {size:#x} bytes at {guest:#x}: {why}")
            })?;
        let mut regions = self.regions.clone();
        regions.push(region);
        self.of(regions)
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
                self.of(table.regions)
            }
        }
    }

    fn of(&self, mut regions: Vec<Region>) -> Result<Self, String> {
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
            alarm: self.alarm.clone(),
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

/// Maps the file, which is not held any longer then.
fn map(
    described: &VhostUserMemoryRegion,
    fd: OwnedFd,
    alarm: &Arc<Alarm>,
) -> Result<Region, String> {
    let (guest, size) = (described.guest_phys_addr, described.memory_size);
    let offset = described.mmap_offset;
    let file = File::from(fd);
    let stat = fstat(&file).map_err(|errno| format!("its file: {errno}"))?;
    let mapping = shared::map(&file, offset, size, Place::Guest(guest), alarm)?;
    let mapping =
        GuestRegionMmap::new(mapping, GuestAddress(guest)).ok_or("its end is beyond 64 bits")?;
    Ok(Region {
        guest,
        user: described.user_addr,
        size,
        file: (stat.st_dev, stat.st_ino, offset),
        times: 1,
        mapping: Arc::new(mapping),
    })
}
