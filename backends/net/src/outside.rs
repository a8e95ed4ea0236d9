//! What is behind a card, opened: what the card gets of it, and what a supervisor has
//! to do with, who is the half outside of a program that was started by hand
//! (`outboard_runtime::outside`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use outboard_line::connect_now;
use outboard_line::rendezvous::Way;
use outboard_protocol::tap;
use outboard_runtime::listen::Source;
use outboard_runtime::outside::Behind;

use crate::card::Port;
use crate::peer::{Again, Peer};
use crate::tap::Tap;

/// What the card gets.
#[derive(Debug)]
pub enum Inside {
    /// The queues of a tap, and whether what is set of it is to be taken back in the
    /// end, since nobody else will.
    Tap(Vec<OwnedFd>, bool),
    /// A peer, or the lack of one.
    Peer(Peer),
}

impl Inside {
    /// The port of a card, in the process that serves it, or that `waits` while another
    /// does.
    ///
    /// # Errors
    /// Those of [`Tap::inherit`], [`Tap::wait`] and [`Peer::expected`].
    pub fn port(self, waits: bool) -> anyhow::Result<Port> {
        Ok(match self {
            Self::Tap(queues, _) if waits => Port::Tap(Tap::wait(queues)?),
            Self::Tap(queues, last) => Port::Tap(Tap::inherit(queues, last)?),
            Self::Peer(peer) if waits => Port::Peer(peer.expected()?),
            Self::Peer(peer) => Port::Peer(peer),
        })
    }
}

/// A tap of this name.
///
/// # Errors
/// Those of [`tap::open`].
pub fn tap(name: &str, queues: u16) -> anyhow::Result<(Behind, Inside)> {
    let queues = tap::open(name, queues).map_err(|why| anyhow!(why))?;
    Ok(queues_of_a_tap(queues, true))
}

/// A tap whose queues were opened by another process; for `last` see [`Inside`].
pub fn queues_of_a_tap(queues: Vec<OwnedFd>, last: bool) -> (Behind, Inside) {
    // Whatever is wrong with them, the card says.
    let first = queues.first();
    let behind = Behind {
        interface: first.and_then(|queue| tap::identify(queue.as_fd()).ok()),
        ..Behind::default()
    };
    (behind, Inside::Tap(queues, last))
}

/// A peer that listens at `path`; where a supervisor connects to it, `connects` is
/// false.
///
/// # Errors
/// When none does.
pub fn connect(path: &Path, connects: bool) -> anyhow::Result<(Behind, Inside)> {
    let shown = path.display();
    let first = connects.then(|| connect_now(path)).transpose();
    let first = first.map_err(|errno| {
        let what = match errno {
            Errno::EAGAIN => {
                format!("the peer at {shown} does not accept connections; is it busy with another?")
            }
            _ => format!("no peer listens at {shown}; start it first, or add `,listen`"),
        };
        anyhow::Error::from(errno).context(what)
    })?;
    connecting(shown.to_string(), Some(path), first)
}

/// Peers that connect at `path`, one after another; where a supervisor listens there,
/// `listens` is false.
///
/// # Errors
/// Those of [`Source::at`].
pub fn listen(path: &Path, listens: bool) -> anyhow::Result<(Behind, Inside)> {
    let source = listens.then(|| Source::at(path)).transpose()?;
    listening(path.display().to_string(), source)
}

/// A socket, connected or listening. One that is connected is connected again to
/// `path`, if that is known; one that never was, is so by whoever supervises the card.
///
/// # Errors
/// When it is not a stream socket.
pub fn inherit(socket: OwnedFd, path: Option<&Path>) -> anyhow::Result<(Behind, Inside)> {
    let name = path.map_or_else(
        || format!("descriptor {}", socket.as_raw_fd()),
        |path| path.display().to_string(),
    );
    match Source::inherited(socket).context("the peer's socket")? {
        Source::Connected(socket) => {
            let first = Some(socket).filter(|socket| !was_never_connected(socket));
            connecting(name, path, first)
        }
        source => listening(name, Some(source)),
    }
}

fn was_never_connected(socket: &UnixStream) -> bool {
    let peer = socket.peer_addr();
    peer.is_err_and(|error| error.kind() == io::ErrorKind::NotConnected)
}

fn connecting(
    name: String,
    path: Option<&Path>,
    first: Option<UnixStream>,
) -> anyhow::Result<(Behind, Inside)> {
    let again = path.map_or(Again::Never, |_| Again::ItListens);
    let behind = Behind {
        peer: path.map(|path| Way::Connecting(path.to_owned())),
        ..Behind::default()
    };
    Ok((behind, Inside::Peer(Peer::new(name, again, first)?)))
}

fn listening(name: String, source: Option<Source>) -> anyhow::Result<(Behind, Inside)> {
    let mut behind = Behind::default();
    if let Some(Source::Listening(listening)) = source {
        let (listener, file) = listening.into_parts();
        (behind.peer, behind.file) = (Some(Way::Listening(listener.into())), file);
    }
    Ok((
        behind,
        Inside::Peer(Peer::new(name, Again::ItConnects, None)?),
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_peer_that_does_not_accept_holds_nobody() {
        use nix::sys::socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer");
        let flags = SockFlag::SOCK_CLOEXEC;
        let busy = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        bind(busy.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&busy, Backlog::new(0).unwrap()).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        let error = connect(&path, true).unwrap_err().to_string();
        assert!(error.contains("does not accept connections"), "{error}");
    }

    #[test]
    fn a_supervisor_has_the_path_and_the_card_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        for ours in [true, false] {
            let (behind, inside) = connect(&path, ours).unwrap();
            assert!(matches!(behind.peer, Some(Way::Connecting(to)) if to == path));
            let Inside::Peer(peer) = inside else {
                panic!("it is a peer")
            };
            assert_eq!(peer.connection().is_some(), ours);
            assert_eq!(listener.accept().is_ok(), ours);
        }
        let (behind, inside) = inherit(listener.into(), None).unwrap();
        assert!(matches!(behind.peer, Some(Way::Listening(_))));
        assert!(matches!(inside, Inside::Peer(peer) if peer.connection().is_none()));
        let fresh = folder.path().join("fresh");
        for ours in [false, true] {
            let (behind, _inside) = super::listen(&fresh, ours).unwrap();
            assert_eq!((behind.peer.is_some(), fresh.exists()), (ours, ours));
        }
        assert!(!fresh.exists(), "its file goes with what has it");
    }
}
