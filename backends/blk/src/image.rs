//! The image: a raw file or a block device, opened and locked, or inherited
//! from one who did.
//!
//! It is raw and stays raw. Whoever opens it looks once whether it is another
//! format's container, and refuses that; an inherited one is never looked at,
//! since its guest may have written such a header meanwhile.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use outboard_protocol::block_device::queue_attribute;
use outboard_protocol::image_format::Format;
use outboard_protocol::image_lock::{self, Access};
use outboard_protocol::image_writes::{self, Unwritable};
use rustix::fs::{AtFlags, StatxFlags, ioctl_blkpbszget, ioctl_blksszget, statx};

use crate::iovec::Bounce;
use crate::request::{Limits, SECTOR};

/// Largest block that direct I/O may ask for: a bounce buffer's alignment.
const MAX_BLOCK: u32 = 4096;

/// How an image is to be used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Nothing is written.
    pub read_only: bool,
    /// The page cache is passed by (`O_DIRECT`).
    pub direct: bool,
    /// It is raw, whatever it looks like; one that is inherited always is.
    pub raw: bool,
}

impl Options {
    fn access(self) -> Access {
        match self.read_only {
            true => Access::ReadOnly,
            false => Access::Write,
        }
    }
}

/// What direct I/O needs of a request. Powers of two, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Of every address in memory.
    pub memory: u32,
    /// Of every offset and length.
    pub offset: u32,
}

/// An image that is open, locked and of a size that a disk can have.
#[derive(Debug)]
pub struct Image {
    /// Where its data is.
    pub file: Arc<File>,
    /// In bytes, fixed from now on.
    pub size: u64,
    /// Nothing can be written.
    pub read_only: bool,
    /// `None` when any request will do.
    pub alignment: Option<Alignment>,
    /// What is best written at once, in bytes; a power of two.
    pub physical_block: u32,
    /// Ranges can be given back.
    pub discard: bool,
}

