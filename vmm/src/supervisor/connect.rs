//! Connecting to back-ends and peers that others have started.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::options::Wait;
use super::say;
use super::signals::Signals;

/// Pause between two tries, in milliseconds.
const PAUSE: u16 = 20;
/// When a wait is first mentioned, and how often then.
const FIRST_WORD: Duration = Duration::from_secs(1);
const NEXT_WORD: Duration = Duration::from_secs(30);

/// Who listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// The back-end of a device.
    BackEnd,
    /// The peer of a network card.
    Peer,
}

impl Whom {
    fn name(self) -> &'static str {
        match self {
            Self::BackEnd => "back-end",
            Self::Peer => "peer",
        }
    }

    /// What to do when nobody is there.
    fn advice(self) -> &'static str {
        match self {
            Self::BackEnd => "start one, or give it time with `wait=10s`",
            Self::Peer => "start it, give it time with `wait=10s`, or listen for it with `,listen`",
        }
    }
}

/// Connects to whom device `id` needs, at `path`, trying again until `wait` is
/// over. `None`: a signal came first.
///
/// # Errors
/// A message that names the socket and says what to do.
pub fn connect_to(
    id: &str,
    whom: Whom,
    path: &Path,
    wait: Wait,
    signals: &Signals,
) -> Result<Option<OwnedFd>> {
    let failed = |errno| failed(id, whom, path, errno);
    let start = Instant::now();
    let mut next_word = FIRST_WORD;
    loop {
        let refused = match try_connect(path) {
            Ok(socket) => return Ok(Some(socket)),
            Err(errno @ (Errno::ENOENT | Errno::ECONNREFUSED | Errno::EAGAIN)) => errno,
            Err(errno) => return Err(failed(errno)),
        };
        if std::fs::metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
            bail!("{id}: {} is not a socket", path.display());
        }
        let waited = start.elapsed();
        if let Wait::For(most) = wait
            && waited >= most
        {
            return Err(failed(refused));
        }
        if waited >= next_word {
            say(&format!(
                "{id}: waiting for a {} to listen at {}",
                whom.name(),
                path.display()
            ));
            next_word += NEXT_WORD;
        }
        if signals.wait(PAUSE).is_some() {
            return Ok(None);
        }
    }
}

/// Connects at once or not at all.
///
/// # Errors
/// Those of connect(2); EAGAIN when whoever listens does not accept.
pub fn try_connect(path: &Path) -> nix::Result<OwnedFd> {
    // Not blocking: a listener whose queue is full would hold us without end.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

fn failed(id: &str, whom: Whom, path: &Path, errno: Errno) -> anyhow::Error {
    let (name, shown) = (whom.name(), path.display());
    match errno {
        Errno::ENOENT | Errno::ECONNREFUSED => {
            anyhow!("{id}: no {name} listens at {shown}; {}", whom.advice())
        }
        Errno::EAGAIN => anyhow!(
            "{id}: the {name} at {shown} does not accept connections; is it busy with another?"
        ),
        Errno::ENAMETOOLONG => anyhow!(
            "{id}: the socket path {shown} is longer than a socket's may be (107 bytes); \
             use a shorter one"
        ),
        other => anyhow!(
            "{id}: cannot connect to the {name} at {shown}: {}",
            io::Error::from(other)
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn error_from(id: &str, whom: Whom, path: &Path) -> String {
        let signals = Signals::block().unwrap();
        let wait = Wait::For(Duration::from_millis(50));
        let result = connect_to(id, whom, path, wait, &signals);
        result.unwrap_err().to_string()
    }

    fn error(path: &Path) -> String {
        error_from("disk0", Whom::BackEnd, path)
    }

    #[test]
    fn a_socket_that_nobody_listens_on_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blk.sock");
        assert!(error(&path).contains("disk0: no back-end listens at"));
        drop(UnixListener::bind(&path).unwrap());
        assert!(error(&path).contains("no back-end listens at"));
        assert!(error(directory.path()).contains("is not a socket"));
        let long = directory.path().join("x".repeat(120));
        assert!(error(&long).contains("use a shorter one"));
    }

    #[test]
    fn a_peer_is_named_as_one() {
        use nix::sys::socket::{Backlog, bind, listen};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("peer");
        let words = format!("net0: no peer listens at {}; start it, ", path.display());
        let error = || error_from("net0", Whom::Peer, &path);
        assert!(error().starts_with(&words), "{}", error());
        // One that does not accept holds nobody.
        let flags = SockFlag::empty();
        let busy = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        bind(busy.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&busy, Backlog::new(0).unwrap()).unwrap();
        let _first = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert!(
            error().contains("does not accept connections"),
            "{}",
            error()
        );
    }

    #[test]
    fn one_who_comes_late_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blk.sock");
        let late = path.clone();
        let listener = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            UnixListener::bind(late).unwrap().accept().unwrap();
        });
        let signals = Signals::block().unwrap();
        let connected = connect_to("disk0", Whom::BackEnd, &path, Wait::Forever, &signals).unwrap();
        assert!(connected.is_some());
        listener.join().unwrap();
    }
}
