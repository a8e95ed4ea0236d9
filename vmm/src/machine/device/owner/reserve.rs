//! A back-end that waits beside the one that serves: what becomes of it is told, and
//! changes nothing else.

use anyhow::{Context, Error};
use outboard_protocol::launch::{Cause, FromMachine, Restored, SessionNumber};

use super::Owner;
use crate::machine::device::resume::Successor;
use crate::machine::device::standby::Waiting;
use crate::machine::frontend::cause_of;
use crate::machine::post::Newcomer;

impl Owner {
    /// Here is one that is to wait. Any other has gone, whether or not that was seen.
    pub(super) fn prepare(&mut self, newcomer: Newcomer) {
        let number = newcomer.number;
        if let Some(former) = self.standby.number() {
            self.post_lost(former, Cause::Gone, "another takes its place".into());
        }
        if let Err(error) = self.standby.begin(&self.seat, newcomer, &self.events) {
            self.standby.leave();
            self.post_lost(number, Cause::Gone, format!("{error:#}"));
        }
    }

    /// Whether it fits, and is still there.
    pub(super) fn attend_standby(&mut self) {
        for (session, result) in self.standby.attend() {
            match result {
                Ok(()) => self.post(FromMachine::Prepared {
                    device: self.seat.spec.id.clone(),
                    session,
                }),
                Err(error) => self.tell_of_standby(session, &error),
            }
        }
    }

    /// It is to serve from now on, as one does that is attached.
    pub(super) fn promote(&mut self, number: SessionNumber, restored: Restored) {
        if self.is_served() {
            let text = "the device has a back-end already";
            return self.post_lost(number, Cause::DoesNotFit, text.into());
        }
        let Some(waiting) = self.standby.take(number, &mut self.interruption) else {
            // If it was there, its end has been told.
            let text = "there is no back-end that waits";
            return self.post_lost(number, Cause::Gone, text.into());
        };
        let Waiting {
            mut serving,
            whose,
            mut offer,
        } = waiting;
        let config = serving.read_config(&self.seat.spec);
        let result = config
            .context("the back-end that has waited")
            .and_then(|config| {
                offer.config = config;
                self.employ(serving, Successor { whose, restored }, &offer)
            });
        self.has_begun(number, result);
    }

    fn tell_of_standby(&self, number: SessionNumber, error: &Error) {
        let cause = cause_of(error).unwrap_or(Cause::Gone);
        self.post_lost(number, cause, format!("{error:#}"));
    }
}
