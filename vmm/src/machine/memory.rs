//! Guest memory: sealed memfd regions, mapped once and lent to back-ends.
//!
//! RAM lies from 0 up to `layout::LOW_RAM_END`, the rest from 4 GiB. Each of
//! the two is one memfd. The seals make its size final: a back-end that was
//! lent it cannot shorten it and so cannot kill this process with SIGBUS.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use rustix::mm::{Advice, madvise};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::layout;

/// Guest memory is a multiple of this, in bytes: a huge page.
pub(crate) const GRANULARITY: u64 = 2 << 20;

/// One run of guest-physical addresses that a memfd backs.
#[derive(Debug)]
pub(crate) struct Region {
    /// First guest-physical address.
    pub(crate) guest_phys: u64,
    /// Size in bytes, a multiple of [`GRANULARITY`].
    pub(crate) size: u64,
    /// The memfd, sealed against shrink, grow and further seals; to be lent.
    pub(crate) file: Arc<File>,
    /// Where the region begins in `file`, in bytes.
    pub(crate) file_offset: u64,
    /// Where it is mapped in this process, for reading and writing.
    pub(crate) host_address: u64,
}

/// All of the guest's memory. Unmapped when the last holder drops it.
#[derive(Debug)]
pub struct Ram {
    regions: Vec<Region>,
    guest: GuestMemoryMmap,
}

/// How guest memory is to be backed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backing {
    /// By huge pages of 2 MiB, reserved at once.
    pub(crate) hugepages: bool,
    /// By pages that exist before the guest starts.
    pub(crate) prefault: bool,
}

impl Ram {
    /// Makes `size` bytes of guest memory, a multiple of `GRANULARITY`.
    ///
    /// # Errors
    /// The size is not possible, the host has too few huge pages, or too
    /// little memory to populate; the text says which and what to do.
    pub fn new(size: u64, backing: Backing) -> Result<Self> {
        if size == 0 || !size.is_multiple_of(GRANULARITY) {
            bail!("guest memory of {size} bytes: it must be a multiple of 2 MiB, and not 0");
        }
        let low = size.min(layout::LOW_RAM_END);
        let mut regions = Vec::new();
        let mut mappings = Vec::new();
        for (name, guest_phys, size) in [
            (c"guest-ram-low", 0, low),
            (c"guest-ram-high", layout::HIGH_RAM_START, size - low),
        ] {
            if size != 0 {
                let (region, mapping) = map_region(name, guest_phys, size, backing)?;
                regions.push(region);
                mappings.push(mapping);
            }
        }
        let guest = GuestMemoryMmap::from_regions(mappings)
            .map_err(|error| anyhow!("putting guest memory together: {error}"))?;
        Ok(Self { regions, guest })
    }

    /// The regions, by rising guest-physical address.
    pub(crate) fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The memory as vm-memory sees it.
    pub fn guest(&self) -> &GuestMemoryMmap {
        &self.guest
    }
}

fn map_region(
    name: &CStr,
    guest_phys: u64,
    size: u64,
    backing: Backing,
) -> Result<(Region, GuestRegionMmap)> {
    let file = Arc::new(sealed_memfd(name, size, backing.hugepages)?);
    let length = usize::try_from(size).context("guest memory larger than an address space")?;
    // Without MAP_NORESERVE huge pages are reserved by the mapping, which fails
    // when there are too few; with it the guest would meet SIGBUS later.
    let reserve = if backing.hugepages {
        0
    } else {
        libc::MAP_NORESERVE
    };
    let mapping = MmapRegionBuilder::new(length)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | reserve)
        .with_file_offset(FileOffset::from_arc(Arc::clone(&file), 0))
        .with_hugetlbfs(backing.hugepages)
        .build()
        .map_err(|error| refused(size, backing.hugepages, &error))?;
    let host_address = mapping.as_ptr() as u64;
    advise(host_address, length, Advice::LinuxDontDump)
        .context("keeping guest memory out of core dumps")?;
    if backing.prefault {
        populate(host_address, length).map_err(|error| {
            anyhow!(
                "populating {} MiB of guest memory: {error}; the host has not that much to give: \
                 ask for less --memory, or leave --prefault out",
                size >> 20
            )
        })?;
    }
    let mapping = GuestRegionMmap::new(mapping, GuestAddress(guest_phys))
        .context("guest memory beyond the address space")?;
    let region = Region {
        guest_phys,
        size,
        file,
        file_offset: 0,
        host_address,
    };
    Ok((region, mapping))
}

fn refused(size: u64, hugepages: bool, error: &dyn std::fmt::Display) -> anyhow::Error {
    let mib = size >> 20;
    if hugepages {
        anyhow!(
            "mapping {mib} MiB of guest memory on huge pages: {error}; the host has fewer than {} \
             free huge pages of 2 MiB (see HugePages_Free in /proc/meminfo): raise \
             /proc/sys/vm/nr_hugepages, or leave --hugepages out",
            size / GRANULARITY
        )
    } else {
        anyhow!("mapping {mib} MiB of guest memory: {error}; ask for less --memory")
    }
}

