//! The processes, sockets and searches of a VM: does what its states ask for, and
//! waits for what happens next.

mod answers;
mod changes;
mod process;
mod standbys;

use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_protocol::Deadline;
use outboard_protocol::kept::Kept;
use outboard_protocol::launch::{Restored, SessionNumber, ToMachine};

use super::action::{Action, Who};
use super::backend::Backend;
use super::event::Event;
use super::machine_line::MachineLine;
use super::{device, machine};
use crate::supervisor::api::Api;
use crate::supervisor::api::model::Served;
use crate::supervisor::console::Console;
use crate::supervisor::host::resources::Resources;
use crate::supervisor::process::child::{Child, Parent};
use crate::supervisor::say::say;
use crate::supervisor::signals::Signals;

/// The machine process.
#[derive(Debug)]
struct Machine {
    child: Child,
    line: MachineLine,
}

/// All that a VM holds of the host while it lives.
pub(crate) struct Hands<'a> {
    resources: &'a mut Resources,
    console: &'a mut Console,
    signals: &'a Signals,
    parent: &'a Parent,
    machine: Option<Machine>,
    api: Option<Api>,
    began: Instant,
    /// Whatever was to be started since the machine process was.
    is_whole: bool,
    /// Each at its device's place.
    backends: Vec<Backend>,
    /// Those that wait, likewise, as standbys or in a swap; `None` where there is none.
    standbys: Vec<Option<Backend>>,
    /// Who served each device when its last swap began, and who was to.
    swaps: Vec<Option<(Served, Served)>>,
    /// Whether the link of each is held down.
    held_down: Vec<bool>,
}

impl<'a> Hands<'a> {
    /// Nothing is started yet.
    ///
    /// # Errors
    /// Those of [`Backend::new`].
    pub(crate) fn new(
        resources: &'a mut Resources,
        console: &'a mut Console,
        signals: &'a Signals,
        parent: &'a Parent,
    ) -> Result<Self> {
        // They are kept by who serves them alone: after a swap the former's image is free.
        let devices = std::mem::take(&mut resources.devices);
        let backends = devices.iter().map(Backend::new);
        let standbys = devices.iter().map(|opened| {
            let standby = opened.standby.then(|| Backend::new(opened));
            standby.transpose()
        });
        Ok(Self {
            backends: backends.collect::<Result<_>>()?,
            standbys: standbys.collect::<Result<_>>()?,
            swaps: vec![None; devices.len()],
            held_down: vec![false; devices.len()],
            resources,
            console,
            signals,
            parent,
            machine: None,
            api: None,
            began: Instant::now(),
            is_whole: false,
        })
    }

