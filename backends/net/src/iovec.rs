//! Guest memory as the kernel takes it: a queue of pieces, each an address and
//! a length, and the calls that read and write frames through them.
//!
//! The one file of this crate with unsafe code. Pieces are added from buffers
//! that were found in guest memory, and that memory stays mapped for as long
//! as the list lives.

use std::cmp::min;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use outboard_protocol::tap::HEADER;
use outboard_runtime::chain::Buffer;
use outboard_runtime::device::Memory;
use outboard_runtime::memory::touch;
use vm_memory::{GuestMemoryBackend, VolatileSlice};

/// Most entries that one system call takes (`UIO_MAXIOV`), less one before the
/// pieces of the guest and one after.
pub const MOST_PIECES: usize = 1024 - 2;

/// A buffer that is not all in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmapped;

/// What a buffer list was extended by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Number of pieces.
    pub pieces: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// Pieces of guest memory, in order.
///
/// Invariant: every piece lies within `memory`, which keeps it mapped.
#[derive(Debug, Default)]
pub struct Iovecs {
    pieces: VecDeque<libc::iovec>,
    memory: Option<Arc<Memory>>,
    /// What the next system call is given; nothing between two of them.
    call: Vec<libc::iovec>,
}

impl Iovecs {
    /// Adds buffers at the end; on an error nothing is added.
    ///
    /// # Errors
    /// [`Unmapped`] when a byte of them is not in guest memory.
    pub fn extend(&mut self, memory: &Arc<Memory>, buffers: &[Buffer]) -> Result<Extent, Unmapped> {
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
                    self.pieces.push_back(libc::iovec {
                        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                        iov_len: slice.len(),
                    });
                }
            }
        }
        let pieces = self.pieces.len().saturating_sub(before);
        Ok(Extent { pieces, bytes })
    }

    /// Makes `memory` the one that the pieces are of; false if there are
    /// pieces of another, which a worker never sees.
    fn holds(&mut self, memory: &Arc<Memory>) -> bool {
        let same = self
            .memory
            .as_ref()
            .is_some_and(|held| Arc::ptr_eq(held, memory));
        if !same && self.pieces.is_empty() {
            self.memory = Some(memory.clone());
            return true;
        }
        same
    }

    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Forgets the first `count` pieces.
    pub fn drop_front(&mut self, count: usize) {
        self.pieces.drain(..min(count, self.pieces.len()));
    }

    /// Forgets all pieces but the first `count`.
    pub fn truncate(&mut self, count: usize) {
        self.pieces.truncate(count);
    }

    /// Forgets all pieces.
    pub fn clear(&mut self) {
        self.pieces.clear();
    }

    /// Copies to `to` from `offset` on; returns how many bytes there were.
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

    /// Copies `from` to `offset`; returns how many bytes there was room for.
    pub fn copy_from(&self, offset: usize, from: &[u8]) -> usize {
        let mut rest = from;
        self.walk(offset, from.len(), |slice| {
            let (now, later) = rest.split_at_checked(slice.len()).unwrap_or_default();
            slice.copy_from(now);
            rest = later;
        })
    }

    /// Shows `length` bytes from `offset` on, piece by piece; returns how many
    /// there were.
    fn walk(
        &self,
        mut offset: usize,
        length: usize,
        mut with: impl FnMut(VolatileSlice<'_>),
    ) -> usize {
        let mut left = length;
        for piece in &self.pieces {
            if left == 0 {
                break;
            }
            let skip = min(offset, piece.iov_len);
            offset = offset.saturating_sub(skip);
            let part = min(piece.iov_len.saturating_sub(skip), left);
            let base = piece.iov_base.wrapping_byte_add(skip);
            // SAFETY: by the invariant the piece, and so this part of it, lies
            // in memory that stays mapped while `self` is borrowed; nobody has
            // a reference into it.
            with(unsafe { VolatileSlice::new(base.cast(), part) });
            left = left.saturating_sub(part);
        }
        length.saturating_sub(left)
    }

    /// Puts the pieces, from `offset` on and `most` bytes at most, into the
    /// call; returns how many bytes they have.
    fn gather(&mut self, mut offset: usize, most: usize) -> usize {
        let mut left = most;
        for piece in self.pieces.iter().take(MOST_PIECES) {
            if left == 0 {
                break;
            }
            let skip = min(offset, piece.iov_len);
            offset = offset.saturating_sub(skip);
            let part = min(piece.iov_len.saturating_sub(skip), left);
            if part > 0 {
                self.call.push(libc::iovec {
                    iov_base: piece.iov_base.wrapping_byte_add(skip),
                    iov_len: part,
                });
                left = left.saturating_sub(part);
            }
        }
        most.saturating_sub(left)
    }

    /// Reads one frame: its header to `header`, the frame to the pieces after
    /// the place of a header, `most` bytes at most, and what does not fit to
    /// `rest`. Returns the bytes read in all, and the room in the pieces.
    ///
    /// # Errors
    /// Those of readv(2).
    pub fn read_frame(
        &mut self,
        fd: BorrowedFd<'_>,
        header: &mut [u8; HEADER],
        most: usize,
        rest: &mut [u8],
    ) -> io::Result<(usize, usize)> {
        self.call.clear();
        self.call.push(entry(header));
        let room = self.gather(HEADER, most);
        self.call.push(entry(rest));
        // SAFETY: the first and the last entry are exclusively borrowed by
        // this function; by the invariant the others lie in memory that stays
        // mapped during the call. Their number is bounded by `gather`.
        let result = unsafe {
            libc::readv(
                fd.as_raw_fd(),
                self.call.as_ptr(),
                self.call.len() as libc::c_int,
            )
        };
        self.call.clear();
        Ok((self.check(result)?, room))
    }

    /// Writes one frame to a tap: `header`, then the pieces after the place
    /// of a header. There must be [`MOST_PIECES`] at most.
    ///
    /// # Errors
    /// Those of writev(2); `InvalidInput` when there are too many pieces.
    pub fn write_frame(
        &mut self,
        fd: BorrowedFd<'_>,
        header: &mut [u8; HEADER],
    ) -> io::Result<usize> {
        self.begin(header)?;
        // SAFETY: the first entry is borrowed by this function; by the
        // invariant the others lie in memory that stays mapped during the
        // call. Their number is bounded by `gather`.
        let result = unsafe {
            libc::writev(
                fd.as_raw_fd(),
                self.call.as_ptr(),
                self.call.len() as libc::c_int,
            )
        };
        self.call.clear();
        self.check(result)
    }

    /// Sends `first` and the pieces after the place of a header to a stream
    /// socket, without waiting; returns how much of it went. There must be
    /// [`MOST_PIECES`] at most.
    ///
    /// # Errors
    /// Those of sendmsg(2); `InvalidInput` when there are too many pieces.
    pub fn send_frame(&mut self, fd: BorrowedFd<'_>, first: &mut [u8]) -> io::Result<usize> {
        self.begin(first)?;
        // SAFETY: all fields of a msghdr may be zero.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.call.as_mut_ptr();
        message.msg_iovlen = self.call.len();
        // SAFETY: `message` names the entries of the call and nothing else;
        // for those see `write_frame`.
        let result = unsafe {
            libc::sendmsg(
                fd.as_raw_fd(),
                &raw const message,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        self.call.clear();
        self.check(result)
    }

    /// What a call has answered. Where the kernel could not access the pieces,
    /// they are looked at, which ends the session if they are not there any more.
    fn check(&self, result: libc::ssize_t) -> io::Result<usize> {
        let result = check(result);
        if result.as_ref().is_err_and(is_fault) {
            self.walk(0, usize::MAX, |slice| touch(&slice));
        }
        result
    }

    fn begin(&mut self, first: &mut [u8]) -> io::Result<()> {
        if self.pieces.len() > MOST_PIECES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.call.clear();
        self.call.push(entry(first));
        self.gather(HEADER, usize::MAX);
        Ok(())
    }
}

fn entry(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

/// Whether the kernel could not access guest memory: the front-end's fault, and
/// nobody else's.
pub fn is_fault(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EFAULT)
}

fn check(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

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
    fn a_buffer_over_two_regions_makes_two_pieces() {
        let memory = memory();
        let mut iovecs = Iovecs::default();
        let buffers = [buffer(0x1ffd, 6), buffer(0x1000, 0)];
        let extent = iovecs.extend(&memory, &buffers).unwrap();
        assert_eq!((extent.pieces, extent.bytes), (2, 6));
        assert_eq!(iovecs.copy_from(1, b"abcdef"), 5);
        let mut bytes = [0; 8];
        assert_eq!(iovecs.copy_to(2, &mut bytes), 4);
        assert_eq!(&bytes, b"bcde\0\0\0\0");
    }

    #[test]
    fn what_is_not_in_memory_adds_nothing() {
        let memory = memory();
        let mut iovecs = Iovecs::default();
        iovecs.extend(&memory, &[buffer(0x1000, 4)]).unwrap();
        for (address, length) in [(0x2fff, 2), (0xfff, 2), (u64::MAX, 2), (0x1000, u32::MAX)] {
            let good = buffer(0x1000, 16);
            let result = iovecs.extend(&memory, &[good, buffer(address, length)]);
            assert_eq!(result, Err(Unmapped), "{address:#x}+{length:#x}");
            assert_eq!(iovecs.len(), 1);
        }
        // Pieces of another memory would outlive it.
        assert_eq!(iovecs.extend(&self::memory(), &[]), Err(Unmapped));
    }

    #[test]
    fn a_frame_goes_out_after_its_header_and_comes_in_around_it() {
        let memory = memory();
        let frame: Vec<u8> = (0..100).collect();
        memory
            .write_slice(&frame, GuestAddress(0x1ff0 + 12))
            .unwrap();
        let mut iovecs = Iovecs::default();
        // The place of the header lies over three pieces.
        let buffers = [buffer(0x1ff0, 1), buffer(0x1ff1, 2), buffer(0x1ff3, 109)];
        iovecs.extend(&memory, &buffers).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut header = *b"twelve bytes";
        assert_eq!(iovecs.write_frame(ours.as_fd(), &mut header).unwrap(), 112);
        assert_eq!(iovecs.send_frame(ours.as_fd(), &mut [7; 4]).unwrap(), 104);
        let mut found = [0; 216];
        theirs.read_exact(&mut found).unwrap();
        assert_eq!(&found[..12], b"twelve bytes");
        assert_eq!(found[12..112], frame);
        assert_eq!(found[112..116], [7; 4]);
        assert_eq!(found[116..], frame);

        theirs.write_all(b"TWELVE BYTES0123456789").unwrap();
        let mut rest = [0; 8];
        let result = iovecs.read_frame(ours.as_fd(), &mut header, 7, &mut rest);
        assert_eq!(result.unwrap(), (22, 7));
        assert_eq!(&header, b"TWELVE BYTES");
        let mut found = [0; 8];
        iovecs.copy_to(12, &mut found);
        assert_eq!(&found, b"0123456\x07");
        assert_eq!(&rest, b"789\0\0\0\0\0");
    }

    #[test]
    fn more_pieces_than_a_call_takes_are_refused_and_read_in_part() {
        let memory = memory();
        let mut iovecs = Iovecs::default();
        let buffers: Vec<_> = (0..1100).map(|_| buffer(0x1000, 1)).collect();
        iovecs.extend(&memory, &buffers).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert!(iovecs.write_frame(ours.as_fd(), &mut [0; 12]).is_err());
        assert!(iovecs.send_frame(ours.as_fd(), &mut [0; 4]).is_err());
        theirs.write_all(&[1; 12]).unwrap();
        let result = iovecs.read_frame(ours.as_fd(), &mut [0; 12], 9999, &mut [0; 1]);
        assert_eq!(result.unwrap(), (12, MOST_PIECES - 12));
    }
}
