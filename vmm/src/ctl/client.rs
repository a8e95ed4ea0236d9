//! One connection to a VM's control API. Every wait has an end.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, send};
use outboard_protocol::Deadline;
use serde::Serialize;

use super::failure::Failure;
use super::show;
use crate::supervisor::api::model::Error;

/// How long an answer may take: the API may have to see to others before.
const ANSWER: Duration = Duration::from_secs(30);
/// How long what changes something may take: what is under way is finished first.
const LONG: Duration = Duration::from_secs(150);
/// Most bytes of a head.
const MOST_HEAD: usize = 16 << 10;
/// Most bytes of an answer, or of a line of the event stream.
const MOST: usize = 16 << 20;

/// A connection that is used for one request.
#[derive(Debug)]
pub(super) struct Client {
    socket: UnixStream,
    path: PathBuf,
    /// What has come and was not taken.
    inbox: Vec<u8>,
    ended: bool,
}

/// How a response begins.
#[derive(Debug)]
struct Head {
    status: u16,
    /// Of the body, if it is known before its end.
    length: Option<usize>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// What is wrong with the socket, and what to do.
    pub(super) fn connect(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let socket = outboard_line::connect_now(path).map_err(|errno| {
            Failure::NoVm(match errno {
                Errno::ENOENT => format!(
                    "there is no socket {shown}: is the VM running, and was it started with \
                     `--api {shown}`?"
                ),
                Errno::ECONNREFUSED => format!(
                    "nobody listens at {shown}: the VM that did has ended; start it again with \
                     `--api {shown}`"
                ),
                Errno::EACCES => format!(
                    "{shown} cannot be reached: only root and the user who runs the VM may \
                     control it"
                ),
                Errno::EAGAIN => format!("too many clients wait at {shown}; try again"),
                errno => format!("cannot connect to {shown}: {}", errno.desc()),
            })
        })?;
        let broken = |error| Failure::NoVm(format!("cannot use {shown}: {error}"));
        socket.set_nonblocking(true).map_err(broken)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            inbox: Vec::new(),
            ended: false,
        })
    }

    /// Asks, and returns the body of the answer.
    ///
    /// # Errors
    /// What the VM says that is wrong, or that it does not answer.
    pub(super) fn ask(self, method: &str, path: &str) -> Result<Vec<u8>, Failure> {
        let patience = if method == "GET" { ANSWER } else { LONG };
        self.ask_with(method, path, &[], patience)
    }

    /// Asks, with this as the body, for what may take long, and returns the body of the
    /// answer.
    ///
    /// # Errors
    /// Those of [`Self::ask`].
    pub(super) fn put(self, path: &str, body: &impl Serialize) -> Result<Vec<u8>, Failure> {
        let body = serde_json::to_vec(body)
            .map_err(|error| Failure::Usage(format!("a path cannot be sent: {error}")))?;
        self.ask_with("PUT", path, &body, LONG)
    }

    fn ask_with(
        mut self,
        method: &str,
        path: &str,
        body: &[u8],
        patience: Duration,
    ) -> Result<Vec<u8>, Failure> {
        let deadline = Deadline::after(patience);
        let head = self.begin(method, path, body, deadline)?;
        let is_whole = |client: &Self| match head.length {
            Some(length) => client.inbox.len() >= length,
            None => client.ended,
        };
        while !is_whole(&self) {
            if self.ended || self.inbox.len() > MOST {
                return Err(self.gone());
            }
            self.receive(deadline)?;
        }
        let body = std::mem::take(&mut self.inbox);
        match head.status {
            200..300 => Ok(body),
            status => Err(refused(status, &body)),
        }
    }

    /// Asks for the event stream.
    ///
    /// # Errors
    /// Those of [`Self::ask`].
    pub(super) fn events(mut self) -> Result<Lines, Failure> {
        let head = self.begin("GET", "/api/v1/events", &[], Deadline::after(ANSWER))?;
        match head.status {
            200 => Ok(Lines(self)),
            status => Err(refused(status, &self.inbox)),
        }
    }

    /// Sends a request, and returns the head of the response. What is left of that is
    /// in the inbox.
    fn begin(
        &mut self,
        method: &str,
        path: &str,
        body: &[u8],
        deadline: Deadline,
    ) -> Result<Head, Failure> {
        let length = match body.len() {
            0 => String::new(),
            length => format!("Content-Length: {length}\r\n"),
        };
        let asked = format!("{method} {path} HTTP/1.1\r\nHost: outboard\r\n{length}\r\n");
        let request = [asked.as_bytes(), body].concat();
        // That has room in a socket that nothing was sent to.
        let flags = MsgFlags::MSG_NOSIGNAL;
        send(self.socket.as_raw_fd(), &request, flags).map_err(|_| self.gone())?;
        loop {
            if let Some((head, length)) = head(&self.inbox).map_err(|why| self.nonsense(&why))? {
                self.inbox.drain(..length.min(self.inbox.len()));
                return Ok(head);
            }
            if self.ended || self.inbox.len() > MOST_HEAD {
                return Err(self.gone());
            }
            self.receive(deadline)?;
        }
    }

    /// Waits until something has come, or everything.
    fn receive(&mut self, deadline: Deadline) -> Result<(), Failure> {
        let fd = self.socket.as_fd();
        deadline
            .wait_for(fd, PollFlags::POLLIN)
            .map_err(|error| self.not_heard(&error))?;
        let mut bytes = [0; 16 << 10];
        match self.socket.read(&mut bytes) {
            Ok(count) => {
                self.ended = count == 0;
                self.inbox.extend(bytes.get(..count).unwrap_or_default());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => self.ended = true,
            Err(error) => return Err(self.not_heard(&error)),
        }
        Ok(())
    }

    fn not_heard(&self, error: &io::Error) -> Failure {
        let shown = self.path.display();
        match error.kind() {
            ErrorKind::TimedOut => Failure::Late(format!(
                "the VM at {shown} does not answer; is its process stopped?"
            )),
            _ => Failure::NoVm(format!("{shown}: {error}")),
        }
    }

    fn gone(&self) -> Failure {
        let shown = self.path.display();
        Failure::NoVm(format!("the VM at {shown} has ended before it answered"))
    }

    fn nonsense(&self, why: &str) -> Failure {
        let shown = self.path.display();
        Failure::NoVm(format!(
            "who listens at {shown} is no VM of Outboard's: {why}"
        ))
    }
}

