//! How large an image is, and is made.

use std::io;
use std::os::unix::fs::FileTypeExt;

use anyhow::{Context, Result, bail};
use rustix::fs::{SeekFrom, ftruncate, seek};

use super::fence::Image;

/// Bytes in a sector, of which every disk has a whole number.
const SECTOR: u64 = 512;

impl Image {
    /// Makes the image so large at least that a disk of `size` bytes fits; `None`: a disk
    /// as large as it is. Returns the size of that disk.
    ///
    /// # Errors
    /// A message that says what cannot be, and what to do.
    pub(crate) fn prepare(&self, size: Option<u64>) -> Result<u64> {
        let kind = self.file().metadata()?.file_type();
        let has = self.size()?;
        let Some(size) = size else {
            return Ok(has);
        };
        if size == 0 || !size.is_multiple_of(SECTOR) {
            bail!("a disk of {size} bytes: give a multiple of {SECTOR}, and not 0");
        }
        if size != has && kind.is_block_device() {
            bail!(
                "its image is a block device of {has} bytes: make that another size, and then \
                 resize with `--rescan`"
            );
        }
        if size > has {
            ftruncate(self.file(), size).with_context(|| {
                format!("the image cannot be made {size} bytes long; is there room for it?")
            })?;
        }
        Ok(size)
    }

    /// The disk has so many bytes from now on: a file needs no more.
    ///
    /// # Errors
    /// Those of ftruncate(2).
    pub(crate) fn truncate(&self, size: u64) -> io::Result<()> {
        let is_file = self.file().metadata()?.is_file();
        if is_file && self.size()? > size {
            ftruncate(self.file(), size)?;
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(seek(self.file(), SeekFrom::End(0))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_grows_before_and_shrinks_after_and_a_device_does_neither() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let image = Image::new(file);
        assert_eq!(image.prepare(None).unwrap(), 4096);
        assert_eq!(image.prepare(Some(8192)).unwrap(), 8192);
        assert_eq!(image.size().unwrap(), 8192, "it has grown");
        assert_eq!(image.prepare(Some(512)).unwrap(), 512);
        assert_eq!(image.size().unwrap(), 8192, "somebody may write there");
        image.truncate(512).unwrap();
        assert_eq!(image.size().unwrap(), 512);
        image.truncate(4096).unwrap();
        assert_eq!(image.size().unwrap(), 512, "that is no growth");
        for size in [0, 1, 1000] {
            let error = image.prepare(Some(size)).unwrap_err().to_string();
            assert!(error.contains("a multiple of 512"), "{error}");
        }
        let error = image.prepare(Some(1 << 63)).unwrap_err().to_string();
        assert!(error.contains("cannot be made"), "{error}");
        assert_eq!(image.size().unwrap(), 512);
    }
}