/// A memfd of `size` bytes whose size is final.
fn sealed_memfd(name: &CStr, size: u64, hugepages: bool) -> Result<File> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if hugepages {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    // Linux 6.3 has MFD_NOEXEC_SEAL; an older one refuses the flag.
    let file = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, flags),
        result => result,
    }
    .map(File::from)
    .map_err(|error| {
        let advice = if hugepages {
            "; the host may lack huge pages of 2 MiB: leave --hugepages out"
        } else {
            ""
        };
        anyhow!("making a memfd for guest memory: {error}{advice}")
    })?;
    file.set_len(size)
        .map_err(|error| refused(size, hugepages, &error))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&file, seals).context("sealing guest memory")?;
    Ok(file)
}

/// Makes every page exist, with as many threads as are useful.
fn populate(address: u64, length: usize) -> io::Result<()> {
    /// Pages come in runs of this size, in bytes: a whole number of huge pages.
    const RUN: usize = 64 << 20;
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || -> io::Result<()> {
        loop {
            let start = next.fetch_add(RUN, std::sync::atomic::Ordering::Relaxed);
            if start >= length {
                return Ok(());
            }
            let run = RUN.min(length - start);
            advise(address + start as u64, run, Advice::LinuxPopulateWrite)?;
        }
    };
    let threads = std::thread::available_parallelism()
        .map_or(1, |count| count.get())
        .min(length.div_ceil(RUN))
        .min(8);
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut result = work();
        for thread in others {
            let other = thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a populating thread broke")));
            result = result.and(other);
        }
        result
    })
}

/// madvise on a mapping that this module has just made.
fn advise(address: u64, length: usize, advice: Advice) -> io::Result<()> {
    // SAFETY: the callers give a range within their own live mapping of guest
    // memory, and none of the advice used here changes what it holds.
    unsafe { madvise(address as *mut libc::c_void, length, advice) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use vm_memory::Bytes;

    use super::*;

    fn small() -> Ram {
        Ram::new(4 << 20, Backing::default()).unwrap()
    }

    #[test]
    fn a_holder_of_the_memfd_can_change_neither_its_size_nor_its_seals() {
        let ram = small();
        let file = &ram.regions()[0].file;
        assert!(file.set_len(0).is_err());
        assert!(file.set_len(8 << 20).is_err());
        let sealed = fcntl_add_seals(file, SealFlags::WRITE);
        assert_eq!(sealed, Err(Errno::PERM));
        assert_eq!(file.metadata().unwrap().len(), 4 << 20);
    }

    #[test]
    fn what_one_side_writes_the_other_reads() {
        let ram = small();
        ram.guest()
            .write_obj(0x1234u32, GuestAddress(0x5000))
            .unwrap();
        let mut bytes = [0; 4];
        ram.regions()[0]
            .file
            .read_exact_at(&mut bytes, 0x5000)
            .unwrap();
        assert_eq!(u32::from_ne_bytes(bytes), 0x1234);
    }

    #[test]
    fn memory_beyond_the_hole_lies_from_4_gib() {
        let ram = Ram::new(5 << 30, Backing::default()).unwrap();
        let spans: Vec<_> = ram
            .regions()
            .iter()
            .map(|r| (r.guest_phys, r.size))
            .collect();
        assert_eq!(spans, [(0, 3 << 30), (4 << 30, 2 << 30)]);
        ram.guest()
            .write_obj(7u8, GuestAddress((6 << 30) - 1))
            .unwrap();
        assert!(ram.guest().write_obj(7u8, GuestAddress(3 << 30)).is_err());
        assert!(ram.guest().write_obj(7u8, GuestAddress(6 << 30)).is_err());
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for size in [0, 1 << 20, (2 << 20) + 1] {
            assert!(Ram::new(size, Backing::default()).is_err(), "{size}");
        }
    }

    #[test]
    fn too_few_huge_pages_are_an_error_that_says_so() {
        let backing = Backing {
            hugepages: true,
            prefault: false,
        };
        // More than any host that runs this test has to spare.
        let error = Ram::new(1 << 46, backing).unwrap_err();
        assert!(format!("{error:#}").contains("--hugepages"), "{error:#}");
    }

    #[test]
    fn prefaulted_memory_is_there_before_it_is_touched() {
        let backing = Backing {
            hugepages: false,
            prefault: true,
        };
        let ram = Ram::new(130 << 20, backing).unwrap();
        let blocks = ram.regions()[0].file.metadata().unwrap().blocks();
        assert_eq!(blocks * 512, 130 << 20);
    }
}
