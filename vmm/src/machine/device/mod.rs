//! The thread that owns one device's session with its back-end.

mod mailbox;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use outboard_protocol::launch;

pub use self::mailbox::Mailbox;
use super::kvm::irq::Routes;
use super::memory::Ram;
use super::pci::Function;
use super::virtio::Event;

/// What a device's thread is asked to do.
#[derive(Debug)]
pub enum Command {
    /// The guest did something to the registers.
    Guest(Event),
    /// The guest kicked a queue of a live session, and KVM did not see it.
    Kick(u16),
    /// Here is a connection to a back-end.
    Attach(UnixStream),
    /// End.
    Stop,
}

/// What a device's thread tells the machine's main loop.
#[derive(Debug, PartialEq, Eq)]
pub enum DeviceEvent {
    /// The back-end has answered and fits; once per attach.
    Attached {
        /// The device's id.
        device: String,
    },
    /// The session has ended, or could not begin.
    Lost {
        /// The device's id.
        device: String,
        /// Why, to be shown to the user.
        cause: String,
    },
}

/// A device: its PCI function, and the thread that owns its session.
#[derive(Debug)]
pub struct Device {
    function: Arc<Function>,
    commands: Arc<Mailbox<Command>>,
}

impl Device {
    /// Makes the function and starts the thread, which waits for an attach.
    /// Its events are posted to `events`.
    ///
    /// # Errors
    /// `InvalidInput` when `spec` is not possible, with the reason; else those
    /// of eventfd(2) and of starting a thread.
    pub fn new(
        spec: &launch::Device,
        doorbell: launch::Doorbell,
        ram: Arc<Ram>,
        vm: Arc<VmFd>,
        routes: Arc<Routes>,
        events: Arc<Mailbox<DeviceEvent>>,
    ) -> io::Result<Self> {
        let commands = Arc::new(Mailbox::new()?);
        let function = Function::new(spec, doorbell, &vm, &routes, Arc::clone(&commands))?;
        let _ = (ram, events);
        Ok(Self {
            function: Arc::new(function),
            commands,
        })
    }

    /// Its function, to be put on the bus.
    pub fn function(&self) -> Arc<Function> {
        Arc::clone(&self.function)
    }

    /// Hands over a connection to a back-end: the first, a successor's, or one
    /// after a loss. [`DeviceEvent`] tells what became of it.
    pub fn attach(&self, stream: UnixStream) {
        self.commands.post(Command::Attach(stream));
    }

    /// Ends the session and the thread; waits for it.
    pub fn stop(self) {
        self.commands.post(Command::Stop);
    }
}
