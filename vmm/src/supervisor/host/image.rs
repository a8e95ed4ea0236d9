//! Disk images: opened, checked and locked here, lent to back-ends.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::rc::{Rc, Weak};

use anyhow::{Context, Result, anyhow, bail};
use outboard_protocol::image_blocks::{self, Asked, Blocks, Unfit};
use outboard_protocol::image_format::Format;
use outboard_protocol::image_lock::{self, Access};
use outboard_protocol::image_writes::{self, Unwritable};

use crate::supervisor::device::plan::Usage;

/// Which file or device an image is, by whatever name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

/// That a device has an image, as long as this is kept.
#[derive(Debug)]
pub(crate) struct Claim {
    image: Identity,
    id: String,
    readonly: bool,
}

/// The images of one VM.
#[derive(Debug, Default)]
pub(crate) struct Images {
    known: Vec<Weak<Claim>>,
}

impl Images {
    /// Opens and locks the image at `path` for the device `id`.
    ///
    /// # Errors
    /// A message that names the image and says what to do.
    pub(crate) fn open(
        &mut self,
        id: &str,
        path: &Path,
        usage: Usage,
    ) -> Result<(File, Rc<Claim>)> {
        let shown = path.display();
        let Usage {
            readonly, direct, ..
        } = usage;
        // A look before opening: to open a FIFO would wait.
        let metadata = std::fs::metadata(path).map_err(|error| cannot_open(path, &error))?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            bail!("the image {shown} is a directory; give a file or a block device");
        }
        if !kind.is_file() && !kind.is_block_device() {
            bail!("the image {shown} is neither a file nor a block device");
        }
        // Before the kernel says the same of a block device, in other words.
        self.refuse_twice(id, Identity::of(&metadata), readonly)
            .with_context(|| format!("the image {shown}"))?;
        let mut flags = if direct { libc::O_DIRECT } else { 0 };
        if kind.is_block_device() && !readonly {
            // Not one that is mounted or part of an array.
            flags |= libc::O_EXCL;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(!readonly)
            .custom_flags(flags)
            .open(path)
            .map_err(|error| cannot_open(path, &error))?;
        // By what was opened, which may be another by now.
        let opened = Identity::of(&file.metadata()?);
        self.refuse_twice(id, opened, readonly)
            .with_context(|| format!("the image {shown}"))?;
        // Before its size, which is not that of a disk if it is no raw image.
        if !usage.raw {
            refuse_format(&file, path)?;
        }
        if !readonly {
            image_writes::check(&file).map_err(|why| cannot_write(path, &why))?;
        }
        // The program that serves it comes to the same.
        let asked = Asked {
            block: usage.block_size,
            direct,
        };
        Blocks::of(&file, asked).map_err(|why| unfit(path, why))?;
        let access = match readonly {
            true => Access::ReadOnly,
            false => Access::Write,
        };
        image_lock::lock(&file, access).with_context(|| format!("the image {shown}"))?;
        Ok((file, self.claim(id, opened, readonly)))
    }

    fn claim(&mut self, id: &str, image: Identity, readonly: bool) -> Rc<Claim> {
        let claim = Rc::new(Claim {
            image,
            id: id.to_owned(),
            readonly,
        });
        self.known.retain(|known| known.strong_count() > 0);
        self.known.push(Rc::downgrade(&claim));
        claim
    }

    /// The device that has this image.
    pub(crate) fn holder(&self, image: Identity) -> Option<String> {
        let mut known = self.known.iter().filter_map(Weak::upgrade);
        known.find_map(|known| (known.image == image).then(|| known.id.clone()))
    }

    /// Refuses an image that this VM already has, if either may write.
    fn refuse_twice(&self, id: &str, image: Identity, readonly: bool) -> Result<()> {
        for known in self.known.iter().filter_map(Weak::upgrade) {
            if known.image != image || readonly && known.readonly {
                continue;
            }
            let other = &known.id;
            if other == id {
                bail!("{id} has it already; leave out `path` to keep it");
            }
            bail!(
                "it is given twice, to {other} and {id}, and one may write; \
                 make both `readonly`, or use a copy"
            );
        }
        Ok(())
    }
}

