//! What a device's back-end says of requests in flight, its death, and what its
//! successor is told: `suspects` in the life of a device.

use log::Level;
use nix::sys::signal::Signal;

use super::suspects::{Doing, Suspects};
use super::{Device, Outcome, State};
use crate::supervisor::process::child::Death;
use crate::supervisor::vm::action::Action;

impl Device {
    /// Its process has died, in the state that it still has.
    pub(super) fn blame(&mut self, death: &Death, out: &mut Vec<Outcome>) {
        let doing = match self.state {
            State::Attaching | State::Serving | State::Lost { .. } | State::Left { .. } => {
                doing(death)
            }
            // It was told to go, or killed.
            _ => Doing::Outside,
        };
        let Some(request) = self.suspects.died(doing) else {
            return;
        };
        let (id, name) = (&self.id, &self.name);
        let (queue, head) = (request.queue, request.head);
        let text = format!(
            "{id}: {name} has died of one request again and again (queue {queue}, head {head}): \
             the next one ends it in an error"
        );
        out.push(Outcome::Do(Action::Log(Level::Error, text)));
    }

    /// A back-end is about to be started: how it is to deal with what it finds.
    pub(super) fn order(&self, out: &mut Vec<Outcome>) {
        let order = self.suspects.order();
        if !order.is_plain() {
            out.push(Outcome::Do(Action::Order(self.place, order)));
        }
    }

    /// Its driver is another: whatever was in flight is forgotten.
    pub(super) fn forget_requests(&mut self) {
        self.suspects = Suspects::default();
    }
}

/// Whose doing such a death of a process is that nobody here has told to end.
fn doing(death: &Death) -> Doing {
    match death {
        Death::Killed(Signal::SIGKILL | Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP)
        | Death::Exited(0)
        | Death::NotStarted(_) => Doing::Outside,
        Death::Killed(_) | Death::Exited(_) | Death::Unknown => Doing::Own,
    }
}
