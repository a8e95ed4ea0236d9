//! All devices of a machine, by id and by slot: made, attached, stopped.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use outboard_protocol::launch::{self, Cause, FromMachine, SessionNumber};

use super::device::{Device, Surroundings};
use super::frontend::{Connected, Session};
use super::pci;
use super::post::Mailbox;

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
    pub(crate) fn attach(&self, id: &str, number: SessionNumber, session: Session<Connected>) {
        let mut devices = self.devices.iter();
        match devices.find(|(other, _)| other == id) {
            Some((_, device)) => device.attach(number, session),
            None => self.events.post(FromMachine::Lost {
                device: id.to_owned(),
                session: number,
                cause: Cause::DoesNotFit,
                text: format!("this machine has no device {id}"),
            }),
        }
    }

    /// Ends every session, in slot order.
    pub(crate) fn stop(self) {
        for (_, device) in self.devices {
            device.stop();
        }
    }
}
