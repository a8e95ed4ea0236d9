//! What it means that a descriptor cannot be had, and what to do about it; and what is
//! done with one that is not wanted.

use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::thread;

use nix::errno::Errno;

/// This process, or this system, has no room for one more descriptor: nobody
/// else is to blame. Displays the limit that was reached and how to raise it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRoom(String);

impl NoRoom {
    /// Finds that in `error` or in what it comes of.
    pub fn within(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found.clone());
            }
            let io = error.downcast_ref::<io::Error>();
            // The source of such an error is that of what it wraps.
            let inner = io.and_then(io::Error::get_ref);
            if let Some(found) = inner.and_then(|inner| inner.downcast_ref::<Self>()) {
                return Some(found.clone());
            }
            if let Some(found) = io.and_then(Self::told_by) {
                return Some(found);
            }
            next = error.source();
        }
        None
    }

    fn told_by(error: &io::Error) -> Option<Self> {
        let advice = match error.raw_os_error().map(Errno::from_raw)? {
            Errno::EMFILE => {
                "this process has as many descriptors open as it may: raise its limit \
                 (`ulimit -n`, or LimitNOFILE= of a service)"
            }
            Errno::ENFILE => {
                "this system has as many files open as it may: raise its limit (sysctl fs.file-max)"
            }
            _ => return None,
        };
        Some(Self(advice.to_owned()))
    }
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for NoRoom {}

/// The same error; one that comes of a limit on descriptors is a [`NoRoom`] and
/// says what to do.
pub fn explain(error: io::Error) -> io::Error {
    match NoRoom::told_by(&error) {
        Some(no_room) => io::Error::new(error.kind(), no_room),
        None => error,
    }
}

/// Closes what somebody sent who is not trusted. The last close(2) of a socket waits for
/// as long as that is to linger, and that of a file in a FUSE file system for the answer
/// of whoever serves it: a thread does it, and nobody waits for that.
pub fn discard(fds: Vec<OwnedFd>) {
    if !fds.is_empty() {
        // Where no thread can be had they are closed here.
        let _ = thread::Builder::new().spawn(move || drop(fds));
    }
}

/// Why the kernel has handed over fewer descriptors than came with a message,
/// although there was room for them in the buffer: asked by making one more
/// while those that came are still open.
pub(crate) fn missing(socket: BorrowedFd<'_>) -> io::Error {
    let lost = "a descriptor that a message brought is lost";
    match socket.try_clone_to_owned() {
        Err(error) => match NoRoom::told_by(&error) {
            Some(NoRoom(why)) => io::Error::other(NoRoom(format!("{lost}: {why}"))),
            None => io::Error::other(format!("{lost}: {error}")),
        },
        Ok(_) => io::Error::other(format!(
            "{lost}: the kernel keeps it back, as a security module may have it do"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::WireError;

    #[test]
    fn a_limit_that_was_reached_is_found_wherever_it_is_told() {
        let of = io::Error::from_raw_os_error;
        for code in [Errno::EMFILE, Errno::ENFILE] {
            let plain = NoRoom::within(&of(code as i32)).unwrap();
            assert_eq!(
                NoRoom::within(&explain(of(code as i32))),
                Some(plain.clone())
            );
            let wire = WireError::from(io::Error::other(plain.clone()));
            assert_eq!(NoRoom::within(&wire), Some(plain));
        }
        for other in [of(Errno::EPERM as i32), io::Error::other("EMFILE")] {
            assert_eq!(NoRoom::within(&other), None);
            assert_eq!(NoRoom::within(&WireError::from(explain(other))), None);
        }
    }
}
