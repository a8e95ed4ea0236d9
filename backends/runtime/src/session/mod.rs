//! One vhost-user connection, served from its first message to its end.
//!
//! ```text
//! serve ──► waiting ──message──► obeying ──answer──► waiting ─ … ─► every ring stopped ──► End
//!              ├── stop asked, connection closed ────────────────────────►┤
//!              └── the specification broken ─────────────────────────────►┘
//! ```
//! Requests are obeyed one at a time on the caller's thread; rings run on
//! the host's workers. A request that cannot be obeyed is
//! answered with a number other than 0 if the front-end asked for an answer.
//! If it did not, and goes on in the belief that it was obeyed, the connection
//! is cut off. So it is when a frame or a payload breaks the specification.

mod change;
mod channel;
mod host;
mod payload;
mod refusals;
mod requests;
mod rings;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_log::Rarely;
use outboard_protocol::Deadline;
use outboard_protocol::inflight::Region;
use outboard_protocol::wire::{Connection, Header, Message, WireError};
use outboard_ring::counters::add;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::device::Device;
use crate::event::Stuck;
use crate::memory::Table;
use crate::worker::Workers;
use channel::Channel;
use host::Base;
use refusals::Refusals;
use rings::Rings;

pub use host::{Host, Limits};

/// VHOST_USER_F_PROTOCOL_FEATURES: the front-end knows protocol features.
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// For so long messages are obeyed, one after another, before a session looks at what else there
/// may be.
const BURST: Duration = Duration::from_millis(10);

/// How a session ended. Every ring has been stopped and drained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The front-end closed the connection.
    Closed,
    /// The caller asked for it.
    Stopped,
    /// The front-end broke the specification; the text says how.
    CutOff(String),
}

/// What a request is answered with, besides an error.
enum Answer {
    /// 0, if an answer was asked for.
    Done,
    /// The request's own reply.
    Reply(Vec<u8>),
    /// The same, with a descriptor.
    ReplyWithFd(Vec<u8>, OwnedFd),
}

/// Why a request is not obeyed.
#[derive(Debug)]
enum Fault {
    /// The front-end must learn of it, or be cut off.
    Refused(String),
    /// The front-end may learn of it.
    Declined(String),
    /// The specification is broken.
    Broken(String),
    /// A worker does not stop.
    Stuck,
    /// The session ended while it was being obeyed.
    Over(End),
}

impl From<Stuck> for Fault {
    fn from(_: Stuck) -> Self {
        Self::Stuck
    }
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Closed => Self::Over(End::Closed),
            error => Self::Broken(error.to_string()),
        }
    }
}

/// Why [`Session::step`] was the last.
enum Last {
    End(End),
    Stuck,
}

/// The state of one connection.
struct Session<'a, D: Device> {
    host: &'a Base<D>,
    /// Readable when the session is to end.
    stop: BorrowedFd<'a>,
    connection: Connection,
    /// As acknowledged, with [`PROTOCOL_FEATURES`]; `None` before that.
    features: Option<u64>,
    protocol: VhostUserProtocolFeatures,
    memory: Table,
    inflight: Option<Region>,
    rings: Rings<'a, D>,
    /// Where the back-end's own requests go (SET_BACKEND_REQ_FD).
    requests: Option<Channel>,
    /// The configuration changed while no ring was served: a front-end whose VM
    /// is paused may hear of it and forget it.
    changed_early: bool,
    refusals: Refusals,
}

/// Serves one connection to its end; `stop` becoming readable ends it too.
///
/// # Errors
/// [`Stuck`] when a ring could not be drained: the process must end, since its
/// device may still work on the guest's memory.
pub fn serve<D: Device>(
    host: &mut Host<D>,
    stream: UnixStream,
    stop: BorrowedFd<'_>,
) -> Result<End, Stuck> {
    let end = serve_with(&host.base, &mut host.workers, stream, stop);
    if end.is_err() {
        host.workers.abandon();
    }
    end
}

