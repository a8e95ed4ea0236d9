//! One device's line to its back-end.
//!
//! ```text
//!          begin(kept) = the back-end's end, with its first message in it; of one that
//!                        waits: wait(), and take_over(kept) later
//!  at rest ─────────▶ open ◀──▶ attend() = what was heard; errands are done
//!     ▲                │
//!     └────────────────┴── end(), hung up, or nonsense
//! ```
//! Nothing waits: what a back-end does not read yet is kept, and of each kind of
//! message only the last, since that is what is true.

mod orders;
mod waiting;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{Shutdown, shutdown};
use outboard_log::rarely;
use outboard_protocol::Deadline;
use outboard_protocol::descriptors::discard;
use outboard_protocol::kept::Kept;
use outboard_protocol::launch::{Channel, FromBackend, Link, Replay, ToBackend, VERSION};

use crate::heard::Heard;
use crate::rendezvous::{Rendezvous, Way};
use crate::told::Told;
use crate::watch::Watch;

/// Messages that are taken before anything else is looked at, whatever they say: one
/// who never stops speaking must not keep us from hearing others.
const AT_ONCE: usize = 64;
/// Most characters that are shown of what nobody should say.
const SHOWN: usize = 200;
/// What is readable: the back-end's channel, a peer that is wanted, the interface.
const BACK_END: u64 = 0;
const PEER: u64 = 1;
const WATCH: u64 = 2;

/// The line of one device. Readable when [`Line::attend`] has something to do.
#[derive(Debug)]
pub struct Line {
    epoll: Epoll,
    open: Option<Open>,
    peer: Option<Rendezvous>,
    watch: Option<Watch>,
    /// The link is down, whatever the interface is.
    held_down: bool,
}

/// The line while there is a back-end at its other end.
#[derive(Debug)]
struct Open {
    channel: Channel,
    /// What the back-end was told last of the interface.
    link: Link,
    is_ready: bool,
    /// It is to wait.
    waits_for_word: bool,
    unsent: Unsent,
    /// The socket is asked whether it takes more.
    waits: bool,
}

/// What the socket has not taken yet.
#[derive(Debug, Default)]
struct Unsent {
    link: Option<Link>,
    peer: Option<OwnedFd>,
    size: Option<u64>,
    retry: bool,
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

impl Line {
    /// The line of a device behind which there is a `peer` that may go and come
    /// again, or an `interface` of this network namespace, or neither. There is no
    /// back-end yet.
    ///
    /// # Errors
    /// Those of epoll_create1(2) and timerfd_create(2).
    pub fn new(peer: Option<Way>, interface: Option<&str>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let peer = peer.map(Rendezvous::new).transpose()?;
        let watch = interface.and_then(|name| match Watch::new(name) {
            Ok(watch) => Some(watch),
            Err(error) => {
                log::debug!("the interface {name} is not watched: {error}");
                None
            }
        });
        if let Some(peer) = &peer {
            epoll.add(peer, EpollEvent::new(EpollFlags::EPOLLIN, PEER))?;
        }
        if let Some(watch) = &watch {
            epoll.add(watch, EpollEvent::new(EpollFlags::EPOLLIN, WATCH))?;
        }
        Ok(Self {
            epoll,
            open: None,
            peer,
            watch,
            held_down: false,
        })
    }

    /// Every descriptor that it has: all that a process must leave open which does
    /// nothing else.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let channel = self.open.iter().map(|open| open.channel.as_fd());
        let watch = self.watch.iter().map(AsFd::as_fd);
        let peer = self.peer.iter().flat_map(Rendezvous::descriptors);
        let all = [self.as_fd()].into_iter().chain(channel).chain(watch);
        all.chain(peer).collect()
    }

    /// Opens the line for a back-end that is to be started, and tells it what its
    /// predecessor has kept. Returns the end that it is lent. Any other is forgotten.
    ///
    /// # Errors
    /// Those of socketpair(2) and epoll_ctl(2).
    pub fn begin(&mut self, kept: Kept) -> io::Result<OwnedFd> {
        self.begin_again(kept, Replay::default())
    }

