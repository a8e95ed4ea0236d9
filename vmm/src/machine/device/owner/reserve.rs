//! A back-end that waits beside the one that serves: what becomes of it is told, and
//! changes nothing else.

use anyhow::{Context, Error, Result};
use outboard_protocol::launch::{Cause, FromMachine, Replaces, SessionNumber, Whose};

use super::Owner;
use super::succession::Welcome;
use crate::machine::device::kinds::blk::Capacity;
use crate::machine::device::resume::Successor;
use crate::machine::device::standby::Waiting;
use crate::machine::frontend::{Limits, cause_of};
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
            match result.and_then(|()| self.judge()) {
                Ok(()) => self.post(FromMachine::Prepared {
                    device: self.seat.spec.id.clone(),
                    session,
                }),
                Err(error) => {
                    self.standby.leave();
                    self.tell_of_standby(session, &error);
                }
            }
        }
    }

    /// Whether the one that waits can replace the one that works, if it is to: nothing
    /// of that is touched.
    fn judge(&mut self) -> Result<()> {
        let Owner {
            standby,
            driver,
            seat,
            ..
        } = self;
        let Some(waiting) = standby.waiting() else {
            return Ok(());
        };
        let Some(replaces) = waiting.replaces else {
            return Ok(());
        };
        let successor = successor(waiting.whose, replaces);
        let welcome = Welcome { seat, driver };
        let serving = &mut waiting.serving;
        // The guest's resets wait for this thread.
        serving.set_limits(Limits::OF_A_SUCCESSOR);
        let fits = welcome.of(serving, successor, &waiting.offer);
        serving.set_limits(Limits::default());
        fits.map(drop)
    }

    /// It is to serve from now on, as one does that is attached.
    pub(super) fn promote(&mut self, number: SessionNumber, replaces: Replaces) {
        if self.is_served() {
            if let Some(rest) = self.rest.take() {
                return self.follow(rest, number, replaces);
            }
            let text = "the device has a back-end already";
            return self.post_lost(number, Cause::DoesNotFit, text.into());
        }
        let Some(waiting) = self.standby.take(number, &mut self.interruption) else {
            // If it was there, its end has been told.
            let text = "there is no back-end that waits";
            return self.post_lost(number, Cause::Gone, text.into());
        };
        let mut successor = successor(waiting.whose, replaces);
        if successor.capacity == Capacity::Same {
            // Nobody works any more.
            successor.capacity = Capacity::Larger;
        }
        let result = self.employ_waiting(waiting, successor);
        self.has_begun(number, result);
    }

    /// One that has waited serves from now on.
    ///
    /// # Errors
    /// Those of [`Self::employ`].
    pub(super) fn employ_waiting(&mut self, waiting: Waiting, successor: Successor) -> Result<()> {
        let Waiting {
            mut serving,
            mut offer,
            ..
        } = waiting;
        let config = serving.read_config(&self.seat.spec);
        offer.config = config.context("the back-end that has waited")?;
        self.employ(serving, successor, &offer)
    }

    fn tell_of_standby(&self, number: SessionNumber, error: &Error) {
        let cause = cause_of(error).unwrap_or(Cause::Gone);
        self.post_lost(number, cause, format!("{error:#}"));
    }
}

/// Who is to replace one that works.
pub(super) fn successor(whose: Whose, replaces: Replaces) -> Successor {
    Successor {
        whose,
        restored: replaces.restored,
        capacity: match replaces.resizes {
            true => Capacity::Any,
            false => Capacity::Same,
        },
    }
}
