//! Whether an image that is open for writing can be written at all. That it
//! could be opened does not say so: a block device may be set read-only, a memfd
//! sealed, a file be in use as swap space, and every write would fail.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SealFlags, fcntl_get_seals};

use crate::block_device::queue_attribute;

/// Why an image that is open for writing cannot be written.
#[derive(Debug)]
pub enum Unwritable {
    /// A block device that is set read-only.
    Device,
    /// A block device whose zones can only be written from their beginning on.
    Zoned,
    /// A memfd with a seal.
    Sealed,
    /// Pages are swapped out to it.
    Swap,
    /// The kernel has another reason.
    Os(io::Error),
}

/// What follows the name of the image in a sentence.
impl fmt::Display for Unwritable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device => f.write_str("is a block device that is set read-only"),
            Self::Zoned => {
                f.write_str("is a zoned block device, which is only written in sequence")
            }
            Self::Sealed => f.write_str("is sealed against writing"),
            Self::Swap => f.write_str("is in use as swap space"),
            Self::Os(error) => write!(f, "cannot be written: {error}"),
        }
    }
}

/// Without a source: its words are in the text.
impl std::error::Error for Unwritable {}

/// Asks whether what was opened for writing can be written; changes nothing.
///
/// # Errors
/// It cannot.
pub fn check(image: &File) -> Result<(), Unwritable> {
    // Elsewhere than on memory files there are none.
    let seals = fcntl_get_seals(image).unwrap_or(SealFlags::empty());
    if seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) {
        return Err(Unwritable::Sealed);
    }
    if queue_attribute(image, "zoned").is_some_and(|model| model == "host-managed") {
        return Err(Unwritable::Zoned);
    }
    // The kernel looks whether it may write before it looks how much: as the
    // ioctl BLKROGET for a block device, and for whatever else there may be.
    match image.write_at(&[], 0) {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.raw_os_error() {
            Some(nix::libc::EPERM) if is_block_device(image) => Unwritable::Device,
            Some(nix::libc::ETXTBSY) => Unwritable::Swap,
            _ => Unwritable::Os(error),
        }),
    }
}

fn is_block_device(image: &File) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let metadata = image.metadata();
    metadata.is_ok_and(|metadata| metadata.file_type().is_block_device())
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, fcntl_add_seals, memfd_create};

    use super::*;

    #[test]
    fn a_file_can_be_written_and_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        check(file.as_file()).unwrap();
        assert_eq!(file.as_file().metadata().unwrap().len(), 0);
    }

    #[test]
    fn a_sealed_memfd_cannot_be_written() {
        let memfd = || {
            let fd = memfd_create("image", MemfdFlags::ALLOW_SEALING).unwrap();
            let file = File::from(fd);
            file.set_len(4096).unwrap();
            file
        };
        for (seal, sealed) in [
            (SealFlags::WRITE, true),
            (SealFlags::FUTURE_WRITE, true),
            (SealFlags::SHRINK | SealFlags::GROW, false),
        ] {
            let file = memfd();
            check(&file).unwrap();
            fcntl_add_seals(&file, seal).unwrap();
            // It can be opened for writing all the same.
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
            let mut options = File::options();
            let opened = options.read(true).write(true).open(path).unwrap();
            match check(&opened) {
                Err(Unwritable::Sealed) => assert!(sealed),
                Ok(()) => assert!(!sealed),
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn another_reason_is_the_kernels_own_words() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reading = File::open(file.path()).unwrap();
        let said = check(&reading).unwrap_err().to_string();
        assert!(said.starts_with("cannot be written: Bad file"), "{said}");
    }
}
