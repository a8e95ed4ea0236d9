//! Who kills, whom and when.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::eventually;
use crate::pattern::splitmix64;
use crate::processes::{self, Process};
use crate::vm::{GuestResult, Vm};

/// Requests that were begun since a kill, from which on the device must have
/// completed some: more than fit into its queues.
const MANY: u64 = 200;

/// What a back-end is struck with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// A signal.
    Signal(Signal),
    /// `outboard ctl restart` of its device.
    Restart,
}

impl Blow {
    /// SIGKILL.
    pub const KILL: Self = Self::Signal(Signal::SIGKILL);
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => signal.fmt(f),
            Self::Restart => f.write_str("ctl restart"),
        }
    }
}

/// Which of the back-ends of a device is struck, of which one waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// The one that was started last: without a standby there is no other.
    Newest,
    /// The one that was started first, which serves.
    Serving,
    /// Any of them.
    Any,
}

/// Who kills the back-ends of one program, one after the other.
#[derive(Debug)]
pub struct Killer {
    program: &'static str,
    began: Instant,
    random: u64,
    within: Duration,
    /// Whom it kills.
    pub aim: Aim,
    /// When it has killed, from the beginning on.
    pub kills: Vec<Duration>,
}

impl Killer {
    /// One who has not killed yet, and takes the time from now on.
    pub fn new(program: &'static str, seed: u64, within: Duration) -> Self {
        Self {
            program,
            began: Instant::now(),
            random: seed,
            within,
            aim: Aim::Newest,
            kills: Vec::new(),
        }
    }

    /// The back-end as it is now, if there is one: the newest, if there are two.
    pub fn newest(&self, vm: &Vm) -> Option<Pid> {
        self.all(vm).last().copied()
    }

    /// The back-end that is aimed at as it is now.
    fn aimed_at(&self, vm: &Vm) -> Option<Pid> {
        let all = self.all(vm);
        match self.aim {
            Aim::Newest => all.last(),
            Aim::Serving => all.first(),
            Aim::Any => {
                let some = usize::try_from(self.random).unwrap_or(0);
                all.get(some.checked_rem(all.len())?)
            }
        }
        .copied()
    }

    /// All back-ends as they are now, the oldest first.
    pub fn all(&self, vm: &Vm) -> Vec<Pid> {
        let is = |process: &Process| {
            let name = process.args.first().map(Path::new);
            // A shell becomes it.
            let names = [self.program, "sh"];
            process.is_backend()
                && name.is_some_and(|name| names.iter().any(|end| name.ends_with(end)))
        };
        let children = processes::children(vm.pid()).into_iter();
        children.filter(is).map(|process| process.pid).collect()
    }

    /// Waits for a back-end other than this one.
    ///
    /// # Errors
    /// None comes up, or the run is over.
    pub fn next(&self, vm: &mut Vm, last: Option<Pid>) -> Result<Pid> {
        let found = eventually("another back-end is there", || {
            ensure!(!vm.is_over()?, "the run is over");
            Ok(self.aimed_at(vm).filter(|pid| Some(*pid) != last))
        });
        let kills = self.kills.len();
        found.with_context(|| format!("after {kills} kills; {last:?} was last: {}", vm.messages()))
    }

    /// Sends a back-end a signal, unless it is gone already.
    ///
    /// # Errors
    /// The system does not let it.
    pub fn strike(&mut self, pid: Pid, signal: Signal) -> Result<()> {
        self.note();
        match kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).context("kill"),
        }
    }

    /// Notes that it has killed now.
    pub fn note(&mut self) {
        self.kills.push(self.began.elapsed());
    }

    /// Waits for some time, at most as long as it was told.
    pub fn wait_a_while(&mut self) {
        self.random = splitmix64(self.random);
        let most = u64::try_from(self.within.as_micros()).unwrap_or(u64::MAX);
        let wait = self.random.checked_rem(most).unwrap_or(0);
        std::thread::sleep(Duration::from_micros(wait));
    }

    /// Waits until the guest has gone on after the last kill, as its progress
    /// lines say.
    ///
    /// # Errors
    /// It does not go on.
    pub fn until_it_goes_on(&self, vm: &mut Vm) -> Result<()> {
        let kill = self.kills.last().copied().unwrap_or_default();
        let mut first = None;
        loop {
            let line = vm.console_line("progress scenario=storm")?;
            let words = GuestResult::from_words(&line);
            if Duration::from_millis(words.number("millis")?) <= kill {
                continue;
            }
            let requests = words.number("requests")?;
            if requests >= *first.get_or_insert(requests) + MANY {
                return Ok(());
            }
        }
    }

    /// Sends the signal to one back-end after the other, wherever each is in
    /// its start. In the end there is one that lives.
    ///
    /// # Errors
    /// No successor comes up.
    pub fn kill_them(&mut self, vm: &mut Vm, times: u32, signal: Signal) -> Result<()> {
        let mut last = None;
        for _ in 0..times {
            let pid = self.next(vm, last)?;
            self.wait_a_while();
            self.strike(pid, signal)?;
            last = Some(pid);
        }
        self.next(vm, last)?;
        Ok(())
    }
}
