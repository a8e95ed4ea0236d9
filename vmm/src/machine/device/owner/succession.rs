//! One back-end after another: a newcomer is introduced and goes on where its
//! predecessor was lost, and what waited for that one to be gone is done.

use anyhow::{Context, Result, bail};
use outboard_protocol::launch::{Cause, FromMachine, Restored, SessionNumber};

use super::Owner;
use crate::machine::device::driver::Driver;
use crate::machine::device::introduce::{Offer, introduce};
use crate::machine::device::kinds;
use crate::machine::device::kinds::blk::Capacity;
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
            ..
        } = newcomer;
        if self.is_served() {
            let text = "the device has a back-end already";
            return self.post_lost(number, Cause::DoesNotFit, text.into());
        }
        let whose = session.whose();
        let capacity = Capacity::Larger;
        let successor = Successor {
            whose,
            restored,
            capacity,
        };
        let met = introduce(
            &self.seat.spec,
            number,
            session,
            &self.interruption,
            &self.events,
        );
        let result = met.and_then(|(serving, offer)| self.employ(serving, successor, &offer));
        self.has_begun(number, result);
    }

    /// Whether there is a session, as far as can be known.
    pub(super) fn is_served(&mut self) -> bool {
        if self.serving.is_some() {
            // That one's end may be there to be read.
            let heard = self.attend();
            self.lose_on_error(heard);
        }
        self.serving.is_some()
    }

    /// Tells what became of a session that was to begin.
    pub(super) fn has_begun(&mut self, number: SessionNumber, result: Result<()>) {
        match result {
            Ok(()) => self.post(FromMachine::Attached {
                device: self.seat.spec.id.clone(),
                session: number,
            }),
            Err(error) => self.lose(Some(number), &error),
        }
    }

    /// A back-end that has been introduced serves from now on: a driver that uses the
    /// device goes on where it was, and any other finds out what it is offered: never more
    /// than by the first.
    ///
    /// # Errors
    /// It cannot go on where its predecessor was lost, or has gone. Nothing is shown to the
    /// driver then, unless it may have had a ring: whoever follows it has what it had.
    pub(super) fn employ(
        &mut self,
        mut serving: Serving,
        successor: Successor,
        offer: &Offer,
    ) -> Result<()> {
        let Owner { seat, driver, .. } = self;
        let config = Welcome { seat, driver }.of(&mut serving, successor, offer)?;
        self.agreed.is_served_by(&serving);
        self.serving = Some(serving);
        self.driver.is_served();
        let started = self.start();
        if started.is_err() && !self.serving.as_ref().is_some_and(Serving::has_begun) {
            return started;
        }
        let function = &self.seat.function;
        let features = offer.features & *self.offers.get_or_insert(offer.features);
        let changed = function.with_registers(|registers| {
            registers.offer(features);
            registers.set_config(&config)
        });
        if changed {
            function.interrupts.config_changed();
        }
        started
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

/// A newcomer is made such as the driver can go on with.
#[derive(Debug)]
pub(super) struct Welcome<'a> {
    pub(super) seat: &'a Seat,
    pub(super) driver: &'a mut Driver,
}

impl Welcome<'_> {
    /// Checks that it can serve the driver, and sets its cache to what that goes by.
    /// Returns its configuration.
    ///
    /// # Errors
    /// It cannot, or has gone.
    pub(super) fn of(
        self,
        serving: &mut Serving,
        successor: Successor,
        offer: &Offer,
    ) -> Result<Vec<u8>> {
        let Self { seat, driver } = self;
        let Seat { spec, function, .. } = seat;
        let kind = &spec.kind;
        let (features, seen, shown) = function.with_registers(|registers| {
            let seen = registers.config().to_vec();
            let shown = kinds::shown_cache(kind, registers.offered(), &seen);
            let features = match driver.uses_the_device() {
                true => Some(registers.driver_features()),
                false => registers.goes_by(),
            };
            (features, seen, shown)
        });
        let heir = heir(driver, successor);
        let mut config = offer.config.clone();
        if heir.restored != successor.restored && successor.restored == Restored::Kept {
            serving.reset_device()?;
            config = serving.read_config(spec)?;
        }
        if let Some(features) = features {
            let offered = (offer.features, config.as_slice());
            let shown = (features, seen.as_slice());
            match driver.uses_the_device() {
                true => resume::fits(heir, kind, shown, offered)?,
                false => {
                    // Nothing that it has set was lost.
                    let restored = Restored::Nothing;
                    let fits = resume::fits(Successor { restored, ..heir }, kind, shown, offered);
                    fits.context("a driver is just setting the device up")?;
                }
            }
        }
        let has = kinds::shown_cache(kind, offer.features, &config);
        if let Some(byte) = shown.filter(|_| has != shown) {
            let is_so = serving.set_cache(spec, byte)?;
            let goes_by_it =
                features.and_then(|features| kinds::shown_cache(kind, features, &seen));
            if !is_so && goes_by_it.is_some() {
                let text = "the back-end does not let its write cache be set to what the guest \
                            goes by: the guest must reset the device";
                bail!(because(Cause::NotRecoverable, text));
            }
            driver.has_configured();
            config = serving.read_config(spec)?;
        }
        Ok(config)
    }
}

/// A successor as one of this driver's back-ends. A driver that came while nobody
/// served has set nothing in any: what was kept was of the one before, which has reset
/// the device, perhaps after this successor was told.
fn heir(driver: &Driver, successor: Successor) -> Successor {
    let restored = match driver.was_served() {
        true => successor.restored,
        false => Restored::Nothing,
    };
    Successor {
        restored,
        ..successor
    }
}
