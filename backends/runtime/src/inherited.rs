//! Descriptors that a parent process hands over by number.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The numbers taken so far: a descriptor has one owner.
static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// Takes the open descriptor `number`, which this process was started with,
/// and marks it close-on-exec. Each can be taken once. Call it before anything
/// else opens descriptors, or the number may be of one of those.
///
/// # Errors
/// `InvalidInput` for standard input, output and error and for a number taken
/// before; those of fcntl(2) when it is not open.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    let refuse = |why: &str| {
        let text = format!("cannot use descriptor {number}: {why}");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    if number < 3 {
        return Err(refuse("0, 1 and 2 are the standard streams"));
    }
    let mut taken = TAKEN.lock().map_err(|_| refuse("its owner is unknown"))?;
    if taken.contains(&number) {
        return Err(refuse("it is named twice"));
    }
    // SAFETY: borrowed for one fcntl only, which fails on a closed descriptor.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        .map_err(|_| refuse("it is not open; start this program with it open"))?;
    taken.push(number);
    // SAFETY: it is open, it came with the process as the caller says, and
    // `taken` makes sure that nobody else becomes its owner here.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn a_descriptor_is_taken_once_and_only_if_it_is_open() {
        let number = std::fs::File::open("/dev/null").unwrap().into_raw_fd();
        let owned = take(number).unwrap();
        assert!(take(number).is_err());
        drop(owned);
        for number in [-1, 0, 2, 1_000_000] {
            assert!(take(number).is_err(), "{number}");
        }
    }
}
