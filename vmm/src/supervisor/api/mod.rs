//! The control API of a VM: HTTP/1.1 and JSON on a Unix socket, in the supervisor's one
//! loop (PROTOCOL.md, section 6). Nothing here waits.
//!
//! ```text
//!  a client ──▶ connection ──▶ conversation ──▶ route ──▶ answered here, or
//!                   ▲                                     a Call with its Ticket ──▶ the VM
//!                   └────────── Reply with that Ticket, or a line of the stream ◀──┘
//! ```
//! It outlives the guest's runs: it belongs to the VM.
//!
//! [`MOST`] clients are served at once. Who comes then waits until one of them is done,
//! in the queue of the socket: each has `MESSAGE` to ask, and to take its answer, and no
//! more than [`MOST_READERS`] of them read the event stream, which has no end.

pub(crate) mod call;
mod connection;
mod conversation;
mod http;
mod metrics;
pub mod model;
mod openapi;
mod route;
mod stream;

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use outboard_line::bound::{self, SocketFile};

use self::call::{Call, Refusal, Reply, Ticket};
use self::connection::{Connection, Waits};
use self::http::{Request, Response};
use self::model::{Change, Event, LinkRequest, NoFields, ResizeRequest, Vm};
use self::route::Route;

/// Most clients at once.
pub(crate) const MOST: usize = 64;
/// Most of them that read the event stream.
const MOST_READERS: usize = 32;
/// How long nobody is let in when that has failed, for want of descriptors as a rule.
const REST: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(crate) struct Api {
    listener: UnixListener,
    _file: SocketFile,
    connections: Vec<Connection>,
    /// That of the next call.
    ticket: Ticket,
    /// The last of what was told of the VM and of each device.
    known: Vec<Event>,
    /// Until then nobody is let in.
    rests: Option<Instant>,
}

impl Api {
    /// Listens at `path`. A socket there that nobody serves is replaced.
    ///
    /// # Errors
    /// A message that names the option; see [`bound::listen_privately_at`].
    pub(crate) fn listen(path: &Path) -> Result<Self> {
        let open = || {
            let (listener, _file) = bound::listen_privately_at(path)?;
            listener.set_nonblocking(true)?;
            Ok(Self {
                listener,
                _file,
                connections: Vec::new(),
                ticket: Ticket::FIRST,
                known: Vec::new(),
                rests: None,
            })
        };
        let opened: Result<_> = open();
        opened.context("--api")
    }

    /// What to wait for; that it hangs up is waited for in any case.
    pub(crate) fn watched(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let lets_in = self.connections.len() < MOST && self.rests.is_none();
        let listener = lets_in.then(|| (self.listener.as_fd(), PollFlags::POLLIN));
        let clients = self.connections.iter().map(Connection::watched);
        listener.into_iter().chain(clients)
    }

    /// When time itself is the next event.
    pub(crate) fn due(&self) -> Option<Instant> {
        let clients = self.connections.iter().filter_map(Connection::due);
        clients.chain(self.rests).min()
    }

    /// Sees to everybody. Returns what the VM is asked; each is to be answered by
    /// [`Self::answer`], now or later.
    pub(crate) fn attend(&mut self, now: Instant) -> Vec<(Ticket, Call)> {
        self.let_in(now);
        let ready = self.ready();
        let mut requests = Vec::new();
        for (place, (connection, ready)) in self.connections.iter_mut().zip(ready).enumerate() {
            let request = connection.attend(ready, now);
            requests.extend(request.map(|request| (place, request)));
        }
        let mut calls = Vec::new();
        for (place, request) in requests {
            calls.extend(self.asked(place, &request, now));
        }
        self.connections.retain(|connection| !connection.is_over());
        calls
    }

    /// Answers a call. Whoever asked may have gone.
    pub(crate) fn answer(&mut self, ticket: Ticket, reply: Reply, now: Instant) {
        let mut connections = self.connections.iter_mut();
        let asker = connections.find(|asker| {
            let waits = asker.waits.as_ref();
            waits.is_some_and(|waits| waits.ticket == ticket)
        });
        if let Some(asker) = asker
            && let Some(waits) = asker.waits.take()
        {
            asker.reply(&response(&waits, reply), now);
        }
    }

