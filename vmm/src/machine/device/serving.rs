//! A session whose back-end fits, until it is lost. What is here ends with it;
//! what outlives it is the [`Driver`]'s, and is lent.
//!
//! ```text
//!  Idle ────start────▶ Running
//!   ▲                     │
//!   └──────take back──────┘        after any error there is no session
//! ```

mod stopping;

use std::os::fd::BorrowedFd;

use anyhow::Result;
use outboard_protocol::launch::{self, SessionNumber, Whose};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

pub(crate) use self::stopping::Keeping;
use self::stopping::wait_drained;
use super::backend::Backend;
use super::driver::Driver;
use super::errors::RingErrors;
use super::kinds::blk::{self, Cache};
use super::seat::Seat;
use super::watch::Nature;
use super::{kinds, resume, ring};
use crate::machine::frontend::{Limits, Negotiated, Notices, RingStart, Session};
use crate::machine::memory::Ram;
use crate::machine::virtio::Ring;

/// A session with a back-end that fits.
#[derive(Debug)]
pub(crate) struct Serving {
    number: SessionNumber,
    whose: Whose,
    /// How many queues it serves; any other that a driver enables stays unserved.
    served: u16,
    backend: Backend,
    errors: RingErrors,
    /// A ring of it may have begun since they were started last.
    has_begun: bool,
}

impl Serving {
    /// A session that has been introduced: its number, whose the back-end is, and
    /// how many queues that serves.
    pub(crate) fn new(
        (number, whose): (SessionNumber, Whose),
        served: u16,
        session: Session<Negotiated>,
    ) -> Self {
        Self {
            number,
            whose,
            served,
            backend: Backend::Idle(session),
            errors: RingErrors::default(),
            has_begun: false,
        }
    }

    /// Which of the device's sessions it is.
    pub(crate) fn number(&self) -> SessionNumber {
        self.number
    }

    /// What is known of its rings beforehand.
    pub(super) fn nature(&self, spec: &launch::Device) -> Nature {
        Nature {
            is_own: self.whose == Whose::Own,
            may_hold: kinds::may_hold(&spec.kind),
        }
    }

    /// Whether the back-end has given up on this queue's ring.
    pub(super) fn has_given_up(&self, queue: u16) -> bool {
        self.errors.is_broken(queue)
    }

