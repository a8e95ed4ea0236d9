//! Watching one VM's processes until there is a reason to end them.
//!
//! ```text
//! starting ──Running──▶ running ──┬─▶ verdict ──▶ [`super::end`]
//!     └───────────────────────────┘
//! ```
//! A verdict is the machine's last word, a death, or a signal. Where several
//! come at once, the machine's word counts first: when a guest powers off,
//! every process ends at nearly the same moment.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_protocol::Deadline;
use outboard_protocol::deadline::limits;
use outboard_protocol::launch::FromMachine;

use super::child::Death;
use super::console::Console;
use super::launch::Vm;
use super::say::say;
use super::signals::Signals;
use super::verdict::Verdict;

/// When a start that takes long is mentioned, in milliseconds.
const SLOW_START: u16 = 10_000;

/// What woke us.
#[derive(Debug, Default)]
struct Events {
    nothing: bool,
    signal: bool,
    typed: bool,
}

/// The state of a watch.
struct Watch<'a> {
    vm: &'a mut Vm,
    running: bool,
    attached: Vec<String>,
}

/// Watches the VM until there is a reason to end it.
pub fn watch(vm: &mut Vm, console: &mut Console, signals: &Signals) -> Verdict {
    let mut watch = Watch {
        vm,
        running: false,
        attached: Vec::new(),
    };
    let mut mentioned = false;
    loop {
        let timeout = match watch.running || mentioned {
            true => PollTimeout::NONE,
            false => PollTimeout::from(SLOW_START),
        };
        let events = watch.wait(console, signals, timeout);
        if let Some(verdict) = watch.messages(console) {
            return verdict;
        }
        if events.signal && signals.take().is_some() || events.typed && console.typed() {
            return Verdict::Interrupted;
        }
        if let Some(verdict) = watch.deaths(console) {
            return verdict;
        }
        if events.nothing {
            mentioned = true;
            watch.mention();
        }
    }
}

impl Watch<'_> {
    fn wait(&self, console: &Console, signals: &Signals, timeout: PollTimeout) -> Events {
        let stdin = console.watched();
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if let Some(stdin) = &stdin {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        let children = self.vm.backends.iter().filter_map(|b| b.child.as_ref());
        fds.extend(
            children
                .map(|child| child.pidfd())
                .chain([self.vm.machine.pidfd(), self.vm.channel.as_fd()])
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN)),
        );
        let count = poll(&mut fds, timeout);
        let ready = |place: usize| fds.get(place).is_some_and(|fd| fd.any() == Some(true));
        Events {
            nothing: count == Ok(0),
            signal: ready(0),
            typed: stdin.is_some() && ready(1),
        }
    }

    /// Takes every message that has come.
    fn messages(&mut self, console: &mut Console) -> Option<Verdict> {
        loop {
            let now = Deadline::after(Duration::ZERO);
            match self.vm.channel.recv::<FromMachine>(now) {
                Ok(Some((message, _))) => {
                    if let Some(verdict) = self.message(message, console) {
                        return Some(verdict);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return None,
                Ok(None) => return Some(self.machine_died()),
                Err(error) => {
                    say(&format!("the machine process sent nonsense: {error}"));
                    return Some(self.machine_died());
                }
            }
        }
    }

    fn message(&mut self, message: FromMachine, console: &mut Console) -> Option<Verdict> {
        match message {
            FromMachine::Attached { device, .. } => self.attached.push(device),
            FromMachine::Running => {
                self.running = true;
                console.running();
            }
            FromMachine::Lost { device, text, .. } => return Some(self.lost(device, text)),
            FromMachine::Failed { error } => {
                let running = self.running;
                return Some(Verdict::Failed { error, running });
            }
            FromMachine::Ended { ending } => return Some(Verdict::Ended(ending)),
        }
        None
    }

    /// A session is over. If its back-end has died, that is the cause.
    fn lost(&mut self, id: String, cause: String) -> Verdict {
        let running = self.running;
        let backend = self.vm.backends.iter_mut().find(|b| b.id == id);
        if let Some(backend) = backend
            && let Some(child) = &mut backend.child
        {
            if let Some(death) = child.wait(Deadline::after(limits::LAG)) {
                return Verdict::BackEndDied {
                    id,
                    program: backend.name.clone(),
                    death,
                    cause: Some(cause),
                    running,
                };
            }
            // Whatever it is doing, nobody will have it any more.
            child.terminate();
        }
        Verdict::BackEndLost { id, cause, running }
    }

    /// The machine's socket is closed, or not to be trusted any more.
    fn machine_died(&mut self) -> Verdict {
        match self.vm.machine.wait(Deadline::after(limits::LAG)) {
            Some(death) => Verdict::MachineDied(Some(death)),
            None => {
                self.vm.machine.kill();
                Verdict::MachineDied(None)
            }
        }
    }

    fn deaths(&mut self, console: &mut Console) -> Option<Verdict> {
        let running = self.running;
        let mut dead = None;
        for backend in &mut self.vm.backends {
            if let Some(death) = backend.child.as_mut().and_then(|child| child.try_reap()) {
                dead = Some(Verdict::BackEndDied {
                    id: backend.id.clone(),
                    program: backend.name.clone(),
                    death,
                    cause: None,
                    running,
                });
                break;
            }
        }
        if let Some(Verdict::BackEndDied {
            id,
            death: Death::Exited(0),
            cause,
            ..
        }) = &mut dead
        {
            // It ended in order, as it does when the machine has, or has cut it
            // off: then the machine's word is on its way.
            match self.last_word(console) {
                Some(Verdict::BackEndLost {
                    id: lost,
                    cause: why,
                    ..
                }) => {
                    *cause = (lost == *id).then_some(why);
                }
                Some(word) => return Some(word),
                None => {}
            }
        }
        if dead.is_none()
            && let Some(death) = self.vm.machine.try_reap()
        {
            // What it said before it ended is still in the socket.
            return self.messages(console).map(|verdict| match verdict {
                Verdict::MachineDied(_) => Verdict::MachineDied(Some(death)),
                other => other,
            });
        }
        dead
    }

    /// Waits a little for how the machine ended, if it did, or else for what it
    /// says of a session.
    fn last_word(&mut self, console: &mut Console) -> Option<Verdict> {
        let deadline = Deadline::after(limits::LAG);
        let mut lost = None;
        while !deadline.passed() {
            let mut fds = [PollFd::new(self.vm.channel.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, deadline.poll_timeout());
            match self.messages(console) {
                // That the session is gone is known, but not why.
                word @ Some(Verdict::BackEndLost { .. }) => lost = lost.or(word),
                None => {}
                word => return word,
            }
        }
        lost
    }

    /// The start takes long: says what is missing.
    fn mention(&self) {
        let missing: Vec<_> = self
            .vm
            .backends
            .iter()
            .filter(|backend| !self.attached.contains(&backend.id))
            .map(|backend| format!("{} ({})", backend.id, backend.name))
            .collect();
        match missing.is_empty() {
            true => say("the machine is still being built"),
            false => say(&format!("still waiting for {}", missing.join(", "))),
        }
    }
}
