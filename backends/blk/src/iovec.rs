//! Memory as the kernel takes it: lists of address and length, each with what
//! keeps the memory behind it alive.
//!
//! Three kinds of memory are behind a list: buffers of the guest, a bounce
//! buffer for direct I/O on buffers that are not aligned, and a page of zeroes
//! that is only ever written from. This file alone turns them into pointers;
//! what it hands out cannot outlive its [`Iovecs`].

use std::cmp::min;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use outboard_runtime::chain::Buffer;
use outboard_runtime::device::Memory;
use outboard_runtime::memory::{is_lost, touch};
use vm_memory::{GuestMemoryBackend, VolatileSlice};

/// Most entries that one system call takes (`UIO_MAXIOV`).
const WINDOW: usize = 1024;

/// Bytes in a bounce buffer: a multiple of every block size.
pub const BOUNCE: usize = 64 * 1024;
/// Its alignment, which satisfies every device.
const BOUNCE_ALIGN: usize = 4096;

/// Most bytes in one list of zeroes.
pub const ZEROES: u64 = (ZERO_PAGE as u64) * 64;
const ZERO_PAGE: usize = 16 * 1024;

#[repr(align(4096))]
struct ZeroPage([u8; ZERO_PAGE]);
static ZERO: ZeroPage = ZeroPage([0; ZERO_PAGE]);

/// A buffer that is not all in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmapped;

/// An aligned buffer of [`BOUNCE`] bytes.
#[derive(Debug)]
pub struct Bounce {
    bytes: Box<[u8]>,
    start: usize,
}

impl Bounce {
    /// Allocates one.
    pub fn new() -> Self {
        let bytes = vec![0; BOUNCE + BOUNCE_ALIGN].into_boxed_slice();
        let start = bytes.as_ptr().align_offset(BOUNCE_ALIGN);
        Self { bytes, start }
    }

    /// The aligned bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        let end = self.start.saturating_add(BOUNCE);
        self.bytes.get_mut(self.start..end).unwrap_or_default()
    }
}

impl Default for Bounce {
    fn default() -> Self {
        Self::new()
    }
}

/// What is behind a list, held for as long as the list is.
#[derive(Debug)]
enum Owner {
    Nobody,
    Guest(Arc<Memory>),
    Bounce(Bounce),
    Zeroes,
}

/// A list of buffers, consumed from the front as the kernel gets on.
///
/// Invariant: every entry from `first` on lies within memory that `owner`
/// keeps allocated and mapped, and is writable unless that is `Zeroes`.
#[derive(Debug)]
pub struct Iovecs {
    list: Vec<libc::iovec>,
    first: usize,
    length: u64,
    owner: Owner,
}

// SAFETY: the pointers are to memory that the owner, which is Send itself,
// keeps alive; they are not tied to a thread.
unsafe impl Send for Iovecs {}

impl Default for Iovecs {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            first: 0,
            length: 0,
            owner: Owner::Nobody,
        }
    }
}

impl Iovecs {
    /// Makes this a list of guest buffers.
    ///
    /// # Errors
    /// [`Unmapped`] when a byte of them is not in guest memory; the list is
    /// empty then.
    pub fn fill(
        &mut self,
        memory: &Arc<Memory>,
        buffers: impl Iterator<Item = Buffer>,
    ) -> Result<(), Unmapped> {
        self.clear();
        for buffer in buffers {
            for slice in memory.get_slices(buffer.address, buffer.length as usize) {
                let Ok(slice) = slice else {
                    self.clear();
                    return Err(Unmapped);
                };
                let guard = slice.ptr_guard_mut();
                self.push(guard.as_ptr(), slice.len());
            }
        }
        // From here on the entries are backed by what they point into.
        self.owner = Owner::Guest(memory.clone());
        Ok(())
    }

