//! How a program that serves a device is handed its socket.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::{env, fs, io};

use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::mkdtemp;

use crate::devices::{self, Kind};

/// How a back-end program finds its front-end at [`super::BACKEND_FD`].
///
/// Either way there is one front-end, and with its session the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handover {
    /// The socket is connected.
    Connected,
    /// The socket listens, for programs that want to accept by themselves, as
    /// those on the `vhost-user-backend` crate do. One connection waits in it;
    /// it is shut down, so that accept(2) fails with `EINVAL` afterwards.
    Listening,
}

impl Handover {
    /// What programs for this kind of device are handed.
    pub fn of(kind: &Kind) -> Self {
        match kind.virtio_id {
            devices::RNG => Self::Listening,
            _ => Self::Connected,
        }
    }

    /// A front-end's connected socket, and what its back-end is handed.
    ///
    /// # Errors
    /// Those of socketpair(2); or those of a folder for temporary files and of
    /// a socket in it, since only a name makes a socket listen. The name is
    /// gone again, so nobody else connects.
    pub fn sockets(self) -> io::Result<(UnixStream, OwnedFd)> {
        if self == Self::Connected {
            let (front, back) = UnixStream::pair()?;
            return Ok((front, back.into()));
        }
        let template = env::temp_dir().join("outboard-XXXXXX");
        let place = Place(mkdtemp(&template).map_err(|errno| {
            let error = io::Error::from(errno);
            let shown = template.display();
            let text = format!("the folder {shown} cannot be made: {error}; set TMPDIR to another");
            io::Error::new(error.kind(), text)
        })?);
        let path = place.0.join("socket");
        let listener = UnixListener::bind(&path)?;
        let front = UnixStream::connect(&path)?;
        shutdown(listener.as_raw_fd(), Shutdown::Both)?;
        Ok((front, listener.into()))
    }
}

/// A folder of ours alone, for one socket; both are removed.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0.join("socket"));
        let _ = fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_listening_socket_has_one_front_end_and_no_name() {
        let (mut front, back) = Handover::of(&Kind::rng()).sockets().unwrap();
        let listener = UnixListener::from(back);
        let name = listener.local_addr().unwrap();
        assert!(UnixStream::connect(name.as_pathname().unwrap()).is_err());
        assert!(!name.as_pathname().unwrap().parent().unwrap().exists());
        let (mut session, _) = listener.accept().unwrap();
        front.write_all(b"hello").unwrap();
        drop(front);
        let mut said = String::new();
        session.read_to_string(&mut said).unwrap();
        assert_eq!(said, "hello");
        let error = listener.accept().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
