//! The processes, sockets and searches of a VM: does what its states ask for, and
//! waits for what happens next.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_protocol::Deadline;
use outboard_protocol::launch::{
    Channel, Handover, MESSAGES_VERSION, OLDEST_VERSION, SessionNumber, StartFd, ToMachine,
    VERSION_ENV,
};

use super::action::{Action, Who};
use super::event::Event;
use super::machine_line::MachineLine;
use super::{device, machine};
use crate::supervisor::console::Console;
use crate::supervisor::host::connect::Search;
use crate::supervisor::host::lend::{Lent, Opened, Server};
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

/// What there is of one device's back-end.
#[derive(Debug, Default)]
struct Backend {
    search: Option<Search>,
    /// A connection to whom was looked for.
    found: Option<OwnedFd>,
    child: Option<Child>,
}

/// All that a VM holds of the host while it lives.
pub(crate) struct Hands<'a> {
    resources: &'a Resources,
    console: &'a mut Console,
    signals: &'a Signals,
    parent: &'a Parent,
    machine: Option<Machine>,
    /// Whatever was to be started since the machine process was.
    is_whole: bool,
    /// Each at its device's place.
    backends: Vec<Backend>,
}

impl<'a> Hands<'a> {
    /// Nothing is started yet.
    pub(crate) fn new(
        resources: &'a Resources,
        console: &'a mut Console,
        signals: &'a Signals,
        parent: &'a Parent,
    ) -> Self {
        let backends = resources.devices.iter().map(|_| Backend::default());
        Self {
            backends: backends.collect(),
            resources,
            console,
            signals,
            parent,
            machine: None,
            is_whole: false,
        }
    }

