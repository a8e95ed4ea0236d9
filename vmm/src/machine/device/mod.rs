//! A device: its PCI function, and the thread that owns its session with its
//! back-end (`worker`).
//!
//! The two meet in three places: commands go to the thread through a mailbox,
//! the thread changes the registers under the function's lock, and both see to
//! doorbells and interrupts under locks of those. A vCPU thread never waits for
//! the device's thread.

mod backend;
mod driver;
mod errors;
pub mod kinds;
mod ring;
mod worker;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use kvm_ioctls::VmFd;
use outboard_protocol::launch::{self, SessionNumber};

use self::worker::Worker;
use super::frontend::{Connected, Interruption, Session};
use super::kvm::irq::Routes;
use super::memory::Ram;
use super::pci::Function;
use super::post::{Command, DeviceEvent, Mailbox};

/// What all devices of a machine share.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Where queue notifications go.
    pub doorbell: launch::Doorbell,
    /// Who signals the kick eventfds.
    pub kick_path: launch::KickPath,
    /// Guest memory.
    pub ram: Arc<Ram>,
    /// The VM in KVM.
    pub vm: Arc<VmFd>,
    /// Its interrupts.
    pub routes: Arc<Routes>,
    /// What the devices tell the main loop.
    pub events: Arc<Mailbox<DeviceEvent>>,
}

/// A device: its PCI function, and the thread that owns its session. Dropping
/// it ends both.
#[derive(Debug)]
pub struct Device {
    function: Arc<Function>,
    commands: Arc<Mailbox<Command>>,
    interruption: Arc<Interruption>,
    thread: Option<JoinHandle<()>>,
}

impl Device {
    /// Makes the function and starts the thread, which waits for an attach.
    /// Its events are posted to those of `surroundings`.
    ///
    /// # Errors
    /// `InvalidInput` when `spec` is not possible, with the reason; else those
    /// of eventfd(2) and of starting a thread.
    pub fn new(spec: &launch::Device, surroundings: &Surroundings) -> io::Result<Self> {
        let commands = Arc::new(Mailbox::new()?);
        let Surroundings {
            ram, vm, routes, ..
        } = surroundings;
        let kicks = (surroundings.doorbell, surroundings.kick_path);
        let function = Function::new(spec, kicks, vm, routes, Arc::clone(&commands))?;
        let function = Arc::new(function);
        let interruption = Arc::new(Interruption::default());
        let worker = Worker::new(
            spec.clone(),
            Arc::clone(ram),
            Arc::clone(&function),
            Arc::clone(&commands),
            Arc::clone(&interruption),
            Arc::clone(&surroundings.events),
        );
        let name: String = format!("device {}", spec.id).chars().take(15).collect();
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || worker.run())?;
        Ok(Self {
            function,
            commands,
            interruption,
            thread: Some(thread),
        })
    }

    /// Its function, to be put on the bus.
    pub fn function(&self) -> Arc<Function> {
        Arc::clone(&self.function)
    }

    /// Hands over a connection to a back-end. [`DeviceEvent`] tells what became
    /// of it.
    pub fn attach(&self, number: SessionNumber, session: Session<Connected>) {
        self.commands.post(Command::Attach(number, session));
    }

    /// Ends the session and the thread, and waits for it: not longer than for
    /// what it is doing in this process.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.interruption.stop();
        self.commands.post(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("a device's thread ended by a panic");
        }
    }
}

#[cfg(test)]
mod tests;
