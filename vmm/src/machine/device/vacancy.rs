//! Between two back-ends: one whose session is lost may still have guest memory, a
//! process that is being killed, say, or I/O that outlives it. Until the supervisor
//! says that it is gone and its I/O over, what the guest waits for is not done: after a
//! reset, or with bus mastering off, it gives the memory of its rings away.
//!
//! ```text
//!           is_lost(n)                     is_empty(n)
//!  settled ────────────▶ departing(n) ──────────────────▶ settled
//!                          │ resets, clears: noted          │ done
//! ```

use outboard_protocol::launch::SessionNumber;

use crate::machine::pci::Clearing;

/// See the module; by default nobody is departing.
#[derive(Debug, Default)]
pub(crate) struct Vacancy {
    /// The last session that was lost, until whoever served it is gone.
    departing: Option<SessionNumber>,
    resets: bool,
    clearing: Option<Clearing>,
}

impl Vacancy {
    /// This session is lost.
    pub(crate) fn is_lost(&mut self, number: SessionNumber) {
        self.departing = Some(number);
    }

    /// Whoever served this session, and any before, is gone.
    pub(crate) fn is_empty(&mut self, number: SessionNumber) {
        self.departing = self.departing.filter(|departing| *departing > number);
    }

    /// Whether nobody but a back-end that serves has guest memory.
    pub(crate) fn is_settled(&self) -> bool {
        self.departing.is_none()
    }

    /// The driver has reset the device.
    pub(crate) fn resets(&mut self) {
        self.resets = true;
    }

    /// Whether it has, and has not been told yet that that is done.
    pub(crate) fn take_reset(&mut self) -> bool {
        std::mem::take(&mut self.resets)
    }

    /// The guest has turned bus mastering off, and a vCPU waits.
    pub(crate) fn clears(&mut self, clearing: Clearing) {
        self.clearing = Some(clearing);
    }

    /// The vCPU's wait, if there is one.
    pub(crate) fn take_clearing(&mut self) -> Option<Clearing> {
        self.clearing.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_waits_for_is_done_once_the_last_that_was_lost_is_gone() {
        let mut vacancy = Vacancy::default();
        assert!(vacancy.is_settled());
        vacancy.is_lost(1);
        vacancy.resets();
        vacancy.is_lost(2);
        vacancy.is_empty(1);
        assert!(!vacancy.is_settled(), "that was a predecessor");
        vacancy.is_empty(2);
        assert!(vacancy.is_settled() && vacancy.take_reset());
        assert!(!vacancy.take_reset(), "it is told once");
        assert!(vacancy.take_clearing().is_none());
        vacancy.is_lost(3);
        vacancy.is_empty(4);
        assert!(
            vacancy.is_settled(),
            "whoever served any before is gone, too"
        );
    }
}
