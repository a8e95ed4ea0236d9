//! What the host does to a tap's interface, by rtnetlink(7).
//!
//! News is only a hint that something has happened: what is true is asked for,
//! and the answer comes after whatever was under way. The interface is looked
//! for in the network namespace of this process; a tap of another one has no
//! watch, and its link is up for as long as the tap is there.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    socket,
};
use outboard_protocol::launch::Link;
use outboard_protocol::tap;

const NEWS_OF_LINKS: u32 = 1;
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const REQUEST: u16 = 1;
/// `struct nlmsghdr`, `struct ifinfomsg`.
const HEADER: usize = 16;
const BODY: usize = 16;
/// An answer is some 2 KiB long.
const ROOM: usize = 32 * 1024;
/// Most messages that are read at once.
const MOST: usize = 1000;

/// See the module.
#[derive(Debug)]
pub struct Watch {
    socket: OwnedFd,
    index: u32,
}

/// Readable when something may have happened.
impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Watch {
    /// Watches the interface `name`.
    ///
    /// # Errors
    /// ENODEV when there is none of that name here, and those of socket(2).
    pub fn new(name: &str) -> io::Result<Self> {
        let index = tap::index(name)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let kind = SockProtocol::NetlinkRoute;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, kind)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, NEWS_OF_LINKS))?;
        Ok(Self { socket, index })
    }

    /// What is true of the interface now; all news so far is forgotten.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn look(&self) -> io::Result<Link> {
        let mut buffer = vec![0; ROOM];
        self.drain(&mut buffer, |_| None::<Link>)?;
        let mut request = Vec::with_capacity(HEADER + BODY);
        request.extend(((HEADER + BODY) as u32).to_ne_bytes());
        request.extend(RTM_GETLINK.to_ne_bytes());
        request.extend(REQUEST.to_ne_bytes());
        request.extend([0; 12]);
        request.extend(self.index.to_ne_bytes());
        request.extend([0; 8]);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(
            self.socket.as_raw_fd(),
            &request,
            &kernel,
            MsgFlags::empty(),
        )?;
        // The kernel has answered before it returns.
        let answer = self.drain(&mut buffer, |message| state(message, self.index))?;
        answer.ok_or_else(|| io::Error::other("the kernel does not answer RTM_GETLINK"))
    }

    /// Reads messages to the first that means something. What comes after that is news.
    fn drain<T>(
        &self,
        buffer: &mut [u8],
        mut read: impl FnMut(&[u8]) -> Option<T>,
    ) -> io::Result<Option<T>> {
        for _ in 0..MOST {
            match recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(count) => {
                    let meant = read(buffer.get(..count).unwrap_or_default());
                    if meant.is_some() {
                        return Ok(meant);
                    }
                }
                Err(Errno::EAGAIN) => break,
                // More news than the socket holds: what is true is asked for.
                Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(None)
    }
}

/// What one message says of the interface.
fn state(message: &[u8], index: u32) -> Option<Link> {
    let word = |at: usize| {
        let bytes = message.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_ne_bytes(*bytes))
    };
    let kind = message.get(4..)?.first_chunk::<2>()?;
    match u16::from_ne_bytes(*kind) {
        NLMSG_ERROR => {
            let gone = Errno::ENODEV as i32;
            (word(HEADER)?.cast_signed() == gone.wrapping_neg()).then_some(Link::Gone)
        }
        RTM_NEWLINK if word(HEADER + 4)? == index => {
            let flags = word(HEADER + 8)?;
            let is = |flag: libc::c_int| flags & flag.cast_unsigned() != 0;
            Some(match (is(libc::IFF_UP), is(libc::IFF_LOWER_UP)) {
                (true, true) => Link::Up,
                (true, false) => Link::NoCarrier,
                (false, _) => Link::Down,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn the_loopback_interface_is_there_and_another_is_not() {
        let watch = Watch::new("lo").unwrap();
        assert!(matches!(watch.look().unwrap(), Link::Up | Link::Down));
        let error = Watch::new("no-such-dev").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        let gone = Watch {
            index: 0x7fff_fff0,
            ..watch
        };
        assert_eq!(gone.look().unwrap(), Link::Gone);
    }

    /// It would be read with the answer, and never be looked at.
    #[test]
    fn what_happens_after_the_answer_is_news() {
        let (socket, kernel) = UnixDatagram::pair().unwrap();
        let watch = Watch {
            socket: socket.into(),
            index: 7,
        };
        let mut message = [0; HEADER + BODY];
        message[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
        message[HEADER + 4..][..4].copy_from_slice(&7u32.to_ne_bytes());
        kernel.send(&message).unwrap();
        kernel.send(b"it is deleted").unwrap();
        let read = |message: &[u8]| state(message, watch.index);
        let answer = watch.drain(&mut [0; ROOM], read).unwrap();
        assert_eq!(answer, Some(Link::Down));
        let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::ZERO), Ok(1));
    }

    #[test]
    fn messages_cut_anywhere_say_nothing() {
        let gone = (-libc::ENODEV).to_ne_bytes();
        for (kind, first, needed, says) in [
            (NLMSG_ERROR, gone, HEADER + 4, Link::Gone),
            (RTM_NEWLINK, [0xff; 4], HEADER + 12, Link::Up),
        ] {
            let mut message = [0xff; HEADER + BODY];
            message[4..6].copy_from_slice(&kind.to_ne_bytes());
            message[HEADER..HEADER + 4].copy_from_slice(&first);
            for length in 0..=message.len() {
                let said = (length >= needed).then_some(says);
                assert_eq!(state(&message[..length], u32::MAX), said);
            }
        }
    }
}
