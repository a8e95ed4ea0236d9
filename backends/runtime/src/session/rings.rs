//! The rings of a session: what the front-end has said of each, and whether its
//! worker has it.
//!
//! ```text
//!                 SET_VRING_NUM, ADDR, BASE, KICK, CALL, ERR, ENABLE
//!                        │ all that is needed is there
//! described ─────────────▼──────────────► running ◄──┐
//!     ▲                                      │       │ start, as soon as it may
//!     │ GET_VRING_BASE, reset                ▼ park  │
//!     └──────────────────────────────────── parked ──┘
//! ```
//! A ring counts as started once it has a kick descriptor: the kick that would
//! start it by the letter of the specification may have been read by a
//! predecessor, so its worker looks at the ring at once instead. A parked ring
//! keeps its place: it is disabled, or something about it is being changed.

use std::sync::Arc;

use outboard_protocol::Deadline;
use outboard_protocol::inflight::Region;
use outboard_ring::{Layout, Ring, Tally, View};
use vhost::vhost_user::message::VhostUserVringAddr;
use vm_memory::GuestMemoryBackend;

use super::host::Base;
use super::{Fault, PROTOCOL_FEATURES};
use crate::device::Device;
use crate::event::{Signal, Stuck};
use crate::memory::Table;
use crate::page::Page;
use crate::replay::Replay;
use crate::worker::{Handed, Kick, Lines, Workers};

/// Why no ring can be placed, and what to do.
const NO_MEMORY: &str = "the front-end has described no memory. QEMU 7.2 does so if its VM was \
    paused while the back-end ended and came back, and its device is dead from then on, until QEMU \
    is started anew: end a back-end only while the VM runs (cont), or use QEMU 10";

/// Why a standby starts no ring.
const WAITS: &str = "another process may still serve this device: this one was started to wait, \
    and was not told to take over";

/// What a start needs of the session.
pub(super) struct Context<'a> {
    pub memory: &'a Table,
    pub features: u64,
    pub inflight: Option<&'a Region>,
    pub page: Option<&'a Arc<Page>>,
    pub replay: &'a Arc<Replay>,
}

/// One ring.
#[derive(Default)]
pub(super) struct Slot {
    pub size: Option<u16>,
    pub address: Option<VhostUserVringAddr>,
    pub base: u16,
    pub kick: Option<Kick>,
    pub call: Arc<Signal>,
    pub err: Arc<Signal>,
    /// `None`: as the specification says for the negotiated features.
    pub enabled: Option<bool>,
    /// While it is parked.
    ring: Option<Ring>,
    /// Its worker has the ring.
    served: bool,
}

impl Slot {
    /// Whether the ring has begun to be served and was not stopped since.
    pub fn is_live(&self) -> bool {
        self.ring.is_some() || self.served
    }

    /// Where the ring lies in guest memory, once enough is said of it.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn layout(&self, memory: &Table) -> Result<Option<Layout>, String> {
        let (Some(size), Some(address)) = (self.size, self.address) else {
            return Ok(None);
        };
        let users = [address.descriptor, address.available, address.used];
        let mut found = users.into_iter().zip(Layout::lengths(size));
        let mut next = || {
            let (user, length) = found.next()?;
            memory.guest_address(user, length)
        };
        match (next(), next(), next()) {
            (Some(descriptors), Some(available), Some(used)) => {
                let layout = Layout::new(size, descriptors, available, used)?;
                Ok(Some(layout))
            }
            _ if memory.memory().num_regions() == 0 => Err(NO_MEMORY.into()),
            _ => Err("a part of the ring is not in one memory region".into()),
        }
    }

    fn running_layout(&self, memory: &Table) -> Option<Layout> {
        let layout = self.served.then(|| self.layout(memory).ok().flatten());
        layout.flatten()
    }
}

/// All rings of a session.
pub(super) struct Rings<'a, D: Device> {
    host: &'a Base<D>,
    workers: &'a mut Workers<D::Queue>,
    slots: Vec<Slot>,
    /// What happened on rings that have been stopped.
    pub tally: Tally,
}

impl<'a, D: Device> Rings<'a, D> {
    pub fn new(host: &'a Base<D>, workers: &'a mut Workers<D::Queue>) -> Self {
        let slots = (0..host.device.queues()).map(|_| Slot::default());
        Self {
            host,
            workers,
            slots: slots.collect(),
            tally: Tally::default(),
        }
    }

