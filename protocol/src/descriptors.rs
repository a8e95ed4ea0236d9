//! What it means that a descriptor cannot be had, and what to do about it.

use std::io;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;

/// The same error; one that comes of a limit on descriptors says so, and what
/// to do.
pub fn explain(error: io::Error) -> io::Error {
    let advice = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE) => {
            "this process has as many descriptors open as it may: raise its limit (`ulimit -n`, \
             or LimitNOFILE= of a service)"
        }
        Some(Errno::ENFILE) => {
            "this system has as many files open as it may: raise its limit (sysctl fs.file-max)"
        }
        _ => return error,
    };
    io::Error::new(error.kind(), advice)
}

/// Why the kernel has handed over fewer descriptors than came with a message,
/// although there was room for them in the buffer: asked by making one more
/// while those that came are still open.
pub(crate) fn missing(socket: BorrowedFd<'_>) -> io::Error {
    let why = match socket.try_clone_to_owned() {
        Err(error) => explain(error).to_string(),
        Ok(_) => "the kernel keeps it back, as a security module may have it do".to_owned(),
    };
    io::Error::other(format!(
        "a descriptor that a message brought is lost: {why}"
    ))
}