    /// Does what is asked for; returns what comes of it at once.
    pub(crate) fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Seek(place) => self.backend(place, Backend::seek),
            Action::StopSeeking(place) => self.backend(place, Backend::stop_seeking),
            Action::StartMachine => {
                if let Err(error) = self.start_machine() {
                    self.is_whole = false;
                    let text = format!("{error:#}");
                    return Some(Event::Machine(machine::Event::NotStarted(text)));
                }
            }
            Action::Attach(place, session, kept) => {
                if let Err(error) = self.attach(place, session, kept) {
                    self.is_whole = false;
                    let text = format!("{error:#}");
                    return Some(Event::Device(place, device::Event::CannotBegin(text)));
                }
            }
            Action::Order(place, replay) => self.backend(place, |backend| backend.order(replay)),
            Action::Clear(place) => {
                let backend = self.backends.get_mut(place)?;
                return backend.clear().map(|event| Event::Device(place, event));
            }
            Action::Vacate(place, session) => {
                let device = self.id(place)?;
                self.send(ToMachine::Vacant { device, session }, Vec::new());
            }
            Action::PauseMachine => self.send(ToMachine::Pause, Vec::new()),
            Action::ResumeMachine => self.send(ToMachine::Resume, Vec::new()),
            Action::Retry(place) => self.backend(place, Backend::retry),
            Action::StopMachine => self.send(ToMachine::Stop, Vec::new()),
            Action::Terminate(who) => self.child(who, |child| child.terminate()),
            Action::Kill(who) => self.child(who, |child| child.signal_kill()),
            Action::Abandon(who) => self.abandon(who),
            Action::GuestRuns => self.console.running(),
            Action::GuestIsOver => self.console.ended(),
            Action::Examine(place, session, unserved) => {
                let backend = self.backends.get(place)?;
                let found = backend.examine(unserved.queue);
                let event = device::Event::Examined(session, unserved, found);
                return Some(Event::Device(place, event));
            }
            Action::TellCounts(place) => self.backend(place, |backend| backend.tell_counts()),
            Action::Answer(ticket, answer) => self.answer(ticket, answer),
            Action::Tell(change) => self.tell(change),
            Action::Say(text) => say(&text),
            Action::Log(level, text) => log::log!(level, "{text}"),
            of_a_change @ (Action::Open(..)
            | Action::Prepare(..)
            | Action::HandBack(..)
            | Action::GoOn(..)
            | Action::Resize(..)
            | Action::Truncate(..)
            | Action::Undo(_)
            | Action::Forget(_)
            | Action::TakeOver(..)) => return self.change(of_a_change),
        }
        None
    }

    fn id(&self, place: usize) -> Option<String> {
        Some(self.backends.get(place)?.opened().spec.id.clone())
    }

    fn backend(&mut self, place: usize, act: impl FnOnce(&mut Backend)) {
        if let Some(backend) = self.backends.get_mut(place) {
            act(backend);
        }
    }

    fn child(&mut self, who: Who, act: impl FnOnce(&mut Child)) {
        let child = match who {
            Who::Machine => self.machine.as_mut().map(|machine| &mut machine.child),
            Who::Device(place) => self.backends.get_mut(place).and_then(Backend::child),
            Who::Standby(place) => self.waiting(place).and_then(Backend::child),
        };
        if let Some(child) = child {
            act(child);
        }
    }

    fn abandon(&mut self, who: Who) {
        match who {
            Who::Machine => {
                say("the machine process hangs in the kernel and is left alone");
                self.child(who, Child::abandon);
                self.forget_machine();
            }
            Who::Device(place) => self.backend(place, Backend::abandon),
            Who::Standby(place) => {
                if let Some(standby) = self.waiting(place) {
                    standby.abandon();
                }
            }
        }
    }

    fn attach(&mut self, place: usize, session: SessionNumber, kept: Option<Kept>) -> Result<()> {
        let backend = self.backends.get_mut(place);
        let backend = backend.context("there is no such device")?;
        let opened = Rc::clone(backend.opened());
        let device = opened.spec.id.clone();
        if !self.is_whole {
            bail!("{device}: not started, as another part of the VM was not");
        }
        let is_ours = opened.server.is_ours();
        let restored = restored(kept.as_ref(), is_ours);
        let kept = Some(kept.unwrap_or_default());
        let front = backend.start(session, kept, self.parent, &self.resources.logging)?;
        let attach = ToMachine::Attach {
            device,
            session,
            asked: !is_ours,
            whose: opened.whose,
            restored,
        };
        self.send(attach, vec![front]);
        Ok(())
    }

    /// Waits until something happens, or until `due`, and returns all that has.
    /// The machine's words come before any death: when a guest powers off, every
    /// process ends at nearly the same moment. The back-ends' words come before the
    /// machine's, but are read after them: one that has not said that it is ready, and
    /// was attached, will not say so.
    pub(crate) fn wait(&mut self, due: Option<Instant>) -> Vec<Event> {
        let dead = self.poll(due);
        let said = self.listen();
        let mut events = self.of_each(Backend::attend);
        events.extend(self.of_standbys(Backend::attend));
        events.extend(said);
        if self.signals.take().is_some() {
            events.push(Event::Asked);
        }
        if dead.typed && self.console.typed() {
            events.push(Event::Asked);
        }
        events.extend(self.reap(&dead));
        events.extend(self.of_each(Backend::look));
        events.extend(self.of_standbys(|standby| standby.look().into_iter().collect()));
        events.extend(self.calls());
        events.push(Event::Tick);
        events
    }

    /// What there is of every back-end.
    fn of_each<I: IntoIterator<Item = device::Event>>(
        &mut self,
        ask: impl Fn(&mut Backend) -> I,
    ) -> Vec<Event> {
        let backends = self.backends.iter_mut().enumerate();
        let events = backends.flat_map(|(place, backend)| {
            let events = ask(backend).into_iter();
            events.map(move |event| Event::Device(place, event))
        });
        events.collect()
    }

    /// What was readable at one moment.
    fn poll(&self, due: Option<Instant>) -> Ready {
        let stdin = self.console.watched();
        let mut watched = vec![(None, self.signals.as_fd(), PollFlags::POLLIN)];
        if let Some(stdin) = &stdin {
            watched.push((Some(Source::Stdin), stdin.as_fd(), PollFlags::POLLIN));
        }
        if let Some(machine) = &self.machine {
            let gone = Some(Source::Process(Who::Machine));
            watched.push((gone, machine.child.pidfd(), PollFlags::POLLIN));
            watched.extend(machine.line.watched().map(|(fd, flags)| (None, fd, flags)));
        }
        for (who, backend) in self.everybody() {
            let gone = Some(Source::Process(who));
            let child = backend.pidfd();
            watched.extend(child.map(|fd| (gone, fd, PollFlags::POLLIN)));
            watched.extend(backend.watched().map(|(fd, flags)| (None, fd, flags)));
        }
        let clients = self.api.iter().flat_map(Api::watched);
        watched.extend(clients.map(|(fd, flags)| (None, fd, flags)));
        let mut fds: Vec<_> = watched
            .iter()
            .map(|(_, fd, flags)| PollFd::new(*fd, *flags))
            .collect();
        let searches = self.everybody().filter_map(|(_, backend)| backend.due());
        let clients = self.api.as_ref().and_then(Api::due);
        let next = searches.chain(clients).chain(due).min();
        let timeout = next.map_or(PollTimeout::NONE, |next| Deadline::at(next).poll_timeout());
        let _ = poll(&mut fds, timeout);
        let mut ready = Ready::default();
        for ((source, _, _), fd) in watched.iter().zip(&fds) {
            match source.filter(|_| fd.any() == Some(true)) {
                Some(Source::Stdin) => ready.typed = true,
                Some(Source::Process(who)) => ready.ended.push(who),
                None => {}
            }
        }
        ready
    }

    /// All that the machine has sent.
    fn listen(&mut self) -> Vec<Event> {
        let Some(machine) = &mut self.machine else {
            return Vec::new();
        };
        machine.line.listen()
    }

    fn reap(&mut self, ready: &Ready) -> Vec<Event> {
        let mut events = Vec::new();
        for &who in &ready.ended {
            match who {
                Who::Machine => {
                    let machine = self.machine.as_mut();
                    let death = machine.and_then(|machine| machine.child.try_reap());
                    let Some(death) = death else { continue };
                    self.forget_machine();
                    events.push(Event::Machine(machine::Event::Died(death)));
                }
                Who::Device(place) => {
                    let backend = self.backends.get_mut(place);
                    let of_it = backend.map(Backend::reap).unwrap_or_default();
                    events.extend(of_it.into_iter().map(|event| Event::Device(place, event)));
                }
                // Those are few, and asking costs little.
                Who::Standby(_) => events.extend(self.of_standbys(Backend::reap)),
            }
        }
        events
    }
}

/// Whose descriptor is readable.
#[derive(Clone, Copy, Debug)]
enum Source {
    Stdin,
    Process(Who),
}

/// What was readable at one moment.
#[derive(Debug, Default)]
struct Ready {
    typed: bool,
    ended: Vec<Who>,
}

/// What a back-end knows that is told this of its predecessors.
fn restored(kept: Option<&Kept>, is_ours: bool) -> Restored {
    match kept {
        Some(Kept::Nothing) => Restored::Nothing,
        Some(_) if is_ours => Restored::Kept,
        Some(_) | None => Restored::Unknown,
    }
}

#[cfg(test)]
mod tests;
