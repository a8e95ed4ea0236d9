//! The successor is given the rings: it has the device's place, and the former that of who
//! waits, until the machine says whose they are.

use std::time::Instant;

use outboard_protocol::launch::{Gap, SessionNumber};

use super::super::line::Line;
use super::super::{Device, Event, Outcome};
use super::{Asked, Candidate, Former, Identity, Rest, Server, Starting, Step};
use crate::supervisor::api::model::{Change, SwapStep};
use crate::supervisor::process::child::Death;
use crate::supervisor::vm::action::Action;

impl Device {
    /// The successor is given the rings. From now on it has the device's place, and the
    /// former that of who waits.
    pub(super) fn start_candidate(
        &mut self,
        asked: Asked,
        candidate: Candidate,
        out: &mut Vec<Outcome>,
    ) {
        let Some(server) = candidate.server else {
            return;
        };
        let kept = self.kept_for_a_swap();
        let session = candidate.session;
        let take_over = Action::TakeOver(self.place, session, kept.clone(), asked.request.resize);
        let lives = server.program.is_some();
        let former = Former {
            session: self.session,
            identity: self.is_served_by(server),
            is_lost: false,
            line: self.line,
            kept: std::mem::replace(&mut self.kept, kept),
            lives: self.lives,
            died: None,
        };
        self.give_place_to(former.session, former.lives);
        self.suspects_nothing(session);
        // What the former held back has ended in its error when its rings were stopped.
        (self.lives, self.holds) = (lives, false);
        self.line = match candidate.is_ready {
            true => Line::Ready,
            false => Line::Silent,
        };
        out.push(Outcome::Do(take_over));
        self.swap.step = Step::Starting(Starting {
            number: asked.number,
            died: None,
            lost: None,
            former,
        });
    }

    /// What happens to either while the machine gives the rings to the successor: it says
    /// what comes of that.
    pub(super) fn while_starting(
        &mut self,
        event: Event,
        now: Instant,
        out: &mut Vec<Outcome>,
    ) -> Option<Event> {
        let Step::Starting(starting) = &mut self.swap.step else {
            return Some(event);
        };
        match event {
            Event::Died(death) => starting.died = Some(death),
            Event::Standby(number, event) if number == starting.former.session => {
                if let Event::Died(death) = *event {
                    starting.former.died = Some(death);
                    self.give_place_to(number, false);
                }
            }
            Event::Unserved(..) | Event::Examined(..) | Event::Hangs(..) | Event::Restart => {}
            Event::CannotBegin(why) => {
                let number = starting.number;
                self.undo(now, out);
                self.let_go_on(Some(number), Some(why), out);
            }
            // The former is gone, and the successor serves, or is gone as well.
            Event::Attached(session) | Event::Lost(session, ..)
                if session == self.session
                    && (matches!(event, Event::Attached(_)) || starting.former.is_lost) =>
            {
                let Step::Starting(starting) = std::mem::take(&mut self.swap.step) else {
                    return Some(event);
                };
                self.succeed(starting, None, now, out);
                return Some(event);
            }
            Event::VmEnds => {
                if let Step::Starting(starting) = std::mem::take(&mut self.swap.step) {
                    let number = starting.number;
                    self.succeed(starting, None, now, out);
                    self.fail(number, SwapStep::Start, "the VM ends".into(), None);
                }
                return Some(event);
            }
            // The machine will not find it when it is to, and lets the former go on.
            Event::Lost(session, _, why) if session == self.session => starting.lost = Some(why),
            Event::Lost(session, ..) if session == starting.former.session => {
                starting.former.is_lost = true;
            }
            Event::Lost(..) => {}
            other => return Some(other),
        }
        None
    }

