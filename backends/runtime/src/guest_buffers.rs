//! Buffers of the guest as the kernel takes them: a queue of pieces, each an
//! address and a length, and the system calls that move data through them.
//!
//! ```text
//! buffers of chains ──extend──► pieces ──advance──► gone, from the front
//!      (the guest's word)          │ (found in guest memory)
//!                                  └──► copied, read into, written from
//! ```
//! The one file in which guest memory becomes pointers.

#![allow(unsafe_code)]

use std::cmp::min;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use libc::{c_int, iovec, off_t};
use outboard_ring::chain::Buffer;
use outboard_ring::memory::{Memory, is_lost, keeps, touch};
use vm_memory::{GuestMemoryBackend, VolatileSlice};

/// Most entries that one system call takes (`UIO_MAXIOV`).
const MOST_ENTRIES: usize = 1024;
/// Most pieces of a frame that is read or written in one call: one entry is
/// before them and one after.
pub const MOST_PIECES: usize = MOST_ENTRIES - 2;

/// What keeps the memory behind the pieces mapped, and nothing else does: it is
/// held from the first piece on until the first piece of other memory comes, or this
/// is dropped.
type Mapped = Arc<Memory>;

/// A buffer that is not all in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmapped;

/// Pieces of guest memory, in order; none is empty.
///
/// Invariant: every piece lies within `memory`, which keeps it mapped.
#[derive(Debug, Default)]
pub struct GuestBuffers {
    pieces: VecDeque<iovec>,
    /// The sum of their lengths.
    bytes: usize,
    memory: Option<Mapped>,
    /// What the next call that moves a frame is given; nothing between two.
    call: Vec<iovec>,
}

// SAFETY: the pointers are to memory that `memory`, which is Send itself, keeps
// mapped; they are not tied to a thread.
unsafe impl Send for GuestBuffers {}

impl GuestBuffers {
    /// Adds buffers at the end and returns how many bytes they have; on an
    /// error nothing is added.
    ///
    /// # Errors
    /// [`Unmapped`] when a byte of them is not in guest memory.
    pub fn extend(
        &mut self,
        memory: &Mapped,
        buffers: impl IntoIterator<Item = Buffer>,
    ) -> Result<usize, Unmapped> {
        if !self.holds(memory) {
            return Err(Unmapped);
        }
        let before = self.pieces.len();
        let mut bytes = 0usize;
        for buffer in buffers {
            for slice in memory.get_slices(buffer.address, buffer.length as usize) {
                let Ok(slice) = slice else {
                    self.pieces.truncate(before);
                    return Err(Unmapped);
                };
                if !slice.is_empty() {
                    bytes = bytes.saturating_add(slice.len());
                    self.pieces.push_back(iovec {
                        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                        iov_len: slice.len(),
                    });
                }
            }
        }
        self.bytes = self.bytes.saturating_add(bytes);
        Ok(bytes)
    }

    /// Makes `memory` the one that the pieces are of; false if there are
    /// pieces that it does not keep mapped, which a queue never sees.
    fn holds(&mut self, memory: &Mapped) -> bool {
        let held = self.memory.as_ref();
        if held.is_some_and(|held| Arc::ptr_eq(held, memory)) {
            return true;
        }
        // One with regions more keeps the mappings of all that there were.
        let kept = self.pieces.is_empty() || held.is_some_and(|held| keeps(memory, held));
        if kept {
            self.memory = Some(memory.clone());
        }
        kept
    }

    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Number of bytes in all pieces.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets the first `count` bytes, or all if there are fewer.
    pub fn advance(&mut self, count: usize) {
        let mut left = min(count, self.bytes);
        self.bytes = self.bytes.saturating_sub(left);
        while let Some(piece) = self.pieces.front_mut() {
            if piece.iov_len > left {
                *piece = rest_of(piece, left);
                return;
            }
            left = left.saturating_sub(piece.iov_len);
            self.pieces.pop_front();
        }
    }

