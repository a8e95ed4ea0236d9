//! The size of an image, and the blocks it is read and written in.
//!
//! The block size that a guest sees is the image's property and its user's
//! choice: 512 bytes for a file and the device's own for a block device, unless
//! another is asked for. It decides what a partition table means. So it does not
//! follow from how the image is opened: direct I/O that needs larger blocks is
//! refused.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};

use rustix::fs::{AtFlags, StatxFlags, ioctl_blkpbszget, ioctl_blksszget, statx};

use crate::aligned::Aligned;

/// Least size of a block, in bytes.
pub const SECTOR: u32 = 512;
/// Largest size of a block that can be asked for, and what direct I/O may need
/// at most.
pub const MAX_BLOCK: u32 = 4096;

/// How an image is to be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The block size, 512 or 4096; `None` for the image's own.
    pub block: Option<u32>,
    /// The page cache is bypassed.
    pub direct: bool,
}

/// What direct I/O needs of a request. Powers of two, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Of every address in memory.
    pub memory: u32,
    /// Of every offset and length.
    pub offset: u32,
}

/// An image in blocks. All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// A multiple of `logical`, more than 0.
    pub size: u64,
    /// What a request is a multiple of; a power of two, 512 at least.
    pub logical: u32,
    /// What is best written at once; a power of two, `logical` at least.
    pub physical: u32,
    /// What direct I/O needs, at most `logical` of offsets; `None` when the page
    /// cache takes anything.
    pub alignment: Option<Alignment>,
}

/// Why an image cannot be used in this way.
#[derive(Debug)]
pub enum Unfit {
    /// It has no bytes.
    Empty,
    /// Its size is no multiple of its block size.
    Odd {
        /// Its size.
        size: u64,
        /// The block size.
        block: u32,
    },
    /// There is no direct I/O on it.
    NoDirect,
    /// Direct I/O needs larger blocks.
    Coarse {
        /// What it needs.
        needed: u32,
        /// The block size.
        block: u32,
    },
    /// It cannot be measured.
    Os(io::Error),
}

impl From<io::Error> for Unfit {
    fn from(error: io::Error) -> Self {
        Self::Os(error)
    }
}

impl Blocks {
    /// Measures an open image.
    ///
    /// # Errors
    /// See [`Unfit`].
    pub fn of(image: &File, asked: Asked) -> Result<Self, Unfit> {
        let metadata = image.metadata()?;
        let is_device = metadata.file_type().is_block_device();
        let own = match is_device {
            true => ioctl_blksszget(image).map_err(io::Error::from)?,
            false => SECTOR,
        };
        let logical = asked.block.unwrap_or(own.clamp(SECTOR, MAX_BLOCK));
        let size = size(image)?;
        if size == 0 {
            return Err(Unfit::Empty);
        }
        if !size.is_multiple_of(logical.into()) {
            let block = logical;
            return Err(Unfit::Odd { size, block });
        }
        let alignment = match asked.direct {
            true => Some(direct_alignment(image, is_device.then_some(own), logical)?),
            false => None,
        };
        let physical = match is_device {
            true => ioctl_blkpbszget(image).unwrap_or(logical),
            false => u32::try_from(metadata.blksize()).unwrap_or(logical),
        };
        Ok(Self {
            size,
            logical,
            physical: physical_block(physical, logical),
            alignment,
        })
    }
}

/// The size of an image as it is now, in bytes; of a block device too.
///
/// # Errors
/// Those of lseek(2).
pub fn size(mut image: &File) -> io::Result<u64> {
    image.seek(SeekFrom::End(0))
}

/// A power of two from the block size to a page.
fn physical_block(hint: u32, block: u32) -> u32 {
    let hint = if hint.is_power_of_two() { hint } else { block };
    hint.clamp(block, block.max(MAX_BLOCK))
}

/// Asks the kernel what direct I/O needs, in the best way it has; `device` is
/// the block size of a block device.
fn direct_alignment(image: &File, device: Option<u32>, block: u32) -> Result<Alignment, Unfit> {
    let both = |block| Alignment {
        memory: block,
        offset: block,
    };
    let alignment = match (statx_alignment(image), device) {
        (Some(alignment), _) => alignment,
        (None, Some(own)) => Some(both(own)),
        (None, None) => probe_alignment(image).map(both),
    };
    let Alignment { memory, offset } = alignment.ok_or(Unfit::NoDirect)?;
    // Memory can be put in its place, by a copy.
    let needed = if memory > MAX_BLOCK { memory } else { offset };
    if !memory.is_power_of_two() || !offset.is_power_of_two() || needed > block {
        return Err(Unfit::Coarse { needed, block });
    }
    Ok(Alignment {
        memory,
        offset: offset.max(SECTOR),
    })
}

/// By statx(2), Linux 6.1: `None` when it does not say, `Some(None)` when there
/// is no direct I/O.
fn statx_alignment(image: &File) -> Option<Option<Alignment>> {
    let found = statx(image, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    if found.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return None;
    }
    Some((found.stx_dio_offset_align > 0).then_some(Alignment {
        memory: found.stx_dio_mem_align.max(1),
        offset: found.stx_dio_offset_align,
    }))
}

/// By trying: reads of growing size, until one is to the kernel's liking. Where
/// there is data, since a hole is read without asking the storage.
fn probe_alignment(image: &File) -> Option<u32> {
    const LARGEST: u64 = MAX_BLOCK as u64;
    let data = rustix::fs::seek(image, rustix::fs::SeekFrom::Data(0)).unwrap_or(0);
    let data = data.saturating_sub(data % LARGEST);
    let mut space = Aligned::new(1);
    [512, 1024, 2048, 4096].into_iter().find(|block: &u32| {
        let bytes = space.bytes();
        let part = bytes.get_mut(..*block as usize).unwrap_or_default();
        // The largest is at home where the data begins.
        let place = data.saturating_add(u64::from(*block % MAX_BLOCK));
        let read = image.read_at(part, place);
        !read.is_err_and(|error| error.kind() == ErrorKind::InvalidInput)
    })
}

#[cfg(test)]
mod tests;
