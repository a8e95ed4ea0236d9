//! The channel on which the back-end itself sends requests (SET_BACKEND_REQ_FD;
//! vhost-user, "Back-end message types").

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{Shutdown, shutdown};
use outboard_protocol::Deadline;
use outboard_protocol::wire::{Connection, Header, Message, WireError};
use vhost::vhost_user::message::{BackendReq, VhostUserVringState};

/// What the back-end has told us since it was asked last: each kind once, however
/// often it came.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Notices {
    /// The device configuration has changed (CONFIG_CHANGE_MSG).
    pub(crate) config_changed: bool,
    /// A ring is broken (VRING_ERR).
    pub(crate) ring_broken: bool,
    /// It does not read the answers that it asks for, so the channel is closed.
    pub(crate) unread: bool,
}

/// Our end of the channel. Copies of it may be kept, so it is shut down when it
/// is dropped.
#[derive(Debug)]
pub(crate) struct Channel {
    connection: Connection,
}

impl Drop for Channel {
    fn drop(&mut self) {
        let _ = shutdown(self.connection.as_fd().as_raw_fd(), Shutdown::Both);
    }
}

impl Channel {
    /// A new channel, and the end that the back-end is to have.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub(crate) fn new() -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair().context("making a channel for the back-end")?;
        let connection = Connection::new(ours);
        Ok((Self { connection }, theirs.into()))
    }

    /// Receives and answers one request. Returns false when the channel is over:
    /// the back-end has closed it, which it may, or does not read our answers. An
    /// answer that finds no room is not waited for: a back-end that reads each
    /// before it asks again always has room for one. The channel is optional
    /// ("Back-end communication"), so the session goes on without it.
    ///
    /// # Errors
    /// The back-end broke the specification.
    pub(crate) fn serve(&mut self, notices: &mut Notices, deadline: Deadline) -> Result<bool> {
        let message = match self.connection.recv(deadline) {
            Ok(message) => message,
            Err(WireError::Closed) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let result = note(&message, notices);
        if message.header.need_reply {
            let reply = Header::reply_to(message.header.request);
            let code = u64::from(!result).to_ne_bytes();
            let at_once = Deadline::after(Duration::ZERO);
            match self.connection.send(reply, &code, &[], at_once) {
                Err(WireError::Closed) => return Ok(false),
                Err(WireError::TimedOut) => {
                    notices.unread = true;
                    return Ok(false);
                }
                result => result?,
            }
        }
        Ok(true)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

/// Whether the request is one that we do something about.
fn note(message: &Message, notices: &mut Notices) -> bool {
    match BackendReq::try_from(message.header.request) {
        Ok(BackendReq::CONFIG_CHANGE_MSG) => notices.config_changed = true,
        Ok(BackendReq::VRING_ERR) => {
            let named = message.body::<VhostUserVringState>().is_ok();
            notices.ring_broken |= named;
            return named;
        }
        // Our call eventfds do that; it is no error to say it twice.
        Ok(BackendReq::VRING_CALL) => {}
        _ => return false,
    }
    true
}
