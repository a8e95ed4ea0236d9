//! Connecting to back-ends and peers that others have started.
//!
//! A back-end serves one front-end at a time: whoever comes second is let in by
//! the kernel and hears nothing. So a back-end is not there before it has
//! answered. The first request of every session is put to it here, and its
//! answer is left in the socket, for the machine to read.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_line::connect_now;
use outboard_protocol::Deadline;
use outboard_protocol::wire::{Connection, Header};
use vhost::vhost_user::message::FrontendReq;

use crate::supervisor::say::say;
use crate::supervisor::text::units::Wait;

/// Pause between two tries at first, and when the search has taken long.
const PAUSE: Duration = Duration::from_millis(20);
const LONG_PAUSE: Duration = Duration::from_millis(500);
/// When a wait is mentioned.
const FIRST_WORD: Duration = Duration::from_secs(1);
/// However short a wait, who has been connected to has this long to answer.
const LEAST_ANSWER: Duration = Duration::from_secs(1);

/// Who listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    /// The back-end of a device.
    BackEnd,
    /// The peer of a network card.
    Peer,
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BackEnd => "back-end",
            Self::Peer => "peer",
        })
    }
}

/// What is still missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    /// Somebody who listens.
    Listener,
    /// That the connection is accepted: the listener's queue is full.
    Accept,
    /// That the connection lasts: it is closed before the request is read.
    Stay,
    /// An answer.
    Answer,
}

/// A search for one back-end or peer. It never waits itself: whoever has it polls
/// [`Search::fd`] and looks again when that is readable, or at [`Search::due`].
#[derive(Debug)]
pub(crate) struct Search {
    id: String,
    whom: Whom,
    path: PathBuf,
    wait: Wait,
    /// The end of the search, if it has one.
    end: Option<Instant>,
    first_word: Instant,
    /// What has been mentioned: that nobody listens, or that whoever does is busy.
    mentioned: Option<bool>,
    state: State,
}

/// How far a search has come.
#[derive(Debug)]
enum State {
    /// The next try is then.
    Trying(Instant),
    /// Somebody is connected and was asked; until then at least the answer may come.
    Asked(UnixStream, Instant),
}

/// What a look has shown.
enum Found {
    /// It is there.
    There(OwnedFd),
    /// Somebody is connected, and has not answered yet.
    Asked(UnixStream, Instant),
    /// It is not, and may come to be.
    Missing(Missing),
}

impl Search {
    /// Begins to look for whom device `id` needs, at `path`, again and again until
    /// `wait` is over.
    pub(crate) fn new(id: &str, whom: Whom, path: &Path, wait: Wait, now: Instant) -> Self {
        Self {
            id: id.to_owned(),
            whom,
            path: path.to_owned(),
            wait,
            end: match wait {
                Wait::For(most) => Some(now + most),
                Wait::Forever => None,
            },
            first_word: now + FIRST_WORD,
            mentioned: None,
            state: State::Trying(now),
        }
    }

