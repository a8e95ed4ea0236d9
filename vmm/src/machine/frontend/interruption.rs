//! How a device's owner is interrupted, whatever it waits for: it only ever waits
//! for a socket, and a socket can be shut down from another thread.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use outboard_protocol::descriptors;

/// The sockets of one device's session, to be shut down when the device ends.
#[derive(Debug, Default)]
pub struct Interruption {
    stopping: AtomicBool,
    sockets: Mutex<Vec<UnixStream>>,
}

impl Interruption {
    /// Whether the device ends.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Keeps a copy of a socket of the session, to shut that down.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn watch(&self, socket: &impl AsFd) -> io::Result<()> {
        let copy = socket.as_fd().try_clone_to_owned();
        let copy = UnixStream::from(copy.map_err(descriptors::explain)?);
        let mut sockets = self.sockets();
        if self.is_stopping() {
            shut(&copy);
        }
        sockets.push(copy);
        Ok(())
    }

    /// The session is over: its back-end is to see that, whoever else has a copy of the
    /// socket. It is not shut down for reading, since one at a socket of its own is
    /// gone once it has closed it, and whoever supervises it must see that.
    pub(crate) fn end_session(&self) {
        for socket in self.sockets().drain(..) {
            let _ = socket.shutdown(Shutdown::Write);
        }
    }

    /// The device ends: so does the session that there is, or comes yet.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.sockets().drain(..).for_each(|socket| shut(&socket));
    }

    fn sockets(&self) -> MutexGuard<'_, Vec<UnixStream>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a connection for every holder of a copy. It may have ended already.
fn shut(socket: &UnixStream) {
    let _ = socket.shutdown(Shutdown::Both);
}
