//! A second process for a device, which waits: it is started once the device is served,
//! touches nothing, and serves at once when the first is lost and nothing is left of that.
//!
//! ```text
//!            it is served            Ready on its line, Prepared
//!  Resting ────────────────▶ Starting ─────────────────────────────▶ Ready
//!   ▲ │ ▲                       │                                     │ │ the device needs
//!   │ │ └── it is gone ── Leaving ◀── lost, killed, or the VM ends ────┘ │ a back-end
//!   │ └── it cannot wait ─▶ Refused                                      │
//!   └──────────────────────── it is the device's own from now on ◀────────┘
//! ```
//! What becomes of it is no fault of the device. After one that has died by itself the next
//! is started by the same back-off as a back-end; and so it is after the device has lost
//! one, which the standby follows at once: what kills one process after another is then
//! slowed down as it is without a standby.

mod place;

use std::time::Instant;

use log::Level;
use outboard_protocol::deadline::limits;
use outboard_protocol::launch::SessionNumber;

use super::health::Health;
use super::line::Line;
use super::{Device, Event, Outcome};
use crate::supervisor::api::model;
use crate::supervisor::process::child::Death;
use crate::supervisor::vm::action::{Action, Who};

/// How often in a row one may end by an error of its own before it was ready.
const MOST_REFUSALS: u32 = 3;

/// See the module. By default none is wanted.
#[derive(Debug, Default)]
pub(super) struct Standby {
    is_wanted: bool,
    state: State,
    /// How well those do that are started to wait.
    health: Health,
    /// How many in a row have ended by an error of their own before they were ready.
    refusals: u32,
}

/// Where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// There is none; the next is started then, or at once, if the device is served.
    Resting { until: Option<Instant> },
    /// It was started.
    Starting { session: SessionNumber, ready: bool },
    /// It waits.
    Ready { session: SessionNumber },
    /// There is none: its place is that of this session, which is part of a swap
    /// (`swap.rs`), which has a process or not.
    Swapped { session: SessionNumber, lives: bool },
    /// It was killed, or, if it has served (`why`), told to go; then it is killed, or left
    /// alone.
    Leaving {
        session: SessionNumber,
        until: Instant,
        why: Leaves,
    },
    /// There will be none.
    Refused,
}

/// Why a process leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaves {
    /// A standby that was ready is not needed any more.
    Standby,
    /// One that never was.
    Early,
    /// It was part of a swap, and was told to go.
    Swap,
    /// It was, and was killed.
    SwapKilled,
}

impl Default for State {
    fn default() -> Self {
        Self::Resting { until: None }
    }
}

impl Standby {
    /// The session of its process, if it has one.
    fn session(&self) -> Option<SessionNumber> {
        match self.state {
            State::Starting { session, .. }
            | State::Ready { session }
            | State::Swapped { session, .. }
            | State::Leaving { session, .. } => Some(session),
            State::Resting { .. } | State::Refused => None,
        }
    }

    /// Whether it can serve at once.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready { .. })
    }

    /// Takes it, if it can.
    pub(super) fn take(&mut self) -> Option<SessionNumber> {
        let State::Ready { session } = self.state else {
            return None;
        };
        self.state = State::default();
        Some(session)
    }
}

impl Device {
    /// With a standby, if `is_wanted`.
    pub(crate) fn with_standby(mut self, is_wanted: bool) -> Self {
        self.standby.is_wanted = is_wanted;
        self
    }

    /// Whether no standby of it has a process.
    pub(crate) fn has_no_standby(&self) -> bool {
        self.standby.session().is_none()
    }

    /// Whether a standby of it waits, as the control API tells it.
    pub(crate) fn standby(&self) -> model::Standby {
        match self.standby.state {
            State::Starting { .. } => model::Standby::Starting,
            State::Ready { .. } => model::Standby::Ready,
            State::Resting { .. }
            | State::Swapped { .. }
            | State::Leaving { .. }
            | State::Refused => model::Standby::None,
        }
    }

