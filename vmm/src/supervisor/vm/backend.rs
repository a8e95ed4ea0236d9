//! What there is of one device's back-end while a VM lives: whom it is looked for,
//! its process, the line to that, and its page of counters.
//!
//! ```text
//!  seek() ─▶ look() = found ─▶ start() = the front-end's socket
//!                                │
//!                   attend() = what it says on its line, again and again
//!                                │
//!                   reap() = its last words, and how it ended; or abandon()
//!                                │
//!            clear(), look() = it is gone, and its I/O over
//! ```

mod clearing;
mod counting;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::poll::PollFlags;
use outboard_line::{Heard, Line};
use outboard_protocol::counters::Counts;
use outboard_protocol::kept::Kept;
use outboard_protocol::launch::{
    BACKEND_FD, Handover, IMAGE_ENV, LINE_ENV, OLDEST_VERSION, Replay, SessionNumber, VERSION_ENV,
};

use self::clearing::CLOSED;
use super::counters::Page;
use super::device::Event;
use crate::supervisor::host::connect::Search;
use crate::supervisor::host::fence::Fence;
use crate::supervisor::host::lend::{Opened, Server};
use crate::supervisor::process::child::{Child, Parent};
use crate::supervisor::say::{Logging, say};
use crate::supervisor::text::units::Wait;

/// Times that the line of a dead process is attended to: a socket has no room for
/// more messages, unless somebody that it started keeps sending.
const LAST_WORDS: usize = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Backend {
    opened: Rc<Opened>,
    search: Option<Search>,
    /// A connection to whom was looked for.
    found: Option<OwnedFd>,
    child: Option<Child>,
    /// Of a program that is started; it lives as long as the VM.
    line: Option<Line>,
    /// The session that was last begun, of which the line speaks.
    session: SessionNumber,
    /// That of the last process, living or dead.
    counters: Option<Page>,
    /// What those before it have done, by queue.
    past: Vec<Counts>,
    /// It has said that it is ready.
    has_spoken: bool,
    /// Which release of its program it is, if it has said so.
    release: Option<String>,
    /// Stands until the I/O of the last process is over, where that may outlive it.
    fence: Option<Fence>,
    /// How the next process is to deal with requests that it finds in flight.
    replay: Replay,
    /// The connection to who listens at a socket: it is over when they have closed it.
    connection: Option<OwnedFd>,
    /// Nothing is to be left of it: when to look next, and since when.
    clearing: Option<(Instant, Instant)>,
}

impl Backend {
    /// Of this device; nothing is started yet.
    ///
    /// # Errors
    /// A message that names the device; see [`Line::new`].
    pub(crate) fn new(opened: &Rc<Opened>) -> Result<Self> {
        let line = match &opened.server {
            Server::Program { lent, .. } => {
                let line = lent.line();
                Some(line.with_context(|| format!("{}: making a line", opened.spec.id))?)
            }
            Server::Socket { .. } => None,
        };
        Ok(Self {
            opened: Rc::clone(opened),
            search: None,
            found: None,
            child: None,
            line,
            session: 0,
            counters: None,
            past: Vec::new(),
            has_spoken: false,
            release: None,
            fence: None,
            replay: Replay::default(),
            connection: None,
            clearing: None,
        })
    }

    /// The device.
    pub(crate) fn opened(&self) -> &Rc<Opened> {
        &self.opened
    }

    /// Its process, as long as it has not been reaped.
    pub(crate) fn child(&mut self) -> Option<&mut Child> {
        self.child.as_mut()
    }

    /// The id of that.
    pub(crate) fn pid(&self) -> Option<u32> {
        let child = self.child.as_ref()?;
        Some(child.pid().as_raw().unsigned_abs())
    }

