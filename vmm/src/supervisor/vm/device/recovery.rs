//! The recovery of a device whose VM lives on: what is left of its back-end is cleared
//! away, and the next one is started, at once the first time and after a while the next
//! times, without limit.

use std::time::{Duration, Instant};

use outboard_protocol::deadline::limits;

use super::{Device, Event, OnFailure, Outcome, State};
use crate::supervisor::vm::action::{Action, Who};

/// When one that does not go is mentioned first; then after twice that, and so on.
const MENTION: Duration = Duration::from_secs(5);

impl Device {
    /// How well it is served.
    pub(crate) fn health(&self) -> &super::health::Health {
        &self.health
    }

    /// It has failed, and is to be served again.
    pub(super) fn recover(&mut self, now: Instant, out: &mut Vec<Outcome>) -> State {
        self.health.has_failed(now);
        self.held = self.on_failure == OnFailure::Pause;
        self.clear(now, out)
    }

    /// Nothing is to be left of its back-end.
    pub(super) fn clear(&self, now: Instant, out: &mut Vec<Outcome>) -> State {
        out.push(Outcome::Do(Action::Clear(self.place)));
        State::Clearing {
            since: now,
            mention: MENTION,
        }
    }

    /// Its back-end is to end, and another to be started.
    pub(super) fn stop(&mut self, now: Instant, out: &mut Vec<Outcome>) -> State {
        self.health.is_lost(now);
        if !self.lives {
            return self.clear(now, out);
        }
        out.push(Outcome::Do(Action::Terminate(Who::Device(self.place))));
        let until = now + limits::TELL;
        State::Stopping { until }
    }

    /// Nothing is left of a back-end: the next is there and waits, or it is looked for, or
    /// started; not while nobody is to have the rings.
    pub(super) fn begin(&mut self, out: &mut Vec<Outcome>) -> State {
        if self.is_to_rest {
            return State::Held;
        }
        if let Some(session) = self.standby.take() {
            return self.promote(session, out);
        }
        if !self.server.seeks {
            return State::Found;
        }
        out.push(Outcome::Do(Action::Seek(self.place)));
        State::Seeking
    }

    pub(super) fn recovering(
        &mut self,
        state: State,
        event: Event,
        now: Instant,
        out: &mut Vec<Outcome>,
    ) -> State {
        match (state, event) {
            (_, Event::VmEnds) => State::Over,
            (State::Clearing { .. }, Event::Clear { known }) => self.cleared(known, now, out),
            (state @ State::Clearing { .. }, Event::Resume | Event::Restart) => {
                self.held = false;
                state
            }
            (State::Clearing { since, mention }, Event::Tick) if now >= since + mention => {
                out.push(Outcome::Do(Action::Say(format!(
                    "{}: waiting for {} to be gone and its I/O to be over, since {} s; nothing \
                     else may touch the device before",
                    self.id,
                    self.server.name,
                    mention.as_secs()
                ))));
                let mention = mention.saturating_mul(2);
                State::Clearing { since, mention }
            }
            (State::Resting { until }, Event::Tick) if now >= until => self.begin(out),
            (State::Resting { .. }, Event::Restart | Event::Free) => self.begin(out),
            (State::Held, Event::Resume | Event::Restart) => {
                self.held = false;
                self.begin(out)
            }
            (State::Held, Event::Rest(false)) if !self.held => self.begin(out),
            (State::Out(_), Event::Free) => self.begin(out),
            (State::Stopping { until }, Event::Tick) if now >= until => self.clear(now, out),
            (State::Stopping { .. }, Event::Died(_)) => self.clear(now, out),
            (state, _) => state,
        }
    }

    /// Nothing is left of its back-end.
    fn cleared(&mut self, known: bool, now: Instant, out: &mut Vec<Outcome>) -> State {
        out.push(Outcome::Do(Action::Vacate(self.place, self.session)));
        if (!known || std::mem::take(&mut self.shares)) && self.beyond.is_none() {
            let why = format!(
                "it cannot be known whether the I/O of {} is over, which shares outboard's \
                 description of the image (it may keep version 1 of the launch contract): the \
                 guest must reset the device",
                self.server.name
            );
            let id = &self.id;
            out.push(Outcome::Do(Action::Say(format!("{id}: {why}"))));
            self.beyond = Some(why);
        }
        match self.beyond.take() {
            Some(why) => {
                self.held = false;
                State::Out(why)
            }
            None if self.held => State::Held,
            // The next standby waits in its place.
            None if self.standby.is_ready() => self.begin(out),
            None => match self.health.wait() {
                Duration::ZERO => self.begin(out),
                wait => State::Resting { until: now + wait },
            },
        }
    }
}