    /// Number of rings.
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// The ring that a message names.
    pub fn slot(&mut self, index: u32) -> Result<&mut Slot, Fault> {
        let count = self.slots.len();
        let slot = usize::try_from(index).ok();
        slot.and_then(|index| self.slots.get_mut(index))
            .ok_or_else(|| Fault::Refused(format!("queue {index}, and {count} in all, from 0 on")))
    }

    /// Whether any ring has begun to be served.
    pub fn any_live(&self) -> bool {
        self.slots.iter().any(Slot::is_live)
    }

    /// Whether any ring is being served.
    pub fn any_served(&self) -> bool {
        self.slots.iter().any(|slot| slot.served)
    }

    /// Whether every ring that is served lies in this memory too.
    pub fn fit(&self, memory: &Table) -> bool {
        let mut live = self.slots.iter().filter(|slot| slot.is_live());
        live.all(|slot| slot.layout(memory).is_ok())
    }

    /// Starts every ring that may run and does not.
    ///
    /// # Errors
    /// Says which of them could not; the others have been started.
    pub fn start_all(&mut self, context: &Context<'_>) -> Result<(), Fault> {
        let features = context.features & !PROTOCOL_FEATURES;
        let mut is_any_wanted = false;
        for (number, slot) in (0..).zip(&self.slots) {
            if let (Some(size), Some(_)) = (slot.size, &slot.kick) {
                self.host.device.described(number, size, features);
            }
            is_any_wanted |= slot.is_wanted(context);
        }
        // Most messages start nothing.
        if !is_any_wanted {
            return Ok(());
        }
        if self.host.supervisor.waits() {
            return Err(Fault::Refused(WAITS.into()));
        }
        let (startable, mut result) = self.startable(context);
        let mut rings = Vec::new();
        for index in startable {
            let slot = self.slots.get_mut(index);
            match slot.and_then(|slot| slot.prepare(index, context).transpose()) {
                Some(Ok(ring)) => rings.push(ring),
                Some(Err(why)) => {
                    let why = format!("cannot start queue {index}: {why}");
                    result = Err(Fault::Refused(why));
                }
                None => {}
            }
        }
        let memory = context.memory.memory();
        for (ring, error) in self.workers.serve(rings, features, memory)? {
            let index = ring.0.index;
            self.keep(ring);
            let why = format!("cannot start queue {index}: {error}");
            result = Err(Fault::Refused(why));
        }
        result
    }

    /// The rings that may run and do not. One that cannot is left out, and the
    /// last such is told.
    fn startable(&mut self, context: &Context<'_>) -> (Vec<usize>, Result<(), Fault>) {
        let running = self.slots.iter();
        let mut placed: Vec<Layout> = running
            .filter_map(|slot| slot.running_layout(context.memory))
            .collect();
        let (mut startable, mut result) = (Vec::new(), Ok(()));
        for (index, slot) in self.slots.iter().enumerate() {
            match slot.may_start(context, &placed) {
                Ok(Some(layout)) => {
                    placed.push(layout);
                    startable.push(index);
                }
                Ok(None) => {}
                Err(why) => {
                    let why = format!("cannot start queue {index}: {why}");
                    result = Err(Fault::Refused(why));
                }
            }
        }
        (startable, result)
    }

    /// Puts a ring back in its place.
    fn keep(&mut self, handed: Handed) {
        let (mut lines, mut ring) = *handed;
        lines.show(&ring.tally, 0);
        self.tally.include(&std::mem::take(&mut ring.tally));
        self.host.replay.leave(lines.index);
        if let Some(slot) = self.slots.get_mut(usize::from(lines.index)) {
            slot.ring = Some(ring);
            slot.served = false;
        }
    }

    /// Stops one ring and keeps it; those beside it at its worker go on.
    pub fn park(&mut self, index: u32) -> Result<&mut Slot, Fault> {
        if self.slot(index)?.served {
            self.stop_served(|number| u32::from(number) == index)?;
        }
        self.slot(index)
    }

    /// Stops all rings, side by side, and keeps them.
    pub fn park_all(&mut self) -> Result<(), Stuck> {
        self.stop_served(|_| true)
    }