    /// Tells every reader of the event stream that this has become so.
    pub(crate) fn tell(&mut self, change: Change, now: Instant) {
        let event = Event {
            time_ms: milliseconds(),
            change,
        };
        let line = line(&event);
        let last = self::line(&Event {
            time_ms: event.time_ms,
            change: Change::CutOff {
                reason: "this reader was too slow, and does not hear of what came next; read the \
                         stream anew, which begins with where everything is"
                    .into(),
            },
        });
        for connection in &mut self.connections {
            connection.tell(&line, &last, now);
        }
        self.connections.retain(|connection| !connection.is_over());
        if matches!(event.change, Change::Refused { .. }) {
            // That is over, and nothing is so: a later reader finds it in the status.
            return;
        }
        let same = |known: &Event| known.change.is_of_same(&event.change);
        match self.known.iter().position(same) {
            Some(place) => self.known.splice(place..=place, [event]).for_each(drop),
            None => self.known.push(event),
        }
    }

    fn let_in(&mut self, now: Instant) {
        if self.rests.is_some_and(|until| now < until) {
            return;
        }
        self.rests = None;
        while self.connections.len() < MOST {
            let accepted = self.listener.accept();
            let accepted = accepted.and_then(|(socket, _)| {
                socket.set_nonblocking(true)?;
                Ok(socket)
            });
            match accepted {
                Ok(socket) => self.connections.push(welcome(socket, now)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                // One that has gone meanwhile, or no room: the socket stays readable.
                Err(_) => return self.rests = Some(now + REST),
            }
        }
    }

    /// What can be done for each client.
    fn ready(&self) -> Vec<PollFlags> {
        let watched = self.connections.iter().map(Connection::watched);
        let mut fds: Vec<_> = watched.map(|(fd, flags)| PollFd::new(fd, flags)).collect();
        let _ = poll(&mut fds, PollTimeout::ZERO);
        let ready = fds
            .iter()
            .map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        ready.collect()
    }

    /// The client at this place asks: answers it, or returns what the VM is asked.
    fn asked(&mut self, place: usize, request: &Request, now: Instant) -> Option<(Ticket, Call)> {
        let readers = self.connections.iter().filter(|other| other.listens());
        let readers = readers.count();
        let connection = self.connections.get_mut(place)?;
        let (route, device) = match route::find(request).and_then(|found| {
            if !matches!(found.0, Route::Swap | Route::Resize | Route::Link) {
                check_body(request)?;
            }
            Ok(found)
        }) {
            Ok(found) => found,
            Err(response) => {
                connection.reply(&response, now);
                return None;
            }
        };
        let call = match route {
            Route::Vm | Route::Devices | Route::Device | Route::Metrics => Call::Status,
            Route::Pause => Call::Pause,
            Route::Resume => Call::Resume,
            Route::Shutdown => Call::Shutdown,
            Route::Restart => Call::Restart(device.to_owned()),
            Route::PauseDevice => Call::PauseDevice(device.to_owned()),
            Route::ResumeDevice => Call::ResumeDevice(device.to_owned()),
            Route::Swap | Route::Resize | Route::Link => match with_body(route, device, request) {
                Ok(call) => call,
                Err(response) => {
                    connection.reply(&response, now);
                    return None;
                }
            },
            Route::Explain => Call::Explain(device.to_owned()),
            Route::OpenApi => {
                connection.reply(&Response::json(200, &openapi::description()), now);
                return None;
            }
            Route::Events if readers >= MOST_READERS => {
                let text = format!("{MOST_READERS} clients read the event stream already");
                connection.reply(&Response::error(503, text), now);
                return None;
            }
            Route::Events => {
                connection.listen(&self.known.iter().flat_map(line).collect::<Vec<_>>());
                return None;
            }
        };
        let ticket = self.ticket;
        self.ticket = ticket.next();
        connection.waits = Some(Waits {
            ticket,
            route,
            device: device.to_owned(),
        });
        Some((ticket, call))
    }
}

/// What is on its way is sent as far as there is room: the VM is over.
impl Drop for Api {
    fn drop(&mut self) {
        let now = Instant::now();
        for connection in &mut self.connections {
            connection.flush(now);
        }
    }
}

/// Whoever has connected: nobody but the user who runs the VM, and root, is served.
fn welcome(socket: UnixStream, now: Instant) -> Connection {
    let (peer, own) = (getsockopt(&socket, PeerCredentials), geteuid());
    let mut connection = Connection::new(socket, now);
    let is_ours = peer.is_ok_and(|peer| peer.uid() == own.as_raw() || peer.uid() == 0);
    if !is_ours {
        let text = format!("only root and the user who runs this VM (uid {own}) may control it");
        connection.refuse(&Response::error(403, text), now);
    }
    connection
}

/// What is asked with a body that says more; where all of it may be left out, so may it be.
fn with_body(route: Route, device: &str, request: &Request) -> Result<Call, Response> {
    let body = match request.body.is_empty() {
        true => b"{}".as_slice(),
        false => &request.body,
    };
    let device = device.to_owned();
    let read = match route {
        Route::Resize => {
            serde_json::from_slice(body).map(|ResizeRequest { size }| Call::Resize(device, size))
        }
        Route::Link => {
            serde_json::from_slice(body).map(|LinkRequest { up }| Call::Link(device, up))
        }
        _ => serde_json::from_slice(body).map(|swap| Call::Swap(device, swap)),
    };
    read.map_err(|error| Response::error(400, format!("the body is not as it should be: {error}")))
}

/// A body is `{}` or not there.
fn check_body(request: &Request) -> Result<(), Response> {
    if request.method == "GET" || request.body.is_empty() {
        return Ok(());
    }
    let read = serde_json::from_slice::<NoFields>(&request.body);
    read.map(|_| ()).map_err(|error| {
        let text = format!("the body is not as it should be: {error}; send {{}}, or no body");
        Response::error(400, text)
    })
}

/// What an asker is told of a reply.
fn response(waits: &Waits, reply: Reply) -> Response {
    match reply {
        Reply::Status(vm) => status(waits, *vm),
        Reply::Explanation(explanation) => Response::json(200, &explanation),
        Reply::Swapped(swapped) => Response::json(200, &swapped),
        Reply::Resized(resized) => Response::json(200, &resized),
        Reply::Done => Response::done(),
        Reply::Refused(Refusal::NoSuchDevice(id, there)) => no_such_device(&id, &there),
        Reply::Refused(Refusal::NotNow(why)) => Response::error(409, why),
        Reply::Refused(Refusal::NotSwapped(error, step, gap)) => {
            let step = Some(step);
            Response::json(409, &model::Error { error, step, gap })
        }
    }
}

fn status(waits: &Waits, vm: Vm) -> Response {
    match waits.route {
        Route::Devices => Response::json(200, &vm.devices),
        Route::Device => {
            let ids = vm.devices.iter().map(|device| device.id.clone());
            let ids: Vec<_> = ids.collect();
            let mut devices = vm.devices.into_iter();
            match devices.find(|device| device.id == waits.device) {
                Some(device) => Response::json(200, &device),
                None => no_such_device(&waits.device, &ids),
            }
        }
        Route::Metrics => match metrics::text(vm) {
            Some(text) => Response::text(200, metrics::CONTENT, text),
            None => Response::error(500, "the figures could not be written"),
        },
        _ => Response::json(200, &vm),
    }
}

fn no_such_device(id: &str, there: &[String]) -> Response {
    let there = match there {
        [] => "this VM has none".to_owned(),
        ids => format!("there are: {}", ids.join(", ")),
    };
    Response::error(404, format!("there is no device `{id}`; {there}"))
}

fn line(event: &Event) -> Vec<u8> {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Since the beginning of 1970.
fn milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests;
