//! One client's socket: what it has asked, or the event stream that it reads. Nothing
//! here waits.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, send};

use super::call::Ticket;
use super::conversation::Conversation;
use super::http::{self, Request, Response};
use super::route::Route;
use super::stream::{self, Stream};

/// Bytes that are read at once.
const READ: usize = 16 << 10;

/// What a client does.
#[derive(Debug)]
enum Talk {
    /// It asks.
    Asks(Conversation),
    /// It reads the event stream.
    Listens(Stream),
    /// It is gone, or is to be.
    Over,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    socket: UnixStream,
    talk: Talk,
    /// What it has asked the VM, which has not answered yet, and what about the answer
    /// it wants to know.
    pub(super) waits: Option<Waits>,
}

/// A call that is not answered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waits {
    pub(super) ticket: Ticket,
    pub(super) route: Route,
    /// Of which device, if of one.
    pub(super) device: String,
}

impl Connection {
    /// With a client that has just connected; its socket must not block.
    pub(super) fn new(socket: UnixStream, now: Instant) -> Self {
        Self {
            socket,
            talk: Talk::Asks(Conversation::new(now)),
            waits: None,
        }
    }

    /// Its socket, and what is waited for there. That it hangs up is always seen.
    pub(super) fn watched(&self) -> (BorrowedFd<'_>, PollFlags) {
        let (reads, sends) = match &self.talk {
            Talk::Asks(asks) => (asks.reads(), !asks.outgoing().is_empty()),
            Talk::Listens(stream) => (false, !stream.outgoing().is_empty()),
            Talk::Over => (false, false),
        };
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, reads);
        flags.set(PollFlags::POLLOUT, sends);
        (self.socket.as_fd(), flags)
    }

    /// When time itself is the next event.
    pub(super) fn due(&self) -> Option<Instant> {
        match &self.talk {
            Talk::Asks(asks) => asks.due(),
            Talk::Listens(_) | Talk::Over => None,
        }
    }

    /// Whether it can be forgotten.
    pub(super) fn is_over(&self) -> bool {
        match &self.talk {
            Talk::Asks(asks) => asks.is_over(),
            Talk::Listens(_) => false,
            Talk::Over => true,
        }
    }

    /// Whether it reads the event stream.
    pub(super) fn listens(&self) -> bool {
        matches!(self.talk, Talk::Listens(_))
    }

    /// Does what poll(2) says can be done. Returns a request that is to be answered.
    pub(super) fn attend(&mut self, ready: PollFlags, now: Instant) -> Option<Request> {
        if ready.contains(PollFlags::POLLOUT) {
            self.flush(now);
        }
        let gone = ready.intersects(PollFlags::POLLHUP | PollFlags::POLLERR);
        match &self.talk {
            Talk::Asks(asks) if asks.reads() && (gone || ready.contains(PollFlags::POLLIN)) => {
                self.read(now);
            }
            _ if gone => self.talk = Talk::Over,
            _ => {}
        }
        let Talk::Asks(asks) = &mut self.talk else {
            return None;
        };
        asks.tick(now);
        asks.request()
    }

    /// Answers its request.
    pub(super) fn reply(&mut self, response: &Response, now: Instant) {
        self.waits = None;
        if let Talk::Asks(asks) = &mut self.talk {
            asks.reply(response, now);
        }
    }

    /// Tells it that it will not be served.
    pub(super) fn refuse(&mut self, response: &Response, now: Instant) {
        if let Talk::Asks(asks) = &mut self.talk {
            asks.refuse(response, now);
        }
    }

    /// Answers its request by the event stream, which begins with these lines.
    pub(super) fn listen(&mut self, lines: &[u8]) {
        let mut beginning = http::endless(stream::CONTENT);
        beginning.extend(lines);
        self.talk = Talk::Listens(Stream::new(beginning));
    }

    /// Tells it a line if it reads the event stream, or, if it is too slow, `last`.
    pub(super) fn tell(&mut self, line: &[u8], last: &[u8], now: Instant) {
        if let Talk::Listens(stream) = &mut self.talk {
            stream.tell(line, last);
            if stream.is_cut() {
                self.flush(now);
                self.talk = Talk::Over;
            }
        }
    }

    /// Sends what there is to be sent, as far as there is room.
    pub(super) fn flush(&mut self, now: Instant) {
        let result = match &mut self.talk {
            Talk::Asks(asks) => {
                let result = push(&self.socket, asks.outgoing());
                if let Ok(count) = result
                    && asks.sent(count, now)
                {
                    let _ = self.socket.shutdown(Shutdown::Write);
                }
                result
            }
            Talk::Listens(stream) => {
                let result = push(&self.socket, stream.outgoing());
                if let Ok(count) = result {
                    stream.sent(count);
                }
                result
            }
            Talk::Over => return,
        };
        if result.is_err() {
            self.talk = Talk::Over;
        }
    }

    fn read(&mut self, now: Instant) {
        let mut bytes = [0; READ];
        let Talk::Asks(asks) = &mut self.talk else {
            return;
        };
        match self.socket.read(&mut bytes) {
            Ok(0) => asks.hear_end(),
            Ok(count) => asks.hear(bytes.get(..count).unwrap_or_default(), now),
            Err(error) if passes(&error) => {}
            Err(_) => asks.hear_end(),
        }
    }
}

fn push(socket: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    match send(socket.as_raw_fd(), bytes, flags).map_err(io::Error::from) {
        Err(error) if passes(&error) => Ok(0),
        other => other,
    }
}

fn passes(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
