//! The rings of a driver that the back-end serves, as a whole.

use anyhow::Result;

use super::super::backend::{Keeping, wait_drained};
use super::super::ring;
use super::Worker;
use crate::machine::frontend::{Session, Stopped};
use crate::machine::virtio::Ring;

impl Worker {
    /// The rings that the driver has enabled and the back-end has.
    pub(super) fn served_rings(&self) -> impl Iterator<Item = (Ring, u16)> {
        let rings = self.driver.rings();
        rings.filter(|(ring, _)| ring.index < self.served)
    }

    /// Whether a back-end can serve them side by side.
    pub(super) fn rings_are_sound(&self) -> bool {
        let rings: Vec<_> = self.served_rings().map(|(ring, _)| ring).collect();
        ring::are_sound(&rings, &self.ram)
    }

    /// As [`wait_drained`], of all rings that were stopped. One that its back-end
    /// has given up is stopped by its word alone: where it came to is not told by
    /// the used index.
    pub(super) fn wait_for_drain<P>(
        &self,
        session: &mut Session<P>,
        stopped: &[Stopped],
        keeping: Keeping,
    ) -> Result<()> {
        let whose = (&self.spec, self.whose);
        for stopped in stopped {
            let mut rings = self.served_rings().map(|(ring, _)| ring);
            if let Some(ring) = rings.find(|ring| ring.index == stopped.queue)
                && !self.errors.is_broken(ring.index)
            {
                wait_drained(session, whose, stopped, (&ring, &self.ram), keeping)?;
            }
        }
        Ok(())
    }
}
