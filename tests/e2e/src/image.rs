//! Disk images: made for the guest, checked after it.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use outboard_protocol::image_lock::{self, Access};
use tempfile::TempDir;

use crate::eventually;
use crate::pattern::{self, SECTOR};

/// What a checked image holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Number of sectors that hold a pattern.
    pub sectors: u64,
    /// The wrapping sum of their digests, as the guest prints it.
    pub digest: u64,
}

/// Whether nobody locks the image at this path.
///
/// # Errors
/// Those of the file system.
pub fn is_free(path: &Path) -> Result<bool> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    match image_lock::lock(&file, Access::Write) {
        Ok(()) => {
            image_lock::unlock(&file, Access::Write);
            Ok(true)
        }
        Err(image_lock::Error::InUse(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// As [`Image::wait_until_free`], of the image at this path.
///
/// # Errors
/// It stays locked.
pub fn wait_until_free(path: &Path) -> Result<()> {
    eventually("the image is free", || Ok(is_free(path)?.then_some(())))
}

/// A disk image in a folder of its own, deleted in the end.
#[derive(Debug)]
pub struct Image {
    directory: TempDir,
    path: PathBuf,
}

impl Image {
    /// An empty (sparse) image.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new(size: u64) -> Result<Self> {
        Self::new_in(&std::env::temp_dir(), size)
    }

    /// An empty (sparse) image on the file system of this folder.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new_in(folder: &Path, size: u64) -> Result<Self> {
        let directory = tempfile::tempdir_in(folder).context("a temporary folder")?;
        let path = directory.path().join("disk.img");
        File::create(&path)?.set_len(size)?;
        Ok(Self { directory, path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its folder, for what else a test needs.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// `path=…` for `--disk`.
    pub fn option(&self) -> String {
        format!("path={}", self.path.display())
    }

    /// Checks every sector: each is untouched, or exactly what the guest
    /// writes there.
    ///
    /// # Errors
    /// The first sector that is neither.
    pub fn check(&self, seed: u64) -> Result<Content> {
        let mut content = Content::default();
        let mut reader = BufReader::with_capacity(1 << 20, File::open(&self.path)?);
        let mut bytes = [0; SECTOR];
        for sector in 0..File::open(&self.path)?.metadata()?.len() / SECTOR as u64 {
            reader.read_exact(&mut bytes)?;
            let generation = pattern::generation_of(&bytes, sector, seed)
                .map_err(|wrong| anyhow!("sector {sector} on the image: {wrong:?}"))?;
            if let Some(generation) = generation {
                content.sectors += 1;
                content.digest = content
                    .digest
                    .wrapping_add(pattern::digest(sector, generation));
            }
        }
        Ok(content)
    }

    /// Changes one bit of the first sector that holds a pattern.
    ///
    /// # Errors
    /// There is none.
    pub fn corrupt(&self) -> Result<()> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        let mut bytes = [0; SECTOR];
        for place in (0..file.metadata()?.len()).step_by(SECTOR) {
            file.read_exact_at(&mut bytes, place)?;
            if bytes != [0; SECTOR] {
                bytes[400] ^= 1;
                return Ok(file.write_all_at(&bytes, place)?);
            }
        }
        bail!("the image is empty")
    }

    /// Waits until nobody locks it. The kernel gives back what a killed
    /// process had in flight a moment after the process has gone.
    ///
    /// # Errors
    /// It stays locked.
    pub fn wait_until_free(&self) -> Result<()> {
        wait_until_free(&self.path)
    }

    /// What lies in its folder beside it.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn others(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.directory())? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.retain(|name| name != "disk.img");
        Ok(names)
    }
}