    /// A list of the first `length` bytes of a bounce buffer.
    pub fn of_bounce(mut bounce: Bounce, length: usize) -> Self {
        let mut iovecs = Self::default();
        let bytes = bounce.bytes();
        let length = min(length, bytes.len());
        iovecs.push(bytes.as_mut_ptr(), length);
        iovecs.owner = Owner::Bounce(bounce);
        iovecs
    }

    /// A list of `length` zeroes, [`ZEROES`] at most, to write from.
    pub fn of_zeroes(length: u64) -> Self {
        let mut iovecs = Self::default();
        let mut left = min(length, ZEROES) as usize;
        while left > 0 {
            let part = min(left, ZERO_PAGE);
            iovecs.push(ZERO.0.as_ptr().cast_mut(), part);
            left = left.saturating_sub(part);
        }
        iovecs.owner = Owner::Zeroes;
        iovecs
    }

    fn push(&mut self, base: *mut u8, length: usize) {
        if length > 0 {
            self.list.push(libc::iovec {
                iov_base: base.cast(),
                iov_len: length,
            });
            self.length = self.length.saturating_add(length as u64);
        }
    }

    /// Empties the list and lets go of the memory; keeps its own allocation.
    pub fn clear(&mut self) {
        self.list.clear();
        self.first = 0;
        self.length = 0;
        self.owner = Owner::Nobody;
    }

    /// Takes the bounce buffer back, which empties the list.
    pub fn take_bounce(&mut self) -> Option<Bounce> {
        let owner = std::mem::replace(&mut self.owner, Owner::Nobody);
        self.clear();
        match owner {
            Owner::Bounce(bounce) => Some(bounce),
            _ => None,
        }
    }

    /// Bytes left.
    pub fn remaining(&self) -> u64 {
        self.length
    }

    /// Consumes `count` bytes from the front.
    pub fn advance(&mut self, count: u64) {
        let mut left = min(count, self.length);
        self.length = self.length.saturating_sub(left);
        while let Some(entry) = self.list.get_mut(self.first) {
            let part = min(left, entry.iov_len as u64) as usize;
            entry.iov_base = entry.iov_base.wrapping_byte_add(part);
            entry.iov_len = entry.iov_len.saturating_sub(part);
            left = left.saturating_sub(part as u64);
            if entry.iov_len > 0 {
                break;
            }
            self.first = self.first.saturating_add(1);
        }
    }

    /// Whether every address is a multiple of `address` and every length one
    /// of `length`, both powers of two.
    pub fn is_aligned(&self, address: usize, length: usize) -> bool {
        self.rest().iter().all(|entry| {
            (entry.iov_base as usize).is_multiple_of(address)
                && entry.iov_len.is_multiple_of(length)
        })
    }

    /// Copies from the front of the list to `to` and consumes what it copied.
    pub fn copy_to(&mut self, mut to: &mut [u8]) {
        self.consume(to.len(), |slice| {
            let (now, later) = std::mem::take(&mut to)
                .split_at_mut_checked(slice.len())
                .unwrap_or_default();
            slice.copy_to(now);
            to = later;
        });
    }

    /// Copies `from` to the front of the list and consumes what it copied.
    pub fn copy_from(&mut self, mut from: &[u8]) {
        if self.target().is_empty() {
            return;
        }
        self.consume(from.len(), |slice| {
            let (now, later) = from.split_at_checked(slice.len()).unwrap_or_default();
            slice.copy_from(now);
            from = later;
        });
    }

