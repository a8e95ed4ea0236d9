//! One back-end after another: a newcomer is introduced and goes on where its
//! predecessor was lost, and what waited for that one to be gone is done.

use anyhow::Result;
use outboard_protocol::launch::{Cause, FromMachine, Restored, SessionNumber};

use super::Owner;
use crate::machine::device::introduce::{Offer, introduce};
use crate::machine::device::resume::{self, Successor};
use crate::machine::device::seat::Seat;
use crate::machine::device::serving::Serving;
use crate::machine::frontend::because;
use crate::machine::post::Newcomer;
use crate::machine::virtio::Registers;

impl Owner {
    /// A back-end has come. One that cannot be taken is told so, and all else
    /// stays as it is.
    pub(super) fn attach(&mut self, newcomer: Newcomer) {
        let Newcomer {
            number,
            session,
            restored,
        } = newcomer;
        if self.serving.is_some() {
            // That one's end may be there to be read.
            let heard = self.attend();
            self.lose_on_error(heard);
        }
        if self.serving.is_some() {
            let text = "the device has a back-end already";
            return self.post_lost(number, Cause::DoesNotFit, text.into());
        }
        let whose = session.whose();
        let successor = Successor { whose, restored };
        let met = introduce(&self.seat.spec, number, session, &self.interruption);
        match met.and_then(|(serving, offer)| self.employ(serving, successor, &offer)) {
            Ok(()) => self.post(FromMachine::Attached {
                device: self.seat.spec.id.clone(),
                session: number,
            }),
            Err(error) => self.lose(Some(number), &error),
        }
    }

    /// A back-end that has been introduced serves from now on: a driver that uses the
    /// device goes on where it was, and any other finds out what it is offered.
    ///
    /// # Errors
    /// It cannot go on where its predecessor was lost, or has gone.
    fn employ(&mut self, mut serving: Serving, successor: Successor, offer: &Offer) -> Result<()> {
        let Seat { spec, function, .. } = &self.seat;
        if self.driver.uses_the_device() {
            let seen = function.with_registers(|registers| {
                (registers.driver_features(), registers.config().to_vec())
            });
            let offered = (offer.features, offer.config.as_slice());
            resume::fits(successor, &spec.kind, (seen.0, &seen.1), offered)?;
        }
        let mut config = offer.config.clone();
        if let Some(byte) = self.driver.cache() {
            serving.set_cache(spec, byte)?;
            config = serving.read_config(spec)?;
        }
        if !self.driver.has_left_marks() && successor.restored == Restored::Kept {
            // That driver has gone in the meantime.
            serving.reset_device()?;
        }
        let changed = function.with_registers(|registers| {
            registers.offer(offer.features);
            registers.set_config(&config)
        });
        if changed {
            function.interrupts.config_changed();
        }
        self.agreed.is_served_by(&serving);
        self.serving = Some(serving);
        self.start()
    }

    /// Whoever served this session is gone, and nothing is written any more of what it
    /// was lent: what the guest has waited for is done.
    pub(super) fn is_vacant(&mut self, number: SessionNumber) {
        let served = |serving: &Serving| serving.number() <= number;
        if self.serving.as_ref().is_some_and(served) {
            // It is gone, whether or not that was seen.
            let heard = self.attend();
            let gone = || because(Cause::Gone, "the back-end closed its connection");
            self.lose_on_error(heard.and_then(|()| Err(gone())));
        }
        self.vacancy.is_empty(number);
        self.settle();
    }

    /// Does what had to wait until no back-end touches guest memory.
    pub(super) fn settle(&mut self) {
        if !self.vacancy.is_settled() {
            return;
        }
        let function = &self.seat.function;
        if let Some(clearing) = self.vacancy.take_clearing() {
            self.seat.rest(&self.driver);
            function.interrupts.set_master(false);
            function.is_quiet(clearing);
        }
        if self.vacancy.take_reset() {
            function.with_registers(Registers::reset_done);
            if self.serving.is_none() {
                let device = self.seat.spec.id.clone();
                self.post(FromMachine::Free { device });
            }
        }
    }
}
