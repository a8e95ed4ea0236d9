//! The ioctls on taps and on the interfaces that they are: the one unsafe part
//! of the module.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

use nix::libc::{self, c_int, c_uint, c_ulong};

use super::NAME;

/// ETHTOOL_GCHANNELS of linux/ethtool.h.
const GET_CHANNELS: u32 = 0x3c;

/// `struct ifreq` with the member that taps use.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Request {
    name: [u8; NAME + 1],
    pub flags: u16,
    rest: [u8; 22],
}

impl Request {
    pub fn new(name: &str, flags: u16) -> Self {
        let mut request = Self {
            name: [0; NAME + 1],
            flags,
            rest: [0; 22],
        };
        for (to, from) in request.name.iter_mut().take(NAME).zip(name.bytes()) {
            *to = from;
        }
        request
    }

    pub fn name(&self) -> String {
        let name = self.name.split(|byte| *byte == 0).next();
        String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
    }
}

/// `struct ifreq` with the member that ethtool uses.
#[repr(C)]
struct Pointing {
    name: [u8; NAME + 1],
    data: *mut Channels,
    rest: [u8; 16],
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    /// Most receive, transmit, other and combined ones; receive, transmit and
    /// other ones.
    rest: [u32; 7],
    combined: u32,
}

nix::ioctl_readwrite_bad!(ethtool, libc::SIOCETHTOOL, Pointing);
nix::ioctl_write_ptr_bad!(set_iff, nix::request_code_write!(b'T', 202, 4), Request);
nix::ioctl_write_int_bad!(set_offload, nix::request_code_write!(b'T', 208, 4));
nix::ioctl_write_ptr_bad!(set_filter, nix::request_code_write!(b'T', 209, 4), u16);
nix::ioctl_read_bad!(get_iff, nix::request_code_read!(b'T', 210, 4), Request);
nix::ioctl_write_ptr_bad!(set_header, nix::request_code_write!(b'T', 216, 4), c_int);

pub fn identify(fd: BorrowedFd<'_>) -> nix::Result<Request> {
    let mut request = Request::new("", 0);
    // SAFETY: the kernel writes a `struct ifreq`, which `Request` is.
    unsafe { get_iff(fd.as_raw_fd(), &mut request) }.map(|_| request)
}

pub fn name(fd: BorrowedFd<'_>, request: &Request) -> nix::Result<()> {
    // SAFETY: the kernel reads a `struct ifreq`, and writes its name back.
    let mut copy = *request;
    // SAFETY: as above; `copy` is writable and lives through the call.
    unsafe { set_iff(fd.as_raw_fd(), &raw mut copy) }.map(drop)
}

/// No filter, no offloads, a header of `header` bytes.
pub fn make_as_new(fd: BorrowedFd<'_>, header: c_int) -> nix::Result<()> {
    // Flags, and the number of addresses: none.
    const NO_FILTER: [u16; 2] = [0; 2];
    // The filter before all, since of the others each user says what it takes.
    // SAFETY: the kernel reads these flags and this number, and no address.
    unsafe { set_filter(fd.as_raw_fd(), NO_FILTER.as_ptr()) }?;
    // SAFETY: the argument is a number and no pointer.
    unsafe { set_offload(fd.as_raw_fd(), 0) }?;
    // SAFETY: the kernel reads an int.
    unsafe { set_header(fd.as_raw_fd(), &header) }.map(drop)
}

/// Queues of the tap `name`, in the network namespace of this process, that are
/// attached, whoever has them.
pub fn attached_queues(name: &str) -> io::Result<u32> {
    let socket = UnixDatagram::unbound()?;
    let mut channels = Channels {
        command: GET_CHANNELS,
        ..Channels::default()
    };
    let mut request = Pointing {
        name: Request::new(name, 0).name,
        data: &raw mut channels,
        rest: [0; 16],
    };
    // SAFETY: the kernel reads a `struct ifreq`, which `Pointing` is, and writes
    // a `struct ethtool_channels` where it points: `channels`, which is one and
    // lives through the call.
    unsafe { ethtool(socket.as_raw_fd(), &raw mut request) }?;
    Ok(channels.combined)
}

pub fn index(name: &CStr) -> io::Result<c_uint> {
    // SAFETY: `name` ends with a zero byte.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());
const _: () = assert!(size_of::<Pointing>() == size_of::<libc::ifreq>());
const _: () = assert!(size_of::<c_ulong>() == 8);
