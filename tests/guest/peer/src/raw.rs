//! Packet sockets: whole frames of one network device, with or without the header that says how a frame
//! is to be cut. Unsafe code: system calls.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use guest_logic::packet::Offload;

/// Bytes that the kernel may hold for a socket.
const ROOM: libc::c_int = 64 << 20;

/// A packet socket on one device. It does not see what is sent through it.
pub struct Raw {
    fd: OwnedFd,
    offload: bool,
    buffer: Vec<u8>,
}

fn check(result: libc::c_int, what: &str) -> Result<libc::c_int, String> {
    if result >= 0 {
        return Ok(result);
    }
    Err(format!(
        "reason=system-call call=\"{what}\" error=\"{}\"",
        io::Error::last_os_error()
    ))
}

/// Sets a socket option.
pub fn set<T>(fd: &impl AsRawFd, level: i32, name: i32, value: T) -> Result<(), String> {
    // SAFETY: the pointer and the length describe `value`, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<T>() as u32,
        )
    };
    check(result, &format!("setsockopt {level} {name}")).map(drop)
}

/// Gives a socket as much room for what was not read yet as the kernel allows.
pub fn enlarge(fd: &impl AsRawFd) -> Result<(), String> {
    set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, ROOM)
        .or_else(|_| set(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, ROOM))
}

impl Raw {
    /// Opens a socket on the device with this name.
    pub fn open(device: &str, offload: bool) -> Result<Raw, String> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        let fd = check(fd, "socket AF_PACKET")?;
        // SAFETY: a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        set(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1i32)?;
        if offload {
            set(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1i32)?;
        }
        enlarge(&fd)?;
        let name = CString::new(device).map_err(|_| "reason=bad-value key=tap".to_owned())?;
        // SAFETY: a string that ends with 0.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(format!("reason=no-such-device tap={device}"));
        }
        // SAFETY: every bit pattern is a sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        // SAFETY: the pointer and the length describe `address`.
        let result = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        check(result, &format!("bind to {device}"))?;
        Ok(Raw {
            fd,
            offload,
            buffer: vec![0; 1 << 17],
        })
    }

    /// Waits for a frame, for as long as `patience` at most.
    pub fn receive(&mut self, patience: Duration) -> Result<Option<(Offload, &[u8])>, String> {
        let time = libc::timeval {
            tv_sec: patience.as_secs() as i64,
            tv_usec: i64::from(patience.subsec_micros()).max(1),
        };
        set(&self.fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, time)?;
        // SAFETY: the pointer and the length describe the buffer.
        let length = unsafe {
            libc::recv(
                self.fd.as_raw_fd(),
                self.buffer.as_mut_ptr().cast(),
                self.buffer.len(),
                0,
            )
        };
        let Ok(length) = usize::try_from(length) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(format!("reason=system-call call=recv error=\"{error}\"")),
            };
        };
        let bytes = &self.buffer[..length];
        if !self.offload {
            return Ok(Some((Offload::default(), bytes)));
        }
        let (header, frame) = bytes.split_at(Offload::LENGTH.min(length));
        Ok(Some((Offload::from_bytes(header), frame)))
    }

    /// Sends a frame. False if the device has no room now.
    pub fn send(&self, offload: &Offload, frame: &[u8]) -> Result<bool, String> {
        let header = offload.to_bytes();
        let parts = [
            libc::iovec {
                iov_base: header.as_ptr().cast_mut().cast(),
                iov_len: if self.offload { header.len() } else { 0 },
            },
            libc::iovec {
                iov_base: frame.as_ptr().cast_mut().cast(),
                iov_len: frame.len(),
            },
        ];
        // SAFETY: the parts describe slices that live until the call returns, and are only read.
        let sent = unsafe { libc::writev(self.fd.as_raw_fd(), parts.as_ptr(), 2) };
        if sent >= 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOBUFS | libc::EAGAIN | libc::EINTR) => Ok(false),
            _ => Err(format!(
                "reason=system-call call=writev length={} offload=\"{offload:?}\" error=\"{error}\"",
                frame.len()
            )),
        }
    }
}

/// A socket for ICMP.
pub fn icmp() -> Result<std::net::UdpSocket, String> {
    // SAFETY: no pointers.
    let fd = unsafe {
        libc::socket(
            libc::AF_INET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::IPPROTO_ICMP,
        )
    };
    let fd = check(fd, "socket ICMP")?;
    // SAFETY: a new descriptor that nobody else owns. The type's send and receive calls work on any
    // socket with IPv4 addresses.
    Ok(unsafe { std::net::UdpSocket::from_raw_fd(fd) })
}
