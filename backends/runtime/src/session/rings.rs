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

use std::sync::Arc;
use std::time::Duration;

use outboard_protocol::Deadline;
use outboard_protocol::inflight::Region;
use vhost::vhost_user::message::VhostUserVringAddr;

use super::{Fault, Limits, PROTOCOL_FEATURES};
use crate::counters::Tally;
use crate::device::Device;
use crate::event::Signal;
use crate::memory::Table;
use crate::ring::{Layout, Ring, View};
use crate::worker::{Kick, NotStarted, Setup, Stuck, Worker};

/// A device's queue must be there within this.
const START: Duration = Duration::from_secs(10);

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
    worker: Option<Worker>,
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
            _ => Err("a part of it is not in one memory region".into()),
        }
    }

    fn running_layout(&self, memory: &Table) -> Option<Layout> {
        self.worker.as_ref()?;
        self.layout(memory).ok().flatten()
    }
}

/// All rings of a session.
pub(super) struct Rings<D> {
    device: Arc<D>,
    limits: Limits,
    slots: Vec<Slot>,
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
            .ok_or_else(|| Fault::Refused(format!("queue {index} of {count}")))
    }

    /// Whether any ring has begun to be served.
    pub fn any_live(&self) -> bool {
        self.slots.iter().any(Slot::is_live)
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
        let mut result = Ok(());
        for index in 0..self.slots.len() {
            match self.start(index, context) {
                Err(Fault::Stuck) => return Err(Fault::Stuck),
                Err(fault) => result = Err(fault),
                Ok(()) => {}
            }
        }
        result
    }

    fn start(&mut self, index: usize, context: &Context<'_>) -> Result<(), Fault> {
        let refused = |why: String| Fault::Refused(format!("cannot start queue {index}: {why}"));
        let others: Vec<Layout> = self
            .slots
            .iter()
            .filter_map(|slot| slot.running_layout(context.memory))
            .collect();
        let Some(slot) = self.slots.get_mut(index) else {
            return Ok(());
        };
        let enabled = slot
            .enabled
            .unwrap_or(context.features & PROTOCOL_FEATURES == 0);
        let (Some(kick), true, None) = (slot.kick.clone(), enabled, &slot.worker) else {
            return Ok(());
        };
        let Some(layout) = slot.layout(context.memory).map_err(refused)? else {
            return Ok(());
        };
        if others.iter().any(|other| other.collides(&layout)) {
            return Err(refused("it lies over another ring".into()));
        }
        let number = u16::try_from(index).map_err(|_| refused("its index".into()))?;
        let ring = slot.prepare(layout, number, context).map_err(refused)?;
        let setup = Setup {
            device: self.device.clone(),
            index: number,
            features: context.features & !PROTOCOL_FEATURES,
            memory: context.memory.memory().clone(),
            kick,
            call: slot.call.clone(),
            err: slot.err.clone(),
            poll: self.limits.poll,
        };
        match Worker::start(setup, ring, Deadline::after(START)) {
            Ok(worker) => slot.worker = Some(worker),
            Err(NotStarted::Stuck) => return Err(Fault::Stuck),
            Err(NotStarted::Refused(ring, error)) => {
                slot.ring = Some(*ring);
                return Err(refused(error.to_string()));
            }
        }
        Ok(())
    }

    /// Stops one ring and keeps it.
    pub fn park(&mut self, index: u32) -> Result<&mut Slot, Fault> {
        let deadline = Deadline::after(self.limits.drain);
        let slot = self.slot(index)?;
        if let Some(worker) = slot.worker.take() {
            let mut ring = worker.finish(deadline)?;
            let tally = std::mem::take(&mut ring.tally);
            slot.ring = Some(ring);
            self.tally += tally;
        }
        self.slot(index)
    }

    /// Stops all rings, side by side, and keeps them.
    pub fn park_all(&mut self) -> Result<(), Stuck> {
        for slot in &self.slots {
            if let Some(worker) = &slot.worker {
                worker.ask_to_stop();
            }
        }
        let deadline = Deadline::after(self.limits.drain);
        for slot in &mut self.slots {
            if let Some(worker) = slot.worker.take() {
                let mut ring = worker.finish(deadline)?;
                self.tally += std::mem::take(&mut ring.tally);
                slot.ring = Some(ring);
            }
        }
        Ok(())
    }

    /// Stops one ring and forgets its place; answers its base
    /// (GET_VRING_BASE).
    pub fn stop(&mut self, index: u32) -> Result<u16, Fault> {
        let slot = self.park(index)?;
        slot.kick = None;
        if let Some(ring) = slot.ring.take() {
            slot.base = ring.next_avail();
        }
        Ok(slot.base)
    }

    /// Stops all rings and forgets everything but where to signal
    /// (RESET_DEVICE).
    pub fn reset(&mut self) -> Result<(), Stuck> {
        self.park_all()?;
        for slot in &mut self.slots {
            *slot = Slot {
                call: slot.call.clone(),
                err: slot.err.clone(),
                enabled: Some(false),
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
    /// The ring to be started: the parked one, or a new one.
    fn prepare(
        &mut self,
        layout: Layout,
        index: u16,
        context: &Context<'_>,
    ) -> Result<Ring, String> {
        if let Some(mut ring) = self.ring.take() {
            ring.relocate(layout);
            return Ok(ring);
        }
        let view = View::new(context.memory.memory(), &layout).ok_or("it is not in memory")?;
        let inflight = context.inflight.and_then(|region| region.queue(index));
        Ring::new(layout, context.features, self.base, inflight, &view).map_err(|why| {
            self.err.signal();
            format!("its state cannot be followed: {why:?}")
        })
    }
}
