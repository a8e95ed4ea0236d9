//! Signalling an eventfd that others hold too, without ever blocking.
//!
//! Whoever holds an eventfd can fill its counter and make it blocking, and a
//! write(2) would then wait for as long as he likes. The kernel's own signal
//! never waits; what makes the kernel give one is the completion of an
//! asynchronous read (io_submit(2), `IOCB_FLAG_RESFD`).

use std::ffi::{c_long, c_ulong};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vmm_sys_util::eventfd::EventFd;

const IOCB_CMD_PREAD: u16 = 0;
const IOCB_FLAG_RESFD: u32 = 1;

/// `struct iocb` of linux/aio_abi.h, little-endian.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

/// Adds 1 to the counter of `event`.
///
/// # Errors
/// The kernel has no asynchronous I/O, or no memory.
pub fn signal(event: &EventFd) -> io::Result<()> {
    let file = File::from(memfd_create(c"signal", MFdFlags::MFD_CLOEXEC)?);
    file.write_all_at(&[0], 0)?;
    let mut byte = [0u8];
    let mut request = Iocb {
        opcode: IOCB_CMD_PREAD,
        file: number(&file)?,
        buffer: byte.as_mut_ptr() as u64,
        length: 1,
        flags: IOCB_FLAG_RESFD,
        eventfd: number(event)?,
        ..Iocb::default()
    };
    let mut context: c_ulong = 0;
    // SAFETY: the kernel writes the context's id into `context`, which lives on.
    check(unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) })?;
    let mut list = [&raw mut request];
    // SAFETY: the list has one request, whose buffer has one byte; both live until the context is destroyed below, which
    // waits for the request's completion.
    let submitted =
        check(unsafe { libc::syscall(libc::SYS_io_submit, context, 1, list.as_mut_ptr()) });
    // SAFETY: the context is this function's own and is not used again.
    let destroyed = check(unsafe { libc::syscall(libc::SYS_io_destroy, context) });
    submitted.and(destroyed)
}

fn number(file: &impl AsRawFd) -> io::Result<u32> {
    u32::try_from(file.as_raw_fd()).map_err(io::Error::other)
}

fn check(result: c_long) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_signal_adds_one_and_never_waits() {
        let event = EventFd::new(0).unwrap();
        signal(&event).unwrap();
        signal(&event).unwrap();
        assert_eq!(event.read().unwrap(), 2);
        // Blocking, and as full as it gets: a write would wait for ever.
        event.write(u64::MAX - 1).unwrap();
        signal(&event).unwrap();
        assert!(event.read().unwrap() >= u64::MAX - 1);
    }
}
