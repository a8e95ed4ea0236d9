//! All devices of a machine, by id and by slot: made, attached, stopped.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use outboard_protocol::launch::{self, Cause, FromMachine, Replaces, SessionNumber};

use super::device::{Device, Surroundings};
use super::pci;
use super::post::{Mailbox, Newcomer};

/// The devices, and what they tell.
pub(crate) struct Devices {
    /// By id, in slot order.
    devices: Vec<(String, Device)>,
    events: Arc<Mailbox<FromMachine>>,
}

impl Devices {
    /// Makes the devices, and the bus with each in its slot.
    ///
    /// # Errors
    /// Which device cannot be made, and why.
    pub(crate) fn new(
        planned: &[launch::Device],
        surroundings: &Surroundings,
    ) -> Result<(Self, pci::Targets)> {
        let mut host = pci::Host::new();
        let mut devices: Vec<(String, Device)> = Vec::new();
        for device in planned {
            let id = &device.id;
            if devices.iter().any(|(other, _)| other == id) {
                bail!("two devices have the id {id}");
            }
            let made = Device::new(device, surroundings);
            let made = made.with_context(|| format!("making the device {id}"))?;
            host.add(made.function())
                .with_context(|| format!("putting the device {id} on the bus"))?;
            devices.push((id.clone(), made));
        }
        let events = Arc::clone(&surroundings.events);
        Ok((Self { devices, events }, host.targets()))
    }

    /// Their ids, in slot order.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &str> {
        self.devices.iter().map(|(id, _)| id.as_str())
    }

    /// What they tell; readable when there is something.
    pub(crate) fn events(&self) -> &Mailbox<FromMachine> {
        &self.events
    }

    /// Hands a device a connection to a back-end. An event tells what became of
    /// it, also where there is no such device.
    pub(crate) fn attach(&self, id: &str, newcomer: Newcomer) {
        match self.find(id) {
            Some(device) => device.attach(newcomer),
            None => self.knows_no(id, newcomer.number),
        }
    }

    /// Hands a device a connection to a back-end that is to wait; as [`Self::attach`].
    pub(crate) fn prepare(&self, id: &str, newcomer: Newcomer) {
        match self.find(id) {
            Some(device) => device.prepare(newcomer),
            None => self.knows_no(id, newcomer.number),
        }
    }

    /// The back-end of a device that waits is to serve; as [`Self::attach`].
    pub(crate) fn promote(&self, id: &str, number: SessionNumber, replaces: Replaces) {
        match self.find(id) {
            Some(device) => device.promote(number, replaces),
            None => self.knows_no(id, number),
        }
    }

    /// The back-end of this session of a device is to hand back its rings; as
    /// [`Self::attach`].
    pub(crate) fn hand_back(&self, id: &str, number: SessionNumber) {
        match self.find(id) {
            Some(device) => device.hand_back(number),
            None => self.knows_no(id, number),
        }
    }

    fn knows_no(&self, id: &str, session: SessionNumber) {
        self.events.post(FromMachine::Lost {
            device: id.to_owned(),
            session,
            cause: Cause::DoesNotFit,
            text: format!("this machine has no device {id}"),
        });
    }

    /// Whoever served this session of a device, and any before, is gone, and its I/O
    /// is over.
    pub(crate) fn is_vacant(&self, id: &str, number: SessionNumber) {
        if let Some(device) = self.find(id) {
            device.is_vacant(number);
        }
    }

    fn find(&self, id: &str) -> Option<&Device> {
        let mut devices = self.devices.iter();
        devices.find_map(|(other, device)| (other == id).then_some(device))
    }

    /// Ends every session, in slot order.
    pub(crate) fn stop(self) {
        for (_, device) in self.devices {
            device.stop();
        }
    }
}