    /// The rings are served again, by this session.
    pub(super) fn goes_on(
        &mut self,
        session: SessionNumber,
        gap: Gap,
        why: Option<String>,
        now: Instant,
        out: &mut Vec<Outcome>,
    ) {
        let late = || why.clone().unwrap_or_else(|| "it goes on".into());
        match std::mem::take(&mut self.swap.step) {
            Step::Starting(starting) if session == self.session => {
                self.succeed(starting, Some(gap), now, out);
            }
            Step::Starting(starting) if session == starting.former.session => {
                let number = starting.number;
                let why = starting.lost.clone().unwrap_or_else(late);
                self.swap.step = Step::Starting(starting);
                self.undo(now, out);
                self.swap.rest = Rest::No;
                self.fail(number, SwapStep::Start, why, Some(gap));
            }
            Step::Stopping(asked, _) if session == self.session => {
                self.dismiss(now, out);
                self.fail(asked.number, SwapStep::Stop, late(), Some(gap));
            }
            Step::Mending(number, why, true) if session == self.session => {
                self.fail(number, SwapStep::Prepare, why, Some(gap));
            }
            Step::CalledOff(number, why) if session == self.session => {
                self.fail(number, SwapStep::Stop, why, Some(gap));
            }
            Step::Pausing(None) if session == self.session => {
                self.swap.rest = Rest::Refused(late())
            }
            Step::Pausing(Some(number)) if session == self.session => {
                self.fail(number, SwapStep::Stop, late(), Some(gap));
            }
            Step::Resuming(number, why) if session == self.session => {
                self.swap.rest = Rest::No;
                match (number, why) {
                    (Some(number), Some(why)) => self.fail(number, SwapStep::Stop, why, Some(gap)),
                    (Some(number), None) => self.swap.report = Some((number, Ok(Some(gap)))),
                    (None, _) => {}
                }
            }
            other => self.swap.step = other,
        }
    }

    /// The successor is the device's back-end, and the former is told to go.
    fn succeed(
        &mut self,
        starting: Starting,
        gap: Option<Gap>,
        now: Instant,
        out: &mut Vec<Outcome>,
    ) {
        let Starting { number, died, .. } = starting;
        self.swap.rest = Rest::No;
        out.push(Outcome::Do(Action::Tell(Change::Swapped {
            device: self.id.clone(),
            program: self.server.name.clone(),
            gap: gap.map(Into::into),
        })));
        self.forget_requests();
        self.health.is_swapped(now);
        self.check_version(out);
        self.leaves(now, out);
        self.swap.report = Some((number, Ok(gap)));
        self.hear_death(died, now, out);
    }

    /// The former has its place again, and the successor is killed.
    fn undo(&mut self, now: Instant, out: &mut Vec<Outcome>) {
        let Step::Starting(starting) = std::mem::take(&mut self.swap.step) else {
            return;
        };
        let Former {
            session,
            identity,
            line,
            kept,
            lives,
            died,
            ..
        } = starting.former;
        let candidate_lives = self.lives && starting.died.is_none();
        out.push(Outcome::Do(Action::Undo(self.place)));
        self.give_place_to(self.session, candidate_lives);
        self.suspects_nothing(session);
        self.become_as(identity);
        (self.line, self.kept, self.lives) = (line, kept, lives);
        self.dismiss(now, out);
        self.hear_death(died, now, out);
    }

    /// What was heard of a death while it was not known whose place that was.
    fn hear_death(&mut self, died: Option<Death>, now: Instant, out: &mut Vec<Outcome>) {
        if let Some(death) = died {
            self.take(Event::Died(death), now, out);
        }
    }

    /// This one serves it from now on. Returns what was so by the former.
    fn is_served_by(&mut self, server: Server) -> Identity {
        self.become_as(Identity {
            server,
            shares: false,
            told_version: false,
        })
    }

    fn become_as(&mut self, identity: Identity) -> Identity {
        let Identity {
            server,
            shares,
            told_version,
        } = identity;
        Identity {
            server: std::mem::replace(&mut self.server, server),
            shares: std::mem::replace(&mut self.shares, shares),
            told_version: std::mem::replace(&mut self.told_version, told_version),
        }
    }
}
