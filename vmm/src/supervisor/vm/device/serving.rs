//! A device that has a back-end, and what is heard of its end.

use std::time::Instant;

use outboard_protocol::deadline::limits;
use outboard_protocol::launch::Cause;

use super::{Device, Event, Fault, Outcome, State};
use crate::supervisor::process::child::Death;
use crate::supervisor::vm::action::{Action, Who};

impl Device {
    pub(super) fn serving(
        &mut self,
        state: State,
        event: Event,
        now: Instant,
        out: &mut Vec<Outcome>,
    ) -> State {
        let until = now + limits::LAG;
        match event {
            Event::Attached(session) if session == self.session => {
                self.check_version(out);
                self.health.is_served(now);
                self.wants_standby(now, out);
                State::Serving
            }
            Event::CannotBegin(text) => self.fault(Fault::CannotBegin(text), out),
            Event::Lost(session, Cause::NotRecoverable, text) if session == self.session => {
                self.beyond = Some(text.clone());
                self.fault(Fault::Lost(text), out)
            }
            Event::Lost(session, _, text) if session == self.session => match self.lives {
                true => State::Lost { text, until },
                false => self.fault(Fault::Lost(text), out),
            },
            Event::Died(Death::Exited(0)) => State::Left {
                death: Death::Exited(0),
                text: None,
                until,
            },
            Event::Died(death) => self.fault(Fault::Died(death, None), out),
            Event::Hangs(session, text, doing) if session == self.session => {
                self.suspects.hangs(doing);
                out.push(Outcome::Do(Action::Kill(Who::Device(self.place))));
                self.fault(Fault::Lost(text), out)
            }
            Event::VmEnds => State::Over,
            Event::Restart => self.stop(now, out),
            _ => state,
        }
    }

    /// One half of the news is there: waits a little for the other.
    pub(super) fn doubtful(
        &mut self,
        state: State,
        event: Event,
        now: Instant,
        out: &mut Vec<Outcome>,
    ) -> State {
        match (state, event) {
            (State::Lost { text, .. }, Event::Died(death)) => {
                self.fault(Fault::Died(death, Some(text)), out)
            }
            (State::Lost { .. }, Event::CannotBegin(text)) => {
                self.fault(Fault::CannotBegin(text), out)
            }
            (State::Lost { text, until }, Event::Tick) if now >= until => self.lost(text, out),
            (State::Lost { text, .. }, Event::Settle) => self.lost(text, out),
            (State::Left { death, text, .. }, Event::Settle) => {
                self.fault(Fault::Died(death, text), out)
            }
            (State::Left { death, text, .. }, Event::Lost(session, _, why))
                if session == self.session =>
            {
                self.fault(Fault::Died(death, text.or(Some(why))), out)
            }
            (State::Left { death, text, until }, Event::Tick) if now >= until => {
                self.fault(Fault::Died(death, text), out)
            }
            (_, Event::VmEnds) => State::Over,
            (state, _) => state,
        }
    }

    /// The session is lost, and the process lives: whatever it is doing, nobody
    /// will have it any more.
    pub(super) fn lost(&self, text: String, out: &mut Vec<Outcome>) -> State {
        out.push(Outcome::Do(Action::Terminate(Who::Device(self.place))));
        self.fault(Fault::Lost(text), out)
    }

    pub(super) fn fault(&self, fault: Fault, out: &mut Vec<Outcome>) -> State {
        if matches!(fault, Fault::Died(..)) {
            out.push(Outcome::Do(Action::TellCounts(self.place)));
        }
        out.push(Outcome::Fault(fault));
        State::Over
    }
}
