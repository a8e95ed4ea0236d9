//! The socket between the machine and its supervisor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Deadline, descriptors, socket};

/// Largest packet between machine and supervisor, in bytes.
const MAX_PACKET: usize = 64 * 1024;
/// Most descriptors in a packet.
const MAX_PACKET_FDS: usize = 8;

/// One end of the socket between machine and supervisor.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// A connected pair, both ends close-on-exec.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        Ok((Self { socket: a }, Self { socket: b }))
    }

    /// Adopts an inherited end.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Sends one message with its descriptors.
    ///
    /// # Errors
    /// `TimedOut` when the peer does not read before `deadline`, else those of
    /// sendmsg(2); `BrokenPipe` when the peer has gone.
    pub fn send<T: Serialize>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_PACKET || fds.len() > MAX_PACKET_FDS {
            return Err(io::Error::other("the message is too long for one packet"));
        }
        socket::send(self.socket.as_fd(), &bytes, fds, deadline).map(drop)
    }

    /// Receives one message with its descriptors; `None` when the peer has
    /// gone.
    ///
    /// # Errors
    /// `TimedOut` when none came before `deadline`, `InvalidData` when it is
    /// not one of ours.
    pub fn recv<T: DeserializeOwned>(
        &self,
        deadline: Deadline,
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut buffer = vec![0; MAX_PACKET];
        let mut fds = Vec::new();
        let mut receive =
            || socket::receive(self.socket.as_fd(), &mut buffer, &mut fds, Some(deadline));
        let received = match receive() {
            // It left with something unread. What it had said before comes next.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => receive(),
            received => received,
        };
        let message = match received {
            Ok(0) => Ok(None),
            Ok(length) => {
                let message = serde_json::from_slice(buffer.get(..length).unwrap_or_default());
                message.map(Some).map_err(io::Error::from)
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        };
        if let Ok(Some(message)) = message {
            return Ok(Some((message, fds)));
        }
        descriptors::discard(fds);
        message.map(|_| None)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{ToMachine, Whose};
    use super::*;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(20))
    }

    #[test]
    fn a_message_and_its_descriptors_arrive_together_and_an_end_is_seen() {
        let (a, b) = Channel::pair().unwrap();
        let sent = ToMachine::Attach {
            device: "disk0".into(),
            session: 1,
            asked: false,
            whose: Whose::default(),
            restored: crate::launch::Restored::Nothing,
        };
        a.send(&sent, &[a.as_fd()], soon()).unwrap();
        drop(a);
        let (message, fds) = b.recv::<ToMachine>(soon()).unwrap().unwrap();
        assert_eq!(message, sent);
        assert_eq!(fds.len(), 1);
        drop(fds);
        assert!(b.recv::<ToMachine>(soon()).unwrap().is_none());
    }

    #[test]
    fn a_peer_that_has_gone_is_a_broken_pipe_whether_it_had_read_or_not() {
        let stop = ToMachine::Stop;
        for reads in [true, false] {
            let (a, b) = Channel::pair().unwrap();
            a.send(&stop, &[], soon()).unwrap();
            if reads {
                b.recv::<ToMachine>(soon()).unwrap().unwrap();
            }
            drop(b);
            let error = a.send(&stop, &[], soon()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "{reads}");
        }
    }

    #[test]
    fn the_last_word_of_one_who_left_something_unread_is_heard() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&ToMachine::Stop, &[], soon()).unwrap();
        b.send(&"a last word", &[], soon()).unwrap();
        drop(b);
        let (word, _) = a.recv::<String>(soon()).unwrap().unwrap();
        assert_eq!(word, "a last word");
        assert!(a.recv::<String>(soon()).unwrap().is_none());
    }

    #[test]
    fn nonsense_is_refused() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&"nonsense", &[], soon()).unwrap();
        let error = b.recv::<ToMachine>(soon()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