    /// Forgets all pieces; keeps hold of the memory, since the next ones are of
    /// the same.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.bytes = 0;
    }

    /// Whether every piece begins at a multiple of `address` and has a multiple
    /// of `length` bytes.
    pub fn is_aligned(&self, address: usize, length: usize) -> bool {
        self.pieces.iter().all(|piece| {
            (piece.iov_base as usize).is_multiple_of(address)
                && piece.iov_len.is_multiple_of(length)
        })
    }

    /// Copies to `to` from byte `offset` on; returns how many bytes there were.
    pub fn copy_to(&self, offset: usize, to: &mut [u8]) -> usize {
        let mut rest = to;
        self.walk(offset, rest.len(), |slice| {
            let (now, later) = std::mem::take(&mut rest)
                .split_at_mut_checked(slice.len())
                .unwrap_or_default();
            slice.copy_to(now);
            rest = later;
        })
    }

    /// Copies `from` to byte `offset`; returns how many bytes there was room for.
    pub fn copy_from(&self, offset: usize, from: &[u8]) -> usize {
        let mut rest = from;
        self.walk(offset, from.len(), |slice| {
            let (now, later) = rest.split_at_checked(slice.len()).unwrap_or_default();
            slice.copy_from(now);
            rest = later;
        })
    }

    /// Whether what was copied from here may be zeroes in the place of guest
    /// memory that is not there any more.
    pub fn is_lost(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| is_lost(memory))
    }

    /// Looks at all pieces, which the kernel could not access ([`is_fault`]): if
    /// their memory is not there any more, that ends the session.
    pub fn touch(&self) {
        self.walk(0, usize::MAX, |slice| touch(&slice));
    }

    /// Shows `length` bytes from `offset` on, piece by piece; returns how many
    /// there were.
    fn walk(&self, offset: usize, length: usize, mut with: impl FnMut(VolatileSlice<'_>)) -> usize {
        parts(&self.pieces, offset, length, |part| {
            // SAFETY: by the invariant the part lies in memory that stays
            // mapped while `self` is borrowed; nobody has a reference into it.
            with(unsafe { VolatileSlice::new(part.iov_base.cast(), part.iov_len) });
        })
    }

    /// The first pieces, as many as lie in a row and one system call may take:
    /// valid until `self` is changed or dropped.
    pub fn entries(&self) -> &[iovec] {
        let (first, _) = self.pieces.as_slices();
        first.get(..MOST_ENTRIES).unwrap_or(first)
    }

    /// Reads from `file` at `offset` into the first pieces; returns how many
    /// bytes, and forgets none.
    ///
    /// # Errors
    /// Those of preadv(2).
    pub fn read_at(&self, file: &File, offset: u64) -> io::Result<usize> {
        let (entries, offset) = (self.entries(), signed(offset)?);
        // SAFETY: by the invariant every entry is writable memory that stays
        // mapped during the call; their number fits any integer.
        check(unsafe {
            libc::preadv(
                file.as_raw_fd(),
                entries.as_ptr(),
                entries.len() as c_int,
                offset,
            )
        })
    }

    /// Writes the first pieces to `file` at `offset`, with `flags` of
    /// pwritev2(2); returns how many bytes, and forgets none.
    ///
    /// # Errors
    /// Those of pwritev2(2).
    pub fn write_at(&self, file: &File, offset: u64, flags: c_int) -> io::Result<usize> {
        let (entries, offset) = (self.entries(), signed(offset)?);
        // SAFETY: as in `read_at`.
        check(unsafe {
            libc::pwritev2(
                file.as_raw_fd(),
                entries.as_ptr(),
                entries.len() as c_int,
                offset,
                flags,
            )
        })
    }

    /// Reads once: to `before`, then into the pieces after that many of their
    /// bytes, `most` bytes at most, and what does not fit to `rest`. Returns the
    /// bytes read in all, and how many there was room for in the pieces.
    ///
    /// # Errors
    /// Those of readv(2).
    pub fn read_between(
        &mut self,
        fd: BorrowedFd<'_>,
        before: &mut [u8],
        most: usize,
        rest: &mut [u8],
    ) -> io::Result<(usize, usize)> {
        let room = self.gather(before.as_mut_ptr(), before.len(), (before.len(), most));
        self.call.push(entry(rest.as_mut_ptr(), rest.len()));
        // SAFETY: the first and the last entry are exclusively borrowed by
        // this function; by the invariant the others lie in memory that stays
        // mapped during the call. Their number is bounded by `gather`.
        let result =
            unsafe { libc::readv(fd.as_raw_fd(), self.call.as_ptr(), self.call.len() as c_int) };
        Ok((self.check(result)?, room))
    }

    /// Writes `before` and the pieces without their first `skip` bytes, in one
    /// call; returns how many bytes went.
    ///
    /// # Errors
    /// Those of writev(2); `InvalidInput` when there are more than
    /// [`MOST_PIECES`].
    pub fn write_after(
        &mut self,
        fd: BorrowedFd<'_>,
        before: &[u8],
        skip: usize,
    ) -> io::Result<usize> {
        self.gather_all(before, skip)?;
        // SAFETY: the first entry is borrowed by this function and only read;
        // by the invariant the others lie in memory that stays mapped during
        // the call. Their number is bounded by `gather`.
        let result =
            unsafe { libc::writev(fd.as_raw_fd(), self.call.as_ptr(), self.call.len() as c_int) };
        self.check(result)
    }

    /// The same to a stream socket, without waiting: it may not all go.
    ///
    /// # Errors
    /// Those of sendmsg(2); `InvalidInput` when there are more than
    /// [`MOST_PIECES`].
    pub fn send_after(
        &mut self,
        fd: BorrowedFd<'_>,
        before: &[u8],
        skip: usize,
    ) -> io::Result<usize> {
        self.gather_all(before, skip)?;
        // SAFETY: all fields of a msghdr may be zero.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.call.as_mut_ptr();
        message.msg_iovlen = self.call.len() as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `message` names the entries of the call and nothing else; for
        // those see `write_after`.
        let result = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) };
        self.check(result)
    }

    fn gather_all(&mut self, before: &[u8], skip: usize) -> io::Result<()> {
        if self.pieces.len() > MOST_PIECES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let start = before.as_ptr().cast_mut();
        self.gather(start, before.len(), (skip, usize::MAX));
        Ok(())
    }

    /// Makes a call of `length` bytes at `start` and then of the pieces, without
    /// `skip` bytes of them and `most` bytes at most; returns how many bytes of
    /// the pieces there are.
    fn gather(&mut self, start: *mut u8, length: usize, (skip, most): (usize, usize)) -> usize {
        self.call.clear();
        self.call.push(entry(start, length));
        let first = self.pieces.iter().take(MOST_PIECES);
        parts(first, skip, most, |part| self.call.push(part))
    }

    /// What a call has answered. Where the kernel could not access the pieces,
    /// they are looked at.
    fn check(&mut self, result: libc::ssize_t) -> io::Result<usize> {
        let result = check(result);
        self.call.clear();
        if result.as_ref().is_err_and(is_fault) {
            self.touch();
        }
        result
    }
}

