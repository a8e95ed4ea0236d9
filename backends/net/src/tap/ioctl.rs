//! What whoever serves a tap sets of it, each by one ioctl (Linux,
//! `linux/if_tun.h`): the one unsafe part of this crate. EBADFD is the answer of
//! a tap that is gone.

use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, ifreq};
use nix::errno::Errno;
use outboard_protocol::tap::Mac;

const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const FILTER_ALL_MULTICAST: u16 = 1;

nix::ioctl_write_int_bad!(set_offload, nix::request_code_write!(b'T', 208, 4));
nix::ioctl_write_ptr_bad!(set_tx_filter, nix::request_code_write!(b'T', 209, 4), u8);
nix::ioctl_write_ptr_bad!(
    set_header_size,
    nix::request_code_write!(b'T', 216, 4),
    c_int
);
nix::ioctl_write_ptr_bad!(set_queue, nix::request_code_write!(b'T', 217, 4), ifreq);

/// Sets how many bytes are before every frame.
///
/// # Errors
/// Those of the ioctl.
pub fn set_header(fd: BorrowedFd<'_>, length: usize) -> nix::Result<()> {
    let length = c_int::try_from(length).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads an int.
    unsafe { set_header_size(fd.as_raw_fd(), &length) }.map(drop)
}

/// Tells the tap what the reader of its frames takes (`OFFLOAD_*`).
///
/// # Errors
/// EINVAL for what this kernel does not know.
pub fn set_offloads(fd: BorrowedFd<'_>, offloads: u32) -> nix::Result<()> {
    // SAFETY: the argument is a number and no pointer.
    unsafe { set_offload(fd.as_raw_fd(), offloads.cast_signed()) }.map(drop)
}

/// Attaches or detaches a queue of a tap with several: a detached one gets no
/// frames. One that is so already stays so.
///
/// # Errors
/// Those of the ioctl.
pub fn attach(fd: BorrowedFd<'_>, attached: bool) -> nix::Result<()> {
    let flags = match attached {
        true => IFF_ATTACH_QUEUE,
        false => IFF_DETACH_QUEUE,
    };
    // SAFETY: it is made of numbers, which may all be 0.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = flags.cast_signed();
    // SAFETY: the kernel reads a `struct ifreq`.
    match unsafe { set_queue(fd.as_raw_fd(), &request) } {
        // What the kernel says when it is so already.
        Ok(_) | Err(Errno::EINVAL) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Lets only frames to these addresses through to the reader; none for
/// everything. The kernel compares the first 8 exactly and the rest, which
/// must be multicast, by a hash; other lists let everything through.
///
/// # Errors
/// Those of the ioctl.
pub fn set_filter(fd: BorrowedFd<'_>, addresses: &[Mac], multicast: bool) -> nix::Result<()> {
    let count = u16::try_from(addresses.len()).map_err(|_| Errno::EINVAL)?;
    let flags = if multicast { FILTER_ALL_MULTICAST } else { 0 };
    let mut filter = [flags.to_ne_bytes(), count.to_ne_bytes()].concat();
    filter.extend(addresses.iter().flatten());
    // SAFETY: the kernel reads a `struct tun_filter`: flags, a count, and as many
    // addresses, all of which are in `filter`.
    unsafe { set_tx_filter(fd.as_raw_fd(), filter.as_ptr()) }.map(drop)
}
