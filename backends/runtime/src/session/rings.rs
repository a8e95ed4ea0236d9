//! The rings of a session: what the front-end has said of each, and the worker
//! that serves it.
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

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outboard_protocol::Deadline;
use outboard_protocol::inflight::Region;
use outboard_ring::{Layout, Ring, Tally, View};
use vhost::vhost_user::message::VhostUserVringAddr;
use vm_memory::GuestMemoryBackend;

use super::{Fault, Limits, PROTOCOL_FEATURES};
use crate::device::Device;
use crate::event::Signal;
use crate::event::Stuck;
use crate::memory::Table;
use crate::worker::{self, Kick, Lines, NotStarted, Setup, Worker};

/// A device's queue must be there within this.
const START: Duration = Duration::from_secs(10);

/// Why no ring can be placed, and what to do.
const NO_MEMORY: &str = "the front-end has described no memory. QEMU 7.2 does so if its VM was \
    paused while the back-end ended and came back, and its device is dead from then on, until QEMU \
    is started anew: end a back-end only while the VM runs (cont), or use QEMU 10";

/// What a start needs of the session.
pub(super) struct Context<'a> {
    pub memory: &'a Table,
    pub features: u64,
    pub inflight: Option<&'a Region>,
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
    ring: Option<Ring>,
    /// The worker that has the ring.
    worker: Option<u16>,
}

impl Slot {
    /// Whether the ring has begun to be served and was not stopped since.
    pub fn is_live(&self) -> bool {
        self.ring.is_some() || self.worker.is_some()
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
        self.worker?;
        self.layout(memory).ok().flatten()
    }
}

/// All rings of a session.
pub(super) struct Rings<D> {
    device: Arc<D>,
    limits: Limits,
    slots: Vec<Slot>,
    workers: BTreeMap<u16, Worker>,
    /// What happened on rings that have been stopped.
    pub tally: Tally,
}

impl<D: Device> Rings<D> {
    pub fn new(device: Arc<D>, limits: Limits) -> Self {
        let slots = (0..device.queues()).map(|_| Slot::default()).collect();
        Self {
            device,
            limits,
            slots,
            workers: BTreeMap::new(),
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
        self.slots.iter().any(|slot| slot.worker.is_some())
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
        for (number, slot) in (0..).zip(&self.slots) {
            if let (Some(size), Some(_)) = (slot.size, &slot.kick) {
                self.device.described(number, size, features);
            }
        }
        let (startable, mut result) = self.startable(context);
        let mut workers: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for index in startable {
            // There are no more than fit in a message.
            let number = u16::try_from(index).unwrap_or(u16::MAX);
            let worker = self.device.worker(number, features);
            workers.entry(worker).or_default().push(index);
        }
        for (worker, new) in workers {
            match self.start(worker, &new, context) {
                Err(Fault::Stuck) => return Err(Fault::Stuck),
                Err(fault) => result = Err(fault),
                Ok(()) => {}
            }
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

    /// Starts a worker anew, with these rings more.
    fn start(&mut self, worker: u16, new: &[usize], context: &Context<'_>) -> Result<(), Fault> {
        let mut members: Vec<usize> = (0..self.slots.len())
            .filter(|index| {
                self.slots
                    .get(*index)
                    .is_some_and(|slot| slot.worker == Some(worker))
            })
            .collect();
        self.park_worker(worker, Deadline::after(self.limits.drain))?;
        members.extend(new);
        members.sort_unstable();
        let (mut rings, mut result) = (Vec::new(), Ok(()));
        for index in members {
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
        if rings.is_empty() {
            return result;
        }
        let indices: Vec<u16> = rings.iter().map(|(lines, _)| lines.index).collect();
        let setup = Setup {
            device: self.device.clone(),
            features: context.features & !PROTOCOL_FEATURES,
            memory: context.memory.memory().clone(),
            poll: self.limits.poll,
        };
        match Worker::start(setup, rings, Deadline::after(START)) {
            Ok(started) => {
                self.workers.insert(worker, started);
                for index in indices {
                    self.slot(index.into())?.worker = Some(worker);
                }
                result
            }
            Err(NotStarted::Stuck) => Err(Fault::Stuck),
            Err(NotStarted::Refused(rings, error)) => {
                self.keep(rings);
                let why = format!("cannot start queues {indices:?}: {error}");
                Err(Fault::Refused(why))
            }
        }
    }

    /// Puts rings back in their places.
    fn keep(&mut self, rings: worker::Rings) {
        for (lines, mut ring) in rings {
            self.tally += std::mem::take(&mut ring.tally);
            if let Some(slot) = self.slots.get_mut(usize::from(lines.index)) {
                slot.ring = Some(ring);
                slot.worker = None;
            }
        }
    }

    /// Stops a worker and keeps its rings.
    fn park_worker(&mut self, worker: u16, deadline: Deadline) -> Result<(), Stuck> {
        if let Some(worker) = self.workers.remove(&worker) {
            let rings = worker.finish(deadline)?;
            self.keep(rings);
        }
        Ok(())
    }

    /// Stops one ring and keeps it. Others of the same worker stop too, until
    /// [`Self::start_all`].
    pub fn park(&mut self, index: u32) -> Result<&mut Slot, Fault> {
        let deadline = Deadline::after(self.limits.drain);
        if let Some(worker) = self.slot(index)?.worker {
            self.park_worker(worker, deadline)?;
        }
        self.slot(index)
    }

    /// Stops all rings, side by side, and keeps them.
    pub fn park_all(&mut self) -> Result<(), Stuck> {
        self.workers.values().for_each(Worker::ask_to_stop);
        let deadline = Deadline::after(self.limits.drain);
        while let Some((_, worker)) = self.workers.pop_first() {
            let rings = worker.finish(deadline)?;
            self.keep(rings);
        }
        Ok(())
    }

    /// Forgets where to signal, at the end of the session: whoever still does is
    /// got out of it.
    pub fn forget_signals(&self) -> Result<(), Stuck> {
        let deadline = Deadline::after(self.limits.message);
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
        let unasked = context.features & PROTOCOL_FEATURES == 0;
        if self.kick.is_none() || !self.enabled.unwrap_or(unasked) || self.worker.is_some() {
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
    fn prepare(
        &mut self,
        index: usize,
        context: &Context<'_>,
    ) -> Result<Option<(Lines, Ring)>, String> {
        let (Some(kick), Some(layout)) = (self.kick.clone(), self.layout(context.memory)?) else {
            return Ok(None);
        };
        let index = u16::try_from(index).map_err(|_| "its index")?;
        let lines = Lines {
            index,
            kick,
            call: self.call.clone(),
            err: self.err.clone(),
        };
        if let Some(mut ring) = self.ring.take() {
            ring.relocate(layout);
            return Ok(Some((lines, ring)));
        }
        let view = View::new(context.memory.memory(), &layout).ok_or("it is not in memory")?;
        let inflight = context.inflight.and_then(|region| region.queue(index));
        let ring = Ring::new(layout, context.features, self.base, inflight, &view);
        let ring = ring.map_err(|why| {
            self.err.signal_aside();
            format!("its state cannot be followed: {why:?}")
        })?;
        Ok(Some((lines, ring)))
    }
}