fn serve_with<D: Device>(
    host: &Base<D>,
    workers: &mut Workers<D::Queue>,
    stream: UnixStream,
    stop: BorrowedFd<'_>,
) -> Result<End, Stuck> {
    host.begin();
    // Nothing of the session before is mapped any more.
    host.alarm.reset();
    let mut session = Session {
        host,
        stop,
        connection: Connection::new(stream),
        features: None,
        protocol: VhostUserProtocolFeatures::empty(),
        memory: Table::empty(host.alarm.clone()),
        inflight: None,
        rings: Rings::new(host, workers),
        requests: None,
        changed_early: false,
        refusals: Refusals::default(),
    };
    let last = loop {
        if let Some(last) = session.step() {
            break last;
        }
    };
    let Last::End(end) = last else {
        return Err(Stuck);
    };
    host.device.leave();
    session.rings.park_all()?;
    session.rings.forget_signals()?;
    add(&mut session.rings.tally.io_errors, host.device.io_errors());
    session.tell();
    // Which may also have been found out on the way here.
    Ok(session.loss().unwrap_or(end))
}

impl<D: Device> Session<'_, D> {
    /// Waits for one event and obeys it.
    fn step(&mut self) -> Option<Last> {
        let stop = self.stop;
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let supervisor = self.host.supervisor.channel();
        let mut fds = [
            readable(stop),
            readable(self.connection.as_fd()),
            readable(self.host.notifier.as_fd()),
            readable(self.host.alarm.as_fd()),
            supervisor.map_or_else(
                || PollFd::new(stop, PollFlags::empty()),
                |channel| readable(channel.as_fd()),
            ),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Some(cut_off(format!("cannot wait for a message: {errno}"))),
        }
        let [stop, message, change, alarm, news] = fds.map(|fd| fd.any().unwrap_or(false));
        if stop {
            return Some(Last::End(End::Stopped));
        }
        if alarm {
            return self.loss().map(Last::End);
        }
        if news {
            self.host.hear();
        }
        if change {
            self.host.notifier.clear();
            self.changed_early = !self.rings.any_served();
            self.send_change();
        }
        let last = message.then(|| self.receive_all()).flatten();
        if self.changed_early && self.rings.any_served() {
            self.changed_early = false;
            self.send_change();
        }
        last
    }

    /// The end, if something that the front-end lent is not there any more.
    fn loss(&self) -> Option<End> {
        let lost = self.host.alarm.lost()?;
        Some(End::CutOff(lost.to_string()))
    }

    /// Receives what has come, obeys it and answers; the next message mostly comes soon,
    /// and is looked out for.
    fn receive_all(&mut self) -> Option<Last> {
        let (begin, limits) = (Instant::now(), self.host.limits);
        let (mut now, mut idle_since) = (begin, begin);
        while now.duration_since(begin) < BURST {
            let deadline = Deadline::after(limits.message);
            match self.connection.recv_begun(deadline) {
                Ok(Some(message)) => {
                    if let Some(last) = self.receive(message) {
                        return Some(last);
                    }
                    now = Instant::now();
                    idle_since = now;
                }
                Ok(None) if now.duration_since(idle_since) >= limits.poll => return None,
                Ok(None) => {
                    std::thread::yield_now();
                    now = Instant::now();
                }
                Err(WireError::Closed) => return Some(Last::End(End::Closed)),
                Err(error) => return Some(cut_off(error.to_string())),
            }
        }
        None
    }

    /// Obeys a message and answers it.
    fn receive(&mut self, message: Message) -> Option<Last> {
        let header = message.header;
        // What was negotiated when it was sent counts, and what it negotiates.
        let before = self.acknowledges();
        if self.host.supervisor.waits() {
            // It was told to take over before this was sent.
            self.host.hear();
        }
        let result = self.obey(message);
        if let Some(end) = self.loss() {
            // What was found in lost memory is no answer.
            return Some(Last::End(end));
        }
        self.host.tell();
        let asked = header.need_reply && (before || self.acknowledges());
        match self.answer(header, asked, result) {
            Ok(()) => None,
            Err(Fault::Stuck) => Some(Last::Stuck),
            Err(Fault::Over(end)) => Some(Last::End(end)),
            Err(Fault::Refused(why) | Fault::Declined(why) | Fault::Broken(why)) => {
                Some(cut_off(why))
            }
        }
    }

    fn obey(&mut self, message: Message) -> Result<Answer, Fault> {
        if message.header.reply {
            let request = message.header.request;
            return Err(Fault::Broken(format!(
                "request {request} marked as a reply"
            )));
        }
        self.dispatch(message)
    }

    fn acknowledges(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK)
    }

    /// Answers as the request and its outcome demand, and an acknowledgement if
    /// it was asked for; a fault that cannot be answered comes back.
    fn answer(
        &mut self,
        header: Header,
        asked: bool,
        result: Result<Answer, Fault>,
    ) -> Result<(), Fault> {
        match result {
            Ok(Answer::Done) if asked => self.reply(header, &0u64.to_ne_bytes(), &[]),
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::Reply(payload)) => self.reply(header, &payload, &[]),
            Ok(Answer::ReplyWithFd(payload, fd)) => self.reply(header, &payload, &[fd.as_fd()]),
            Err(Fault::Refused(why) | Fault::Declined(why)) if asked => {
                self.refusals.say(header.request, &why);
                self.reply(header, &1u64.to_ne_bytes(), &[])
            }
            Err(Fault::Declined(why)) => {
                self.refusals.say(header.request, &why);
                Ok(())
            }
            Err(fault) => Err(fault),
        }
    }

    fn reply(&self, header: Header, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Fault> {
        let header = Header::reply_to(header.request);
        let deadline = Deadline::after(self.host.limits.message);
        Ok(self.connection.send(header, payload, fds, deadline)?)
    }

    /// Tells the front-end that the configuration changed; one that does not
    /// read it gets no further such message.
    fn send_change(&mut self) {
        let wanted = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::BACKEND_REQ;
        let Some(requests) = self.requests.as_ref() else {
            return;
        };
        if !self.protocol.contains(wanted) {
            return;
        }
        match requests.tell_change() {
            Ok(()) => return,
            // It is leaving, or does not want to hear of it any more.
            Err(WireError::Closed) => {}
            Err(error) => {
                // It may name another channel, and that as often as it likes.
                static UNREAD: Rarely = Rarely::new();
                if let Some(times) = UNREAD.again() {
                    log::warn!("cannot announce a configuration change: {error}{times}");
                }
            }
        }
        self.requests = None;
    }

    /// Every feature bit that the device and the runtime offer.
    fn offered(&self) -> u64 {
        let rings = (1 << VIRTIO_RING_F_INDIRECT_DESC) | (1 << VIRTIO_RING_F_EVENT_IDX);
        self.host.device.features() | rings | (1 << VIRTIO_F_VERSION_1) | PROTOCOL_FEATURES
    }

    /// Prints the counters, once in a session; but there may be no end of
    /// sessions.
    fn tell(&self) {
        static SUSPICIOUS: Rarely = Rarely::new();
        static ENDED: Rarely = Rarely::new();
        static TROUBLED: Rarely = Rarely::new();
        let tally = &self.rings.tally;
        if tally.io_errors != 0 {
            if let Some(times) = TROUBLED.again() {
                log::warn!("session ended: {tally}{times}");
            }
        } else if tally.is_suspicious() {
            if let Some(times) = SUSPICIOUS.again() {
                log::info!("session ended: {tally}{times}");
            }
        } else if let Some(times) = ENDED.again() {
            log::debug!("session ended: {tally}{times}");
        }
    }
}

fn cut_off(why: String) -> Last {
    Last::End(End::CutOff(why))
}
