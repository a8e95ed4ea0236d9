//! A program to be started: found once, opened once, started from its
//! descriptor.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use nix::unistd::{AccessFlags, access};

/// An opened program.
#[derive(Debug)]
pub(crate) struct Program {
    path: PathBuf,
    fd: OwnedFd,
    script: bool,
}

impl Program {
    /// Opens the program at `path`.
    ///
    /// # Errors
    /// A message when it is missing, not a file or not executable.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(path)
            .map_err(|error| {
                let advice = match path.components().count() {
                    1 => "; PATH is not searched, so give its path",
                    _ => "",
                };
                anyhow!("the program {shown} cannot be opened: {error}{advice}")
            })?;
        if !file.metadata()?.is_file() {
            bail!("{shown} is not a program: it is not a file; give a file");
        }
        access(path, AccessFlags::X_OK).map_err(|errno| {
            let error = io::Error::from(errno);
            anyhow!("{shown} is not executable: {error}; `chmod +x` makes it so")
        })?;
        Ok(Self {
            path: path.to_owned(),
            fd: file.into(),
            script: is_script(path),
        })
    }

    /// Opens one of Outboard's own programs: it is beside this one, or in PATH.
    ///
    /// # Errors
    /// A message that says where it was looked for.
    pub(crate) fn own(name: &str) -> Result<Self> {
        let beside = own_directory().map(|directory| directory.join(name));
        let directories = std::env::var_os("PATH").unwrap_or_default();
        let in_path = std::env::split_paths(&directories).map(|directory| directory.join(name));
        for path in beside.into_iter().chain(in_path) {
            if path.is_file() {
                return Self::open(&path);
            }
        }
        bail!("{name} is neither beside `outboard` nor in PATH; build or install it")
    }

    /// This very program.
    ///
    /// # Errors
    /// Those of opening /proc/self/exe.
    pub(crate) fn this() -> Result<Self> {
        let fd = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open("/proc/self/exe")
            .map_err(|error| {
                anyhow!(
                    "this program's own file, /proc/self/exe, cannot be opened: {error}; mount /proc"
                )
            })?;
        Ok(Self {
            path: "outboard".into(),
            fd: fd.into(),
            script: false,
        })
    }

    /// The last part of its path.
    pub(crate) fn name(&self) -> &str {
        self.path
            .file_name()
            .and_then(OsStr::to_str)
            .unwrap_or("program")
    }

    /// Its path, if it is a script, which can only be started by that.
    pub(crate) fn script(&self) -> Option<&Path> {
        self.script.then_some(self.path.as_path())
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn own_directory() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?;
    path.parent().map(Path::to_owned)
}

fn is_script(path: &Path) -> bool {
    let mut start = [0; 2];
    std::fs::OpenOptions::new()
        .read(true)
        // What was a file may have become a FIFO.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .and_then(|mut file| file.read_exact(&mut start))
        .is_ok()
        && start == *b"#!"
}
