//! What the driver and a back-end have agreed on, which the supervisor is told whenever
//! it has changed.

use outboard_protocol::launch::FromMachine;

use super::Owner;
use crate::machine::device::serving::Serving;

/// What was told last, and what is not told yet.
#[derive(Debug, Default)]
pub(super) struct Agreed {
    told: (Option<u64>, bool),
    tracked: bool,
}

impl Agreed {
    /// This one serves from now on, and no ring of it has started.
    pub(super) fn is_served_by(&mut self, serving: &Serving) {
        self.tracked = serving.keeps_region();
    }

    /// The last one notes in a region what it has taken.
    pub(super) fn tracked(&self) -> bool {
        self.tracked
    }
}

impl Owner {
    /// Tells it, if it has changed.
    pub(super) fn tell_agreed(&mut self) {
        let (features, tracked) = (self.driver.features(), self.agreed.tracked);
        if std::mem::replace(&mut self.agreed.told, (features, tracked)) == (features, tracked) {
            return;
        }
        self.post(FromMachine::Agreed {
            device: self.seat.spec.id.clone(),
            features,
            tracked,
        });
    }
}
