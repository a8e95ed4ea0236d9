//! Asynchronous I/O of the kernel's own (io_submit(2)), of which the machine needs two
//! things that nothing else has: a signal to an eventfd that never waits
//! (`signal.rs`), and word of an event that somebody else has consumed by then
//! (`first_kick.rs`).

use std::ffi::{c_long, c_ulong};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

const IOCB_CMD_PREAD: u16 = 0;
const IOCB_CMD_POLL: u16 = 5;
const IOCB_FLAG_RESFD: u32 = 1;

/// A request: `struct iocb` of linux/aio_abi.h, little-endian. None has a buffer.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Request {
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

impl Request {
    /// Reads nothing of `file`, which is complete when it is submitted, and signals
    /// `event` then.
    ///
    /// # Errors
    /// Either is no descriptor.
    pub(crate) fn read_nothing(file: &impl AsRawFd, event: &impl AsRawFd) -> io::Result<Self> {
        Self::of(IOCB_CMD_PREAD, file, event)
    }

    /// Waits for `file` to become readable, once, and signals `event` then. `data` tells
    /// that it was this request.
    ///
    /// # Errors
    /// Either is no descriptor.
    pub(crate) fn poll(file: &impl AsRawFd, event: &impl AsRawFd, data: u64) -> io::Result<Self> {
        // What poll(2) is to wait for is where a buffer would be.
        Ok(Self {
            data,
            buffer: libc::POLLIN as u64,
            ..Self::of(IOCB_CMD_POLL, file, event)?
        })
    }

    fn of(opcode: u16, file: &impl AsRawFd, event: &impl AsRawFd) -> io::Result<Self> {
        Ok(Self {
            opcode,
            file: number(file.as_raw_fd())?,
            flags: IOCB_FLAG_RESFD,
            eventfd: number(event.as_raw_fd())?,
            ..Self::default()
        })
    }
}

/// Where requests are submitted. It ends with the process: the kernel lets one go only
/// after a grace period of its readers, which takes milliseconds, and seconds where the
/// processors are busy.
#[derive(Debug)]
pub(crate) struct Context(c_ulong);

impl Context {
    /// For so many requests at a time.
    ///
    /// # Errors
    /// The kernel has no asynchronous I/O, or no room for more of it (`EAGAIN`).
    pub(crate) fn new(requests: u32) -> io::Result<Self> {
        let mut id: c_ulong = 0;
        // SAFETY: the kernel writes the context's id into `id`, which lives on.
        check(unsafe { libc::syscall(libc::SYS_io_setup, requests, &raw mut id) })?;
        Ok(Self(id))
    }

    /// Hands a request to the kernel, which copies it. It is known by where it lies, so
    /// it must not move while it may have to be cancelled.
    ///
    /// # Errors
    /// Those of io_submit(2).
    pub(crate) fn submit(&self, request: &mut Request) -> io::Result<()> {
        let mut list = [&raw mut *request];
        // SAFETY: the list has one request, which the kernel copies but for its `key`, and
        // which has no buffer.
        check(unsafe { libc::syscall(libc::SYS_io_submit, self.0, 1, list.as_mut_ptr()) })
    }

    /// The `data` of a request that is over, if there is one; never waits.
    ///
    /// # Errors
    /// Those of io_getevents(2).
    pub(crate) fn reap(&self) -> io::Result<Option<u64>> {
        let mut done = IoEvent::default();
        let no_time = std::ptr::null_mut::<libc::timespec>();
        // SAFETY: there is room for the one event that is asked for. With 0 as the least
        // number the kernel does not wait.
        let count =
            unsafe { libc::syscall(libc::SYS_io_getevents, self.0, 0, 1, &raw mut done, no_time) };
        check(count)?;
        Ok((count > 0).then_some(done.data))
    }

    /// Ends a request. It is reaped later as any other; one that is over already is left
    /// alone.
    pub(crate) fn cancel(&self, request: &mut Request) {
        let mut done = IoEvent::default();
        // SAFETY: the kernel reads the request's `key`, compares where it lies with what it
        // was told at the submission, and may write into `done`, which lives on.
        unsafe {
            libc::syscall(
                libc::SYS_io_cancel,
                self.0,
                &raw mut *request,
                &raw mut done,
            );
        }
    }
}

fn number(fd: RawFd) -> io::Result<u32> {
    u32::try_from(fd).map_err(io::Error::other)
}

fn check(result: c_long) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