    /// Does what is asked for; returns what comes of it at once.
    pub(crate) fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Seek(place) => self.seek(place),
            Action::StopSeeking(place) => {
                if let Some(backend) = self.backends.get_mut(place) {
                    backend.search = None;
                }
            }
            Action::StartMachine => {
                if let Err(error) = self.start_machine() {
                    self.is_whole = false;
                    let text = format!("{error:#}");
                    return Some(Event::Machine(machine::Event::NotStarted(text)));
                }
            }
            Action::Attach(place, session) => {
                if let Err(error) = self.attach(place, session) {
                    self.is_whole = false;
                    let text = format!("{error:#}");
                    return Some(Event::Device(place, device::Event::CannotBegin(text)));
                }
            }
            Action::StopMachine => self.send(ToMachine::Stop, Vec::new()),
            Action::Terminate(who) => self.child(who, |child| child.terminate()),
            Action::Kill(who) => self.child(who, |child| child.signal_kill()),
            Action::Abandon(who) => self.abandon(who),
            Action::GuestRuns => self.console.running(),
            Action::GuestIsOver => self.console.ended(),
            Action::Say(text) => say(&text),
        }
        None
    }

    fn child(&mut self, who: Who, act: impl FnOnce(&mut Child)) {
        let child = match who {
            Who::Machine => self.machine.as_mut().map(|machine| &mut machine.child),
            Who::Device(place) => {
                let backend = self.backends.get_mut(place);
                backend.and_then(|backend| backend.child.as_mut())
            }
        };
        if let Some(child) = child {
            act(child);
        }
    }

    fn abandon(&mut self, who: Who) {
        let names = match who {
            Who::Machine => None,
            Who::Device(place) => self.names(place),
        };
        self.child(who, |child| {
            say(&match names {
                None => "the machine process hangs in the kernel and is left alone".to_owned(),
                Some((id, name)) => format!(
                    "{id}: {name} hangs in the kernel and is left alone (process {}); look at the \
                     state of its resource",
                    child.pid()
                ),
            });
            child.abandon();
        });
        self.forget(who);
    }

    /// The device's id, and what its back-end is called.
    fn names(&self, place: usize) -> Option<(String, String)> {
        let Opened { spec, server, .. } = self.resources.devices.get(place)?;
        Some((spec.id.clone(), server.name()))
    }

    /// A process that is gone, with its socket.
    fn forget(&mut self, who: Who) {
        match who {
            Who::Machine => self.machine = None,
            Who::Device(place) => {
                if let Some(backend) = self.backends.get_mut(place) {
                    backend.child = None;
                }
            }
        }
    }

    fn seek(&mut self, place: usize) {
        let opened = self.resources.devices.get(place);
        let Some((Opened { spec, server, .. }, backend)) = opened.zip(self.backends.get_mut(place))
        else {
            return;
        };
        backend.found = None;
        backend.search = server
            .sought()
            .map(|(whom, path, wait)| Search::new(&spec.id, whom, path, wait, Instant::now()));
    }

    fn start_machine(&mut self) -> Result<()> {
        let resources = self.resources;
        let (channel, theirs) = Channel::pair().context("a socket pair")?;
        let args = ["machine".to_owned()];
        let environment = resources.logging.environment(None);
        let ends = self.console.ends().context("the console")?;
        let mut fds = vec![
            (StartFd::Kvm, copy(&resources.kvm)?),
            (StartFd::Kernel, copy(&resources.kernel)?),
            (StartFd::ConsoleOut, ends.output),
        ];
        if let Some(initrd) = &resources.initrd {
            fds.push((StartFd::Initrd, copy(initrd)?));
        }
        fds.extend(ends.input.map(|fd| (StartFd::ConsoleIn, fd)));
        let (names, fds) = fds.into_iter().unzip();
        let start = ToMachine::Start {
            version: MESSAGES_VERSION,
            machine: resources.machine.clone(),
            devices: resources
                .devices
                .iter()
                .map(|opened| opened.spec.clone())
                .collect(),
            fds: names,
        };
        let theirs = [theirs.as_fd()];
        let child = Child::start(
            self.parent,
            &resources.program,
            &args,
            &environment,
            &theirs,
        );
        let child = child.context("starting the machine process")?;
        let line = MachineLine::new(channel);
        self.machine = Some(Machine { child, line });
        self.send(start, fds);
        self.is_whole = true;
        Ok(())
    }

    fn attach(&mut self, place: usize, session: SessionNumber) -> Result<()> {
        let resources = self.resources;
        let opened = resources.devices.get(place);
        let (opened, backend) = opened
            .zip(self.backends.get_mut(place))
            .context("there is no such device")?;
        let spec = &opened.spec;
        let found = backend.found.take();
        if !self.is_whole {
            bail!(
                "{}: not started, as another part of the VM was not",
                spec.id
            );
        }
        let front = match &opened.server {
            Server::Socket { .. } => found.context("nobody was found")?,
            Server::Program {
                program,
                args,
                lent,
            } => {
                let (front, back) = Handover::of(&spec.kind)
                    .sockets()
                    .with_context(|| format!("{}: making a socket", spec.id))?;
                let mut environment = resources.logging.environment(Some(&spec.id));
                environment.push((VERSION_ENV, OLDEST_VERSION.to_string()));
                let start = || {
                    let lent = lend(lent, found)?;
                    let fds = [&back].into_iter().chain(&lent).map(AsFd::as_fd);
                    let fds: Vec<_> = fds.collect();
                    Child::start(self.parent, program, args, &environment, &fds)
                };
                let child =
                    start().with_context(|| format!("{}: starting {}", spec.id, program.name()))?;
                backend.child = Some(child);
                front.into()
            }
        };
        let attach = ToMachine::Attach {
            device: spec.id.clone(),
            session,
            asked: !opened.server.is_ours(),
            whose: opened.whose,
        };
        self.send(attach, vec![front]);
        Ok(())
    }

    /// Sends to the machine, now or when it reads. One that is gone is found by its
    /// descriptor, with how it ended; so a failure to send says nothing more.
    fn send(&mut self, message: ToMachine, fds: Vec<OwnedFd>) {
        if let Some(machine) = &mut self.machine {
            machine.line.send(message, fds);
        }
    }

    /// Waits until something happens, or until `due`, and returns all that has.
    /// The machine's words come before any death: when a guest powers off, every
    /// process ends at nearly the same moment.
    pub(crate) fn wait(&mut self, due: Option<Instant>) -> Vec<Event> {
        let dead = self.poll(due);
        let mut events = self.listen();
        if self.signals.take().is_some() {
            events.push(Event::Asked);
        }
        if dead.typed && self.console.typed() {
            events.push(Event::Asked);
        }
        events.extend(self.reap(&dead));
        events.extend(self.look());
        events.push(Event::Tick);
        events
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
        for (place, backend) in self.backends.iter().enumerate() {
            let gone = Some(Source::Process(Who::Device(place)));
            let child = backend.child.as_ref().map(Child::pidfd);
            watched.extend(child.map(|fd| (gone, fd, PollFlags::POLLIN)));
            let search = backend.search.as_ref().and_then(Search::fd);
            watched.extend(search.map(|fd| (None, fd, PollFlags::POLLIN)));
        }
        let mut fds: Vec<_> = watched
            .iter()
            .map(|(_, fd, flags)| PollFd::new(*fd, *flags))
            .collect();
        let searches = self.backends.iter().filter_map(|b| b.search.as_ref());
        let next = searches.filter_map(Search::due).chain(due).min();
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
            let mut death = None;
            self.child(who, |child| death = child.try_reap());
            let Some(death) = death else { continue };
            self.forget(who);
            events.push(match who {
                Who::Machine => Event::Machine(machine::Event::Died(death)),
                Who::Device(place) => Event::Device(place, device::Event::Died(death)),
            });
        }
        events
    }

    /// Whether anybody who is looked for has come.
    fn look(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for (place, backend) in self.backends.iter_mut().enumerate() {
            let Some(search) = &mut backend.search else {
                continue;
            };
            let event = match search.look(Instant::now()) {
                Ok(None) => continue,
                Ok(found) => {
                    backend.found = found;
                    device::Event::Found
                }
                Err(error) => device::Event::CannotBegin(format!("{error:#}")),
            };
            backend.search = None;
            events.push(Event::Device(place, event));
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

fn copy(file: &File) -> io::Result<OwnedFd> {
    Ok(file.try_clone()?.into())
}

/// What a program is lent, to be given away; `peer` is the connection to its.
fn lend(lent: &Lent, peer: Option<OwnedFd>) -> io::Result<Vec<OwnedFd>> {
    match lent {
        Lent::Fds(fds) => fds.iter().map(OwnedFd::try_clone).collect(),
        Lent::Tap(tap) => tap.copies(),
        Lent::Listening(listener) => Ok(vec![listener.copy()?]),
        Lent::Peer { .. } => Ok(peer.into_iter().collect()),
    }
}