    /// The same for a successor that is to deal so with requests in flight.
    ///
    /// # Errors
    /// As above.
    pub fn begin_again(&mut self, kept: Kept, replay: Replay) -> io::Result<OwnedFd> {
        self.start(kept, replay, false)
    }

    fn start(&mut self, kept: Kept, replay: Replay, waits: bool) -> io::Result<OwnedFd> {
        self.end();
        let (ours, theirs) = Channel::pair()?;
        let link = self.look();
        let start = ToBackend::Start {
            version: VERSION,
            kept,
            link,
            replay,
            waits,
        };
        ours.send(&start, &[], at_once())?;
        self.epoll
            .add(&ours, EpollEvent::new(EpollFlags::EPOLLIN, BACK_END))?;
        self.open = Some(Open {
            channel: ours,
            link,
            is_ready: false,
            waits_for_word: waits,
            unsent: Unsent::default(),
            waits: false,
        });
        Ok(theirs.into())
    }

    /// The back-end is gone, or is not heard any more: closes its line, and looks for
    /// no peer, whom nobody would take.
    pub fn end(&mut self) {
        if let Some(open) = self.open.take() {
            // The descriptor may have a copy, which would be watched on.
            let _ = self.epoll.delete(&open.channel);
            // It is over at once, and goes with whatever was sent and not read.
            let _ = shutdown(open.channel.as_fd().as_raw_fd(), Shutdown::Both);
            discard(vec![open.channel.into()]);
        }
        if let Some(peer) = &mut self.peer
            && let Err(error) = peer.rest()
        {
            log::warn!("a peer may be let in that nobody wants: {error}");
        }
    }

    /// Does what is due, and returns what was heard in 64 messages at most; there may
    /// be more.
    pub fn attend(&mut self) -> Vec<Heard> {
        let due = self.due();
        let heard = self.listen();
        if due.contains(&WATCH) {
            self.observe();
        }
        if due.contains(&PEER) {
            self.meet();
        }
        self.flush();
        heard
    }

    /// What is readable.
    fn due(&self) -> Vec<u64> {
        let mut events = [EpollEvent::empty(); 3];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO);
        let events = events.iter().take(count.unwrap_or(0));
        events.map(EpollEvent::data).collect()
    }

    /// Sees to news of the interface.
    fn observe(&mut self) {
        // Also without a back-end: news that nobody takes would wake us again and
        // again.
        let link = self.look();
        if let Some(open) = &mut self.open
            && std::mem::replace(&mut open.link, link) != link
        {
            open.unsent.link = Some(link);
        }
    }

    /// What the interface is now.
    fn look(&self) -> Link {
        if self.held_down {
            return Link::Down;
        }
        match self.watch.as_ref().map(Watch::look) {
            // Nobody says whether one in another namespace is up.
            None => Link::Up,
            Some(Ok(link)) => link,
            Some(Err(error)) => {
                rarely!(warn, "cannot ask for the state of an interface: {error}");
                Link::Up
            }
        }
    }

    /// Sees whether a peer that is wanted has come.
    fn meet(&mut self) {
        let (Some(peer), Some(open)) = (&mut self.peer, &mut self.open) else {
            return;
        };
        match peer.meet() {
            Ok(None) => {}
            Ok(Some(socket)) => open.unsent.peer = Some(socket.into()),
            Err(error) => {
                rarely!(warn, "cannot accept a peer: {error}");
            }
        }
    }

    /// Sends what the socket takes.
    fn flush(&mut self) {
        let Some(open) = &mut self.open else { return };
        let waits = open.flush();
        if std::mem::replace(&mut open.waits, waits) == waits {
            return;
        }
        let mut flags = EpollFlags::EPOLLIN;
        flags.set(EpollFlags::EPOLLOUT, waits);
        let mut event = EpollEvent::new(flags, BACK_END);
        if let Err(errno) = self.epoll.modify(&open.channel, &mut event) {
            log::warn!("a back-end may not be told what it should be: epoll: {errno}");
        }
    }

    fn listen(&mut self) -> Vec<Heard> {
        let mut heard = Vec::new();
        for _ in 0..AT_ONCE {
            let Some(open) = &mut self.open else { break };
            let last = match open.channel.recv::<FromBackend>(at_once()) {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
                Err(error) => nonsense(&error.to_string()),
                Ok(None) => Heard::HungUp,
                Ok(Some((message, mut fds))) => {
                    let said = open.take(message, &mut fds);
                    discard(fds);
                    match said {
                        Ok(Some(said)) => {
                            heard.push(said);
                            continue;
                        }
                        Ok(None) => {
                            self.want();
                            continue;
                        }
                        Err(why) => nonsense(&why),
                    }
                }
            };
            heard.push(last);
            self.end();
        }
        heard
    }

    /// A peer is wanted; where none can be had, none comes.
    fn want(&mut self) {
        if let Some(peer) = &mut self.peer
            && let Err(error) = peer.want()
        {
            log::warn!("the peer will not be looked for again: {error}");
        }
    }
}