impl Identity {
    /// Of what has this metadata. A block device is told by its number, whatever
    /// node names it.
    pub(crate) fn of(metadata: &Metadata) -> Self {
        match metadata.file_type().is_block_device() {
            true => Self {
                device: metadata.rdev(),
                inode: 0,
            },
            false => Self {
                device: metadata.dev(),
                inode: metadata.ino(),
            },
        }
    }
}

fn refuse_format(file: &File, path: &Path) -> Result<()> {
    let shown = path.display();
    let Some(format) =
        Format::probe(file).with_context(|| format!("the image {shown} cannot be read"))?
    else {
        return Ok(());
    };
    let served = match format.can_be_served() {
        true => ", or have qemu-storage-daemon serve it and give its `socket=PATH`",
        false => "",
    };
    bail!(
        "the image {shown} is {format}, and the guest would read and overwrite it as it lies \
         there, since disks are served raw; {}{served}; \
         if its bytes are a raw disk all the same, add `format=raw`",
        format.remedy(&shown)
    )
}

/// Its size or its blocks are not what a disk, or this disk, must have.
fn unfit(path: &Path, why: Unfit) -> anyhow::Error {
    let shown = path.display();
    match why {
        Unfit::Empty => {
            anyhow!("the image {shown} is empty; `truncate -s 1G {shown}` makes it a disk of 1 GiB")
        }
        Unfit::Odd { size, block } => {
            let other = match block > image_blocks::SECTOR {
                true => ", or leave out `block-size=4096`",
                false => "",
            };
            anyhow!(
                "the image {shown} has {size} bytes, not a multiple of {block}; \
                 is it a raw image? `truncate -s %{block} {shown}` rounds it up{other}"
            )
        }
        Unfit::NoDirect => {
            anyhow!("there is no direct I/O on the image {shown}; leave out `direct`")
        }
        Unfit::Coarse { needed, block } => {
            let larger = match needed <= image_blocks::MAX_BLOCK {
                true => "add `block-size=4096` (a partition table made for 512 does not fit), or ",
                false => "",
            };
            anyhow!(
                "direct I/O on the image {shown} needs blocks of {needed} bytes, and the disk has \
                 blocks of {block}; {larger}leave out `direct`"
            )
        }
        Unfit::Os(error) => anyhow!("the size of the image {shown} cannot be read: {error}"),
    }
}

/// What was opened for writing cannot be written.
fn cannot_write(path: &Path, why: &Unwritable) -> anyhow::Error {
    let shown = path.display();
    let other = match why {
        Unwritable::Device => format!("make it writable (`blockdev --setrw {shown}`)"),
        Unwritable::Swap => format!("end that (`swapoff {shown}`)"),
        Unwritable::Zoned => "use a device without zones on top of it (dm-zoned)".into(),
        Unwritable::Sealed | Unwritable::Os(_) => "use a copy".into(),
    };
    anyhow!("the image {shown} {why}; add `readonly` if it is to be read only, or {other}")
}

