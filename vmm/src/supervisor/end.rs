//! The end of one VM: every process ends in order if it will, is killed if it
//! does not in its time, and at once when somebody asks for the end twice.
//!
//! ```text
//! machine ──ended──▶ back-ends, all at once ──ended──▶ reaped
//!    │ MACHINE           │ TELL: SIGTERM  │ END
//!    └─────▶ killed      └────────────────┴─────▶ killed ──KILLED──▶ left alone
//! ```
//! With the machine every session ends, and with it a back-end, once its I/O is
//! over: a slow disk may take long, and what was written is not to be lost.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use outboard_protocol::Deadline;
use outboard_protocol::deadline::limits;
use outboard_protocol::launch::ToMachine;

use super::child::{Child, Death};
use super::launch::{Backend, Vm};
use super::say::say;
use super::signals::Signals;
use super::verdict::Verdict;

/// Signals that come closer together ask once: timeout(1), for one, sends its
/// own to the process and to its group.
const ONE_ASKING: Duration = Duration::from_millis(500);

/// How long an end may take ([`limits`]).
#[derive(Clone, Copy, Debug)]
struct Limits {
    machine: Duration,
    /// Until a back-end is told to end.
    tell: Duration,
    backends: Duration,
    killed: Duration,
    /// When a back-end that has not ended is mentioned first; then after twice
    /// that, and so on.
    mention: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            machine: limits::MACHINE,
            tell: limits::TELL,
            backends: limits::END,
            killed: limits::KILLED,
            mention: Duration::from_secs(5),
        }
    }
}

/// Ends every process of the VM. Each has been reaped when this returns, but for
/// one that hangs in the kernel. Answers whether somebody has asked for the end.
pub fn end(vm: Vm, verdict: &Verdict, signals: &Signals) -> bool {
    let mut end = End {
        signals,
        limits: Limits::default(),
        asked: Asked::default(),
        say: &mut |line| say(line),
    };
    end.all(vm, verdict);
    end.asked.times > 0
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

    fn at_once(&self) -> bool {
        self.times >= 2
    }
}

/// An end that is being made.
struct End<'a> {
    signals: &'a Signals,
    limits: Limits,
    asked: Asked,
    say: &'a mut dyn FnMut(&str),
}

/// A back-end that has not ended, with its process.
struct Left<'a> {
    id: &'a str,
    name: &'a str,
    child: &'a mut Child,
}

impl End<'_> {
    fn all(&mut self, mut vm: Vm, verdict: &Verdict) {
        if !matches!(verdict, Verdict::Ended(_) | Verdict::Failed { .. }) {
            let deadline = Deadline::after(limits::LAG);
            let _ = vm.channel.send(&ToMachine::Stop, &[], deadline);
        }
        if *verdict == Verdict::Interrupted {
            self.asked.again(Instant::now());
        }
        self.machine(&mut vm.machine);
        self.backends(&mut vm.backends);
    }

    fn machine(&mut self, machine: &mut Child) {
        let deadline = Deadline::after(self.limits.machine);
        while !machine.is_reaped() {
            if self.asked.at_once() || deadline.passed() {
                (self.say)("the machine process does not end; it is killed");
                machine.signal_kill();
                if machine.wait(Deadline::after(self.limits.killed)).is_none() {
                    (self.say)("the machine process hangs in the kernel and is left alone");
                    machine.abandon();
                }
                return;
            }
            self.wait_for(&[&*machine], deadline);
            machine.try_reap();
        }
    }

    fn backends(&mut self, backends: &mut [Backend]) {
        let mut left: Vec<_> = backends.iter_mut().filter_map(Left::of).collect();
        let begun = Instant::now();
        let (mut told, mut mention) = (false, self.limits.mention);
        loop {
            self.reap(&mut left);
            if left.is_empty() {
                return;
            }
            let waited = begun.elapsed();
            let rest = self.limits.backends.saturating_sub(waited);
            if self.asked.at_once() || rest.is_zero() {
                break;
            }
            if waited >= self.limits.tell && !told {
                told = true;
                left.iter().for_each(|left| left.child.terminate());
            }
            if waited >= mention {
                mention = mention.saturating_mul(2);
                self.mention(&left, rest);
            }
            let tell = if told {
                self.limits.backends
            } else {
                self.limits.tell
            };
            let next = tell.min(mention).saturating_sub(waited).min(rest);
            let children: Vec<_> = left.iter().map(|left| &*left.child).collect();
            self.wait_for(&children, Deadline::after(next));
        }
        self.kill(left);
    }

    /// Kills them all, then waits for them.
    fn kill(&mut self, mut left: Vec<Left<'_>>) {
        for Left { id, name, child } in &left {
            (self.say)(&match self.asked.at_once() {
                true => format!("{id}: {name} is killed: the end was asked for twice"),
                false => format!("{id}: {name} does not end; it is killed"),
            });
            child.signal_kill();
        }
        let deadline = Deadline::after(self.limits.killed);
        while !left.is_empty() && !deadline.passed() {
            let children: Vec<_> = left.iter().map(|left| &*left.child).collect();
            self.wait_for(&children, deadline);
            self.reap(&mut left);
        }
        for Left { id, name, child } in left {
            (self.say)(&format!(
                "{id}: {name} hangs in the kernel and is left alone (process {}); look at the \
                 state of its resource",
                child.pid()
            ));
            child.abandon();
        }
    }

    /// Reaps those that have ended, and says how if that was not in order.
    fn reap(&mut self, left: &mut Vec<Left<'_>>) {
        left.retain_mut(|Left { id, name, child }| {
            let Some(death) = child.try_reap() else {
                return true;
            };
            if death != Death::Exited(0) {
                (self.say)(&format!("{id}: the back-end {name} {death}"));
            }
            false
        });
    }

    fn mention(&mut self, left: &[Left<'_>], rest: Duration) {
        let seconds = rest.as_secs();
        let how = match self.asked.times {
            0 => "two signals (SIGTERM, Ctrl-C) end",
            _ => "a second signal (SIGTERM, Ctrl-C) ends",
        };
        for Left { id, name, .. } in left {
            (self.say)(&format!(
                "{id}: waiting for {name} to finish its I/O and end, {seconds} s more at most; \
                 {how} it at once"
            ));
        }
    }

    /// Waits until one of them has ended, or a signal has come, or `deadline`.
    fn wait_for(&mut self, children: &[&Child], deadline: Deadline) {
        let children = children.iter().map(|child| child.pidfd());
        let mut fds: Vec<_> = children
            .chain([self.signals.as_fd()])
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let _ = poll(&mut fds, deadline.poll_timeout());
        if self.signals.take().is_some() {
            self.asked.again(Instant::now());
        }
    }
}

