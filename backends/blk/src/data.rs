//! What a job moves: buffers of the guest as they are, a bounce buffer where
//! they are not fit for direct I/O, or zeroes.

use std::cmp::min;
use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::LazyLock;

use outboard_runtime::guest_buffers::GuestBuffers;
use rustix::io::{ReadWriteFlags, pwritev2};

/// Bytes in a bounce buffer: a multiple of every block size.
pub const BOUNCE: usize = 64 * 1024;
/// Most zeroes in one job.
pub const ZEROES: usize = 1 << 20;
/// Where both begin, which satisfies every device.
const ALIGN: usize = 4096;

/// Bytes of this process, part of which are to be moved.
#[derive(Debug)]
pub struct Bounce {
    bytes: Box<[u8]>,
    left: Range<usize>,
}

impl Bounce {
    /// Allocates `length` bytes, of which none is to be moved yet.
    pub fn new(length: usize) -> Self {
        Self {
            bytes: vec![0; length.saturating_add(ALIGN)].into_boxed_slice(),
            left: 0..0,
        }
    }

    /// The first `length` bytes, aligned, are to be moved.
    pub fn take(&mut self, length: usize) -> &mut [u8] {
        let start = self.bytes.as_ptr().align_offset(ALIGN);
        let most = self.bytes.len().saturating_sub(ALIGN);
        self.left = start..start.saturating_add(min(length, most));
        self.left_mut()
    }

    /// What is to be moved.
    pub fn left(&self) -> &[u8] {
        self.bytes.get(self.left.clone()).unwrap_or_default()
    }

    fn left_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.left.clone()).unwrap_or_default()
    }

    fn advance(&mut self, count: usize) {
        let start = self.left.start.saturating_add(count);
        self.left.start = min(start, self.left.end);
    }
}

/// The first `length` of [`ZEROES`] bytes, aligned. Nobody writes to them, so all
/// of them are the kernel's one page of zeroes.
fn zeroes(length: usize) -> &'static [u8] {
    static ALL: LazyLock<Bounce> = LazyLock::new(|| {
        let mut bounce = Bounce::new(ZEROES);
        bounce.take(ZEROES);
        bounce
    });
    ALL.left().get(..length).unwrap_or(ALL.left())
}

/// See the module.
#[derive(Debug, Default)]
pub enum Data {
    /// Nothing is moved.
    #[default]
    Nothing,
    /// To or from the guest's buffers.
    Guest(GuestBuffers),
    /// To or from this.
    Bounce(Bounce),
    /// From so many zeroes, [`ZEROES`] at most: they are not to be read into.
    Zeroes(usize),
}

/// Where the kernel finds data.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// So many bytes from there on.
    One(*mut u8, usize),
    /// In so many pieces.
    Many(&'a [libc::iovec]),
}

impl Data {
    /// Bytes left to be moved.
    pub fn remaining(&self) -> u64 {
        let bytes = match self {
            Self::Nothing => 0,
            Self::Guest(buffers) => buffers.bytes(),
            Self::Bounce(bounce) => bounce.left.len(),
            Self::Zeroes(length) => min(*length, ZEROES),
        };
        bytes as u64
    }

    /// So many bytes have been moved.
    pub fn advance(&mut self, count: u64) {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        match self {
            Self::Nothing => {}
            Self::Guest(buffers) => buffers.advance(count),
            Self::Bounce(bounce) => bounce.advance(count),
            Self::Zeroes(length) => *length = length.saturating_sub(count),
        }
    }