    /// What becomes readable when its process has ended.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.child.as_ref().map(Child::pidfd)
    }

    /// What is to be polled, and for what, when there is anything else to be seen.
    pub(crate) fn watched(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let search = self.search.as_ref().and_then(Search::fd);
        let line = self.line.as_ref().map(AsFd::as_fd);
        let heard = search.into_iter().chain(line);
        let clearing = self.connection.as_ref().filter(|_| self.clearing.is_some());
        let closed = clearing.map(|fd| (fd.as_fd(), CLOSED));
        heard.map(|fd| (fd, PollFlags::POLLIN)).chain(closed)
    }

    /// When to look again, for somebody or for what is left.
    pub(crate) fn due(&self) -> Option<Instant> {
        let search = self.search.as_ref().and_then(Search::due);
        let waits = self.child.is_some() || self.connection.is_some();
        let clearing = self.clearing.filter(|_| !waits).map(|(next, _)| next);
        search.into_iter().chain(clearing).min()
    }

    /// Begins to look for whom it needs.
    pub(crate) fn seek(&mut self) {
        self.found = None;
        let sought = self.opened.server.sought();
        self.search = sought.map(|(whom, path, wait)| {
            let wait = match self.session {
                0 => wait,
                _ => Wait::Forever,
            };
            Search::new(&self.opened.spec.id, whom, path, wait, Instant::now())
        });
    }

    /// It is looked for whom it needs for this session, of which nothing is begun yet.
    pub(crate) fn is_for(&mut self, session: SessionNumber) {
        self.session = session;
    }

    /// Looks no more.
    pub(crate) fn stop_seeking(&mut self) {
        self.search = None;
    }

    /// Whether who is looked for has come, or nothing is left of who was there.
    pub(crate) fn look(&mut self) -> Option<Event> {
        self.find().or_else(|| self.cleared())
    }

    fn find(&mut self) -> Option<Event> {
        let event = match self.search.as_mut()?.look(Instant::now()) {
            Ok(None) => return None,
            Ok(found) => {
                self.found = found;
                Event::Found
            }
            Err(error) => Event::CannotBegin(format!("{error:#}")),
        };
        self.search = None;
        Some(event)
    }

    /// The next program is to deal so with what it finds in flight.
    pub(crate) fn order(&mut self, replay: Replay) {
        self.replay = replay;
    }

    /// What was ordered for the next program, which another process is.
    pub(crate) fn take_order(&mut self) -> Replay {
        std::mem::take(&mut self.replay)
    }

    /// Starts the program for this session, if there is one, and tells it what a predecessor
    /// has `kept`; `None`: it is to wait until it is told to [`Self::take_over`]. Returns the
    /// front-end's socket, or the connection to whom was found.
    ///
    /// # Errors
    /// A message that names the device and the program; nothing is started then.
    pub(crate) fn start(
        &mut self,
        session: SessionNumber,
        kept: Option<Kept>,
        parent: &Parent,
        logging: &Logging,
    ) -> Result<OwnedFd> {
        let (found, opened) = (self.found.take(), Rc::clone(&self.opened));
        let id = &opened.spec.id;
        self.past = self.close_page();
        (self.session, self.release, self.has_spoken) = (session, None, false);
        let replay = std::mem::take(&mut self.replay);
        let (
            Server::Program {
                program,
                args,
                lent,
            },
            Some(line),
        ) = (&opened.server, &mut self.line)
        else {
            let found = found.context("nobody was found")?;
            let copy = found.try_clone();
            self.connection = Some(copy.with_context(|| format!("{id}: keeping a socket"))?);
            return Ok(found);
        };
        let sockets = Handover::of(&self.opened.spec.kind).sockets();
        let (front, back) = sockets.with_context(|| format!("{id}: making a socket"))?;
        let start = || {
            let mut fds = vec![back];
            fds.extend(lent.give(found)?);
            let number = BACKEND_FD.saturating_add(fds.len() as i32);
            fds.push(match kept {
                Some(kept) => line.begin_again(kept, replay)?,
                None => line.wait()?,
            });
            let mut environment = logging.environment(Some(id));
            environment.push((VERSION_ENV, OLDEST_VERSION.to_string()));
            environment.push((LINE_ENV, number.to_string()));
            let apart = lent.apart(session, opened.whose)?;
            let fence = apart.and_then(|(image, fence)| {
                fds.push(image);
                environment.push((IMAGE_ENV, number.saturating_add(1).to_string()));
                fence
            });
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            Ok((
                Child::start(parent, program, args, &environment, &fds)?,
                fence,
            ))
        };
        let started: io::Result<_> = start();
        if started.is_err() {
            line.end();
        }
        let starting = || format!("{id}: starting {}", program.name());
        let (child, fence) = started.with_context(starting)?;
        (self.child, self.fence) = (Some(child), fence);
        Ok(front.into())
    }

    /// Tells it that its image has so many bytes.
    pub(crate) fn resize(&mut self, size: u64) {
        if let Some(line) = &mut self.line {
            line.resize(size);
        }
    }

    /// The link of its card is down, whatever is behind that, or what that is.
    pub(crate) fn hold_link_down(&mut self, down: bool) {
        if let Some(line) = &mut self.line {
            line.hold_down(down);
        }
    }

    /// Tells it to execute again what it holds back.
    pub(crate) fn retry(&mut self) {
        if let Some(line) = &mut self.line {
            line.retry();
        }
    }

    /// Tells its program, which waits, that it is to serve, what a predecessor has `kept`,
    /// and how to deal with what it finds in flight. One that cannot be told is killed. Who
    /// listens at a socket, or keeps version 1 of the launch contract, is told by the machine
    /// alone.
    ///
    /// # Errors
    /// It has not been told.
    pub(crate) fn take_over(&mut self, kept: Kept, replay: Replay) -> Result<()> {
        let Some(line) = self.line.as_mut().filter(|_| self.has_spoken) else {
            return Ok(());
        };
        let told = line.take_over(kept, replay).inspect_err(|_| {
            self.child.iter().for_each(Child::signal_kill);
        });
        told.with_context(|| format!("{}: telling its standby to serve", self.opened.spec.id))
    }

    /// The session that was last begun.
    pub(crate) fn session(&self) -> SessionNumber {
        self.session
    }

    /// Sees to its line: what its back-end has said there.
    pub(crate) fn attend(&mut self) -> Vec<Event> {
        let heard = self.line.as_mut().map(Line::attend).unwrap_or_default();
        heard.into_iter().map(|heard| self.hear(heard)).collect()
    }

    fn hear(&mut self, heard: Heard) -> Event {
        let session = self.session;
        match heard {
            Heard::Ready {
                sandbox,
                release,
                counters,
            } => {
                self.has_spoken = true;
                self.release = Some(release).filter(|release| !release.is_empty());
                let (id, name) = (&self.opened.spec.id, self.opened.server.name());
                log::debug!("{id}: {name} is ready; the parts of its sandbox: {sandbox:?}");
                let queues = self.opened.spec.queues;
                let page = counters.map(|page| Page::new(page, queues));
                self.counters = page.and_then(|page| self.readable(page));
                Event::Ready(session)
            }
            Heard::Keeps(kept) => Event::Keeps(session, kept),
            Heard::IoError { queue, text } => Event::IoError(session, queue, text),
            Heard::Resized(size) => Event::Resized(session, size),
            Heard::Nonsense(why) => Event::Nonsense(session, why),
            Heard::HungUp => Event::HungUp(session),
            Heard::InFlight(told) => Event::InFlight(session, told),
        }
    }

    fn readable<T>(&self, read: io::Result<T>) -> Option<T> {
        let (id, name) = (&self.opened.spec.id, self.opened.server.name());
        read.inspect_err(|error| log::debug!("{id}: {name} has no page of counters: {error}"))
            .ok()
    }

    /// Which release of its program the last one is, if it has said so.
    pub(crate) fn release(&self) -> Option<&str> {
        self.release.as_deref()
    }

    /// Reaps its process if that has ended: what it had said before, and how it ended.
    pub(crate) fn reap(&mut self) -> Vec<Event> {
        let Some(death) = self.child.as_mut().and_then(Child::try_reap) else {
            return Vec::new();
        };
        let mut events = Vec::new();
        for _ in 0..LAST_WORDS {
            events.extend(self.attend());
        }
        self.forget();
        events.push(Event::Died(death));
        events
    }

    /// Leaves its process alone, which was killed and hangs in the kernel.
    pub(crate) fn abandon(&mut self) {
        if let Some(child) = &mut self.child {
            say(&format!(
                "{}: {} hangs in the kernel and is left alone (process {}); look at the state of \
                 its resource",
                self.opened.spec.id,
                self.opened.server.name(),
                child.pid()
            ));
            child.abandon();
        }
        self.forget();
    }

    /// Its process is gone, and nobody is at the other end of its line.
    fn forget(&mut self) {
        self.child = None;
        if let Some(line) = &mut self.line {
            line.end();
        }
    }
}

#[cfg(test)]
mod tests;
