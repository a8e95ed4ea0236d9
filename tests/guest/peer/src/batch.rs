//! Datagrams many at a time, and waiting without being woken for each. Unsafe code: recvmmsg(2).

use std::mem::zeroed;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use std::{io, thread};

use crate::raw;

/// Datagrams taken by one call.
const MOST: usize = 64;
const LONGEST: usize = 65_536;
/// Between two looks at a socket that has brought something lately: whoever sends to it must not pay for waking
/// a sleeper with each datagram.
const NAP: Duration = Duration::from_micros(50);
/// Nothing for this long, and the next look waits.
const LATELY: Duration = Duration::from_millis(5);

/// Datagrams that were received together.
pub struct Batch {
    buffer: Vec<u8>,
    lengths: Vec<usize>,
    last: Instant,
}

impl Batch {
    /// Empty.
    pub fn new() -> Batch {
        Batch {
            buffer: vec![0; MOST * LONGEST],
            lengths: Vec::with_capacity(MOST),
            last: Instant::now(),
        }
    }

    /// Takes what has come; waits for a moment, or for the socket's own timeout when nothing has come lately.
    pub fn receive(&mut self, socket: &UdpSocket) -> Result<(), String> {
        let idle = self.last.elapsed() > LATELY;
        self.take(
            socket,
            if idle {
                libc::MSG_WAITFORONE
            } else {
                libc::MSG_DONTWAIT
            },
        )?;
        if !self.lengths.is_empty() {
            self.last = Instant::now();
        } else if !idle {
            thread::sleep(NAP);
        }
        Ok(())
    }

    fn take(&mut self, socket: &UdpSocket, flags: libc::c_int) -> Result<(), String> {
        self.lengths.clear();
        let mut parts: Vec<libc::iovec> = self
            .buffer
            .chunks_exact_mut(LONGEST)
            .map(|chunk| libc::iovec {
                iov_base: chunk.as_mut_ptr().cast(),
                iov_len: chunk.len(),
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: every bit pattern is an mmsghdr.
                let mut message: libc::mmsghdr = unsafe { zeroed() };
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        // SAFETY: each message has one part, each part is a chunk of the buffer, and all live until the call
        // returns and are used by nobody else.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                messages.len() as libc::c_uint,
                flags,
                std::ptr::null_mut(),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            use io::ErrorKind::{ConnectionRefused, Interrupted, WouldBlock};
            return match error.kind() {
                ConnectionRefused | Interrupted | WouldBlock => Ok(()),
                _ => Err(format!("reason=receive error=\"{error}\"")),
            };
        };
        let lengths = messages[..count]
            .iter()
            .map(|message| message.msg_len as usize);
        self.lengths.extend(lengths);
        Ok(())
    }

    /// What was received.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        let chunks = self.buffer.chunks_exact(LONGEST);
        chunks
            .zip(&self.lengths)
            .map(|(chunk, length)| &chunk[..*length])
    }
}

/// Sends what is in one buffer as datagrams of `size` bytes from now on, so many at a time; 1: as it is.
pub fn cut(socket: &UdpSocket, size: usize) -> usize {
    // What the kernel takes for one frame of the usual MTU, and in one call.
    let fits = (1..=1472).contains(&size);
    let cuts = fits
        && raw::set(
            socket,
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            size as libc::c_int,
        )
        .is_ok();
    if cuts { MOST.min(65_000 / size) } else { 1 }
}

/// Sends each buffer as one datagram again.
pub fn do_not_cut(socket: &UdpSocket) -> Result<(), String> {
    raw::set(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0 as libc::c_int)
}