    /// What one operation of the kernel may write from: valid until `self` is
    /// changed or dropped, but not by being moved.
    pub fn source(&mut self) -> Place<'_> {
        match self {
            Self::Zeroes(length) => {
                let zeroes = zeroes(*length);
                Place::One(zeroes.as_ptr().cast_mut(), zeroes.len())
            }
            _ => self.target(),
        }
    }

    /// What one operation of the kernel may read into: as valid, and nothing of
    /// zeroes.
    pub fn target(&mut self) -> Place<'_> {
        match self {
            Self::Nothing | Self::Zeroes(_) => Place::One(ptr::dangling_mut(), 0),
            Self::Guest(buffers) => match buffers.entries() {
                [one] => Place::One(one.iov_base.cast(), one.iov_len),
                many => Place::Many(many),
            },
            Self::Bounce(bounce) => {
                let left = bounce.left_mut();
                Place::One(left.as_mut_ptr(), left.len())
            }
        }
    }

    /// Reads from `file` at `offset`, once; returns how many bytes.
    ///
    /// # Errors
    /// Those of preadv(2).
    pub fn read_at(&mut self, file: &File, offset: u64) -> io::Result<u64> {
        let count = match self {
            Self::Nothing | Self::Zeroes(_) => 0,
            Self::Guest(buffers) => buffers.read_at(file, offset)?,
            Self::Bounce(bounce) => file.read_at(bounce.left_mut(), offset)?,
        };
        Ok(count as u64)
    }

    /// Writes to `file` at `offset`, once, to stable storage if it is to be
    /// `durable`; returns how many bytes.
    ///
    /// # Errors
    /// Those of pwritev2(2).
    pub fn write_at(&self, file: &File, offset: u64, durable: bool) -> io::Result<u64> {
        let flags = match durable {
            true => ReadWriteFlags::DSYNC,
            false => ReadWriteFlags::empty(),
        };
        let own = match self {
            Self::Nothing => return Ok(0),
            Self::Guest(buffers) => {
                let flags = flags.bits().cast_signed();
                return Ok(buffers.write_at(file, offset, flags)? as u64);
            }
            Self::Bounce(bounce) => bounce.left(),
            Self::Zeroes(length) => zeroes(*length),
        };
        Ok(pwritev2(file, &[IoSlice::new(own)], offset, flags)? as u64)
    }

    /// Makes what could be read into zeroes.
    pub fn zero(&mut self) {
        match self {
            Self::Nothing | Self::Zeroes(_) => {}
            Self::Bounce(bounce) => bounce.left_mut().fill(0),
            Self::Guest(buffers) => {
                let mut done = 0;
                while done < buffers.bytes() {
                    done = match buffers.copy_from(done, zeroes(ZEROES)) {
                        0 => return,
                        count => done.saturating_add(count),
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;
    use crate::guest::Guest;

    #[test]
    fn zeroes_are_never_written_to() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[0xaa; 4096], 0).unwrap();
        let mut data = Data::Zeroes(ZEROES);
        assert_eq!(data.remaining(), ZEROES as u64);
        assert_eq!(data.read_at(&file, 0).unwrap(), 0);
        assert!(matches!(data.target(), Place::One(_, 0)));
        data.zero();
        assert!(zeroes(ZEROES).iter().all(|byte| *byte == 0));
        assert_eq!(data.write_at(&file, 0, true).unwrap(), ZEROES as u64);
        data.advance(ZEROES as u64 - 512);
        assert_eq!(data.remaining(), 512);
        let mut found = [1; 4096];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found, [0; 4096]);
    }

    #[test]
    fn what_is_not_the_guests_is_aligned() {
        let mut bounce = Bounce::new(BOUNCE);
        assert_eq!(bounce.take(usize::MAX).len(), BOUNCE);
        bounce.take(8192);
        let mut data = Data::Bounce(bounce);
        for mut data in [std::mem::take(&mut data), Data::Zeroes(8192)] {
            let Place::One(start, length) = data.source() else {
                panic!("it is in pieces");
            };
            assert_eq!((start.addr() % ALIGN, length), (0, 8192));
        }
    }

    #[test]
    fn a_bounce_buffer_is_moved_in_any_steps() {
        let file = tempfile::tempfile().unwrap();
        let mut bounce = Bounce::new(BOUNCE);
        bounce.take(4).copy_from_slice(b"abcd");
        let mut data = Data::Bounce(bounce);
        assert_eq!(data.write_at(&file, 0, false).unwrap(), 4);
        data.advance(1);
        assert_eq!(data.write_at(&file, 4, false).unwrap(), 3);
        assert_eq!(data.read_at(&file, 3).unwrap(), 3);
        let Data::Bounce(bounce) = &mut data else {
            panic!("it was a bounce buffer");
        };
        assert_eq!(bounce.left(), b"dbc");
        data.advance(9);
        assert_eq!(data.remaining(), 0);
    }

    #[test]
    fn more_of_the_guest_than_there_are_zeroes_is_zeroed() {
        let mut guest = Guest::new();
        let length = ZEROES as u32 + 4096;
        let whole = guest.allocate(length, 1);
        for at in [0, ZEROES as u64 - 1, ZEROES as u64, u64::from(length) - 1] {
            let address = GuestAddress(whole.address.0 + at);
            vm_memory::Bytes::write_obj(&*guest.memory, 7u8, address).unwrap();
        }
        let mut buffers = GuestBuffers::default();
        buffers.extend(&guest.memory, [whole]).unwrap();
        Data::Guest(buffers).zero();
        assert!(guest.get(whole).iter().all(|byte| *byte == 0));
    }
}
