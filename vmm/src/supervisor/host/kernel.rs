//! What a guest is started from: a kernel and an initial RAM disk.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Opens the kernel at `path`.
///
/// # Errors
/// A message that names the file and says what is wrong with it.
pub(crate) fn open(path: &Path) -> Result<File> {
    readable("kernel", path).map(|(file, _)| file)
}

/// Opens the initial RAM disk at `path`, which is to fit into `memory` bytes.
///
/// # Errors
/// A message that names the file and says what is wrong with it.
pub(crate) fn open_initrd(path: &Path, memory: u64) -> Result<File> {
    let (file, size) = readable("initrd", path)?;
    if size >= memory {
        bail!(
            "the initrd {} ({size} bytes) does not fit into {memory} bytes of memory; \
             give more with --memory",
            path.display()
        );
    }
    Ok(file)
}

/// Opens a file that is to be read whole, and tells its size.
fn readable(what: &str, path: &Path) -> Result<(File, u64)> {
    let shown = path.display();
    let file = OpenOptions::new()
        .read(true)
        // To open a FIFO would wait otherwise; files do not care.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .with_context(|| format!("the {what} {shown} cannot be opened"))?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        let kind = if metadata.is_dir() {
            "a directory"
        } else {
            "not a file"
        };
        bail!("the {what} {shown} is {kind}; give a file");
    }
    if metadata.len() == 0 {
        bail!("the {what} {shown} is empty");
    }
    Ok((file, metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_cannot_be_read_are_named() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        for (path, words) in [
            (
                Path::new("/nowhere/k"),
                "the kernel /nowhere/k cannot be opened: No such file",
            ),
            (Path::new("/"), "the kernel / is a directory"),
            (Path::new("/dev/null"), "is not a file"),
            (empty.path(), "is empty"),
        ] {
            let error = format!("{:#}", open(path).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn an_initrd_larger_than_memory_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        let error = open_initrd(file.path(), 64 << 20).unwrap_err().to_string();
        assert!(error.contains("does not fit"), "{error}");
        open_initrd(file.path(), 128 << 20).unwrap();
    }
}
