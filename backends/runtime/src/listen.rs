//! Where a back-end's front-ends come from: a connected socket, or one that
//! listens.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use outboard_line::bound::{self, SocketFile};
use outboard_log::Rarely;
use outboard_protocol::descriptors;

/// A source of front-ends.
#[derive(Debug)]
pub enum Source {
    /// One front-end, connected already.
    Connected(UnixStream),
    /// One after another.
    Listening(Listening),
}

impl Source {
    /// Takes a socket that this process was started with, connected or
    /// listening.
    ///
    /// # Errors
    /// When it is not a Unix stream socket.
    pub fn inherited(socket: OwnedFd) -> anyhow::Result<Self> {
        let kind = getsockopt(&socket, sockopt::SockType)
            .context("cannot serve the inherited descriptor: it is not a socket")?;
        if kind != SockType::Stream {
            bail!("cannot serve the inherited descriptor: it is not a stream socket");
        }
        if getsockopt(&socket, sockopt::AcceptConn).context("cannot ask whether it listens")? {
            let listener = UnixListener::from(socket);
            return Ok(Self::Listening(Listening::new(listener, None)?));
        }
        Ok(Self::Connected(UnixStream::from(socket)))
    }

    /// Listens at `path`. A socket there that nobody serves is replaced.
    ///
    /// # Errors
    /// When somebody serves it, when something else is there, and those of
    /// bind(2).
    pub fn at(path: &Path) -> anyhow::Result<Self> {
        let (listener, file) = bound::listen_at(path)?;
        Ok(Self::Listening(Listening::new(listener, Some(file))?))
    }
}

/// A listening socket; its file, if it is ours, goes with it.
#[derive(Debug)]
pub struct Listening {
    listener: UnixListener,
    file: Option<SocketFile>,
}

impl Listening {
    fn new(listener: UnixListener, file: Option<SocketFile>) -> anyhow::Result<Self> {
        // A client may be gone between poll and accept.
        listener
            .set_nonblocking(true)
            .context("cannot listen without blocking")?;
        Ok(Self { listener, file })
    }

    /// The socket, for one who accepts by himself, and its file, if that is ours.
    pub fn into_parts(self) -> (UnixListener, Option<SocketFile>) {
        (self.listener, self.file)
    }

    /// Waits for the next front-end; `None` when `stop` becomes readable first,
    /// and when the socket is shut down and nobody will come any more. What passes
    /// ([`passes`]) is said and waited out.
    ///
    /// # Errors
    /// Those of poll(2) and accept(2) that do not pass by themselves.
    pub fn accept(&self, stop: BorrowedFd<'_>) -> io::Result<Option<UnixStream>> {
        loop {
            let mut fds = [
                PollFd::new(stop, PollFlags::POLLIN),
                PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if fds.first().and_then(PollFd::any) == Some(true) {
                return Ok(None);
            }
            match self.accept_now() {
                Ok(Some(stream)) => return Ok(Some(stream)),
                Ok(None) => {}
                Err(error) if passes(&error) => {
                    say_that_it_passes(error);
                    let mut fds = [PollFd::new(stop, PollFlags::POLLIN)];
                    let _ = poll(&mut fds, PollTimeout::from(PAUSE_MILLIS));
                    continue;
                }
                Err(error) => return Err(error),
            }
            let listener = fds.get(1).and_then(PollFd::revents);
            if listener.is_some_and(|events| events.contains(PollFlags::POLLHUP)) {
                return Ok(None);
            }
        }
    }

    /// The same socket for somebody who accepts by himself and waits in
    /// accept(2). Not to be mixed with the other ways.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn blocking(&self) -> io::Result<UnixListener> {
        let listener = self.listener.try_clone()?;
        listener.set_nonblocking(false)?;
        Ok(listener)
    }