/// The head of a response, if it is there, and its length.
fn head(bytes: &[u8]) -> Result<Option<(Head, usize)>, String> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = response.parse(bytes).map_err(|error| error.to_string())?;
    let httparse::Status::Complete(end) = parsed else {
        return Ok(None);
    };
    let status = response.code.unwrap_or_default();
    let mut fields = response.headers.iter();
    let length = fields.find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length = length
        .and_then(|field| str::from_utf8(field.value).ok()?.trim().parse().ok())
        // What has no body does not say so.
        .or((status == 204).then_some(0));
    Ok(Some((Head { status, length }, end)))
}

fn refused(status: u16, body: &[u8]) -> Failure {
    match serde_json::from_slice::<Error>(body) {
        Ok(error) => Failure::Refused(show::not_done(&error)),
        Err(_) => Failure::Refused(format!("the VM answers with status {status}")),
    }
}

/// The lines of the event stream.
#[derive(Debug)]
pub(super) struct Lines(Client);

impl Lines {
    /// The next line; `None`: the stream has ended.
    ///
    /// # Errors
    /// [`Failure::Late`] when there is none by then; that the stream is none.
    pub(super) fn next(&mut self, deadline: Deadline) -> Result<Option<Vec<u8>>, Failure> {
        let Self(client) = self;
        loop {
            if let Some(end) = client.inbox.iter().position(|byte| *byte == b'\n') {
                let rest = client.inbox.split_off(end.saturating_add(1));
                return Ok(Some(std::mem::replace(&mut client.inbox, rest)));
            }
            if client.ended {
                return Ok(None);
            }
            if client.inbox.len() > MOST {
                return Err(client.nonsense("a line without an end"));
            }
            client.receive(deadline)?;
        }
    }
}
