//! Where the guest's console writes.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;

use anyhow::{Result, anyhow};

use crate::supervisor::text::settings::Console;

/// Where the console writes.
#[derive(Debug)]
pub(crate) enum Output {
    /// Standard output; standard input is its input.
    Stdio,
    /// A file, without an input.
    File(File),
}

/// Opens what the console is to write to.
///
/// # Errors
/// A message that names the file and says what to do.
pub(crate) fn open(console: Console) -> Result<Output> {
    let path = match console {
        Console::Stdio => return Ok(Output::Stdio),
        Console::Null => PathBuf::from("/dev/null"),
        Console::File(path) => path,
    };
    let shown = path.display();
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        // To open a FIFO would wait for its reader otherwise, to write to it
        // for room in it, and a terminal become ours.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(&path)
        .map_err(|error| {
            let kind = fs::metadata(&path).map(|found| found.file_type());
            let advice = match (error.raw_os_error(), kind) {
                (Some(libc::ENXIO), Ok(kind)) if kind.is_fifo() => {
                    format!(
                        "; it is a FIFO that nobody reads: start its reader first (`cat {shown}`)"
                    )
                }
                (Some(libc::ENXIO), Ok(kind)) if kind.is_socket() => {
                    "; it is a socket: give a file, a FIFO or a terminal".to_owned()
                }
                _ => String::new(),
            };
            anyhow!("the console file {shown} cannot be opened: {error}{advice}")
        })?;
    Ok(Output::File(file))
}
