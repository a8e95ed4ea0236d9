//! The place of a device in the machine, which stays as it is while back-ends
//! come and go.

use std::io;
use std::sync::Arc;

use anyhow::{Context, Result};
use outboard_protocol::descriptors::explain;
use outboard_protocol::launch;
use vmm_sys_util::eventfd::EventFd;

use super::driver::Driver;
use super::errors::RingErrors;
use crate::machine::frontend::RingStart;
use crate::machine::memory::Ram;
use crate::machine::pci::Function;
use crate::machine::virtio::Ring;

/// What a device is, where the guest finds it, and whose memory it works on.
#[derive(Debug)]
pub(crate) struct Seat {
    /// What it is.
    pub(crate) spec: launch::Device,
    /// Its function on the bus.
    pub(crate) function: Arc<Function>,
    /// Guest memory.
    pub(crate) ram: Arc<Ram>,
}

impl Seat {
    /// Fresh eventfds for a ring, bound before they are lent.
    ///
    /// # Errors
    /// This process can have no more of them.
    pub(crate) fn lend(&self, ring: Ring, base: u16) -> Result<RingStart> {
        let (interrupts, doorbells) = (&self.function.interrupts, &self.function.doorbells);
        let made = |eventfd: io::Result<Arc<EventFd>>| {
            let making = || format!("making eventfds for queue {}", ring.index);
            eventfd.map_err(explain).with_context(making)
        };
        Ok(RingStart {
            ring,
            base,
            call: made(interrupts.lend(ring.index))?,
            kick: made(doorbells.lend(ring.index))?,
            error: made(RingErrors::eventfd())?,
        })
    }

    /// From now on a kick exits to us, and nothing that was lent raises an
    /// interrupt.
    pub(crate) fn withdraw_all(&self) {
        for queue in 0..self.spec.queues {
            self.function.doorbells.withdraw(queue);
            self.function.interrupts.withdraw(queue);
        }
    }

    /// The same, and the driver's kicks are passed on to us until its rings are
    /// started.
    pub(crate) fn rest(&self, driver: &Driver) {
        self.withdraw_all();
        for (ring, _) in driver.rings() {
            self.function.doorbells.rest(ring.index);
        }
    }
}
