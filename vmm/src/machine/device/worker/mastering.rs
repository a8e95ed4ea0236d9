//! The bus master bit as the device's thread obeys it.
//!
//! ```text
//!  may master ──bit cleared──▶ rings stopped and drained ──▶ the guest's write returns
//!      ▲                                   │
//!      └── a kick, or a second without a reset ◀── bit set
//! ```
//! Rings do not go on with the bit itself: a kernel that was entered by kexec
//! sets it first and resets the device then, and where the rings were is its own
//! memory by now.

use std::time::Duration;

use anyhow::{Context, Result};
use outboard_protocol::Deadline;

use super::Worker;
use crate::machine::device::backend::{Backend, Keeping};
use crate::machine::frontend::Stopped;
use crate::machine::pci::Clearing;

/// A driver that has set the bit and neither kicks nor resets within this only
/// wants to go on.
const NO_RESET: Duration = Duration::from_secs(1);

/// Whether the device may touch guest memory.
#[derive(Clone, Copy, Debug)]
pub enum Mastering {
    /// It may not.
    Off,
    /// It may, and its rings rest until a kick or this.
    Resting(Deadline),
    /// It may.
    On,
}

impl Mastering {
    /// The driver whose rings rested has gone.
    pub fn rested(&mut self) {
        if let Self::Resting(_) = self {
            *self = Self::On;
        }
    }
}

impl Worker {
    /// The guest set the bit.
    pub(super) fn may_master(&mut self) {
        self.function.interrupts.set_master(true);
        self.mastering = match self.driver.uses_the_device() {
            true => Mastering::Resting(Deadline::after(NO_RESET)),
            false => Mastering::On,
        };
    }

    /// The guest cleared the bit, and a vCPU waits: takes the rings back, and
    /// lets it go on when nothing is written any more.
    ///
    /// # Errors
    /// That cannot be had: the vCPU waits on, for the end of the VM.
    pub(super) fn must_not_master(&mut self, clearing: Clearing) -> Result<()> {
        self.mastering = Mastering::Off;
        match std::mem::take(&mut self.backend) {
            Backend::Running(session) => {
                let (mut session, stopped) = session.stop()?;
                if self.errors.take_broken() {
                    self.needs_reset();
                }
                let drained = self.wait_for_drain(&mut session, &stopped, Keeping::Refused);
                drained.context("the guest turned bus mastering off")?;
                self.backend = Backend::Idle(session);
                self.keep(&stopped);
            }
            idle @ Backend::Idle(_) => self.backend = idle,
            // Whoever was there may still have the memory.
            Backend::Detached => return Ok(()),
        }
        self.rest();
        self.function.interrupts.set_master(false);
        self.function.is_quiet(clearing);
        Ok(())
    }

    /// Whether rings may be started now. If not, the driver's kicks are passed
    /// on to us until they are.
    pub(super) fn may_start(&self) -> bool {
        let may = matches!(self.mastering, Mastering::On);
        if !may {
            self.rest();
        }
        may
    }

    /// A kick, or time, for rings that rest.
    pub(super) fn resume(&mut self) -> Result<()> {
        if matches!(self.mastering, Mastering::Resting(_)) {
            self.mastering = Mastering::On;
            return self.start();
        }
        Ok(())
    }

    /// When rings that rest go on by themselves.
    pub(super) fn resumes_at(&self) -> Option<Deadline> {
        match self.mastering {
            Mastering::Resting(deadline) => Some(deadline),
            _ => None,
        }
    }

    /// Notes where the rings go on. One that has broken does not: it was given
    /// up, and its used index is not where the back-end came to.
    fn keep(&mut self, stopped: &[Stopped]) {
        self.driver.gives_up(|queue| self.errors.is_broken(queue));
        for stopped in stopped {
            self.driver.rests(stopped);
        }
        self.errors.clear();
    }

    fn rest(&self) {
        self.withdraw_all();
        for (ring, _) in self.driver.rings() {
            self.function.doorbells.rest(ring.index);
        }
    }
}
