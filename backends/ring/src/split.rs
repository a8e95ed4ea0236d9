//! A split ring as the device's side of it (virtio 1.3, section 2.7), owned by
//! value: by the session while it is stopped, by its worker while it runs.
//!
//! ```text
//!            take                 complete             publish
//! available ──────► with device ──────────► in batch ─────────► used
//!     ▲                 │
//!     └─────────────────┘ put_back, give_back
//! ```
//! The ring is read and written here rather than through `virtio-queue`, whose
//! queue publishes every element on its own (a batch of the inflight region
//! must move the used index once), knows no NO_INTERRUPT, and whose chains end
//! alike whether they are complete or malformed.
//!
//! What a predecessor had taken is in `taken_over`.
//!
//! Whatever the driver writes is an outcome: a malformed chain comes back with
//! length 0, and a ring that cannot be followed any more is [`Broken`].

mod taken_over;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
#[cfg(not(test))]
use std::sync::atomic::fence;

use outboard_protocol::inflight::QueueRegion;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::broken::Broken;
use crate::chain::{Chain, Taken};
use crate::counters::{Tally, add};
use crate::memory::Memory;
use crate::view::{Layout, View};
use crate::words::Words;
#[cfg(test)]
use tests::model::fence;

/// Who has a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// The driver, as far as the device knows.
    Driver,
    /// The device, which may write this many bytes into it.
    Device(u32),
    /// The batch that is about to be published.
    Batch,
}

/// The inflight region's block of a ring and the next number to give.
#[derive(Debug)]
struct Tracker {
    region: QueueRegion,
    counter: u64,
}

/// The device's side of one ring.
#[derive(Debug)]
pub struct Ring {
    layout: Layout,
    event_idx: bool,
    indirect: bool,
    next_avail: u16,
    /// The driver's index when it was last looked at.
    seen_avail: u16,
    next_used: u16,
    held: Vec<Held>,
    batch: Vec<(u16, u32)>,
    /// What a predecessor had taken and not returned, oldest first: heads, and the
    /// counters of the inflight region.
    resubmit: VecDeque<(u16, u64)>,
    /// Heads that come from there, or will, and were not returned yet.
    replaying: Vec<u16>,
    /// The counter of the chain taken last, if it came from there.
    resubmitted: Option<u64>,
    tracker: Option<Tracker>,
    /// The next batch is called for whatever the driver asked, since what a
    /// predecessor told it is not known.
    call_owed: bool,
    broken: Option<Broken>,
    /// What happened on this ring, for the session to collect.
    pub tally: Tally,
}

impl Ring {
    /// A ring that goes on at available index `base`, or, with an inflight
    /// block, where a predecessor left it.
    ///
    /// # Errors
    /// [`Broken::Unreachable`] when the ring is not in memory,
    /// [`Broken::Inflight`] when the block is smaller or its content corrupt.
    pub fn new(
        layout: Layout,
        features: u64,
        base: u16,
        inflight: Option<QueueRegion>,
        words: &impl Words,
    ) -> Result<Self, Broken> {
        let size = usize::from(layout.size());
        let next_used = words.used_idx()?;
        let mut ring = Self {
            layout,
            event_idx: false,
            indirect: false,
            next_avail: base,
            seen_avail: base,
            next_used,
            held: vec![Held::Driver; size],
            batch: Vec::new(),
            resubmit: VecDeque::new(),
            replaying: Vec::new(),
            resubmitted: None,
            tracker: None,
            call_owed: true,
            broken: None,
            tally: Tally::default(),
        };
        ring.set_features(features);
        if let Some(region) = inflight {
            ring.recover(region)?;
        }
        Ok(ring)
    }

    /// Applies the features that a driver has acknowledged.
    pub fn set_features(&mut self, features: u64) {
        self.event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        self.indirect = features & (1 << VIRTIO_RING_F_INDIRECT_DESC) != 0;
    }

    /// The ring lies elsewhere now; its size is the same.
    pub fn relocate(&mut self, layout: Layout) {
        if layout.size() == self.layout.size() {
            self.layout = layout;
        }
    }

    /// Where it lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Index of the next head to take: what GET_VRING_BASE answers.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Why it is not followed any more, if so.
    pub fn broken(&self) -> Option<Broken> {
        self.broken
    }

