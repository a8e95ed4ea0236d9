//! Chains that a predecessor had taken and not returned, as its inflight region tells.
//!
//! ```text
//! recover ─► to be taken again ──take──► with device ──publish──► returned
//!            ╰───────────── replaying ─────────────╯
//! ```

use outboard_protocol::inflight::QueueRegion;

use super::{Held, Ring, Tracker};
use crate::broken::Broken;
use crate::counters::add;

impl Ring {
    /// Goes on where a predecessor left the ring.
    ///
    /// # Errors
    /// [`Broken::Inflight`] when its block is smaller or its content corrupt.
    pub(super) fn recover(&mut self, region: QueueRegion) -> Result<(), Broken> {
        let found = region.recover(self.next_used, self.layout.size())?;
        for (head, _) in &found.requests {
            *self.held_mut(*head)? = Held::Device(0);
        }
        // As many as the ring has entries at most, so this fits.
        let count = u16::try_from(found.requests.len()).map_err(|_| Broken::Inflight)?;
        self.next_avail = self.next_used.wrapping_add(count);
        self.seen_avail = self.next_avail;
        add(&mut self.tally.resubmitted, u64::from(count));
        self.replaying = found.heads();
        self.resubmit = found.requests.into();
        self.tracker = Some(Tracker {
            region,
            counter: found.counter,
        });
        Ok(())
    }

    /// Whether chains that a predecessor had taken wait to be taken again.
    pub fn is_recovering(&self) -> bool {
        !self.resubmit.is_empty()
    }

    /// Those chains, the one that is taken next first: heads, and the counters by
    /// which the inflight region knows them.
    pub fn resubmit(&self) -> impl ExactSizeIterator<Item = (u16, u64)> {
        self.resubmit.iter().copied()
    }

    /// Whether chains that a predecessor had taken were not returned yet.
    pub fn is_replaying(&self) -> bool {
        !self.replaying.is_empty()
    }

    /// Whether that is so of this one.
    pub fn replays(&self, head: u16) -> bool {
        self.replaying.contains(&head)
    }
}
