//! A socket that listens at a path, and its file.

use std::fs::{self, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::socket::{bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Pid, getpid};

use crate::connect_now;

/// Listens at `path`. A socket there that nobody serves is replaced.
///
/// # Errors
/// When somebody serves it, when something else is there, and those of
/// bind(2).
pub fn listen_at(path: &Path) -> Result<(UnixListener, SocketFile)> {
    bound(path, |path| UnixListener::bind(path))
}

/// As [`listen_at`], for nobody but this user and root: there is no moment at which
/// anybody else could connect.
///
/// # Errors
/// Those of [`listen_at`].
pub fn listen_privately_at(path: &Path) -> Result<(UnixListener, SocketFile)> {
    bound(path, |path| {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // The file gets the mode of its socket, less what the umask takes away.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
        bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        listen(&socket, Backlog::MAXCONN)?;
        Ok(socket.into())
    })
}

fn bound(
    path: &Path,
    bind: impl Fn(&Path) -> io::Result<UnixListener>,
) -> Result<(UnixListener, SocketFile)> {
    let listener = match bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            clear_stale(path)?;
            bind(path)
        }
        result => result,
    };
    let listener = listener.with_context(|| format!("cannot listen at {}", path.display()))?;
    let own = fs::symlink_metadata(path)
        .with_context(|| format!("cannot look at {} after binding it", path.display()))?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: identity(&own),
        owner: getpid(),
    };
    Ok((listener, file))
}

/// Removes the socket of a process that has gone.
fn clear_stale(path: &Path) -> Result<()> {
    let shown = path.display();
    let found = fs::symlink_metadata(path).with_context(|| format!("cannot look at {shown}"))?;
    if !found.file_type().is_socket() {
        bail!(
            "cannot listen at {shown}: it is there and is not a socket; remove it or name another path"
        );
    }
    match connect_now(path) {
        Err(Errno::ECONNREFUSED) => {}
        Err(errno) if errno != Errno::EAGAIN => {
            return Err(errno).with_context(|| format!("cannot tell whether {shown} is served"));
        }
        // Whoever does not accept is there, too.
        _ => bail!(
            "cannot listen at {shown}: another process serves it; end that one or name another path"
        ),
    }
    fs::remove_file(path).with_context(|| format!("cannot remove the stale socket {shown}"))
}

/// A socket's file, removed at the end if it is still ours. In a copy of the process
/// that bound it, nothing is.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
    owner: Pid,
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity);
        if ours && getpid() == self.owner {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_listener_that_does_not_accept_keeps_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer");
        let flags = SockFlag::empty();
        let busy = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        bind(busy.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&busy, Backlog::new(0).unwrap()).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        let error = listen_at(&path).unwrap_err().to_string();
        assert!(error.contains("another process serves"), "{error}");
    }

    #[test]
    fn a_private_socket_is_nobody_else_s() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api");
        drop(UnixListener::bind(&path).unwrap());
        let bound = listen_privately_at(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        UnixStream::connect(&path).unwrap();
        let error = listen_privately_at(&path).unwrap_err().to_string();
        assert!(error.contains("another process serves"), "{error}");
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_listening_socket_replaces_a_stale_one_and_goes_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer");
        drop(UnixListener::bind(&path).unwrap());
        let bound = listen_at(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        let error = listen_at(&path).unwrap_err().to_string();
        assert!(error.contains("another process serves"), "{error}");
        drop(bound);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        let error = listen_at(&path).unwrap_err().to_string();
        assert!(error.contains("is not a socket"), "{error}");
    }
}