    /// When time is the next event for it.
    pub(super) fn standby_due(&self) -> Option<Instant> {
        match self.standby.state {
            State::Resting { until } if self.state == super::State::Serving => until,
            State::Leaving { until, .. } => Some(until),
            _ => None,
        }
    }

    /// Takes what concerns a standby; gives anything else back, and what concerns one
    /// that serves by now.
    pub(super) fn reserve(
        &mut self,
        event: Event,
        now: Instant,
        out: &mut Vec<Outcome>,
    ) -> Option<Event> {
        let session = self.standby.session();
        match event {
            Event::Standby(number, event) if number == self.session => return Some(*event),
            Event::Standby(number, event) if session == Some(number) => {
                self.standby_hears(*event, now, out);
            }
            Event::Prepared(number) if session == Some(number) => {
                self.standby_is_prepared(now, out);
            }
            Event::Standby(..) | Event::Prepared(_) => {}
            Event::Lost(number, _, text) if session == Some(number) => {
                self.lose_standby(&text, now, out);
            }
            Event::VmEnds => {
                self.dismiss(now, out);
                return Some(Event::VmEnds);
            }
            Event::Tick => {
                self.standby_waits(now, out);
                return Some(Event::Tick);
            }
            other => return Some(other),
        }
        None
    }

    /// It is served from now on: there is to be a standby, at once or after a while.
    pub(super) fn wants_standby(&mut self, now: Instant, out: &mut Vec<Outcome>) {
        let State::Resting { until } = &mut self.standby.state else {
            return;
        };
        if !self.standby.is_wanted {
            return;
        }
        if matches!(self.line, Line::Silent | Line::Deaf) {
            let name = &self.server.name;
            let why = format!("{name} keeps no line to outboard on which it could be told");
            return self.refuse_standby(&why, out);
        }
        *until = (*until).max(Some(now + self.health.wait()));
        self.start_standby(now, out);
    }

    /// Its standby, if there is one, is not needed any more.
    pub(super) fn dismiss(&mut self, now: Instant, out: &mut Vec<Outcome>) {
        let (session, why) = match self.standby.state {
            State::Starting { session, ready } => match ready {
                true => (session, Leaves::Standby),
                false => (session, Leaves::Early),
            },
            State::Ready { session } => (session, Leaves::Standby),
            State::Swapped {
                session,
                lives: false,
            } => return self.has_left(session, out),
            State::Swapped { session, .. } => (session, Leaves::SwapKilled),
            State::Resting { .. } | State::Leaving { .. } | State::Refused => return,
        };
        out.push(Outcome::Do(Action::Kill(Who::Standby(self.place))));
        self.standby.state = State::Leaving {
            session,
            until: now + limits::KILLED,
            why,
        };
    }

    /// Its standby serves from now on, as `session`.
    pub(super) fn promote(
        &mut self,
        session: SessionNumber,
        out: &mut Vec<Outcome>,
    ) -> super::State {
        self.suspects_nothing(session);
        self.lives = true;
        // It has said that it is ready.
        self.line = Line::Ready;
        self.order(out);
        let kept = self.kept.clone();
        let place = self.place;
        out.push(Outcome::Do(Action::TakeOver(place, session, kept, false)));
        super::State::Attaching
    }

    fn start_standby(&mut self, now: Instant, out: &mut Vec<Outcome>) {
        let State::Resting { until } = self.standby.state else {
            return;
        };
        let is_wanted = self.standby.is_wanted && self.server.program.is_some();
        if !is_wanted || until.is_some_and(|until| now < until) {
            return;
        }
        let session = self.next_session();
        out.push(Outcome::Do(Action::Prepare(self.place, session, None)));
        let ready = false;
        self.standby.state = State::Starting { session, ready };
    }

