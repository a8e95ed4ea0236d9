//! A peer behind a card: frames over a stream socket, each after its length as
//! a 4-byte big-endian number. QEMU's `-netdev stream`, passt and others speak
//! this; there is no header, so there are no offloads.
//!
//! ```text
//!  none ──meet()───────► connected ──end of file, error──► none
//!                            ▲
//! expected ──────meet()──────┤
//!     └── PATIENCE after hurry() ──► none
//! ```
//! Of a card that waits while another process serves it, the peer is expected: the
//! driver sees its link as that one has left it, for a while after the change.
//! What has been received or sent in part belongs to the connection, not to a
//! queue: a ring may be stopped in the middle of a frame.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use outboard_runtime::event::Event;

use crate::header::MOST_FRAME;

/// Bytes before a frame.
pub const PREFIX: usize = 4;
/// Room for several frames, one of them of the largest size.
const INBOX: usize = 256 * 1024;

/// How long the driver of a card sees a link though the peer that its predecessor had
/// has not come back yet. One that listens is tried at 0, 0.1, 0.3, 0.7 and 1.5 s.
const PATIENCE: Duration = Duration::from_secs(2);

/// How a peer comes again that has gone. Whoever supervises the card sees to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// It connects.
    ItConnects,
    /// It is connected to.
    ItListens,
    /// There is no second time.
    Never,
}

/// The other end, whoever that is at the moment.
#[derive(Debug)]
pub struct Peer {
    name: String,
    again: Again,
    connection: Mutex<Option<Arc<Connection>>>,
    /// Signalled when there is another connection.
    arrived: Event,
    /// Of one that is expected, or was.
    grace: Option<Grace>,
}

/// See [`PATIENCE`].
#[derive(Debug)]
struct Grace {
    /// Expires when it is over.
    timer: TimerFd,
    lasts: AtomicBool,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    inbox: Mutex<Inbox>,
    outbox: Mutex<Vec<u8>>,
}

impl Peer {
    /// A peer of this name, connected already or not yet.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new(name: String, again: Again, first: Option<UnixStream>) -> anyhow::Result<Self> {
        let first = first.map(|socket| Arc::new(Connection::new(socket)));
        Ok(Self {
            name,
            again,
            connection: Mutex::new(first),
            arrived: Event::new().context("cannot make an eventfd")?,
            grace: None,
        })
    }

    /// The same, expected: another process serves the card, and has it.
    ///
    /// # Errors
    /// Those of timerfd_create(2).
    pub fn expected(mut self) -> anyhow::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags);
        self.grace = Some(Grace {
            timer: timer.context("cannot make a timer")?,
            lasts: AtomicBool::new(true),
        });
        Ok(self)
    }

    /// The other process is gone: a peer that is expected comes soon, or is not expected
    /// any more.
    pub fn hurry(&self) {
        let Some(grace) = &self.grace else { return };
        let once = Expiration::OneShot(PATIENCE.into());
        if grace.timer.set(once, TimerSetTimeFlags::empty()).is_err() {
            grace.lasts.store(false, Ordering::Release);
        }
    }

    /// Readable when [`Self::is_overdue`] may be so; `None`: never.
    pub fn grace(&self) -> Option<BorrowedFd<'_>> {
        let lasts = |grace: &&Grace| grace.lasts.load(Ordering::Acquire);
        let grace = self.grace.as_ref().filter(lasts);
        grace.map(|grace| grace.timer.as_fd())
    }

    /// Whether it is not expected any more, which is said once.
    pub fn is_overdue(&self) -> bool {
        let over = |grace: &Grace| grace.timer.wait().is_ok();
        let grace = self.grace.as_ref().filter(|grace| over(grace));
        grace.is_some_and(|grace| grace.lasts.swap(false, Ordering::AcqRel))
    }

    /// Whether the driver is to see a link: it is connected, or expected.
    pub fn is_up(&self) -> bool {
        self.connection().is_some() || self.grace().is_some()
    }

    /// What to call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The connection, if there is one.
    pub fn connection(&self) -> Option<Arc<Connection>> {
        lock(&self.connection).clone()
    }

    /// What happens after it has gone, for messages.
    pub fn prospect(&self) -> &'static str {
        match self.again {
            Again::ItConnects => "until the next one connects",
            Again::ItListens => "until it can be connected to again",
            Again::Never => "start the peer and this program again",
        }
    }

    /// Whether there is none, and one can be had.
    pub fn is_wanted(&self) -> bool {
        self.again != Again::Never && self.connection().is_none()
    }

    /// Readable, and to be cleared, when there is another connection.
    pub fn arrived(&self) -> &Event {
        &self.arrived
    }

    /// Takes a peer that has come, unless one is connected; whether it was taken.
    pub fn meet(&self, socket: UnixStream) -> bool {
        let mut connection = lock(&self.connection);
        let is_wanted = connection.is_none();
        if is_wanted {
            *connection = Some(Arc::new(Connection::new(socket)));
            if let Some(grace) = &self.grace {
                grace.lasts.store(false, Ordering::Release);
            }
            self.arrived.signal();
        }
        is_wanted
    }

    /// Gives up a connection; false if that has been done before.
    pub fn disconnect(&self, which: &Arc<Connection>) -> bool {
        let mut connection = lock(&self.connection);
        let same = connection
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, which));
        if same {
            *connection = None;
            // Another queue may hold it for a while; the peer need not wait.
            let _ = which.socket.shutdown(std::net::Shutdown::Both);
        }
        same
    }
}