    fn stop_served(&mut self, which: impl Fn(u16) -> bool) -> Result<(), Stuck> {
        let served = (0..).zip(&self.slots).filter(|(_, slot)| slot.served);
        let served = served.map(|(number, _)| number);
        let queues: Vec<u16> = served.filter(|number| which(*number)).collect();
        let deadline = Deadline::after(self.host.limits.drain);
        for ring in self.workers.stop(&queues, deadline)? {
            self.keep(ring);
        }
        Ok(())
    }

    /// The rings go on in this memory, which keeps all that they lie in.
    pub fn map(&mut self, memory: &Table) -> Result<(), Stuck> {
        let deadline = Deadline::after(self.host.limits.drain);
        self.workers.map(memory.memory(), deadline)
    }

    /// Forgets where to signal, at the end of the session: whoever still does is
    /// got out of it.
    pub fn forget_signals(&self) -> Result<(), Stuck> {
        let deadline = Deadline::after(self.host.limits.message);
        let mut signals = self.slots.iter().flat_map(|slot| [&slot.call, &slot.err]);
        signals.try_for_each(|signal| signal.set(None, deadline))
    }

    /// Stops one ring and forgets its place; returns its base
    /// (GET_VRING_BASE). Where the old ring was, guest memory may be anything by
    /// the time of the next kick descriptor, which need not come last.
    pub fn stop(&mut self, index: u32) -> Result<u16, Fault> {
        let slot = self.park(index)?;
        (slot.kick, slot.size, slot.address) = (None, None, None);
        if let Some(ring) = slot.ring.take() {
            slot.base = ring.next_avail();
        }
        Ok(slot.base)
    }

    /// Stops all rings and forgets everything but where to signal
    /// (RESET_DEVICE). They are disabled again, or enabled from the start if the
    /// front-end does not acknowledge protocol features.
    pub fn reset(&mut self) -> Result<(), Stuck> {
        self.park_all()?;
        for slot in &mut self.slots {
            *slot = Slot {
                call: slot.call.clone(),
                err: slot.err.clone(),
                ..Slot::default()
            };
        }
        Ok(())
    }

    /// Applies other features to the rings that are parked.
    pub fn set_features(&mut self, features: u64) {
        for ring in self.slots.iter_mut().filter_map(|slot| slot.ring.as_mut()) {
            ring.set_features(features);
        }
    }
}

impl Slot {
    /// Whether it is to run and does not.
    fn is_wanted(&self, context: &Context<'_>) -> bool {
        let unasked = context.features & PROTOCOL_FEATURES == 0;
        self.kick.is_some() && self.enabled.unwrap_or(unasked) && !self.served
    }

    /// Where the ring lies, if all that is needed to start it is there and it
    /// does not run.
    ///
    /// # Errors
    /// Says why it cannot be started.
    fn may_start(
        &self,
        context: &Context<'_>,
        others: &[Layout],
    ) -> Result<Option<Layout>, String> {
        if !self.is_wanted(context) {
            return Ok(None);
        }
        let layout = self.layout(context.memory)?;
        let collides = |layout: &Layout| others.iter().any(|other| other.collides(layout));
        if layout.as_ref().is_some_and(collides) {
            return Err("it lies over another ring".into());
        }
        Ok(layout)
    }

    /// The ring to be started: the parked one, or a new one.
    fn prepare(&mut self, index: usize, context: &Context<'_>) -> Result<Option<Handed>, String> {
        let (Some(kick), Some(layout)) = (self.kick.clone(), self.layout(context.memory)?) else {
            return Ok(None);
        };
        let index = u16::try_from(index).map_err(|_| "its index")?;
        let lines = Lines {
            index,
            kick,
            call: self.call.clone(),
            err: self.err.clone(),
            part: context.page.map(|page| page.part(index)),
            replay: context.replay.clone(),
        };
        if let Some(mut ring) = self.ring.take() {
            ring.relocate(layout);
            return Ok(Some(self.hand(lines, ring)));
        }
        let view = View::new(context.memory.memory(), &layout).ok_or("it is not in memory")?;
        let inflight = context.inflight.and_then(|region| region.queue(index));
        let ring = Ring::new(layout, context.features, self.base, inflight, &view);
        let ring = ring.map_err(|why| {
            self.err.signal_aside();
            format!("its state cannot be followed: {why:?}")
        })?;
        let found: Vec<_> = ring.resubmit().collect();
        context.replay.found(index, &found);
        Ok(Some(self.hand(lines, ring)))
    }

    fn hand(&mut self, lines: Lines, ring: Ring) -> Handed {
        self.served = true;
        Box::new((lines, ring))
    }
}