impl Open {
    /// Takes a message, and of its descriptors what is wanted; `None`: it wants a peer.
    fn take(
        &mut self,
        message: FromBackend,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Option<Heard>, String> {
        message.check()?;
        match message {
            FromBackend::Ready { waits, .. } if waits != self.waits_for_word => {
                Err("`ready` of one that waits where it should not, or the reverse".into())
            }
            FromBackend::Ready {
                sandbox, release, ..
            } if !self.is_ready && fds.len() <= 1 => {
                self.is_ready = true;
                let counters = fds.pop();
                Ok(Some(Heard::Ready {
                    sandbox,
                    release,
                    counters,
                }))
            }
            FromBackend::Ready { .. } => Err("`ready` twice, or with descriptors too many".into()),
            _ if !self.is_ready || !fds.is_empty() => {
                Err("a message before `ready`, or with a descriptor".into())
            }
            FromBackend::Keeps { kept } => Ok(Some(Heard::Keeps(kept))),
            FromBackend::IoError { queue, text } => Ok(Some(Heard::IoError { queue, text })),
            FromBackend::Resized { size } => Ok(Some(Heard::Resized(size))),
            other => Ok(Told::of(other).map(Heard::InFlight)),
        }
    }

    /// Sends what the socket takes. Whether there is more.
    fn flush(&mut self) -> bool {
        let unsent = &mut self.unsent;
        if let Some(link) = unsent.link
            && sent(&self.channel, &ToBackend::Link { link }, None)
        {
            unsent.link = None;
        }
        if let Some(peer) = &unsent.peer
            && sent(&self.channel, &ToBackend::Peer, Some(peer.as_fd()))
        {
            unsent.peer = None;
        }
        if let Some(size) = unsent.size
            && sent(&self.channel, &ToBackend::Resize { size }, None)
        {
            unsent.size = None;
        }
        unsent.retry = unsent.retry && !sent(&self.channel, &ToBackend::Retry, None);
        let Unsent {
            link,
            peer,
            size,
            retry,
        } = unsent;
        link.is_some() || peer.is_some() || size.is_some() || *retry
    }
}

fn nonsense(why: &str) -> Heard {
    Heard::Nonsense(why.chars().take(SHOWN).collect())
}

/// Whether the message needs no further attempt: one who is gone is found by other
/// means.
fn sent(channel: &Channel, message: &ToBackend, fd: Option<BorrowedFd<'_>>) -> bool {
    let result = channel.send(message, fd.as_slice(), at_once());
    !matches!(result, Err(error) if error.kind() == io::ErrorKind::TimedOut)
}

fn at_once() -> Deadline {
    Deadline::after(Duration::ZERO)
}

#[cfg(test)]
mod tests;