    /// Gives the ring up until it is set up anew.
    pub fn break_off(&mut self, why: Broken) {
        add(
            &mut self.tally.broken_rings,
            u64::from(self.broken.is_none()),
        );
        self.broken.get_or_insert(why);
    }

    /// Takes the next chain into `chain`; false when there is none. Malformed
    /// ones on the way are returned to the driver.
    ///
    /// # Errors
    /// [`Broken`] when the ring cannot be followed any more.
    pub fn take(
        &mut self,
        view: &View<'_>,
        memory: &Memory,
        chain: &mut Chain,
    ) -> Result<bool, Broken> {
        loop {
            match self.take_one(view, memory, chain)? {
                Taken::Malformed => {}
                taken => return Ok(taken == Taken::Chain),
            }
        }
    }

    /// The same, but that it returns also when the next chain is a malformed one.
    ///
    /// # Errors
    /// As above.
    pub fn take_one(
        &mut self,
        view: &View<'_>,
        memory: &Memory,
        chain: &mut Chain,
    ) -> Result<Taken, Broken> {
        let Some(head) = self.next_head(view)? else {
            return Ok(Taken::Nothing);
        };
        let memory = self.indirect.then_some(memory);
        match chain.read(view.descriptors(), self.layout.size(), head, memory) {
            Ok(()) => {
                *self.held_mut(head)? = Held::Device(chain.writable_bytes());
                add(&mut self.tally.chains, 1);
                Ok(Taken::Chain)
            }
            Err(_) => {
                add(&mut self.tally.malformed_chains, 1);
                self.complete(head, 0);
                Ok(Taken::Malformed)
            }
        }
    }

    /// The next head, noted as taken.
    fn next_head(&mut self, words: &impl Words) -> Result<Option<u16>, Broken> {
        if let Some((head, counter)) = self.resubmit.pop_front() {
            self.resubmitted = Some(counter);
            return Ok(Some(head));
        }
        self.resubmitted = None;
        if self.next_avail == self.seen_avail && !self.look(words)? {
            return Ok(None);
        }
        let head = words.avail_head(self.next_avail)?;
        match self.held_mut(head)? {
            held @ Held::Driver => *held = Held::Device(0),
            _ => return Err(Broken::Head),
        }
        if let Some(tracker) = &mut self.tracker {
            tracker.region.take(head, tracker.counter)?;
            tracker.counter = tracker.counter.wrapping_add(1);
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(head))
    }

    /// Looks at the driver's index; whether it has moved since the last look.
    ///
    /// # Errors
    /// [`Broken::AvailableIndex`] when it has moved further than the ring is
    /// long, which is also what going backwards looks like.
    pub fn look(&mut self, words: &impl Words) -> Result<bool, Broken> {
        let index = words.avail_idx()?;
        if index.wrapping_sub(self.next_avail) > self.layout.size() {
            return Err(Broken::AvailableIndex);
        }
        let moved = index != self.seen_avail;
        self.seen_avail = index;
        Ok(moved)
    }

    /// Leaves the chain taken last at the head of the ring.
    ///
    /// # Errors
    /// [`Broken::Inflight`] when the inflight block does not have it.
    pub fn put_back(&mut self, head: u16) -> Result<(), Broken> {
        self.tally.chains = self.tally.chains.saturating_sub(1);
        if let Some(counter) = self.resubmitted {
            self.resubmit.push_front((head, counter));
            return Ok(());
        }
        *self.held_mut(head)? = Held::Driver;
        self.next_avail = self.next_avail.wrapping_sub(1);
        match &self.tracker {
            Some(tracker) => Ok(tracker.region.put_back(head)?),
            None => Ok(()),
        }
    }

    /// The device gives `head` up untouched. If it is the last of what was
    /// taken, the driver's order is restored and it is available again, also
    /// when a predecessor took it first. If a later chain has been answered,
    /// that cannot be, and `head` is complete with length 0. A head that the
    /// device does not have is counted and otherwise ignored.
    ///
    /// # Errors
    /// [`Broken`] when the ring or its inflight block cannot be accessed.
    pub fn give_back(&mut self, words: &impl Words, head: u16) -> Result<(), Broken> {
        if !matches!(self.held_mut(head), Ok(Held::Device(_))) {
            add(&mut self.tally.unknown_completions, 1);
            return Ok(());
        }
        let last = self.next_avail.wrapping_sub(1);
        if words.avail_head(last)? != head {
            self.complete(head, 0);
            return Ok(());
        }
        *self.held_mut(head)? = Held::Driver;
        self.replaying.retain(|replayed| *replayed != head);
        self.next_avail = last;
        self.tally.chains = self.tally.chains.saturating_sub(1);
        match &self.tracker {
            Some(tracker) => Ok(tracker.region.put_back(head)?),
            None => Ok(()),
        }
    }