pub(super) fn cannot_open(path: &Path, error: &io::Error) -> anyhow::Error {
    let shown = path.display();
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            anyhow!("the image {shown} does not exist; `truncate -s 1G {shown}` makes one of 1 GiB")
        }
        Some(libc::EPERM) => {
            anyhow!(
                "the image {shown} cannot be opened: {error}; \
                 take away the attribute that forbids it (`lsattr {shown}` shows it), \
                 or add `readonly` if it may only be read"
            )
        }
        Some(libc::EACCES | libc::EROFS) => {
            anyhow!(
                "the image {shown} cannot be opened: {error}; \
                 change its permissions, or add `readonly` if it may only be read"
            )
        }
        Some(libc::EINVAL) => {
            anyhow!(
                "the image {shown} cannot be opened: {error}; \
                 if its file system has no direct I/O, leave out `direct`"
            )
        }
        Some(libc::EBUSY) => {
            anyhow!(
                "the device {shown} is in use on this host, perhaps mounted; \
                 unmount it, or add `readonly`"
            )
        }
        _ => anyhow!("the image {shown} cannot be opened: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::MFdFlags;

    use super::*;

    fn image(size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        file
    }

    fn usage(readonly: bool) -> Usage {
        Usage {
            readonly,
            ..Usage::default()
        }
    }

    fn error(path: &Path, readonly: bool) -> String {
        let error = Images::default().open("disk0", path, usage(readonly));
        format!("{:#}", error.unwrap_err())
    }

    #[test]
    fn what_is_no_disk_is_refused_by_name() {
        let empty = image(0);
        let cases = [
            (Path::new("/nowhere/disk.img"), "does not exist; `truncate"),
            (Path::new("/"), "is a directory"),
            (Path::new("/dev/null"), "neither a file nor a block device"),
            (empty.path(), "is empty; `truncate"),
        ];
        for (path, words) in cases {
            let error = error(path, true);
            assert!(error.contains(words), "{error}");
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
        let odd = image(1000);
        assert!(error(odd.path(), true).contains("1000 bytes, not a multiple of 512"));
        let odd = image(4608);
        let large = Usage {
            block_size: Some(4096),
            ..usage(true)
        };
        let result = Images::default().open("disk0", odd.path(), large);
        let said = result.unwrap_err().to_string();
        assert!(said.contains("not a multiple of 4096"), "{said}");
        assert!(said.contains("leave out `block-size=4096`"), "{said}");
        Images::default()
            .open("disk0", odd.path(), usage(true))
            .unwrap();
    }

    #[test]
    fn an_image_of_another_format_is_refused_before_its_size_and_unless_it_is_raw() {
        let header = b"QFI\xfb\0\0\0\x03";
        for size in [1000, 4096] {
            let image = image(size);
            image.as_file().write_all_at(header, 0).unwrap();
            let before = std::fs::read(image.path()).unwrap();
            for readonly in [true, false] {
                let said = error(image.path(), readonly);
                for words in [
                    "is a qcow2 image",
                    "`qemu-img convert -f qcow2 -O raw ",
                    "`socket=PATH`",
                    "add `format=raw`",
                ] {
                    assert!(said.contains(words), "{said}");
                }
            }
            let raw = Usage {
                raw: true,
                ..usage(false)
            };
            let opened = Images::default().open("disk0", image.path(), raw);
            assert_eq!(opened.is_ok(), size == 4096);
            assert_eq!(std::fs::read(image.path()).unwrap(), before);
        }
        let packed = image(512);
        let magic = b"\x1f\x8b\x08";
        packed.as_file().write_all_at(magic, 0).unwrap();
        let said = error(packed.path(), true);
        assert!(said.contains("is compressed by gzip"), "{said}");
        assert!(!said.contains("qemu-storage-daemon"), "{said}");
    }

    #[test]
    fn an_image_that_only_seems_to_be_writable_is_refused() {
        let memfd = nix::sys::memfd::memfd_create("image", MFdFlags::MFD_ALLOW_SEALING);
        let memfd = File::from(memfd.unwrap());
        memfd.set_len(4096).unwrap();
        fcntl(&memfd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).unwrap();
        let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
        let path = Path::new(&path);
        let said = error(path, false);
        assert!(said.contains("is sealed against writing"), "{said}");
        assert!(said.contains("add `readonly`"), "{said}");
        Images::default().open("disk0", path, usage(true)).unwrap();
        let why = cannot_write(path, &Unwritable::Device).to_string();
        assert!(why.contains("set read-only; add `readonly`"), "{why}");
    }

    #[test]
    fn an_image_in_use_is_refused_until_it_is_free() {
        let image = image(512);
        let first = Images::default()
            .open("disk0", image.path(), usage(false))
            .unwrap();
        assert!(error(image.path(), true).contains("is in use by another process"));
        drop(first);
        Images::default()
            .open("disk0", image.path(), usage(false))
            .unwrap();
    }

    #[test]
    fn the_same_image_twice_is_refused_if_either_writes() {
        let image = image(512);
        let other_name = image.path().with_extension("link");
        std::os::unix::fs::symlink(image.path(), &other_name).unwrap();
        for (first, second, allowed) in [
            (true, true, true),
            (true, false, false),
            (false, true, false),
            (false, false, false),
        ] {
            let mut images = Images::default();
            let _held = images.open("disk0", image.path(), usage(first)).unwrap();
            let result = images.open("disk1", &other_name, usage(second));
            assert_eq!(result.is_ok(), allowed, "{first} {second}");
            if let Err(error) = result {
                assert!(format!("{error:#}").contains("twice, to disk0 and disk1"));
            }
        }
        std::fs::remove_file(other_name).unwrap();
    }
}