    /// What must be polled for input.
    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = self.backend.fds();
        fds.extend(self.errors.fds());
        fds
    }

    /// What the back-end says unasked, also by the error eventfd of a ring.
    ///
    /// # Errors
    /// It has gone, or broke the specification.
    pub(crate) fn listen(&mut self) -> Result<Notices> {
        let mut notices = self.backend.listen()?;
        notices.ring_broken |= self.errors.take_broken();
        Ok(notices)
    }

    /// Whether it notes in a region what it has taken (INFLIGHT_SHMFD).
    pub(crate) fn keeps_region(&self) -> bool {
        match &self.backend {
            Backend::Idle(session) => session
                .agreement()
                .protocol
                .contains(Protocol::INFLIGHT_SHMFD),
            Backend::Running(_) | Backend::Lost => false,
        }
    }

    /// Whether a ring may have begun since it was started last: nobody else can be given it
    /// as it was.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// While its rings are started the guest waits, and somebody else can serve them:
    /// waits no longer than this.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        match &mut self.backend {
            Backend::Lost => {}
            Backend::Idle(session) => session.set_limits(limits),
            Backend::Running(session) => session.set_limits(limits),
        }
    }

    /// Whether it can be started.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.backend, Backend::Idle(_))
    }

    /// Whether it has been started.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.backend, Backend::Running(_))
    }

    /// Whether the back-end has this queue.
    pub(crate) fn serves(&self, queue: u16) -> bool {
        queue < self.served
    }

    /// The configuration as the driver is to see it.
    ///
    /// # Errors
    /// The back-end has gone, or refuses.
    pub(crate) fn read_config(&mut self, spec: &launch::Device) -> Result<Vec<u8>> {
        let mut config = self.backend.read_config(spec)?;
        kinds::limit_queues(&mut config, spec, self.served);
        Ok(config)
    }

    /// Passes on what the driver wrote to the configuration. Returns whether the
    /// back-end took it.
    ///
    /// # Errors
    /// The back-end has gone.
    pub(crate) fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<bool> {
        self.backend.write_config(offset, data)
    }

    /// Does beforehand what a start of its rings need not do, if none runs.
    ///
    /// # Errors
    /// The back-end refuses or has gone.
    pub(crate) fn prepare(&mut self, spec: &launch::Device, ram: &Ram) -> Result<()> {
        let queues = (self.served, spec.queue_size);
        match &mut self.backend {
            Backend::Idle(session) => session.prepare(ram, queues),
            Backend::Running(_) | Backend::Lost => Ok(()),
        }
    }

    /// [`blk::settle_cache`], while no ring runs.
    ///
    /// # Errors
    /// The back-end has gone, or does not answer.
    pub(crate) fn settle_cache(&mut self, spec: &launch::Device, flushes: bool) -> Result<Cache> {
        match &mut self.backend {
            Backend::Idle(session) => blk::settle_cache(session, (spec, self.whose), flushes),
            Backend::Running(_) | Backend::Lost => Ok(Cache::Fixed),
        }
    }

    /// Sets a disk's write cache to what its driver goes by, while no ring runs. Returns
    /// whether it is so.
    ///
    /// # Errors
    /// The back-end has gone.
    pub(crate) fn set_cache(&mut self, spec: &launch::Device, byte: u8) -> Result<bool> {
        match &mut self.backend {
            Backend::Idle(session) => blk::has_cache(session, spec.kind.config_len as usize, byte),
            Backend::Running(_) | Backend::Lost => Ok(false),
        }
    }

    /// Whether the back-end can serve the driver's rings side by side.
    pub(crate) fn can_serve(&self, driver: &Driver, ram: &Ram) -> bool {
        let rings: Vec<_> = self.served_rings(driver).map(|(ring, _)| ring).collect();
        ring::are_sound(&rings, ram)
    }

    /// Whether it has given up the ring of this queue.
    pub(crate) fn is_broken(&self, queue: u16) -> bool {
        self.errors.is_broken(queue)
    }

    /// The rings that the driver has enabled and the back-end has.
    fn served_rings(&self, driver: &Driver) -> impl Iterator<Item = (Ring, Option<u16>)> {
        let rings = driver.rings();
        rings.filter(|(ring, _)| self.serves(ring.index))
    }

    /// Starts the rings of a driver that is ready, if none of them runs.
    ///
    /// # Errors
    /// The back-end refuses or has gone, or an eventfd cannot be had.
    pub(crate) fn start(&mut self, seat: &Seat, driver: &mut Driver) -> Result<()> {
        let Some(features) = driver.features() else {
            return Ok(());
        };
        let tracked = self.keeps_region() && driver.inflight().is_some();
        let base = |ring: &Ring, known: Option<u16>| match known {
            Some(base) => Ok(base),
            None => resume::base(&seat.spec.kind, ring, tracked, &seat.ram),
        };
        let starts = self.served_rings(driver);
        let starts = starts.map(|(ring, known)| seat.lend(ring, base(&ring, known)?));
        let starts: Vec<_> = starts.collect::<Result<_>>()?;
        let session = match std::mem::take(&mut self.backend) {
            Backend::Idle(session) => session,
            other => {
                self.backend = other;
                return Ok(());
            }
        };
        let queues = (self.served, seat.spec.queue_size);
        // One that knows no protocol features may begin with a ring that is described.
        self.has_begun = !session.agreement().has_protocol();
        let session = session.describe(&seat.ram, features, queues, driver.inflight(), &starts)?;
        self.has_begun = true;
        self.backend = Backend::Running(session.enable(&starts)?);
        starts.into_iter().for_each(|start| self.watch(start));
        Ok(())
    }

    /// Starts one ring beside those that run.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub(crate) fn start_ring(&mut self, seat: &Seat, ring: Ring, base: u16) -> Result<()> {
        let Backend::Running(session) = &mut self.backend else {
            return Ok(());
        };
        let start = seat.lend(ring, base)?;
        session.start_rings(std::slice::from_ref(&start))?;
        self.watch(start);
        Ok(())
    }

    /// From now on the back-end gives up on the ring by this error eventfd.
    fn watch(&mut self, start: RingStart) {
        self.errors.watch(start.ring.index, start.error);
    }

    /// Makes good a kick that KVM could not deliver. A lent eventfd is never
    /// written, so the ring is taken back and started again, and with that comes
    /// the one kick that every start owes.
    ///
    /// # Errors
    /// As [`Self::start`], or the ring is not handed back.
    pub(crate) fn restart(&mut self, seat: &Seat, driver: &mut Driver, queue: u16) -> Result<()> {
        let Backend::Running(session) = &mut self.backend else {
            return Ok(());
        };
        let runs = session.rings().contains(&queue) && !self.errors.is_broken(queue);
        let Some(ring) = driver.ring(queue).filter(|_| runs) else {
            return Ok(());
        };
        let stopped = session.stop_ring(queue)?;
        driver.rests(&stopped);
        let whose = (&seat.spec, self.whose);
        let place = (&ring, &*seat.ram);
        wait_drained(session, whose, &stopped, place, Keeping::Believed)?;
        self.start_ring(seat, ring, stopped.base)
    }

    /// Tells the back-end that the driver has gone, whose rings have been taken
    /// back.
    ///
    /// # Errors
    /// The back-end refuses or has gone.
    pub(crate) fn reset_device(&mut self) -> Result<()> {
        match &mut self.backend {
            Backend::Idle(session) => session.reset_device(),
            Backend::Running(_) | Backend::Lost => Ok(()),
        }
    }
}
