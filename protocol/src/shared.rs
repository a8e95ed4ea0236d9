//! Memory of a file that somebody else can cut.
//!
//! Guest memory and the inflight region are files that another process holds
//! too. It can make them shorter, and huge pages or room in a tmpfs may be
//! missing when a page is touched for the first time; the kernel then sends
//! SIGBUS to whoever touches it. No seal and no check beforehand rules all of
//! that out, so every mapping of such a file is *guarded*: the signal's handler
//! puts a fresh page where the fault was, notes the loss in the mapping's
//! [`Alarm`], and wakes whoever waits for it. The access goes on, with zeroes;
//! what was done with them must not be told to anybody, so who reads or writes
//! such memory asks the alarm before it makes a result known.
//!
//! ```text
//! map ──► guarded ──fault──► fresh page in its place, alarm ──► owner ends its session
//!            └────────────── drop: off the list, then unmapped
//! ```
//! The handler reads the list of guarded ranges without a lock. A range leaves
//! the list before it is unmapped, and whoever is in the handler for it holds it
//! mapped, so that entry cannot change meanwhile; of others a count tells the
//! handler that they have changed while it looked. A SIGBUS from anywhere else
//! ends the process as if there were no handler.
//!
//! The kernel's own accesses (read(2) into such memory, io_uring) send no
//! signal: the call fails with EFAULT.

mod handler;
mod list;

use std::fmt;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use nix::libc::{self, c_void};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use vm_memory::bitmap::{Bitmap, NewBitmap, WithBitmapSlice};
use vm_memory::{MmapRegion, mmap::MmapRegionBuilder};

use list::Entry;

const PAGE: u64 = 4096;
/// No loss, as a number in an [`Alarm`]; a page's address cannot be it.
const NOTHING: u64 = u64::MAX;
/// The place of an inflight region, as a number.
const INFLIGHT: u64 = u64::MAX - 1;

/// What a mapping is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Guest memory from this guest-physical address on.
    Guest(u64),
    /// An inflight region.
    Inflight,
}

/// Memory that was lent and is not there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The page of guest memory at this guest-physical address.
    Guest(u64),
    /// A part of the inflight region.
    Inflight,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guest(address) => write!(
                f,
                "the guest's memory at {address:#x} is not there any more: its file was cut, or \
                 there are no huge pages or no room in its tmpfs left"
            ),
            Self::Inflight => write!(
                f,
                "the inflight region is not there any more: its file was cut, or there is no \
                 room in its tmpfs left"
            ),
        }
    }
}

/// Rings when memory that it watches is touched and is not there. Readable
/// then, until it is [silenced](Self::silence).
#[derive(Debug)]
pub struct Alarm {
    event: EventFd,
    /// What was lost first: [`NOTHING`], [`INFLIGHT`], or a guest address.
    lost: AtomicU64,
}

impl Alarm {
    /// One that has not rung.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self {
            event: EventFd::from_flags(flags)?,
            lost: AtomicU64::new(NOTHING),
        })
    }

    /// What was lost first, if anything was. `None` also says of everything that
    /// this thread has read of the memory before that it was there.
    pub fn lost(&self) -> Option<Lost> {
        // The reads come first; this one must not pass them.
        fence(Ordering::Acquire);
        match self.lost.load(Ordering::Acquire) {
            NOTHING => None,
            INFLIGHT => Some(Lost::Inflight),
            address => Some(Lost::Guest(address)),
        }
    }

    /// Makes its descriptor not readable; what was lost stays known.
    pub fn silence(&self) {
        let _ = self.event.read();
    }

    /// Forgets what was lost; for one whose memory is not mapped any more.
    pub fn reset(&self) {
        self.silence();
        self.lost.store(NOTHING, Ordering::Release);
    }

    /// Notes a loss; only the first counts. Safe in a signal's handler.
    fn ring(&self, lost: u64) {
        let order = Ordering::SeqCst;
        let _ = self.lost.compare_exchange(NOTHING, lost, order, order);
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Size of the pages behind a file: what a mapping of it must begin and end at.
///
/// # Errors
/// Those of fstatfs(2).
pub fn page_size(file: impl AsFd) -> io::Result<u64> {
    let kind = fstatfs(&file)?;
    let huge = kind.filesystem_type() == HUGETLBFS_MAGIC;
    let size = u64::try_from(kind.block_size()).unwrap_or(PAGE);
    Ok(if huge { size.max(PAGE) } else { PAGE })
}

/// Maps `size` bytes of a regular file from `offset` on, guarded; the file
/// itself is not held.
///
/// # Errors
/// Says what stands against it: it is no regular file, ends before the mapping
/// does, has pages that the mapping does not begin or end at, or cannot be
/// mapped.
pub fn map(
    file: &File,
    offset: u64,
    size: u64,
    place: Place,
    alarm: &Arc<Alarm>,
) -> Result<MmapRegion<Guard>, String> {
    let stat = fstat(file).map_err(|errno| format!("its file: {errno}"))?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err("its descriptor is not of a regular file".into());
    }
    let length = u64::try_from(stat.st_size).unwrap_or(0);
    if offset.checked_add(size).is_none_or(|end| end > length) {
        return Err(format!("its file has only {length:#x} bytes"));
    }
    let page = page_size(file).map_err(|error| format!("its file: {error}"))?;
    if page > PAGE && !(size.is_multiple_of(page) && offset.is_multiple_of(page)) {
        return Err(format!(
            "it does not begin and end at huge pages of {page:#x}"
        ));
    }
    let bytes = usize::try_from(size).ok().and_then(NonZeroUsize::new);
    let bytes = bytes.ok_or("it is empty or too large")?;
    let page = usize::try_from(page).map_err(|_| "its pages are too large")?;
    Guard::map(file, offset, bytes, page, place, alarm)
        .map_err(|error| format!("cannot map its file: {error}"))
}

