//! Where the back-end's own requests go (SET_BACKEND_REQ_FD).
//!
//! A socket keeps alive whatever waits in it, and the front-end may lend any: its
//! own end of this very connection, or one in which that has been sent. The end of
//! the session would never be seen then. So nothing can arrive in a channel: it is
//! shut down for reading, which nothing here does (no request asks for an
//! acknowledgement), and emptied. If that has shut down the session's connection
//! for writing, the channel is its other end.

use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, SockType, getsockopt, recv, send, sockopt};
use outboard_protocol::Deadline;
use outboard_protocol::wire::{Connection, Header, WireError};
use vhost::vhost_user::message::BackendReq;

use super::Fault;

/// A configuration change must be read within this; the session waits for it.
const CHANGE: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Channel(Connection);

impl Channel {
    /// Adopts what the front-end of `session` lent.
    ///
    /// # Errors
    /// It is no connected Unix stream socket, or the session's own.
    pub fn adopt(fd: OwnedFd, session: &Connection) -> Result<Self, Fault> {
        let is_stream = getsockopt(&fd, sockopt::SockType) == Ok(SockType::Stream);
        let channel = UnixStream::from(fd);
        // One that is not connected could listen later, and keep connections.
        if !is_stream || channel.peer_addr().is_err() {
            let why = "it brings no connected Unix stream socket";
            return Err(Fault::Refused(why.into()));
        }
        channel
            .shutdown(Shutdown::Read)
            .map_err(|error| Fault::Refused(format!("shutdown(2): {error}")))?;
        empty(&channel);
        if is_shut(session) {
            let why = "it brings the front-end's own end of this connection";
            return Err(Fault::Broken(why.into()));
        }
        Ok(Self(Connection::new(channel)))
    }

    /// Says that the configuration has changed.
    ///
    /// # Errors
    /// The front-end does not read it, or has closed the channel.
    pub fn tell_change(&self) -> Result<(), WireError> {
        let header = Header::request(BackendReq::CONFIG_CHANGE_MSG.into());
        self.0.send(header, &[], &[], Deadline::after(CHANGE))
    }
}

/// Reads away what waits in a socket that is shut down for reading, so that
/// nothing more comes. Descriptors are closed by the kernel: there is no room for
/// them.
fn empty(channel: &UnixStream) {
    let mut bytes = [0; 4096];
    loop {
        match recv(channel.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// Whether nothing can be sent any more, although the other end is open: asked by
/// sending nothing, which a stream takes for nothing.
fn is_shut(connection: &Connection) -> bool {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    if send(connection.as_fd().as_raw_fd(), &[], flags) != Err(Errno::EPIPE) {
        return false;
    }
    // One that has been closed hangs up.
    let mut fds = [PollFd::new(connection.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO) == Ok(0)
}