    /// What becomes readable when there is something to be seen.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Trying(_) => None,
            State::Asked(stream, _) => Some(stream.as_fd()),
        }
    }

    /// When to look again, if nothing is readable before.
    pub(crate) fn due(&self) -> Option<Instant> {
        match &self.state {
            State::Trying(next) => Some(*next),
            State::Asked(_, least) => {
                let word = Some(self.first_word).filter(|_| self.mentioned != Some(true));
                let end = self.end.map(|end| end.max(*least));
                end.into_iter().chain(word).min()
            }
        }
    }

    /// Looks whether it is there. A back-end has then been asked for its features
    /// (GET_FEATURES), and the socket has its answer, unread.
    ///
    /// # Errors
    /// It is not, and its time is over or it cannot come to be: a message that names
    /// the socket and says what to do.
    pub(crate) fn look(&mut self, now: Instant) -> Result<Option<OwnedFd>> {
        let found = match std::mem::replace(&mut self.state, State::Trying(now)) {
            State::Trying(next) if now < next => {
                self.state = State::Trying(next);
                return Ok(None);
            }
            State::Trying(_) => self.try_once(now)?,
            State::Asked(stream, least) => heard(stream, least),
        };
        let (missing, end) = match found {
            Found::There(socket) => return Ok(Some(socket)),
            Found::Asked(stream, least) => {
                self.state = State::Asked(stream, least);
                (Missing::Answer, self.end.map(|end| end.max(least)))
            }
            Found::Missing(missing) => {
                self.state = State::Trying(now + self.pause(now));
                (missing, self.end)
            }
        };
        if end.is_some_and(|end| now >= end) {
            bail!(self.given_up(missing));
        }
        self.mention(missing, now);
        Ok(None)
    }

    /// How long to wait until the next try: the longer, the longer nobody has come.
    fn pause(&self, now: Instant) -> Duration {
        let began = self.first_word.checked_sub(FIRST_WORD).unwrap_or(now);
        let share = now.saturating_duration_since(began) / 16;
        share.clamp(PAUSE, LONG_PAUSE)
    }

    fn try_once(&self, now: Instant) -> Result<Found> {
        let (id, whom, shown) = (&self.id, self.whom, self.path.display());
        let missing = match connect_now(&self.path) {
            Ok(stream) if self.whom == Whom::BackEnd => {
                return ask(stream, now + LEAST_ANSWER);
            }
            Ok(stream) => return Ok(Found::There(stream.into())),
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => Missing::Listener,
            Err(Errno::EAGAIN) => Missing::Accept,
            Err(Errno::ENAMETOOLONG) => bail!(
                "{id}: the socket path {shown} is longer than a socket's may be (107 bytes); \
                 use a shorter one"
            ),
            Err(errno) => {
                let error = io::Error::from(errno);
                let advice = match errno {
                    Errno::EACCES | Errno::EPERM => "; change the permissions of the socket",
                    Errno::EPROTOTYPE => {
                        "; it is no stream socket, as a back-end's and a peer's is"
                    }
                    _ => "",
                };
                bail!("{id}: cannot connect to the {whom} at {shown}: {error}{advice}")
            }
        };
        if std::fs::metadata(&self.path).is_ok_and(|found| !found.file_type().is_socket()) {
            bail!("{id}: {shown} is not a socket; give the one at which the {whom} listens");
        }
        Ok(Found::Missing(missing))
    }

    /// Says what is waited for, once it takes long, and once.
    fn mention(&mut self, missing: Missing, now: Instant) {
        let listens = missing != Missing::Listener;
        if self.mentioned == Some(listens) || now < self.first_word {
            return;
        }
        self.mentioned = Some(listens);
        let (id, whom, shown) = (&self.id, self.whom, self.path.display());
        say(&match missing {
            Missing::Listener => format!("{id}: waiting for a {whom} to listen at {shown}"),
            _ => format!(
                "{id}: waiting for the {whom} at {shown} to answer; perhaps it serves another{}",
                match whom {
                    Whom::BackEnd => " front-end",
                    Whom::Peer => "",
                }
            ),
        });
    }

    /// What the user is told when the wait is over.
    fn given_up(&self, missing: Missing) -> anyhow::Error {
        let (id, whom, shown) = (&self.id, self.whom, self.path.display());
        let within = match self.wait {
            Wait::For(most) => format!(" within {:?}", most.max(LEAST_ANSWER)),
            Wait::Forever => String::new(),
        };
        let busy = match whom {
            Whom::BackEnd => {
                "it may be serving another front-end, and a back-end serves one at a time: end \
                 that one (another VM, perhaps), start a back-end of its own for this device, or \
                 give it time with `wait=10s` or `wait=forever`"
            }
            Whom::Peer => "it may have another: end that one, or give it time with `wait=10s`",
        };
        match (missing, whom) {
            (Missing::Listener, Whom::BackEnd) => anyhow!(
                "{id}: no {whom} listens at {shown}; start one, or give it time with `wait=10s`"
            ),
            (Missing::Listener, Whom::Peer) => anyhow!(
                "{id}: no {whom} listens at {shown}; start it, give it time with `wait=10s`, or \
                 listen for it with `,listen`"
            ),
            (Missing::Accept, _) => {
                anyhow!("{id}: the {whom} at {shown} does not accept connections; {busy}")
            }
            (Missing::Answer, _) => {
                anyhow!("{id}: somebody listens at {shown} and did not answer{within}; {busy}")
            }
            (Missing::Stay, _) => {
                anyhow!("{id}: whoever listens at {shown} closes the connection at once; {busy}")
            }
        }
    }
}

