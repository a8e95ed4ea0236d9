//! One send and one receive on a Unix socket, with descriptors.
//!
//! `rustix` rather than `nix`: when the control buffer was cut, `nix` answers
//! an error and forgets the descriptors that the kernel has already installed,
//! so a peer could fill our table (CVE-2019-14818 was such a leak); `rustix`
//! owns every one of them in any case.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::poll::PollFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::{Deadline, descriptors};

/// The most descriptors that Linux carries in one message (SCM_MAX_FD). The
/// buffers have room for them all, so that too many are seen as too many.
const SCM_MAX_FD: usize = 253;

/// Sends what the socket takes of `bytes`, and with its first byte `fds`.
/// Waits for room until `deadline`.
///
/// # Errors
/// `TimedOut`; `BrokenPipe` when the peer has gone, whatever it left unread.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    deadline: Deadline,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
    loop {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(count) => return Ok(count),
            Err(rustix::io::Errno::AGAIN) => deadline.wait_for(socket, PollFlags::POLLOUT)?,
            Err(rustix::io::Errno::INTR) => {}
            // It left, and something that it was sent before is unread.
            Err(rustix::io::Errno::CONNRESET) => return Err(rustix::io::Errno::PIPE.into()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives into `bytes`, and appends the descriptors that came along to
/// `fds`. Waits until `deadline`, without one not at all; 0 is the end of the stream.
///
/// # Errors
/// `TimedOut`; `InvalidData` when a part of a packet was cut off; [`descriptors::missing`]
/// when a descriptor was.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    deadline: Option<Deadline>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        match received {
            Ok(message) if message.flags.contains(ReturnFlags::CTRUNC) => {
                return Err(descriptors::missing(socket));
            }
            Ok(message) if message.flags.contains(ReturnFlags::TRUNC) => {
                let text = "a message is longer than any may be";
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            Ok(message) => return Ok(message.bytes),
            Err(rustix::io::Errno::AGAIN) => match deadline {
                Some(deadline) => deadline.wait_for(socket, PollFlags::POLLIN)?,
                None => return Err(io::ErrorKind::TimedOut.into()),
            },
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
