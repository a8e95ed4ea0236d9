//! The life of the machine process, a sibling of the devices: it can be started
//! again while they and the rest of the supervisor stay. Nothing here waits.
//!
//! ```text
//!      Go             Running
//!  Off ───▶ Starting ─────────▶ Running
//!   ▲           │ Ended, Failed, │  │ its socket is closed
//!   │           │ or the VM ends │  ▼
//!   │           │                │ Silent ── LAG ──┐
//!   │           ▼                ▼    │            ▼
//!   └──ended──── Leaving ◀────────────┘         Killed ── KILLED: left alone ──▶ Off
//!                   └──────────── MACHINE ─────────▲
//!
//!                there is a reason            the vCPUs stand
//!  Running ────────────────────▶ Pausing ─────────────────────▶ Paused
//!     ▲                             │ Resume                      │ Resume
//!     └──── they may run ── Resuming ◀────────────────────────────┘
//! ```
//! Pausing, Paused and Resuming are left as Running is. Reasons to pause are a set, and
//! whoever resumes takes back all of them: he is the operator, and knows better. One
//! that comes before the guest runs counts when it does, one that comes while it is
//! being resumed when it is. An operator's outlives the guest's reset; the others are
//! about what a reset makes anew.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use log::Level;
use outboard_protocol::deadline::limits;
use outboard_protocol::launch::Ending;

use super::action::{Action, Who};
use super::end::Patience;
use super::pause::Why;
use super::verdict::Verdict;
use crate::supervisor::process::child::Death;

/// When a start that takes long is mentioned.
const SLOW_START: Duration = Duration::from_secs(10);

/// When it is mentioned that the guest has not stopped, or has not gone on.
const SLOW_PAUSE: Duration = limits::STOP;

/// What happens to the machine process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It is to be started.
    Go,
    /// It could not be started.
    NotStarted(String),
    /// It says that the guest runs.
    GuestRuns,
    /// It says how the guest's run ended.
    Ended(Ending),
    /// It says that it cannot be built, or cannot go on.
    Failed(String),
    /// The VM is to be paused, for this reason.
    Pause(Why),
    /// Every reason to pause is taken back.
    Resume,
    /// The operator's is: his pause cannot be had.
    CallOff,
    /// It says that no vCPU runs the guest.
    Paused,
    /// It says that they may.
    Resumed,
    /// Its socket is closed, or brought what no machine says.
    HungUp,
    /// It has ended.
    Died(Death),
    /// The VM ends.
    VmEnds,
    /// There is no patience left.
    Hurry(Patience),
    /// Time has passed.
    Tick,
}

/// What becomes of an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// This is to be done.
    Do(Action),
    /// It could not be started, for this reason.
    NotStarted(String),
    /// The VM is to end, for this reason.
    Verdict(Verdict),
    /// The start takes long.
    SlowStart,
}

/// Where the machine process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// There is none.
    #[default]
    Off,
    /// It is being built, or devices are being attached.
    Starting {
        /// When that is mentioned, if it was not yet.
        mention: Option<Instant>,
    },
    /// The guest runs.
    Running,
    /// It was told to pause.
    Pausing {
        /// When it is mentioned that it takes long, if it was not yet.
        mention: Option<Instant>,
    },
    /// No vCPU runs the guest.
    Paused,
    /// It was told to go on.
    Resuming {
        /// As above.
        mention: Option<Instant>,
    },
    /// It speaks no more, and its process has not ended yet.
    Silent {
        /// When it is killed.
        until: Instant,
    },
    /// It has had its last word, or was told to stop, and is to end.
    Leaving {
        /// When it is killed.
        until: Instant,
    },
    /// It was killed.
    Killed {
        /// When it is left alone: it hangs in the kernel.
        until: Instant,
    },
}

/// The machine process; by default there is none yet.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    state: State,
    /// Whether the guest was ever run by this process.
    ran: bool,
    /// Why it is to be paused; it is not to be if there are none.
    reasons: BTreeSet<Why>,
}

impl Machine {
    /// Where it is.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Whether nothing of it is left.
    pub(crate) fn is_off(&self) -> bool {
        self.state == State::Off
    }

    /// Whether it has run the guest.
    pub(crate) fn has_run(&self) -> bool {
        self.ran
    }

    /// Whether it is paused: no vCPU runs the guest.
    pub(crate) fn is_paused(&self) -> bool {
        self.state == State::Paused
    }

    /// Whether it was told to go on, and has not said that it does.
    pub(crate) fn is_resuming(&self) -> bool {
        matches!(self.state, State::Resuming { .. })
    }

    /// Why it is paused, or is to be; empty if it is not to be.
    pub(crate) fn reasons(&self) -> &BTreeSet<Why> {
        &self.reasons
    }