/// Puts the first request of a session to a back-end.
fn ask(stream: UnixStream, least: Instant) -> Result<Found> {
    let link = Connection::new(stream.try_clone().context("copying a descriptor")?);
    let request = Header::request(FrontendReq::GET_FEATURES.into());
    // A fresh socket has room for it.
    let at_once = Deadline::after(Duration::ZERO);
    Ok(match link.send(request, &[], &[], at_once) {
        Ok(()) => Found::Asked(stream, least),
        Err(_) => Found::Missing(Missing::Stay),
    })
}

/// Whether there is an answer to be read, or the end of the connection.
fn heard(stream: UnixStream, least: Instant) -> Found {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    let _ = poll(&mut fds, PollTimeout::ZERO);
    let [answer] = fds;
    let events = answer.revents().unwrap_or(PollFlags::empty());
    // Closed, and the request unread: by a listener that is gone, or one that has
    // a front-end and wants no other.
    if events.contains(PollFlags::POLLERR) {
        return Found::Missing(Missing::Stay);
    }
    match events.is_empty() {
        true => Found::Asked(stream, least),
        false => Found::There(stream.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Looks until the search is over.
    fn search(id: &str, whom: Whom, path: &Path, wait: Wait) -> Result<OwnedFd> {
        let mut search = Search::new(id, whom, path, wait, Instant::now());
        loop {
            if let Some(socket) = search.look(Instant::now())? {
                return Ok(socket);
            }
            let due = search.due().map_or_else(long, Deadline::at);
            let mut fds: Vec<_> = search
                .fd()
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .into_iter()
                .collect();
            poll(&mut fds, due.poll_timeout()).unwrap();
        }
    }

    fn error_from(id: &str, whom: Whom, path: &Path) -> String {
        let wait = Wait::For(Duration::from_millis(50));
        search(id, whom, path, wait).unwrap_err().to_string()
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
        assert!(error(directory.path()).contains("is not a socket; give the one"));
        let packets = directory.path().join("packets");
        let _packets = std::os::unix::net::UnixDatagram::bind(&packets).unwrap();
        let other = error(&packets);
        let words = "(os error 91); it is no stream socket";
        assert!(other.contains(words), "{other}");
        let long = directory.path().join("x".repeat(120));
        assert!(error(&long).contains("use a shorter one"));
    }

    #[test]
    fn a_peer_is_named_as_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("peer");
        let words = format!("net0: no peer listens at {}; start it, ", path.display());
        let error = || error_from("net0", Whom::Peer, &path);
        assert!(error().starts_with(&words), "{}", error());
        // One that does not accept holds nobody.
        let _busy = listener(&path, 0);
        let _first = UnixStream::connect(&path).unwrap();
        assert!(
            error().contains("does not accept connections; it may have another"),
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
            let (mut stream, _) = UnixListener::bind(late).unwrap().accept().unwrap();
            io::Write::write_all(&mut stream, &[0]).unwrap();
            stream
        });
        search("disk0", Whom::BackEnd, &path, Wait::Forever).unwrap();
        listener.join().unwrap();
    }

    /// Somebody who listens, with a queue for so many.
    fn listener(path: &Path, backlog: i32) -> OwnedFd {
        use nix::sys::socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
        };
        let flags = SockFlag::empty();
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        bind(socket.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        listen(&socket, Backlog::new(backlog).unwrap()).unwrap();
        socket
    }

    #[test]
    fn a_back_end_that_does_not_answer_is_said_to_serve_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blk.sock");
        let _busy = listener(&path, 9);
        let error = error(&path);
        let words = format!("disk0: somebody listens at {} and did not", path.display());
        assert!(error.starts_with(&words), "{error}");
        assert!(error.contains("answer within 1s; it may be serving another front-end"));
        assert!(error.contains("`wait=forever`"), "{error}");
    }

    #[test]
    fn a_wait_that_is_long_enough_has_its_answer_and_leaves_it_to_be_read() {
        for wait in [Wait::For(Duration::from_secs(60)), Wait::Forever] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("blk.sock");
            let busy = UnixListener::from(listener(&path, 9));
            // Longer than the least that anybody gets.
            let busy_for = LEAST_ANSWER + Duration::from_millis(500);
            let server = std::thread::spawn(move || {
                std::thread::sleep(busy_for);
                let link = Connection::new(busy.accept().unwrap().0);
                let asked = link.recv(long()).unwrap();
                let answer = Header::reply_to(asked.header.request);
                link.send(answer, &7u64.to_ne_bytes(), &[], long()).unwrap();
                asked.header
            });
            let socket = search("disk0", Whom::BackEnd, &path, wait).unwrap();
            let request = Header::request(FrontendReq::GET_FEATURES.into());
            assert_eq!(server.join().unwrap(), request);
            let answer = Connection::new(socket.into()).recv(long()).unwrap();
            assert_eq!(answer.body::<u64>().unwrap(), 7);
        }
    }

    fn long() -> Deadline {
        Deadline::after(Duration::from_secs(60))
    }

    #[test]
    fn one_who_hangs_up_unread_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blk.sock");
        let first = UnixListener::bind(&path).unwrap();
        let place = path.clone();
        let server = std::thread::spawn(move || {
            // Its program ends with a front-end in its queue, and comes again.
            std::thread::sleep(Duration::from_millis(100));
            drop(first);
            std::fs::remove_file(&place).unwrap();
            let second = UnixListener::bind(&place).unwrap();
            let (mut stream, _) = second.accept().unwrap();
            io::Write::write_all(&mut stream, &[0]).unwrap();
            stream
        });
        let found = search("disk0", Whom::BackEnd, &path, Wait::Forever);
        let mut second = UnixStream::from(found.unwrap());
        second.set_read_timeout(Some(long().left())).unwrap();
        io::Read::read_exact(&mut second, &mut [1]).unwrap();
        server.join().unwrap();
    }

    #[test]
    fn a_search_says_when_to_look_again_and_is_quiet_in_between() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blk.sock");
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let wait = Wait::For(Duration::from_millis(50));
        let mut search = Search::new("disk0", Whom::BackEnd, &path, wait, start);
        assert_eq!((search.due(), search.fd().is_some()), (Some(start), false));
        assert!(search.look(start).unwrap().is_none());
        assert_eq!(search.due(), Some(start + PAUSE));
        // Too early: nothing is tried, so nothing is found.
        let listener = UnixListener::bind(&path).unwrap();
        assert!(search.look(after(10)).unwrap().is_none());
        assert!(search.fd().is_none());
        // Whoever is connected to has a second to answer, however short the wait.
        assert!(search.look(after(40)).unwrap().is_none());
        assert!(search.fd().is_some());
        assert_eq!(search.due(), Some(after(1000)), "when it is mentioned");
        assert!(search.look(after(1000)).unwrap().is_none());
        assert_eq!(search.mentioned, Some(true));
        assert_eq!(search.due(), Some(after(1040)));
        assert!(search.look(after(1039)).unwrap().is_none());
        let error = search.look(after(1040)).unwrap_err().to_string();
        assert!(error.contains("did not answer"), "{error}");
        drop(listener);
        // Without an end there is nothing to wait for but the answer.
        let _busy = UnixListener::bind(directory.path().join("other")).unwrap();
        let path = directory.path().join("other");
        let mut search = Search::new("disk0", Whom::BackEnd, &path, Wait::Forever, start);
        assert!(search.look(start).unwrap().is_none());
        assert!(search.look(after(1000)).unwrap().is_none());
        assert_eq!(search.due(), None);
    }
}
