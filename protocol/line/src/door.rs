//! Lets a peer in at a listening socket, and never waits for that.
//!
//! Whether accept(2) waits is told by a flag that whoever was lent the listener has in
//! common with us: a back-end could hold its supervisor up for good. So accept(2) is
//! called in a thread, once somebody is there, and by one thread at a time.
//!
//! ```text
//! closed ── somebody connects ──▶ opening ── the thread ends ──▶ closed, and a peer
//! ```

use std::io::{self, ErrorKind, PipeReader};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A listening socket; see the module.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    /// What hangs up when the thread is about to end, and the thread.
    opening: Option<(PipeReader, JoinHandle<io::Result<UnixStream>>)>,
}

/// Readable when `accept` has something to do.
impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.opening {
            Some((end, _)) => end.as_fd(),
            None => self.listener.as_fd(),
        }
    }
}

/// Closed.
impl From<UnixListener> for Door {
    fn from(listener: UnixListener) -> Self {
        Self {
            listener,
            opening: None,
        }
    }
}

impl Door {
    /// Whom it has let in; `None`: nobody yet.
    ///
    /// # Errors
    /// Those of accept(2) that do not pass by themselves, and of starting a thread.
    pub(crate) fn accept(&mut self) -> io::Result<Option<UnixStream>> {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::ZERO)? == 0 {
            return Ok(None);
        }
        let Some((_, thread)) = self.opening.take() else {
            self.opening = Some(self.open()?);
            return Ok(None);
        };
        let passes = [
            ErrorKind::WouldBlock,
            ErrorKind::Interrupted,
            ErrorKind::ConnectionAborted,
        ];
        match thread.join() {
            Ok(Err(error)) if passes.contains(&error.kind()) => Ok(None),
            Ok(accepted) => accepted.map(Some),
            Err(_) => Err(io::Error::other("the thread that accepts has failed")),
        }
    }

    fn open(&self) -> io::Result<(PipeReader, JoinHandle<io::Result<UnixStream>>)> {
        let listener = self.listener.try_clone()?;
        let (end, thread_has) = io::pipe()?;
        let thread = thread::Builder::new().spawn(move || {
            // Somebody else may have accepted meanwhile whom this was to let in.
            let accepted = listener
                .set_nonblocking(true)
                .and_then(|()| listener.accept());
            drop(thread_has);
            // What is accepted waits as usual, whatever the listener does.
            accepted.map(|(stream, _)| stream)
        })?;
        Ok((end, thread))
    }
}