/// Gives to `with` what the bytes from `offset` on are, `most` at most; returns
/// how many there were.
fn parts<'a>(
    pieces: impl IntoIterator<Item = &'a iovec>,
    offset: usize,
    most: usize,
    mut with: impl FnMut(iovec),
) -> usize {
    let (mut skip, mut left) = (offset, most);
    for piece in pieces {
        if left == 0 {
            break;
        }
        let skipped = min(skip, piece.iov_len);
        skip = skip.saturating_sub(skipped);
        let mut part = rest_of(piece, skipped);
        part.iov_len = min(part.iov_len, left);
        left = left.saturating_sub(part.iov_len);
        if part.iov_len > 0 {
            with(part);
        }
    }
    most.saturating_sub(left)
}

/// A piece without its first `count` bytes, of which it has as many.
fn rest_of(piece: &iovec, count: usize) -> iovec {
    iovec {
        iov_base: piece.iov_base.wrapping_byte_add(count),
        iov_len: piece.iov_len.saturating_sub(count),
    }
}

fn entry(start: *mut u8, length: usize) -> iovec {
    iovec {
        iov_base: start.cast(),
        iov_len: length,
    }
}

/// Whether the kernel could not access guest memory: the front-end's fault, and
/// nobody else's.
pub fn is_fault(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EFAULT)
}

fn signed(offset: u64) -> io::Result<off_t> {
    off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn check(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests;
