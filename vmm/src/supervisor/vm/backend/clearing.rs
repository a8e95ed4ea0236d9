//! The end of a back-end that is to be followed by another: nothing is left of it, and
//! its I/O is over.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{Shutdown, shutdown};

use super::Backend;
use crate::supervisor::host::fence::Fence;
use crate::supervisor::vm::device::Event;

/// What is polled of a socket that we have shut down for writing, and whose other end
/// is to be closed: POLLHUP, which always counts.
pub(super) const CLOSED: PollFlags = PollFlags::empty();
/// Between two looks whether the I/O of a process that is gone is over: an eighth of the
/// time since the first, within these bounds.
const LOOK: Duration = Duration::from_millis(1);
const LONG_LOOK: Duration = Duration::from_millis(50);

impl Backend {
    /// Sees to it that nothing is left of it. Returns that nothing is, if that is so
    /// already; else [`Self::look`] tells.
    pub(crate) fn clear(&mut self) -> Option<Event> {
        if let Some(child) = &self.child {
            child.signal_kill();
        }
        if let Some(connection) = &self.connection {
            // Who reads the end of it closes it; whoever has closed it is gone.
            let _ = shutdown(connection, Shutdown::Write);
        }
        let now = Instant::now();
        self.clearing = Some((now, now));
        self.cleared()
    }

    /// Ends the connection to who listens at a socket, for the machine process, too: neither
    /// waits for the other any more.
    pub(crate) fn hang_up(&self) {
        if let Some(connection) = &self.connection {
            let _ = shutdown(connection, Shutdown::Both);
        }
    }

    pub(super) fn cleared(&mut self) -> Option<Event> {
        let (next, began) = self.clearing?;
        let open = self.connection.as_ref().is_some_and(|fd| !is_closed(fd));
        if self.child.is_some() || open || Instant::now() < next {
            return None;
        }
        self.connection = None;
        let known = match self.fence.as_ref().map(Fence::is_lifted) {
            None | Some(Ok(true)) => true,
            Some(Ok(false)) => {
                let pause = (began.elapsed() / 8).clamp(LOOK, LONG_LOOK);
                self.clearing = Some((Instant::now() + pause, began));
                return None;
            }
            Some(Err(error)) => {
                log::warn!("{}: asking for a lock: {error}", self.opened.spec.id);
                false
            }
        };
        (self.clearing, self.fence) = (None, None);
        Some(Event::Clear { known })
    }
}

/// Whether the other end of a socket was closed.
fn is_closed(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), CLOSED)];
    let _ = poll(&mut fds, PollTimeout::ZERO);
    fds.iter().any(|fd| fd.any() == Some(true))
}
