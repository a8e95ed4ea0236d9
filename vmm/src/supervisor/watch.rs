//! Watching one VM's processes, and ending them.
//!
//! ```text
//! starting ──Running──▶ running ──┬─▶ verdict ──▶ end
//!     └───────────────────────────┘
//! ```
//! A verdict is the machine's last word, a death, or a signal. Where several
//! come at once, the machine's word counts first: when a guest powers off,
//! every process ends at nearly the same moment.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_protocol::Deadline;
use outboard_protocol::launch::{FromMachine, ToMachine};

use super::child::Death;
use super::console::Console;
use super::launch::{SEND_WAIT, Vm};
use super::say;
use super::signals::Signals;
use super::verdict::Verdict;

/// How long the other side of an end may lag behind the one seen first.
const LAG: Duration = Duration::from_secs(2);
/// How long a process may take to end in order.
const END_WAIT: Duration = Duration::from_secs(10);
/// How long a back-end may take to obey SIGTERM.
const TERM_WAIT: Duration = Duration::from_secs(2);
/// Signals that come closer together ask once: timeout(1), for one, sends its
/// own to the process and to its group.
const ONE_ASKING: Duration = Duration::from_millis(500);
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
            FromMachine::Attached { device } => self.attached.push(device),
            FromMachine::Running => {
                self.running = true;
                console.running();
            }
            FromMachine::Lost { device, cause } => return Some(self.lost(device, cause)),
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
            if let Some(death) = child.wait(Deadline::after(LAG)) {
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
        match self.vm.machine.wait(Deadline::after(LAG)) {
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
        let deadline = Deadline::after(LAG);
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

/// How many times somebody has asked for the end.
#[derive(Debug, Default)]
struct Asked {
    times: u32,
    last: Option<Instant>,
}

impl Asked {
    fn again(&mut self, now: Instant) {
        let apart = |last| now.saturating_duration_since(last) >= ONE_ASKING;
        if self.last.is_none_or(apart) {
            self.times += 1;
            self.last = Some(now);
        }
    }
}

/// Ends every process of the VM: in order if they will, killed if not, at once
/// when somebody asks for the end a second time. Each has been reaped when
/// this returns. Answers whether somebody has asked for the end.
pub fn end(mut vm: Vm, verdict: &Verdict, signals: &Signals) -> bool {
    let ends_by_itself = matches!(verdict, Verdict::Ended(_) | Verdict::Failed { .. });
    if !ends_by_itself {
        let deadline = Deadline::after(SEND_WAIT);
        let _ = vm.channel.send(&ToMachine::Stop, &[], deadline);
    }
    let mut asked = Asked::default();
    if *verdict == Verdict::Interrupted {
        asked.again(Instant::now());
    }
    let mut wait = |child: &mut super::child::Child, wait: Duration| {
        let deadline = Deadline::after(wait);
        while asked.times < 2 && !deadline.passed() {
            let mut fds = [
                PollFd::new(child.pidfd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            let _ = poll(&mut fds, deadline.poll_timeout());
            if let Some(death) = child.try_reap() {
                return Some(death);
            }
            if signals.take().is_some() {
                asked.again(Instant::now());
            }
        }
        None
    };
    if !vm.machine.is_reaped() && wait(&mut vm.machine, END_WAIT).is_none() {
        say("the machine process does not end; it is killed");
        vm.machine.kill();
    }
    // With the machine every session ends, and with it a back-end.
    for backend in &mut vm.backends {
        let Some(child) = backend.child.as_mut().filter(|child| !child.is_reaped()) else {
            continue;
        };
        let mut death = wait(child, END_WAIT);
        if death.is_none() {
            say(&format!(
                "{}: {} does not end; it is killed",
                backend.id, backend.name
            ));
            child.terminate();
            death = wait(child, TERM_WAIT).or_else(|| child.kill());
        }
        if let Some(death) = death.filter(|death| *death != Death::Exited(0)) {
            say(&format!(
                "{}: the back-end {} {death}",
                backend.id, backend.name
            ));
        }
    }
    asked.times > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_in_a_burst_ask_once_and_a_later_one_again() {
        let (mut asked, start) = (Asked::default(), Instant::now());
        for millis in [0, 3, 400] {
            asked.again(start + Duration::from_millis(millis));
        }
        assert_eq!(asked.times, 1);
        asked.again(start + Duration::from_millis(600));
        assert_eq!(asked.times, 2);
    }
}