impl Image {
    /// Opens and locks an image.
    ///
    /// # Errors
    /// It is missing, not a file or block device, in use, of a wrong size, or
    /// does not allow what is asked; the message says what to do.
    pub fn open(path: &Path, options: Options) -> anyhow::Result<Self> {
        let name = format!("disk image {}", path.display());
        // Before opening: that of a FIFO would wait, that of a terminal act.
        let kind = path
            .metadata()
            .map_err(|error| explain(error, path, options))?
            .file_type();
        check_kind(kind, &name)?;
        let mut flags = if options.direct { libc::O_DIRECT } else { 0 };
        if kind.is_block_device() && !options.read_only {
            // Not one that is mounted or part of an array.
            flags |= libc::O_EXCL;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            .custom_flags(flags)
            .open(path)
            .map_err(|error| explain(error, path, options))?;
        image_lock::lock(&file, options.access()).with_context(|| name.clone())?;
        if !options.raw {
            refuse_format(&file, path)?;
        }
        Self::of(file, &name, options)
    }

    /// Takes over an image that another process has opened and locked.
    ///
    /// # Errors
    /// As [`Image::open`]; also when the descriptor is not open for what is
    /// asked.
    pub fn inherit(fd: OwnedFd, options: Options) -> anyhow::Result<Self> {
        let file = File::from(fd);
        let name = "the disk image that was handed over";
        let flags =
            fcntl(&file, FcntlArg::F_GETFL).with_context(|| format!("cannot use {name}"))?;
        let flags = OFlag::from_bits_retain(flags);
        let mode = flags & OFlag::O_ACCMODE;
        ensure!(
            mode == OFlag::O_RDWR || options.read_only && mode == OFlag::O_RDONLY,
            "{name} is not open for {}; open it so, or use --read-only",
            if options.read_only {
                "reading"
            } else {
                "reading and writing"
            },
        );
        // The flags belong to the open file, which others may have too: direct
        // I/O is added if asked for, and heeded if it is there. A file that
        // does not block would make io_uring give up where it should wait, and
        // one that appends would write everything at its end.
        let direct = options.direct || flags.contains(OFlag::O_DIRECT);
        let options = Options { direct, ..options };
        let mut wanted = flags & !(OFlag::O_NONBLOCK | OFlag::O_APPEND);
        if wanted != flags {
            fcntl(&file, FcntlArg::F_SETFL(wanted))
                .with_context(|| format!("{name} is open for appending; open it for writing"))?;
        }
        if direct && !flags.contains(OFlag::O_DIRECT) {
            wanted.insert(OFlag::O_DIRECT);
            fcntl(&file, FcntlArg::F_SETFL(wanted)).with_context(|| no_direct(name))?;
        }
        let kind = file.metadata().context(name)?.file_type();
        check_kind(kind, name)?;
        image_lock::confirm(&file, options.access()).context(name)?;
        Self::of(file, name, options)
    }

    fn of(mut file: File, name: &str, options: Options) -> anyhow::Result<Self> {
        let metadata = file.metadata().with_context(|| name.to_owned())?;
        let is_device = metadata.file_type().is_block_device();
        if !options.read_only {
            image_writes::check(&file).map_err(|why| cannot_write(name, &why))?;
        }
        let size = match is_device {
            true => file.seek(SeekFrom::End(0)),
            false => Ok(metadata.len()),
        }
        .with_context(|| format!("cannot find out the size of {name}"))?;
        let alignment = match options.direct {
            true => Some(direct_alignment(&file, is_device, name)?),
            false => None,
        };
        let block = alignment.map_or(SECTOR as u32, |needed| needed.offset);
        check_size(size, block, name)?;
        let physical = match is_device {
            true => ioctl_blkpbszget(&file).unwrap_or(block),
            false => u32::try_from(metadata.blksize()).unwrap_or(block),
        };
        Ok(Self {
            size,
            read_only: options.read_only,
            alignment,
            physical_block: physical_block(physical, block),
            discard: !options.read_only && can_discard(&file, is_device, size),
            file: Arc::new(file),
        })
    }

    /// What requests are checked against.
    pub fn limits(&self) -> Limits {
        Limits {
            capacity: self.size,
            block_size: self.alignment.map_or(SECTOR as u32, |needed| needed.offset),
            read_only: self.read_only,
            discard: self.discard,
            write_zeroes: !self.read_only,
        }
    }
}

/// What went wrong in opening, and what to do.
fn explain(error: io::Error, path: &Path, options: Options) -> anyhow::Error {
    let path = path.display();
    let remedy = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => format!("create it with `truncate -s 10G {path}`"),
        Some(Errno::EPERM) if !options.read_only => format!(
            "take away the attribute that forbids it, which `lsattr {path}` shows, \
             or use --read-only"
        ),
        Some(Errno::EACCES | Errno::EROFS) if !options.read_only => {
            "give this user the right to write it, or use --read-only".into()
        }
        Some(Errno::EACCES | Errno::EPERM) => "give this user the right to read it".into(),
        Some(Errno::EBUSY) => {
            "it is mounted or otherwise in use by this system: unmount it, or use --read-only"
                .into()
        }
        Some(Errno::EINVAL) if options.direct => {
            "its file system has no direct I/O: leave --direct away".into()
        }
        _ => "check the path".into(),
    };
    anyhow::Error::new(error).context(format!("cannot open disk image {path} ({remedy})"))
}

/// Before the size is looked at, which is not that of a disk then.
fn refuse_format(file: &File, path: &Path) -> anyhow::Result<()> {
    let path = path.display();
    let Some(format) =
        Format::probe(file).with_context(|| format!("cannot read disk image {path}"))?
    else {
        return Ok(());
    };
    let served = match format.can_be_served() {
        true => ", or have qemu-storage-daemon serve it",
        false => "",
    };
    bail!(
        "disk image {path} is {format}, and a guest would read and overwrite it as it lies there, \
         since disks are served raw; {}{served}; \
         if its bytes are a raw disk all the same, use --format=raw",
        format.remedy(&path)
    )
}