impl<'a> Left<'a> {
    fn of(backend: &'a mut Backend) -> Option<Self> {
        let child = backend.child.as_mut().filter(|child| !child.is_reaped())?;
        Some(Self {
            id: &backend.id,
            name: &backend.name,
            child,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use outboard_protocol::launch::{Channel, Ending};

    use super::super::host::program::Program;
    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(50);
    /// Nothing but time ends anything.
    const PATIENT: Limits = Limits {
        machine: LONG,
        tell: LONG,
        backends: LONG,
        killed: LONG,
        mention: LONG,
    };

    /// Runs `script` in a shell, and waits until it has run `first`.
    fn shell_after(first: &str, script: &str) -> Child {
        let program = Program::open(Path::new("/bin/sh")).unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let script = format!("{first}; exec 3>&-; {script}");
        let fds = [writer.as_fd()];
        let child = Child::start(&program, &["-c".into(), script], &[], &fds).unwrap();
        drop(writer);
        let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLHUP)];
        assert_eq!(poll(&mut fds, Deadline::after(LONG).poll_timeout()), Ok(1));
        child
    }

    fn shell(script: &str) -> Child {
        match script.split_once("; ") {
            Some((first, script)) if first.starts_with("trap") => shell_after(first, script),
            _ => shell_after(":", script),
        }
    }

    /// What is said at the end of a VM of these processes.
    fn said(machine: &str, backends: &[&str], limits: Limits) -> Vec<String> {
        let backends = backends.iter().enumerate().map(|(number, script)| Backend {
            id: format!("disk{number}"),
            name: "sh".into(),
            child: Some(shell(script)),
        });
        let vm = Vm {
            machine: shell(machine),
            channel: Channel::pair().unwrap().0,
            backends: backends.collect(),
        };
        let mut lines = Vec::new();
        let mut end = End {
            signals: &Signals::block().unwrap(),
            limits,
            asked: Asked::default(),
            say: &mut |line| lines.push(line.to_owned()),
        };
        end.all(vm, &Verdict::Ended(Ending::PowerOff));
        lines
    }

    #[test]
    fn a_back_end_with_io_under_way_is_waited_for_and_that_is_said() {
        let limits = Limits {
            mention: SHORT,
            ..PATIENT
        };
        let lines = said("exit 0", &["sleep 0.3", "exit 0"], limits);
        assert!(!lines.is_empty());
        for line in &lines {
            assert!(
                line.starts_with("disk0: waiting for sh to finish its I/O"),
                "{line}"
            );
            assert!(
                line.ends_with("two signals (SIGTERM, Ctrl-C) end it at once"),
                "{line}"
            );
        }
    }

    #[test]
    fn one_that_does_not_heed_the_end_of_its_session_is_told() {
        let limits = Limits {
            tell: SHORT,
            ..PATIENT
        };
        let heeds = "trap 'exit 0' TERM; while :; do sleep 0.01; done";
        assert_eq!(said("exit 0", &[heeds], limits), [""; 0]);
        let lines = said("exit 0", &["exec sleep 1000"], limits);
        assert_eq!(lines, ["disk0: the back-end sh was killed by SIGTERM"]);
    }

    #[test]
    fn whoever_does_not_end_in_time_is_killed_and_all_at_the_same_time() {
        let limits = Limits {
            machine: SHORT,
            tell: SHORT,
            backends: 2 * SHORT,
            ..PATIENT
        };
        let deaf = "trap '' TERM; while :; do sleep 0.01; done";
        let lines = said(deaf, &[deaf, deaf], limits);
        let mut expected = vec!["the machine process does not end; it is killed".to_owned()];
        for what in [
            "sh does not end; it is killed",
            "the back-end sh was killed by SIGKILL",
        ] {
            expected.extend((0..2).map(|disk| format!("disk{disk}: {what}")));
        }
        // Whichever of the two was reaped first.
        let mut lines = lines;
        lines[3..].sort();
        assert_eq!(lines, expected);
    }

    #[test]
    fn who_asks_twice_waits_for_nothing() {
        let signals = Signals::block().unwrap();
        let mut lines = Vec::new();
        let mut end = End {
            signals: &signals,
            limits: PATIENT,
            asked: Asked {
                times: 2,
                last: None,
            },
            say: &mut |line| lines.push(line.to_owned()),
        };
        let vm = Vm {
            machine: shell("exec sleep 1000"),
            channel: Channel::pair().unwrap().0,
            backends: vec![Backend {
                id: "disk0".into(),
                name: "sh".into(),
                child: Some(shell("exec sleep 1000")),
            }],
        };
        end.all(vm, &Verdict::Ended(Ending::PowerOff));
        assert!(
            lines[1].contains("the end was asked for twice"),
            "{lines:?}"
        );
    }

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