    /// The device is done with `head` and wrote `length` bytes into it, of
    /// which the driver is told no more than it gave room for. A head that the
    /// device does not have is counted and otherwise ignored.
    pub fn complete(&mut self, head: u16, length: u32) {
        match self.held.get_mut(usize::from(head)) {
            Some(held @ Held::Device(_)) => {
                let room = match *held {
                    Held::Device(room) => room,
                    _ => 0,
                };
                *held = Held::Batch;
                self.batch.push((head, length.min(room)));
            }
            _ => add(&mut self.tally.unknown_completions, 1),
        }
    }

    /// Gives the driver everything completed, the used index moving once.
    /// Returns whether the driver wants a call for it.
    ///
    /// # Errors
    /// [`Broken`] when the ring or its inflight block cannot be written.
    pub fn publish(&mut self, words: &impl Words) -> Result<bool, Broken> {
        if self.batch.is_empty() {
            return Ok(false);
        }
        let old = self.next_used;
        for (head, length) in &self.batch {
            if let Some(tracker) = &self.tracker {
                tracker.region.batch(*head)?;
            }
            words.set_used(self.next_used, *head, *length)?;
            self.next_used = self.next_used.wrapping_add(1);
        }
        words.set_used_idx(self.next_used)?;
        if let Some(tracker) = &self.tracker {
            let heads = self.batch.iter().map(|(head, _)| *head);
            tracker.region.commit(heads, self.next_used)?;
        }
        for (head, _) in self.batch.drain(..) {
            if let Some(held) = self.held.get_mut(usize::from(head)) {
                *held = Held::Driver;
            }
            // Most often there is none.
            self.replaying.retain(|replayed| *replayed != head);
        }
        add(&mut self.tally.batches, 1);
        self.call_wanted(words, old)
    }

    fn call_wanted(&mut self, words: &impl Words, old: u16) -> Result<bool, Broken> {
        // The index must be visible before the driver's wish is read, or both
        // sides could miss each other (virtio 1.3, section 2.7.7.2).
        fence(Ordering::SeqCst);
        let wanted = if self.call_owed {
            true
        } else if self.event_idx {
            let passed = self
                .next_used
                .wrapping_sub(words.used_event()?)
                .wrapping_sub(1);
            passed < self.next_used.wrapping_sub(old)
        } else {
            !words.calls_suppressed()?
        };
        self.call_owed = false;
        add(&mut self.tally.calls, u64::from(wanted));
        add(&mut self.tally.suppressed, u64::from(!wanted));
        Ok(wanted)
    }

    /// Asks the driver for a kick at its next chain. Returns whether one has
    /// come meanwhile: then there is no kick to wait for.
    ///
    /// # Errors
    /// [`Broken`] when the ring cannot be followed any more.
    pub fn arm(&mut self, words: &impl Words) -> Result<bool, Broken> {
        if self.event_idx {
            words.set_avail_event(self.seen_avail)?;
        } else {
            words.suppress_kicks(false)?;
        }
        // As in `call_wanted`, from the other side (section 2.7.10.1).
        fence(Ordering::SeqCst);
        self.look(words)
    }

    /// Tells the driver that the ring is looked at without kicks. With
    /// EVENT_IDX nothing need be said: the index asked for has passed.
    ///
    /// # Errors
    /// [`Broken::Unreachable`] when the ring cannot be written.
    pub fn disarm(&self, words: &impl Words) -> Result<(), Broken> {
        if self.event_idx {
            return Ok(());
        }
        words.suppress_kicks(true)
    }

    fn held_mut(&mut self, head: u16) -> Result<&mut Held, Broken> {
        self.held.get_mut(usize::from(head)).ok_or(Broken::Head)
    }
}

#[cfg(test)]
mod tests;