/// What was opened for writing cannot be written.
fn cannot_write(name: &str, why: &Unwritable) -> anyhow::Error {
    let other = match why {
        Unwritable::Device => "make it writable (`blockdev --setrw`)",
        Unwritable::Swap => "end that (`swapoff`)",
        Unwritable::Zoned => "use a device without zones on top of it (dm-zoned)",
        Unwritable::Sealed | Unwritable::Os(_) => "use a copy",
    };
    anyhow!("{name} {why}; use --read-only if it is to be read only, or {other}")
}

fn check_kind(kind: FileType, name: &str) -> anyhow::Result<()> {
    let what = if kind.is_file() || kind.is_block_device() {
        return Ok(());
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else {
        "a pipe or socket"
    };
    bail!("{name} is {what}; give a raw image file or a block device")
}

fn check_size(size: u64, block: u32, name: &str) -> anyhow::Result<()> {
    ensure!(
        size > 0,
        "{name} is empty; give it a size with `truncate -s 10G`"
    );
    let block = u64::from(block);
    ensure!(
        size.is_multiple_of(block),
        "{name} has {size} bytes, which is not a multiple of {block}; \
         make it longer with `truncate -s %{block}`{}",
        if block > SECTOR {
            ", or leave --direct away"
        } else {
            ""
        },
    );
    Ok(())
}

fn no_direct(name: &str) -> String {
    format!("cannot use direct I/O on {name}; leave --direct away, or use another file system")
}

/// Asks the kernel what direct I/O needs, in the best way it has.
fn direct_alignment(file: &File, is_device: bool, name: &str) -> anyhow::Result<Alignment> {
    let alignment = match statx_alignment(file) {
        Some(alignment) => alignment,
        None if is_device => ioctl_blksszget(file).ok().map(|block| Alignment {
            memory: block,
            offset: block,
        }),
        None => probe_alignment(file),
    };
    let Some(Alignment { memory, offset }) = alignment else {
        bail!(no_direct(name));
    };
    ensure!(
        memory.is_power_of_two() && offset.is_power_of_two() && memory.max(offset) <= MAX_BLOCK,
        "direct I/O on {name} needs blocks of {offset} bytes, more than {MAX_BLOCK}; \
         leave --direct away",
    );
    Ok(Alignment {
        memory,
        offset: offset.max(SECTOR as u32),
    })
}

/// By statx(2), Linux 6.1: `None` when it does not say, `Some(None)` when there
/// is no direct I/O.
fn statx_alignment(file: &File) -> Option<Option<Alignment>> {
    let found = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    if found.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return None;
    }
    Some((found.stx_dio_offset_align > 0).then_some(Alignment {
        memory: found.stx_dio_mem_align.max(1),
        offset: found.stx_dio_offset_align,
    }))
}

/// By trying: reads of growing size, until one is to the kernel's liking.
fn probe_alignment(file: &File) -> Option<Alignment> {
    let mut bounce = Bounce::new();
    [512, 1024, 2048, 4096]
        .into_iter()
        .find(|block: &u32| {
            let bytes = bounce.bytes();
            let part = bytes.get_mut(..*block as usize).unwrap_or_default();
            let read = file.read_at(part, (*block).into());
            !read.is_err_and(|error| error.kind() == ErrorKind::InvalidInput)
        })
        .map(|block| Alignment {
            memory: block,
            offset: block,
        })
}

/// A power of two from the image's block size to a page.
fn physical_block(hint: u32, block: u32) -> u32 {
    let hint = if hint.is_power_of_two() { hint } else { block };
    hint.clamp(block, block.max(MAX_BLOCK))
}

fn can_discard(file: &File, is_device: bool, size: u64) -> bool {
    match is_device {
        // fallocate(2) makes a hole in a device by this, and by nothing else.
        true => queue_attribute(file, "write_zeroes_max_bytes").is_none_or(|most| most != "0"),
        false => can_punch(file, size),
    }
}

/// Whether the file system has holes: one beyond the end changes nothing.
fn can_punch(file: &File, size: u64) -> bool {
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let Ok(offset) = libc::off_t::try_from(size) else {
        return false;
    };
    fallocate(file.as_fd(), mode, offset, SECTOR as libc::off_t).is_ok()
}

#[cfg(test)]
mod tests;
