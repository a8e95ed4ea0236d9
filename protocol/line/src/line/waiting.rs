//! The line of a standby: it waits, and is told when it is to serve.

use std::io;
use std::os::fd::OwnedFd;

use outboard_protocol::kept::Kept;
use outboard_protocol::launch::{Replay, ToBackend};

use super::{Line, at_once};

impl Line {
    /// As [`Self::begin`], for one that waits until it is told to [`Self::take_over`].
    ///
    /// # Errors
    /// Those of [`Self::begin`].
    pub fn wait(&mut self) -> io::Result<OwnedFd> {
        self.start(Kept::Nothing, Replay::default(), true)
    }

    /// Tells one that waits, and has read what it was told before, that it is to serve,
    /// what its predecessor has kept, and how to deal with requests in flight.
    ///
    /// # Errors
    /// It has not been told: the line is closed, or has no room.
    pub fn take_over(&mut self, kept: Kept, replay: Replay) -> io::Result<()> {
        let open = self.open.as_ref().filter(|open| open.is_ready);
        let open = open.ok_or(io::ErrorKind::NotConnected)?;
        let message = ToBackend::TakeOver { kept, replay };
        open.channel.send(&message, &[], at_once())
    }
}
