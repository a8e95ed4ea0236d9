//! The end of a device's back-end, once the VM ends: it has its time, it is told,
//! it is killed, it is left alone.

use std::time::{Duration, Instant};

use outboard_protocol::deadline::limits;

use super::{Device, Event, Outcome, State};
use crate::supervisor::process::child::Death;
use crate::supervisor::vm::action::{Action, Who};
use crate::supervisor::vm::end::Patience;

/// When a back-end that has not ended is mentioned first; then after twice that,
/// and so on.
const MENTION: Duration = Duration::from_secs(5);

impl Device {
    pub(super) fn over(&mut self, event: Event, now: Instant, out: &mut Vec<Outcome>) -> State {
        match event {
            Event::Died(death) => {
                self.ended(&death, out);
                State::Over
            }
            Event::Recover => self.recover(now, out),
            Event::Leave { .. } if !self.lives => State::Down,
            Event::Leave(Patience::Whole) => State::Leaving {
                since: now,
                told: false,
                mention: MENTION,
            },
            Event::Leave(patience) => self.kill(patience, now, out),
            _ => State::Over,
        }
    }

    pub(super) fn ending(
        &mut self,
        state: State,
        event: Event,
        now: Instant,
        out: &mut Vec<Outcome>,
    ) -> State {
        match (state, event) {
            (State::Killed { quietly: true, .. }, Event::Died(_)) => State::Down,
            (_, Event::Died(death)) => {
                self.ended(&death, out);
                State::Down
            }
            (_, Event::CannotBegin(_)) => State::Down,
            (State::Leaving { .. }, Event::Hurry) => self.kill(Patience::Lost, now, out),
            (
                State::Leaving {
                    since,
                    told,
                    mention,
                },
                Event::Tick,
            ) => self.leaving((since, told, mention), now, out),
            (State::Killed { until, .. }, Event::Tick) if now >= until => {
                self.gone();
                out.push(Outcome::Do(Action::Abandon(Who::Device(self.place))));
                State::Down
            }
            (state, _) => state,
        }
    }

    fn leaving(
        &mut self,
        (since, mut told, mut mention): (Instant, bool, Duration),
        now: Instant,
        out: &mut Vec<Outcome>,
    ) -> State {
        let waited = now.saturating_duration_since(since);
        let rest = limits::END.saturating_sub(waited);
        if rest.is_zero() {
            return self.kill(Patience::Whole, now, out);
        }
        if waited >= limits::TELL && !told {
            told = true;
            out.push(Outcome::Do(Action::Terminate(Who::Device(self.place))));
        }
        if waited >= mention {
            mention = mention.saturating_mul(2);
            out.push(Outcome::Mention(rest));
        }
        State::Leaving {
            since,
            told,
            mention,
        }
    }

    fn kill(&self, patience: Patience, now: Instant, out: &mut Vec<Outcome>) -> State {
        let (id, name) = (&self.id, &self.server.name);
        let text = match patience {
            Patience::Whole => Some(format!("{id}: {name} does not end; it is killed")),
            Patience::Lost => Some(format!(
                "{id}: {name} is killed: the end was asked for twice"
            )),
            Patience::Needless => None,
        };
        out.extend(text.map(|text| Outcome::Do(Action::Say(text))));
        out.push(Outcome::Do(Action::Kill(Who::Device(self.place))));
        State::Killed {
            quietly: patience == Patience::Needless,
            until: now + limits::KILLED,
        }
    }

    /// The process has ended while the VM did; says how, if that was not in order.
    fn ended(&self, death: &Death, out: &mut Vec<Outcome>) {
        if *death != Death::Exited(0) {
            let text = format!("{}: the back-end {} {death}", self.id, self.server.name);
            out.push(Outcome::Do(Action::Say(text)));
        }
    }
}
