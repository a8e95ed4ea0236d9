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
use std::sync::{Mutex, PoisonError};

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

/// `struct io_event` of linux/aio_abi.h.
#[repr(C)]
#[derive(Default)]
struct IoEvent {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

/// Where requests are submitted: one for the process, which ends with it. The
/// kernel lets one go only after a grace period of its readers, which takes
/// milliseconds, and seconds where the processors are busy.
struct Context {
    id: c_ulong,
    /// An empty file, of which nothing is read.
    file: File,
}

static CONTEXT: Mutex<Option<Context>> = Mutex::new(None);

/// Adds 1 to the counter of `event`.
///
/// # Errors
/// The kernel has no asynchronous I/O, or no memory.
pub(crate) fn signal(event: &EventFd) -> io::Result<()> {
    let mut context = CONTEXT.lock().unwrap_or_else(PoisonError::into_inner);
    let context = match &mut *context {
        Some(context) => context,
        none => none.insert(Context::new()?),
    };
    context.complete(event)
}

impl Context {
    fn new() -> io::Result<Self> {
        let file = File::from(memfd_create(c"signal", MFdFlags::MFD_CLOEXEC)?);
        let mut id: c_ulong = 0;
        // SAFETY: the kernel writes the context's id into `id`, which lives on.
        check(unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut id) })?;
        Ok(Self { id, file })
    }

    /// Reads nothing, which is complete when it is submitted, and signals that.
    fn complete(&mut self, event: &EventFd) -> io::Result<()> {
        let mut request = Iocb {
            opcode: IOCB_CMD_PREAD,
            file: number(&self.file)?,
            flags: IOCB_FLAG_RESFD,
            eventfd: number(event)?,
            ..Iocb::default()
        };
        let mut list = [&raw mut request];
        // SAFETY: the list has one request, which the kernel copies, and which has no buffer.
        check(unsafe { libc::syscall(libc::SYS_io_submit, self.id, 1, list.as_mut_ptr()) })?;
        let mut done = IoEvent::default();
        let no_time = std::ptr::null_mut::<libc::timespec>();
        // SAFETY: there is room for the one event that is asked for. With 0 as the least number the kernel does not wait.
        check(unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.id,
                0,
                1,
                &raw mut done,
                no_time,
            )
        })
    }
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
        // However many: what is complete is taken away.
        for _ in 0..1000 {
            signal(&event).unwrap();
        }
        assert_eq!(event.read().unwrap(), 1000);
    }
}
