//! The place of a standby while a swap has it (`swap.rs`): a successor that is made ready, and
//! then whoever had the device before.

use std::time::Instant;

use outboard_protocol::deadline::limits;
use outboard_protocol::launch::SessionNumber;

use super::super::{Device, Outcome};
use super::{Leaves, State};
use crate::supervisor::vm::action::{Action, Who};

impl Device {
    /// There is no standby for now: its place is that of this session of a swap, whose
    /// process `lives`, or is not there yet, or not any more.
    pub(in super::super) fn give_place_to(&mut self, session: SessionNumber, lives: bool) {
        self.standby.state = State::Swapped { session, lives };
    }

    /// Whoever has its place for a swap is told to go.
    pub(in super::super) fn leaves(&mut self, now: Instant, out: &mut Vec<Outcome>) {
        let State::Swapped { session, lives } = self.standby.state else {
            return;
        };
        if !lives {
            return self.has_left(session, out);
        }
        out.push(Outcome::Do(Action::Terminate(Who::Standby(self.place))));
        self.standby.state = State::Leaving {
            session,
            until: now + limits::TELL,
            why: Leaves::Swap,
        };
    }

    /// Nothing is left of a session of a swap.
    pub(super) fn has_left(&mut self, session: SessionNumber, out: &mut Vec<Outcome>) {
        out.push(Outcome::Do(Action::Forget(self.place)));
        if session < self.session {
            out.push(Outcome::Do(Action::Vacate(self.place, session)));
        }
        self.standby.state = State::default();
    }
}
