//! A session ends by an error, and what is told then.

use anyhow::{Error, Result};
use outboard_protocol::launch::{Cause, FromMachine, SessionNumber};

use super::Owner;
use crate::machine::device::serving::Serving;
use crate::machine::frontend::cause_of;

impl Owner {
    /// After an error there is no session any more.
    pub(super) fn lose_on_error(&mut self, result: Result<()>) {
        if let Err(error) = result {
            let number = self.serving.as_ref().map(Serving::number);
            self.lose(number, &error);
        }
    }

    /// Ends the session, and tells why. Where rings ran, only the used index tells
    /// how far they have come.
    pub(super) fn lose(&mut self, number: Option<SessionNumber>, error: &Error) {
        if let Some(serving) = self.serving.take()
            && !serving.is_idle()
        {
            self.driver.gives_up(|queue| serving.is_broken(queue));
            // Before it has its region, no ring of a back-end that keeps one has run.
            if !self.agreed.tracked() || self.driver.inflight().is_some() {
                self.driver.is_cut_off();
            }
        }
        if let Some(number) = number {
            self.vacancy.is_lost(number);
        }
        (self.config_stale, self.rest) = (None, None);
        self.seat.withdraw_all();
        self.interruption.end_session();
        let text = format!("{error:#}");
        match (number, cause_of(error)) {
            (Some(number), Some(cause)) => self.post_lost(number, cause, text),
            // What goes wrong without a back-end is none's fault.
            _ => self.post(FromMachine::Failed {
                error: format!("{}: {text}", self.seat.spec.id),
            }),
        }
    }

    /// Tells the main loop, unless the device ends anyway.
    pub(super) fn post(&self, event: FromMachine) {
        if !self.interruption.is_stopping() {
            self.events.post(event);
        }
    }

    pub(super) fn post_lost(&self, session: SessionNumber, cause: Cause, text: String) {
        self.post(FromMachine::Lost {
            device: self.seat.spec.id.clone(),
            session,
            cause,
            text,
        });
    }
}
