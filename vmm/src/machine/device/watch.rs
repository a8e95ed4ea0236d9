//! Whether a device's back-end serves its rings, as far as that can be told without it:
//! its kicks are consumed, and the used indices move. Nobody is woken while all is quiet.
//!
//! ```text
//!  rings are started              all rings are quiet
//!  ────────────────▶ Busy: a look every so often ─────▶ Quiet: the first kick is
//!                      ▲ │                                │     waited for, and no time
//!                      │ └ a ring stands still for as     │
//!                      │   many looks: told               │
//!                      └──────────────────────────────────┘ a kick
//! ```
//! A kick eventfd that is lent is asked by poll(2), never read. What is told is a
//! suspicion: a slow disk and a peer that takes nothing look the same, and only the
//! supervisor, which has the back-end's page of counters, can tell them apart.

mod first_kick;
mod looks;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outboard_log::rarely;
use outboard_protocol::Deadline;
use outboard_protocol::launch;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::eventfd::EventFd;

use self::first_kick::FirstKick;
use self::looks::{LOOKS, Looks, Seen};
use super::ring::{self, Indices};
use crate::machine::kvm::irq::is_signalled;
use crate::machine::memory::Ram;
use crate::machine::virtio::Ring;

pub(super) use self::looks::{Nature, Unserved};

/// A ring that runs, and the kick eventfd that was lent for it.
pub(super) type Running = (Ring, Arc<EventFd>);

/// See the module.
#[derive(Debug)]
pub(super) struct Watch {
    /// Between two looks; `None`: nothing is watched.
    every: Option<Duration>,
    queues: u16,
    rings: Vec<Running>,
    looks: Looks,
    /// Made for the first ring.
    first_kick: Option<FirstKick>,
}

impl Watch {
    /// Of this device, if it is to be watched.
    pub(super) fn new(spec: &launch::Device) -> Self {
        let timeout = spec.hang_timeout.map(u64::from).map(Duration::from_millis);
        Self {
            every: timeout.map(|timeout| timeout / LOOKS),
            queues: spec.queues,
            rings: Vec::new(),
            looks: Looks::default(),
            first_kick: None,
        }
    }

    /// What must be polled for input.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.first_kick.as_ref().map(FirstKick::fd)
    }

    /// When there is to be another look.
    pub(super) fn due(&self) -> Option<Deadline> {
        self.looks.due().map(Deadline::at)
    }

    /// Sees to the rings that run now, of a driver with these features: returns those that
    /// stand still.
    pub(super) fn attend(
        &mut self,
        running: Vec<Running>,
        nature: Nature,
        features: u64,
        ram: &Ram,
    ) -> Vec<Unserved> {
        let Some(every) = self.every else {
            return Vec::new();
        };
        let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let kicked = self.first_kick.as_mut().is_some_and(FirstKick::take);
        let is_same = |((one, kick), (other, their)): (&Running, &Running)| {
            one == other && Arc::ptr_eq(kick, their)
        };
        let now = Instant::now();
        if running.len() != self.rings.len() || !running.iter().zip(&self.rings).all(is_same) {
            self.disarm();
            self.rings = running;
            self.looks = Looks::new(every, nature);
            self.looks.are_busy(&self.see(event_idx, ram), now);
        } else if kicked && self.looks.due().is_none() {
            self.looks.are_busy(&self.see(event_idx, ram), now);
        } else if self.looks.due().is_some_and(|due| now >= due) {
            let unserved = self.looks.look(&self.see(event_idx, ram), now);
            if self.looks.due().is_none() {
                self.arm();
                // What has happened in between has rung nobody.
                self.looks.look_again(&self.see(event_idx, ram), now);
            }
            return unserved;
        }
        Vec::new()
    }

    /// Nobody serves the device.
    pub(super) fn rest(&mut self) {
        self.disarm();
        self.rings.clear();
        self.looks = Looks::default();
        let _ = self.first_kick.as_mut().map(FirstKick::take);
    }

    fn see(&self, event_idx: bool, ram: &Ram) -> Vec<Seen> {
        let rings = self.rings.iter().map(|(ring, kick)| {
            let queue = ring.index;
            let kick = is_signalled(kick);
            let indices = ring::indices(ring, event_idx, ram);
            // Where there is no ring, nothing is to be served.
            let Indices {
                available,
                used,
                kicks_wanted,
            } = indices.unwrap_or_default();
            Seen {
                queue,
                kick,
                kicks_wanted,
                outstanding: available != used,
                used,
            }
        });
        rings.collect()
    }

    /// Waits for the first kick of each ring; where that cannot be had, the next look is
    /// waited for.
    fn arm(&mut self) {
        if let Err(error) = self.try_arm() {
            rarely!(debug, "cannot wait for a kick ({error}): looking again");
            self.looks.are_never_quiet();
        }
    }

    fn try_arm(&mut self) -> io::Result<()> {
        let first = match &mut self.first_kick {
            Some(first) => first,
            none => none.insert(FirstKick::new(self.queues)?),
        };
        let rings = self.rings.iter();
        let mut heeded = rings.filter(|(ring, _)| self.looks.heeds(ring.index));
        heeded.try_for_each(|(ring, kick)| first.arm(ring.index, kick))
    }

    fn disarm(&mut self) {
        if let Some(first) = &mut self.first_kick {
            first.disarm();
        }
    }
}