    fn standby_waits(&mut self, now: Instant, out: &mut Vec<Outcome>) {
        match self.standby.state {
            State::Resting { .. } if self.state == super::State::Serving => {
                self.start_standby(now, out);
            }
            State::Leaving {
                session,
                until,
                why: Leaves::Swap,
            } if now >= until => {
                out.push(Outcome::Do(Action::Kill(Who::Standby(self.place))));
                self.standby.state = State::Leaving {
                    session,
                    until: now + limits::KILLED,
                    why: Leaves::SwapKilled,
                };
            }
            State::Leaving {
                session,
                until,
                why: Leaves::SwapKilled,
            } if now >= until => {
                out.push(Outcome::Do(Action::Abandon(Who::Standby(self.place))));
                self.has_left(session, out);
            }
            State::Leaving { until, .. } if now >= until => {
                out.push(Outcome::Do(Action::Abandon(Who::Standby(self.place))));
                self.standby_rests(now);
            }
            _ => {}
        }
    }

    fn standby_hears(&mut self, event: Event, now: Instant, out: &mut Vec<Outcome>) {
        match event {
            Event::Ready(_) => {
                if let State::Starting { ready, .. } = &mut self.standby.state {
                    *ready = true;
                }
            }
            Event::Nonsense(_, why) => {
                self.lose_standby(&format!("it says what no standby says ({why})"), now, out);
            }
            Event::HungUp(_) => self.lose_standby("it has closed its line", now, out),
            Event::CannotBegin(text) => {
                self.tell_of_standby(&text, out);
                self.standby_rests(now);
            }
            Event::Died(death) => self.standby_is_gone(&death, now, out),
            _ => {}
        }
    }

    /// The machine has it. It has said that it is ready before, or never will.
    fn standby_is_prepared(&mut self, now: Instant, out: &mut Vec<Outcome>) {
        match self.standby.state {
            State::Starting {
                session,
                ready: true,
            } => {
                self.standby.state = State::Ready { session };
                self.standby.refusals = 0;
                self.standby.health.is_served(now);
            }
            State::Starting { ready: false, .. } => {
                let name = &self.server.name;
                let why = format!("{name} does not say that it waits");
                self.dismiss(now, out);
                self.standby.refusals = MOST_REFUSALS;
                self.tell_of_standby(&why, out);
            }
            _ => {}
        }
    }

    /// It cannot serve any more, and is to go.
    fn lose_standby(&mut self, why: &str, now: Instant, out: &mut Vec<Outcome>) {
        if matches!(
            self.standby.state,
            State::Starting { .. } | State::Ready { .. }
        ) {
            self.tell_of_standby(why, out);
            self.dismiss(now, out);
        }
    }

    fn standby_is_gone(&mut self, death: &Death, now: Instant, out: &mut Vec<Outcome>) {
        let early = match self.standby.state {
            State::Starting { ready, .. } => !ready,
            State::Leaving {
                session,
                why: Leaves::Swap | Leaves::SwapKilled,
                ..
            } => return self.has_left(session, out),
            State::Leaving { why, .. } => why == Leaves::Early,
            _ => false,
        };
        if !matches!(self.standby.state, State::Leaving { .. }) {
            self.tell_of_standby(&format!("{} {death}", self.server.name), out);
        }
        let refuses = early && matches!(death, Death::Exited(status) if *status != 0);
        let refusals = &mut self.standby.refusals;
        *refusals = refusals.saturating_add(refuses.into());
        if *refusals >= MOST_REFUSALS {
            let why = format!(
                "{} does not wait; it may be older than outboard: use one release",
                self.server.name
            );
            return self.refuse_standby(&why, out);
        }
        self.standby_rests(now);
    }

    /// It has no process any more.
    fn standby_rests(&mut self, now: Instant) {
        self.standby.health.has_failed(now);
        let until = Some(now + self.standby.health.wait());
        self.standby.state = State::Resting { until };
    }

    fn refuse_standby(&mut self, why: &str, out: &mut Vec<Outcome>) {
        self.standby.state = State::Refused;
        let id = &self.id;
        let text = format!("{id}: no standby is kept: {why}");
        out.push(Outcome::Do(Action::Log(Level::Warn, text)));
    }

    fn tell_of_standby(&self, why: &str, out: &mut Vec<Outcome>) {
        let id = &self.id;
        let text = format!("{id}: its standby is lost, and another is started: {why}");
        out.push(Outcome::Do(Action::Log(Level::Info, text)));
    }
}