/// Keeps memory mapped, and guarded for as long as it is mapped. It lies in the
/// region that it belongs to, where `vm-memory` has a place for what a region
/// brings along; there is no bitmap in it. One of memory that nobody else can
/// take away guards nothing ([`Default`]).
#[derive(Debug, Default)]
pub struct Guard(Option<Held>);

#[derive(Debug)]
struct Held {
    /// Before the mapping: the list is left first.
    entry: Entry,
    #[allow(dead_code, reason = "held, not used")]
    mapping: Mapping,
}

impl Guard {
    fn map(
        file: &File,
        offset: u64,
        size: NonZeroUsize,
        page: usize,
        place: Place,
        alarm: &Arc<Alarm>,
    ) -> io::Result<MmapRegion<Self>> {
        handler::install()?;
        let mapping = Mapping::new(file, offset, size)?;
        let address = mapping.address;
        let entry = Entry::new(address.as_ptr() as usize, size.get(), page, place, alarm);
        let guard = Self(Some(Held { entry, mapping }));
        let builder = MmapRegionBuilder::new_with_bitmap(size.get(), guard)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE);
        // SAFETY: the mapping has this address and this size, and stays until
        // the guard is dropped, which the region does after its last use.
        let builder = unsafe { builder.with_raw_mmap_pointer(address.as_ptr().cast()) };
        builder.build().map_err(io::Error::other)
    }

    /// What rings when the memory is touched and is not there.
    pub fn alarm(&self) -> Option<&Alarm> {
        self.0.as_ref().map(|held| held.entry.alarm())
    }
}

impl WithBitmapSlice<'_> for Guard {
    type S = ();
}

impl Bitmap for Guard {
    fn mark_dirty(&self, _offset: usize, _length: usize) {}

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, _offset: usize) {}
}

impl NewBitmap for Guard {
    fn with_len(_length: usize) -> Self {
        Self::default()
    }
}

/// Guards memory that somebody else has mapped, and keeps it mapped meanwhile.
#[derive(Debug)]
pub struct Watch {
    /// Before the mapping: the list is left first.
    #[allow(dead_code, reason = "held, not used")]
    entry: Entry,
    #[allow(dead_code, reason = "held, not used")]
    mapping: Arc<MmapRegion<()>>,
}

impl Watch {
    /// Guards `mapping`.
    ///
    /// # Errors
    /// Those of fstatfs(2) and sigaction(2).
    pub fn new(mapping: Arc<MmapRegion<()>>, place: Place, alarm: &Arc<Alarm>) -> io::Result<Self> {
        handler::install()?;
        let page = match mapping.file_offset() {
            Some(offset) => page_size(offset.file())?,
            None => PAGE,
        };
        let page = usize::try_from(page).map_err(io::Error::other)?;
        let start = mapping.as_ptr() as usize;
        let entry = Entry::new(start, mapping.size(), page, place, alarm);
        Ok(Self { entry, mapping })
    }
}

/// A mapping of a file, shared with whoever else has the file.
#[derive(Debug)]
struct Mapping {
    address: NonNull<c_void>,
    size: NonZeroUsize,
}

// SAFETY: it is an address, at which nothing is read or written here; any thread
// may unmap it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &File, offset: u64, size: NonZeroUsize) -> io::Result<Self> {
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping where nothing else is.
        let address = unsafe { mmap(None, size, access, flags, file, offset) }?;
        Ok(Self { address, size })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: whoever holds a pointer into it holds the guard too, and that
        // is being dropped.
        let _ = unsafe { munmap(self.address, self.size.get()) };
    }
}

#[cfg(test)]
mod tests;