    /// When time itself is the next event, if nothing else comes before.
    pub(crate) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Starting { mention }
            | State::Pausing { mention }
            | State::Resuming { mention } => mention,
            State::Silent { until } | State::Leaving { until } | State::Killed { until } => {
                Some(until)
            }
            State::Off | State::Running | State::Paused => None,
        }
    }

    /// Takes an event; returns what becomes of it.
    pub(crate) fn step(&mut self, event: Event, now: Instant) -> Vec<Outcome> {
        let mut out = Vec::new();
        let state = std::mem::take(&mut self.state);
        match event {
            Event::Go => {
                self.ran = false;
                self.reasons.retain(|why| *why == Why::Operator);
            }
            Event::GuestRuns => self.ran = true,
            Event::Pause(why) => drop(self.reasons.insert(why)),
            Event::Resume => self.reasons.clear(),
            Event::CallOff => drop(self.reasons.remove(&Why::Operator)),
            _ => {}
        }
        self.state = match state {
            State::Off => off(event, now, &mut out),
            State::Starting { .. }
            | State::Running
            | State::Pausing { .. }
            | State::Paused
            | State::Resuming { .. } => alive(state, event, now, &mut out),
            State::Silent { until } => silent(until, event, now, &mut out),
            State::Leaving { until } => leaving(until, event, now, &mut out),
            State::Killed { until } => killed(until, event, now, &mut out),
        };
        self.follow(now, &mut out);
        out
    }

    /// Tells it what its reasons ask for.
    fn follow(&mut self, now: Instant, out: &mut Vec<Outcome>) {
        let mention = Some(now + SLOW_PAUSE);
        match (&self.state, self.reasons.is_empty()) {
            (State::Running, false) => {
                out.push(Outcome::Do(Action::PauseMachine));
                self.state = State::Pausing { mention };
            }
            (State::Pausing { .. } | State::Paused, true) => {
                out.push(Outcome::Do(Action::ResumeMachine));
                self.state = State::Resuming { mention };
            }
            _ => {}
        }
    }
}

fn off(event: Event, now: Instant, out: &mut Vec<Outcome>) -> State {
    if event != Event::Go {
        return State::Off;
    }
    out.push(Outcome::Do(Action::StartMachine));
    State::Starting {
        mention: Some(now + SLOW_START),
    }
}

fn alive(state: State, event: Event, now: Instant, out: &mut Vec<Outcome>) -> State {
    let running = !matches!(state, State::Starting { .. });
    let leaving = State::Leaving {
        until: now + limits::MACHINE,
    };
    match event {
        Event::NotStarted(error) => {
            out.push(Outcome::NotStarted(error));
            State::Off
        }
        Event::GuestRuns if !running => {
            out.push(Outcome::Do(Action::GuestRuns));
            State::Running
        }
        Event::Paused if matches!(state, State::Pausing { .. }) => {
            out.push(Outcome::Do(logged("the VM is paused")));
            State::Paused
        }
        Event::Resumed if matches!(state, State::Resuming { .. }) => {
            out.push(Outcome::Do(logged("the VM goes on")));
            State::Running
        }
        Event::Ended(ending) => {
            out.push(Outcome::Verdict(Verdict::Ended(ending)));
            leaving
        }
        Event::Failed(error) => {
            out.push(Outcome::Verdict(Verdict::Failed { error, running }));
            leaving
        }
        Event::HungUp => State::Silent {
            until: now + limits::LAG,
        },
        Event::Died(death) => {
            out.push(Outcome::Verdict(Verdict::MachineDied(Some(death))));
            State::Off
        }
        Event::VmEnds => {
            out.push(Outcome::Do(Action::StopMachine));
            leaving
        }
        Event::Tick => mentioned(state, now, out),
        Event::Go
        | Event::Hurry(_)
        | Event::GuestRuns
        | Event::Pause(_)
        | Event::Resume
        | Event::CallOff
        | Event::Paused
        | Event::Resumed => state,
    }
}

/// Mentions what takes long, once.
fn mentioned(state: State, now: Instant, out: &mut Vec<Outcome>) -> State {
    let is_due = |mention: Option<Instant>| mention.is_some_and(|mention| now >= mention);
    let mention = None;
    match state {
        State::Starting { mention: at } if is_due(at) => {
            out.push(Outcome::SlowStart);
            State::Starting { mention }
        }
        State::Pausing { mention: at } if is_due(at) => {
            let text = "the VM is not paused yet: a vCPU hangs in the kernel, and is waited for";
            out.push(Outcome::Do(Action::Say(text.to_owned())));
            State::Pausing { mention }
        }
        State::Resuming { mention: at } if is_due(at) => {
            let text = "the VM does not go on yet: the machine process does not answer";
            out.push(Outcome::Do(Action::Say(text.to_owned())));
            State::Resuming { mention }
        }
        state => state,
    }
}

fn logged(text: &str) -> Action {
    Action::Log(Level::Info, text.to_owned())
}

fn silent(until: Instant, event: Event, now: Instant, out: &mut Vec<Outcome>) -> State {
    match event {
        Event::Died(death) => {
            out.push(Outcome::Verdict(Verdict::MachineDied(Some(death))));
            State::Off
        }
        Event::Tick if now >= until => {
            out.push(Outcome::Do(Action::Kill(Who::Machine)));
            out.push(Outcome::Verdict(Verdict::MachineDied(None)));
            State::Killed {
                until: now + limits::KILLED,
            }
        }
        Event::VmEnds => State::Leaving {
            until: now + limits::MACHINE,
        },
        _ => State::Silent { until },
    }
}

fn leaving(until: Instant, event: Event, now: Instant, out: &mut Vec<Outcome>) -> State {
    match event {
        Event::Died(_) => State::Off,
        Event::Hurry(patience) => kill(patience, now, out),
        Event::Tick if now >= until => kill(Patience::Whole, now, out),
        _ => State::Leaving { until },
    }
}

fn kill(patience: Patience, now: Instant, out: &mut Vec<Outcome>) -> State {
    if patience != Patience::Needless {
        let text = "the machine process does not end; it is killed".to_owned();
        out.push(Outcome::Do(Action::Say(text)));
    }
    out.push(Outcome::Do(Action::Kill(Who::Machine)));
    State::Killed {
        until: now + limits::KILLED,
    }
}

fn killed(until: Instant, event: Event, now: Instant, out: &mut Vec<Outcome>) -> State {
    match event {
        Event::Died(_) => State::Off,
        Event::Tick if now >= until => {
            out.push(Outcome::Do(Action::Abandon(Who::Machine)));
            State::Off
        }
        _ => State::Killed { until },
    }
}
