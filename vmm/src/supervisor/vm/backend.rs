//! What there is of one device's back-end while a VM lives: whom it is looked for,
//! its process, the line to that, and its page of counters.
//!
//! ```text
//!  seek() ─▶ look() = found ─▶ start() = the front-end's socket
//!                                │
//!                   attend() = what it says on its line, again and again
//!                                │
//!                   reap() = its last words, and how it ended; or abandon()
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use anyhow::{Context, Result};
use outboard_line::{Heard, Line};
use outboard_protocol::kept::Kept;
use outboard_protocol::launch::{
    BACKEND_FD, Handover, LINE_ENV, OLDEST_VERSION, SessionNumber, VERSION_ENV,
};

use super::counters::Page;
use super::device::Event;
use crate::supervisor::host::connect::Search;
use crate::supervisor::host::lend::{Opened, Server};
use crate::supervisor::process::child::{Child, Parent};
use crate::supervisor::say::{Logging, say};

/// Times that the line of a dead process is attended to: a socket has no room for
/// more messages, unless somebody that it started keeps sending.
const LAST_WORDS: usize = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Backend<'a> {
    opened: &'a Opened,
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
}

impl<'a> Backend<'a> {
    /// Of this device; nothing is started yet.
    ///
    /// # Errors
    /// A message that names the device; see [`Line::new`].
    pub(crate) fn new(opened: &'a Opened) -> Result<Self> {
        let line = match &opened.server {
            Server::Program { lent, .. } => {
                let line = lent.line();
                Some(line.with_context(|| format!("{}: making a line", opened.spec.id))?)
            }
            Server::Socket { .. } => None,
        };
        Ok(Self {
            opened,
            search: None,
            found: None,
            child: None,
            line,
            session: 0,
            counters: None,
        })
    }

    /// The device.
    pub(crate) fn opened(&self) -> &'a Opened {
        self.opened
    }

    /// Its process, as long as it has not been reaped.
    pub(crate) fn child(&mut self) -> Option<&mut Child> {
        self.child.as_mut()
    }

    /// What becomes readable when its process has ended.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.child.as_ref().map(Child::pidfd)
    }

    /// What becomes readable when there is anything else to be seen.
    pub(crate) fn watched(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let search = self.search.as_ref().and_then(Search::fd);
        search
            .into_iter()
            .chain(self.line.as_ref().map(AsFd::as_fd))
    }

    /// When to look for somebody again.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.search.as_ref().and_then(Search::due)
    }

    /// Begins to look for whom it needs.
    pub(crate) fn seek(&mut self) {
        self.found = None;
        let sought = self.opened.server.sought();
        self.search = sought.map(|(whom, path, wait)| {
            Search::new(&self.opened.spec.id, whom, path, wait, Instant::now())
        });
    }

    /// Looks no more.
    pub(crate) fn stop_seeking(&mut self) {
        self.search = None;
    }

    /// Whether who is looked for has come.
    pub(crate) fn look(&mut self) -> Option<Event> {
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

    /// Starts the program for this session, if there is one to be started, and tells
    /// it what a predecessor has `kept`. Returns the front-end's end of its socket,
    /// or the connection to whom was found.
    ///
    /// # Errors
    /// A message that names the device and the program; nothing is started then.
    pub(crate) fn start(
        &mut self,
        session: SessionNumber,
        kept: Kept,
        parent: &Parent,
        logging: &Logging,
    ) -> Result<OwnedFd> {
        let (found, id) = (self.found.take(), &self.opened.spec.id);
        let (
            Server::Program {
                program,
                args,
                lent,
            },
            Some(line),
        ) = (&self.opened.server, &mut self.line)
        else {
            return found.context("nobody was found");
        };
        let handover = Handover::of(&self.opened.spec.kind);
        let sockets = handover.sockets();
        let (front, back) = sockets.with_context(|| format!("{id}: making a socket"))?;
        (self.session, self.counters) = (session, None);
        let start = || {
            let mut fds = vec![back];
            fds.extend(lent.copies(found)?);
            let number = BACKEND_FD.saturating_add(fds.len() as i32);
            fds.push(line.begin(kept)?);
            let mut environment = logging.environment(Some(id));
            environment.push((VERSION_ENV, OLDEST_VERSION.to_string()));
            environment.push((LINE_ENV, number.to_string()));
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            Child::start(parent, program, args, &environment, &fds)
        };
        let started: io::Result<_> = start();
        if started.is_err() {
            line.end();
        }
        let starting = || format!("{id}: starting {}", program.name());
        self.child = Some(started.with_context(starting)?);
        Ok(front.into())
    }

    /// Sees to its line: what its back-end has said there.
    pub(crate) fn attend(&mut self) -> Vec<Event> {
        let heard = self.line.as_mut().map(Line::attend).unwrap_or_default();
        heard.into_iter().map(|heard| self.hear(heard)).collect()
    }

    fn hear(&mut self, heard: Heard) -> Event {
        let session = self.session;
        match heard {
            Heard::Ready { sandbox, counters } => {
                let (id, name) = (&self.opened.spec.id, self.opened.server.name());
                log::debug!("{id}: {name} is ready; the parts of its sandbox: {sandbox:?}");
                let queues = self.opened.spec.queues;
                let page = counters.map(|page| Page::new(page, queues));
                self.counters = page.and_then(|page| self.readable(page));
                Event::Ready(session)
            }
            Heard::Keeps(kept) => Event::Keeps(session, kept),
            Heard::Nonsense(why) => Event::Nonsense(session, why),
            Heard::HungUp => Event::HungUp(session),
        }
    }

    fn readable<T>(&self, read: io::Result<T>) -> Option<T> {
        let (id, name) = (&self.opened.spec.id, self.opened.server.name());
        read.inspect_err(|error| log::debug!("{id}: {name} has no page of counters: {error}"))
            .ok()
    }

    /// Logs what its process has served, living or dead, if it counts.
    pub(crate) fn tell_counts(&self) {
        let total = self.counters.as_ref().map(Page::total);
        if let Some([chains, batches, calls, ..]) = total.and_then(|total| self.readable(total)) {
            let (id, name) = (&self.opened.spec.id, self.opened.server.name());
            log::info!(
                "{id}: {name} had taken {chains} chains, moved used indices {batches} times and \
                 made {calls} calls"
            );
        }
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
