//! Connecting to back-ends that others have started.

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

/// Connects to the back-end of device `id` that listens at `path`, trying
/// again until `wait` is over. `None`: a signal came first.
///
/// # Errors
/// A message that names the socket and says what to do.
pub fn connect_to(id: &str, path: &Path, wait: Wait, signals: &Signals) -> Result<Option<OwnedFd>> {
    let start = Instant::now();
    let mut next_word = FIRST_WORD;
    loop {
        let refused = match try_connect(path) {
            Ok(socket) => return Ok(Some(socket)),
            Err(errno @ (Errno::ENOENT | Errno::ECONNREFUSED | Errno::EAGAIN)) => errno,
            Err(errno) => return Err(failed(id, path, errno)),
        };
        if std::fs::metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
            bail!("{id}: {} is not a socket", path.display());
        }
        let waited = start.elapsed();
        if let Wait::For(most) = wait
            && waited >= most
        {
            return Err(failed(id, path, refused));
        }
        if waited >= next_word {
            say(&format!(
                "{id}: waiting for a back-end to listen at {}",
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

fn failed(id: &str, path: &Path, errno: Errno) -> anyhow::Error {
    let shown = path.display();
    match errno {
        Errno::ENOENT | Errno::ECONNREFUSED => anyhow!(
            "{id}: no back-end listens at {shown}; start one, or give it time with `wait=10s`"
        ),
        Errno::EAGAIN => anyhow!(
            "{id}: the back-end at {shown} does not accept connections; is it busy with another?"
        ),
        Errno::ENAMETOOLONG => anyhow!(
            "{id}: the socket path {shown} is longer than a socket's may be (107 bytes); \
             use a shorter one"
        ),
        other => anyhow!(
            "{id}: cannot connect to the back-end at {shown}: {}",
            io::Error::from(other)
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn error(path: &Path) -> String {
        let signals = Signals::block().unwrap();
        let wait = Wait::For(Duration::from_millis(50));
        let result = connect_to("disk0", path, wait, &signals);
        result.unwrap_err().to_string()
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
    fn one_who_comes_late_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blk.sock");
        let late = path.clone();
        let listener = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            UnixListener::bind(late).unwrap().accept().unwrap();
        });
        let signals = Signals::block().unwrap();
        let connected = connect_to("disk0", &path, Wait::Forever, &signals).unwrap();
        assert!(connected.is_some());
        listener.join().unwrap();
    }
}