    /// Hands the next `count` bytes to `with`, piece by piece.
    fn consume(&mut self, count: usize, mut with: impl FnMut(VolatileSlice<'_>)) {
        let mut left = min(count as u64, self.length) as usize;
        while left > 0 {
            let Some(entry) = self.list.get(self.first) else {
                return;
            };
            let part = min(left, entry.iov_len);
            // SAFETY: by the invariant, the entry lies in memory that stays
            // mapped while `self` is borrowed; nobody has a reference into it.
            with(unsafe { VolatileSlice::new(entry.iov_base.cast(), part) });
            self.advance(part as u64);
            left = left.saturating_sub(part);
        }
    }

    /// Whether what was copied from it may be zeroes in the place of guest memory
    /// that is not there any more.
    pub fn is_lost(&self) -> bool {
        matches!(&self.owner, Owner::Guest(memory) if is_lost(memory))
    }

    /// Looks at what is left of guest memory, which the kernel could not access:
    /// if it is not there any more, that ends the session.
    pub fn touch(&self) {
        if !matches!(self.owner, Owner::Guest(_)) {
            return;
        }
        for entry in self.rest() {
            // SAFETY: by the invariant, the entry lies in memory that stays
            // mapped while `self` is borrowed; nobody has a reference into it.
            touch(&unsafe { VolatileSlice::new(entry.iov_base.cast(), entry.iov_len) });
        }
    }

    /// Fills what is left with zeroes; consumes nothing.
    pub fn zero(&self) {
        if self.target().is_empty() {
            return;
        }
        for entry in self.rest() {
            let mut done = 0;
            while done < entry.iov_len {
                let part = min(entry.iov_len.saturating_sub(done), ZERO_PAGE);
                let base = entry.iov_base.wrapping_byte_add(done);
                // SAFETY: by the invariant, the entry lies in writable memory
                // that stays mapped while `self` is borrowed; nobody has a
                // reference into it.
                let slice = unsafe { VolatileSlice::new(base.cast(), part) };
                slice.copy_from(&ZERO.0);
                done = done.saturating_add(part);
            }
        }
    }

    fn rest(&self) -> &[libc::iovec] {
        self.list.get(self.first..).unwrap_or_default()
    }

    /// What one system call may read from: valid until `self` is changed.
    pub fn source(&self) -> &[libc::iovec] {
        let rest = self.rest();
        rest.get(..WINDOW).unwrap_or(rest)
    }

    /// What one system call may write to: nothing when this is zeroes.
    pub fn target(&self) -> &[libc::iovec] {
        match self.owner {
            Owner::Zeroes => &[],
            _ => self.source(),
        }
    }

    /// Reads from `file` at `offset` into the front of the list; consumes
    /// nothing.
    ///
    /// # Errors
    /// Those of preadv(2).
    pub fn read_from(&self, file: &File, offset: u64) -> io::Result<u64> {
        let iovecs = self.target();
        // SAFETY: by the invariant every entry is writable memory that stays
        // mapped during the call; WINDOW bounds the count.
        check(unsafe {
            libc::preadv2(
                file.as_raw_fd(),
                iovecs.as_ptr(),
                iovecs.len() as libc::c_int,
                signed(offset)?,
                0,
            )
        })
    }

    /// Writes the front of the list to `file` at `offset`, with `flags` of
    /// pwritev2(2); consumes nothing.
    ///
    /// # Errors
    /// Those of pwritev2(2).
    pub fn write_to(&self, file: &File, offset: u64, flags: i32) -> io::Result<u64> {
        let iovecs = self.source();
        // SAFETY: by the invariant every entry is memory that stays mapped
        // during the call; WINDOW bounds the count.
        check(unsafe {
            libc::pwritev2(
                file.as_raw_fd(),
                iovecs.as_ptr(),
                iovecs.len() as libc::c_int,
                signed(offset)?,
                flags,
            )
        })
    }
}

fn signed(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn check(result: libc::ssize_t) -> io::Result<u64> {
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    fn buffer(address: u64, length: u32) -> Buffer {
        Buffer {
            address: GuestAddress(address),
            length,
        }
    }

    /// Two regions that touch at 0x2000, and a hole after 0x3000.
    fn memory() -> Arc<Memory> {
        let regions = [
            (GuestAddress(0x1000), 0x1000),
            (GuestAddress(0x2000), 0x1000),
        ];
        Arc::new(Memory::from_ranges(&regions).unwrap())
    }

    #[test]
    fn a_buffer_over_two_regions_is_read_in_order() {
        let memory = memory();
        memory.write_slice(b"abcdef", GuestAddress(0x1ffd)).unwrap();
        let mut iovecs = Iovecs::default();
        let buffers = [buffer(0x1ffd, 6), buffer(0, 0), buffer(0x1ffe, 1)];
        iovecs.fill(&memory, buffers.into_iter()).unwrap();
        assert_eq!(iovecs.remaining(), 7);
        let mut bytes = [0; 7];
        iovecs.copy_to(&mut bytes);
        assert_eq!(&bytes, b"abcdefb");
        assert_eq!(iovecs.remaining(), 0);
    }

    #[test]
    fn holes_overflows_and_ends_of_memory_are_unmapped() {
        let memory = memory();
        for (address, length) in [
            (0x2fff, 2),
            (0xfff, 2),
            (0x5000, 1),
            (u64::MAX, 1),
            (u64::MAX, 2),
            (0x1000, u32::MAX),
        ] {
            let mut iovecs = Iovecs::default();
            let good = buffer(0x1000, 16);
            let result = iovecs.fill(&memory, [good, buffer(address, length)].into_iter());
            assert_eq!(result, Err(Unmapped), "{address:#x}+{length:#x}");
            assert!(iovecs.source().is_empty());
        }
    }

    #[test]
    fn a_list_moves_through_a_file_in_any_steps() {
        let memory = memory();
        let content: Vec<u8> = (0..=255).cycle().take(0x2000).collect();
        memory.write_slice(&content, GuestAddress(0x1000)).unwrap();
        let file = tempfile::tempfile().unwrap();
        let mut iovecs = Iovecs::default();
        let buffers = (0..16).map(|i| buffer(0x1000 + i * 0x200, 0x200));
        iovecs.fill(&memory, buffers).unwrap();
        let mut offset = 0;
        while iovecs.remaining() > 0 {
            let count = iovecs.write_to(&file, offset, 0).unwrap().min(777);
            iovecs.advance(count);
            offset += count;
        }
        let mut found = Vec::new();
        (&file).read_to_end(&mut found).unwrap();
        assert_eq!(found, content);
    }

    #[test]
    fn zeroes_are_never_written_to() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let mut zeroes = Iovecs::of_zeroes(ZEROES);
        assert_eq!(zeroes.remaining(), ZEROES);
        assert_eq!(zeroes.read_from(&file, 0).unwrap(), 0);
        zeroes.copy_from(&[1]);
        zeroes.zero();
        assert_eq!(ZERO.0[0], 0);
        assert_eq!(zeroes.write_to(&file, 0, 0).unwrap(), ZEROES);
    }

    #[test]
    fn more_buffers_than_a_call_takes_come_in_windows() {
        let memory = memory();
        let mut iovecs = Iovecs::default();
        let buffers = (0..3000).map(|_| buffer(0x1000, 1));
        iovecs.fill(&memory, buffers).unwrap();
        assert_eq!(iovecs.source().len(), WINDOW);
        memory.write_obj(1u8, GuestAddress(0x1000)).unwrap();
        iovecs.zero();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x1000)).unwrap(), 0);
        assert_eq!(iovecs.remaining(), 3000);
    }

    #[test]
    fn a_bounce_buffer_is_aligned_and_comes_back() {
        let mut iovecs = Iovecs::of_bounce(Bounce::new(), 8192);
        assert!(iovecs.is_aligned(4096, 4096));
        iovecs.advance(1);
        assert!(!iovecs.is_aligned(2, 1));
        assert!(!iovecs.is_aligned(1, 2));
        assert_eq!(iovecs.take_bounce().unwrap().bytes().len(), BOUNCE);
        assert!(iovecs.take_bounce().is_none());
    }
}