    fn accept_now(&self) -> io::Result<Option<UnixStream>> {
        use io::ErrorKind as K;
        let gone = [K::WouldBlock, K::Interrupted, K::ConnectionAborted];
        match self.listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) if gone.contains(&error.kind()) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// How long a listener rests after an error that passes, in milliseconds. The
/// connection that could not be accepted waits in the socket meanwhile.
pub const PAUSE_MILLIS: u16 = 200;

/// Whether an error of accept(2) says nothing of the listening socket, so that a
/// later attempt may succeed: this process or the system has no room for a
/// descriptor or a socket, the connection has gone, something forbids it.
pub fn passes(error: &io::Error) -> bool {
    use Errno as E;
    let errno = error.raw_os_error().map(E::from_raw);
    errno.is_some_and(|errno| !matches!(errno, E::EBADF | E::ENOTSOCK | E::EINVAL | E::EOPNOTSUPP))
}

/// Says that an error which passes keeps a front-end waiting.
pub fn say_that_it_passes(error: io::Error) {
    static WAITING: Rarely = Rarely::new();
    if let Some(times) = WAITING.again() {
        let error = descriptors::explain(error);
        log::warn!("cannot accept a front-end for the moment, and will try again: {error}{times}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixDatagram;

    use outboard_line::connect_now;

    use super::*;
    use crate::event::Event;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_stale_socket_is_replaced_and_removed_at_the_end() {
        let folder = folder();
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let source = Source::at(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(source);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_whose_owner_does_not_accept_holds_nobody() {
        use nix::sys::socket::{AddressFamily, Backlog, SockFlag, UnixAddr, bind, listen, socket};
        use std::os::fd::AsRawFd;
        let folder = folder();
        let path = folder.path().join("socket");
        let flags = SockFlag::SOCK_CLOEXEC;
        let busy = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        bind(busy.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&busy, Backlog::new(0).unwrap()).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        assert_eq!(connect_now(&path).unwrap_err(), Errno::EAGAIN);
        let error = Source::at(&path).unwrap_err().to_string();
        assert!(error.contains("another process serves it"), "{error}");
        assert!(path.exists());
    }

    #[test]
    fn a_served_socket_and_any_other_file_are_left_alone() {
        let folder = folder();
        let path = folder.path().join("socket");
        let _served = UnixListener::bind(&path).unwrap();
        let error = Source::at(&path).unwrap_err().to_string();
        assert!(error.contains("another process serves it"), "{error}");
        let file = folder.path().join("file");
        fs::write(&file, "precious").unwrap();
        let error = Source::at(&file).unwrap_err().to_string();
        assert!(error.contains("not a socket"), "{error}");
        assert_eq!(fs::read(&file).unwrap(), b"precious");
    }

    #[test]
    fn a_successors_socket_is_not_removed() {
        let folder = folder();
        let path = folder.path().join("socket");
        let source = Source::at(&path).unwrap();
        // Keep the inode number from being used again at once.
        let _kept = fs::hard_link(&path, folder.path().join("kept"));
        fs::remove_file(&path).unwrap();
        let _successor = UnixListener::bind(&path).unwrap();
        drop(source);
        assert!(path.exists());
    }

    #[test]
    fn an_inherited_socket_is_told_apart_by_what_it_is() {
        let folder = folder();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let (connected, _peer) = UnixStream::pair().unwrap();
        let (datagram, _peer) = UnixDatagram::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(
            Source::inherited(listener.into()).unwrap(),
            Source::Listening(_)
        ));
        assert!(matches!(
            Source::inherited(connected.into()).unwrap(),
            Source::Connected(_)
        ));
        assert!(Source::inherited(datagram.into()).is_err());
        assert!(Source::inherited(file.into()).is_err());
    }

    #[test]
    fn only_what_is_wrong_with_the_socket_itself_does_not_pass() {
        use Errno as E;
        let lasting = [E::EBADF, E::ENOTSOCK, E::EINVAL, E::EOPNOTSUPP];
        let passing = [
            E::EMFILE,
            E::ENFILE,
            E::ENOBUFS,
            E::ENOMEM,
            E::EPERM,
            E::EPROTO,
            E::ECONNABORTED,
            E::EACCES,
        ];
        let found = |errno: &E| passes(&io::Error::from(*errno));
        assert!(passing.iter().all(found));
        assert!(!lasting.iter().any(found));
    }

    #[test]
    fn waiting_for_a_front_end_ends_when_asked() {
        let folder = folder();
        let stop = Event::new().unwrap();
        let Source::Listening(listening) = Source::at(&folder.path().join("socket")).unwrap()
        else {
            panic!("it listens");
        };
        stop.signal();
        assert!(listening.accept(stop.as_fd()).unwrap().is_none());
    }
}
