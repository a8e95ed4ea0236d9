//! The image: a raw file or a block device, opened and locked, or inherited
//! from one who did.
//!
//! It is raw and stays raw. Whoever opens it looks once whether it is another
//! format's container, and refuses that; an inherited one is never looked at,
//! since its guest may have written such a header meanwhile.

use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use clap::{ArgAction, Args};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use outboard_protocol::block_device::queue_attribute;
pub use outboard_protocol::image_blocks::Alignment;
use outboard_protocol::image_blocks::{self, Asked, Blocks, SECTOR, Unfit};
use outboard_protocol::image_format::Format;
use outboard_protocol::image_lock::{self, Access};
use outboard_protocol::image_writes::{self, Unwritable};

use crate::request::{Bounds, Limits};

/// What no word of a command line can be.
const NOT_GIVEN: &str = "\0";

/// How an image is to be used: each is an option of the program, with its help.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Options {
    /// Format of the image; raw serves one that looks like another format
    #[arg(long = "format", value_name = "raw", value_parser = is_raw)]
    #[arg(action = ArgAction::Set, default_value = NOT_GIVEN, hide_default_value = true)]
    pub raw: bool,

    /// Open the image read-only, and show the driver a read-only disk
    #[arg(long)]
    pub read_only: bool,

    /// Bypass the page cache (O_DIRECT)
    #[arg(long)]
    pub direct: bool,

    /// Block size that the guest sees, 512 or 4096 [default: 512, a block device's own]
    #[arg(long, value_name = "BYTES", value_parser = block_size)]
    pub block_size: Option<u32>,
}

fn block_size(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => Err("give 512 or 4096".into()),
    }
}

/// What `--format` says: that the image is not to be looked at, if it is given.
fn is_raw(text: &str) -> Result<bool, String> {
    match text {
        NOT_GIVEN => Ok(false),
        "raw" => Ok(true),
        _ => Err(
            "images are served raw; convert it with `qemu-img convert -O raw`, or have \
                  qemu-storage-daemon serve it"
                .into(),
        ),
    }
}

impl Options {
    fn access(self) -> Access {
        match self.read_only {
            true => Access::ReadOnly,
            false => Access::Write,
        }
    }
}

/// An image that is open, locked and of a size that a disk can have.
#[derive(Debug)]
pub struct Image {
    /// Where its data is.
    pub file: Arc<File>,
    /// Its size when it was opened, and its blocks.
    pub blocks: Blocks,
    /// Nothing can be written.
    pub read_only: bool,
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
        Self::take(fd, options, true)
    }

    /// Takes over an image whose lock is the supervisor's affair: the open file may be
    /// another one than the locked one, and have none itself.
    ///
    /// # Errors
    /// As [`Image::inherit`], but for the lock.
    pub fn lent(fd: OwnedFd, options: Options) -> anyhow::Result<Self> {
        Self::take(fd, options, false)
    }

    fn take(fd: OwnedFd, options: Options, is_locked: bool) -> anyhow::Result<Self> {
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
        if is_locked {
            image_lock::confirm(&file, options.access()).context(name)?;
        }
        Self::of(file, name, options)
    }

    fn of(file: File, name: &str, options: Options) -> anyhow::Result<Self> {
        if !options.read_only {
            image_writes::check(&file).map_err(|why| cannot_write(name, &why))?;
        }
        let asked = Asked {
            block: options.block_size,
            direct: options.direct,
        };
        let blocks = Blocks::of(&file, asked).map_err(|why| unfit(name, why))?;
        Ok(Self {
            blocks,
            read_only: options.read_only,
            discard: !options.read_only && can_discard(&file, blocks.size)?,
            file: Arc::new(file),
        })
    }

    /// What requests are checked against.
    pub fn limits(&self) -> Limits {
        Limits {
            capacity: self.blocks.size,
            block_size: self.blocks.logical,
            read_only: self.read_only,
            discard: self.discard,
            write_zeroes: !self.read_only,
            bounds: Bounds::default(),
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

/// What is wrong with its size or blocks, and what to do.
fn unfit(name: &str, why: Unfit) -> anyhow::Error {
    match why {
        Unfit::Empty => anyhow!("{name} is empty; give it a size with `truncate -s 10G`"),
        Unfit::Odd { size, block } => {
            let other = match block > SECTOR {
                true => ", or use --block-size=512",
                false => "",
            };
            anyhow!(
                "{name} has {size} bytes, which is not a multiple of {block}; \
                 make it longer with `truncate -s %{block}`{other}"
            )
        }
        Unfit::NoDirect => anyhow!(no_direct(name)),
        Unfit::Coarse { needed, block } => {
            let larger = match needed <= image_blocks::MAX_BLOCK {
                true => {
                    "use --block-size=4096 (which a partition table made for 512 does not fit), or "
                }
                false => "",
            };
            anyhow!(
                "direct I/O on {name} needs blocks of {needed} bytes, and the disk has blocks of \
                 {block}; {larger}leave --direct away"
            )
        }
        Unfit::Os(error) => anyhow!("cannot find out the size of {name}: {error}"),
    }
}

fn no_direct(name: &str) -> String {
    format!("cannot use direct I/O on {name}; leave --direct away, or use another file system")
}

fn can_discard(file: &File, size: u64) -> anyhow::Result<bool> {
    Ok(match file.metadata()?.file_type().is_block_device() {
        // fallocate(2) makes a hole in a device by this, and by nothing else.
        true => queue_attribute(file, "write_zeroes_max_bytes").is_none_or(|most| most != "0"),
        false => can_punch(file, size),
    })
}

/// Whether the file system has holes: one beyond the end changes nothing.
fn can_punch(file: &File, size: u64) -> bool {
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let Ok(offset) = libc::off_t::try_from(size) else {
        return false;
    };
    fallocate(file.as_fd(), mode, offset, SECTOR.into()).is_ok()
}

#[cfg(test)]
mod tests;
