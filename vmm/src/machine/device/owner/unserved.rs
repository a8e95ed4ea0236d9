//! What the owner does about rings that stand still ([`Watch`](super::Watch)): it tells.

use outboard_protocol::launch::FromMachine;

use super::super::serving::Serving;
use super::super::watch::Running;
use super::Owner;
use crate::machine::virtio::Ring;

impl Owner {
    /// Sees to it that the rings are served, and tells if they are not.
    pub(super) fn watch(&mut self) {
        let Some(serving) = &self.serving else {
            self.watch.rest();
            return;
        };
        let running = self.running(serving);
        let nature = serving.nature(&self.seat.spec);
        let features = self.driver.features().unwrap_or_default();
        let ram = &self.seat.ram;
        for unserved in self.watch.attend(running, nature, features, ram) {
            self.post(FromMachine::Unserved {
                device: self.seat.spec.id.clone(),
                session: serving.number(),
                queue: unserved.queue,
                kick: unserved.kick,
                times: unserved.times,
            });
        }
    }

    /// The rings of the driver that run, as far as the back-end has not given up on them.
    fn running(&self, serving: &Serving) -> Vec<Running> {
        let doorbells = &self.seat.function.doorbells;
        let rings = self.driver.rings().map(|(ring, _)| ring);
        let rings = rings.filter(|ring| !serving.has_given_up(ring.index));
        let lent = |ring: Ring| Some((ring, doorbells.lent(ring.index)?));
        rings.filter_map(lent).collect()
    }
}