impl Connection {
    fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            inbox: Mutex::new(Inbox::new()),
            outbox: Mutex::default(),
        }
    }

    /// What has been received and not delivered.
    pub fn inbox(&self) -> MutexGuard<'_, Inbox> {
        lock(&self.inbox)
    }

    /// What is to be sent before any other frame.
    pub fn outbox(&self) -> MutexGuard<'_, Vec<u8>> {
        lock(&self.outbox)
    }

    /// Sends what is in the outbox, as far as that is possible without
    /// waiting.
    ///
    /// # Errors
    /// Those of send(2), but for those that pass.
    pub fn flush(&self) -> io::Result<()> {
        let mut outbox = self.outbox();
        while !outbox.is_empty() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.socket.as_raw_fd(), &outbox, flags) {
                Ok(sent) => drop(outbox.drain(..sent)),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Receives what is there, without waiting, into the inbox.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing; `UnexpectedEof` when the peer has
    /// closed the connection; those of recv(2).
    pub fn receive(&self, inbox: &mut Inbox) -> io::Result<()> {
        let space = inbox.space();
        if space.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match recv(self.socket.as_raw_fd(), space, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                inbox.end = inbox.end.saturating_add(count);
                Ok(())
            }
            Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The peer does not speak this protocol: it announced a frame of this many
/// bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong(pub u32);

/// Bytes from the peer, cut into frames.
#[derive(Debug)]
pub struct Inbox {
    bytes: Box<[u8]>,
    begin: usize,
    end: usize,
}

impl Inbox {
    fn new() -> Self {
        Self {
            bytes: vec![0; INBOX].into_boxed_slice(),
            begin: 0,
            end: 0,
        }
    }

    /// Where to put further bytes.
    fn space(&mut self) -> &mut [u8] {
        if self.bytes.len().saturating_sub(self.end) < PREFIX + MOST_FRAME {
            self.bytes.copy_within(self.begin..self.end, 0);
            self.end = self.end.saturating_sub(self.begin);
            self.begin = 0;
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// The next frame, if it is whole.
    ///
    /// # Errors
    /// [`TooLong`]: where the one after it begins is not known.
    pub fn frame(&self) -> Result<Option<&[u8]>, TooLong> {
        let bytes = self.bytes.get(self.begin..self.end).unwrap_or_default();
        let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let announced = u32::from_be_bytes(*prefix);
        match usize::try_from(announced) {
            Ok(length) if length <= MOST_FRAME => Ok(rest.get(..length)),
            _ => Err(TooLong(announced)),
        }
    }

    /// Forgets that frame.
    pub fn consume(&mut self) {
        if let Ok(Some(frame)) = self.frame() {
            let length = frame.len().saturating_add(PREFIX);
            self.begin = self.begin.saturating_add(length).min(self.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn connection() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection::new(ours), theirs)
    }

    #[test]
    fn an_impossible_length_is_told() {
        for length in [MOST_FRAME as u32 + 1, u32::MAX] {
            let (connection, mut theirs) = connection();
            theirs.write_all(&length.to_be_bytes()).unwrap();
            let mut inbox = connection.inbox();
            connection.receive(&mut inbox).unwrap();
            assert_eq!(inbox.frame(), Err(TooLong(length)));
        }
    }

    #[test]
    fn the_end_and_the_absence_of_bytes_are_told_apart() {
        let (connection, theirs) = connection();
        let mut inbox = connection.inbox();
        let error = connection.receive(&mut inbox).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        let error = connection.receive(&mut inbox).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        connection.outbox().push(1);
        assert!(connection.flush().is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// However the bytes are cut, the frames are the same.
        #[test]
        fn frames_survive_any_cut(
            lengths in proptest::collection::vec(0..=MOST_FRAME, 1..20),
            cuts in proptest::collection::vec(1usize..100_000, 1..20),
        ) {
            let (connection, mut theirs) = connection();
            let mut bytes = Vec::new();
            for (mark, length) in lengths.iter().enumerate() {
                bytes.extend((*length as u32).to_be_bytes());
                bytes.extend(vec![mark as u8; *length]);
            }
            let mut found = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                theirs.write_all(now).unwrap();
                rest = later;
                let mut inbox = connection.inbox();
                while connection.receive(&mut inbox).is_ok() {
                    while let Some(frame) = inbox.frame().unwrap() {
                        prop_assert!(frame.iter().all(|byte| *byte == found.len() as u8));
                        found.push(frame.len());
                        inbox.consume();
                    }
                }
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found, lengths);
        }
    }
}
