//! A socket of our own, at which a peer connects.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use outboard_line::connect_now;

/// A socket at which a peer connects, with its file.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
}

/// What tells the file at `path` from any other.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Listener {
    /// Listens at `path`; a socket there that nobody serves is replaced.
    ///
    /// # Errors
    /// A message that says who is there and what to do.
    pub(crate) fn bind(path: &Path) -> Result<Self> {
        let shown = path.display();
        let mut bound = UnixListener::bind(path);
        if matches!(&bound, Err(error) if error.kind() == io::ErrorKind::AddrInUse) {
            let found = fs::symlink_metadata(path);
            if found.is_ok_and(|found| !found.file_type().is_socket()) {
                bail!("{shown} is there and is not a socket; remove it, or name another path");
            }
            match connect_now(path) {
                Err(Errno::ECONNREFUSED) => {}
                _ => bail!("another process serves {shown}; end that one, or name another path"),
            }
            fs::remove_file(path)
                .with_context(|| format!("the stale socket {shown} cannot be removed"))?;
            bound = UnixListener::bind(path);
        }
        let socket = bound.with_context(|| format!("cannot listen at {shown}"))?;
        let identity = identity(path).with_context(|| format!("{shown} is gone again"))?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            identity,
        })
    }

    /// A copy of the descriptor, to be lent.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub(crate) fn copy(&self) -> io::Result<UnixListener> {
        self.socket.try_clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Somebody may have put another in its place.
        let ours = identity(&self.path).is_ok_and(|found| found == self.identity);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_listener_that_does_not_accept_keeps_its_place() {
        use nix::sys::socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer");
        let flags = SockFlag::empty();
        let busy = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        bind(busy.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&busy, Backlog::new(0).unwrap()).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err().to_string();
        assert!(error.contains("another process serves"), "{error}");
    }

    #[test]
    fn a_listening_socket_replaces_a_stale_one_and_goes_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer");
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err().to_string();
        assert!(error.contains("another process serves"), "{error}");
        drop(listener);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        let error = Listener::bind(&path).unwrap_err().to_string();
        assert!(error.contains("is not a socket"), "{error}");
    }
}
