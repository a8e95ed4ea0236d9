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
mod mailbox;
mod pairs;
mod ring;
mod worker;
mod writable;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use kvm_ioctls::VmFd;
use outboard_protocol::launch::{self, Cause, SessionNumber};

pub use self::mailbox::Mailbox;
use self::worker::Worker;
use super::frontend::{Connected, Interruption, Session};
use super::kvm::irq::Routes;
use super::memory::Ram;
use super::pci::{Clearing, Function};
use super::virtio::Event;

/// Most configuration writes that wait for a back-end; a guest that does more
/// at once has no driver, and what it writes beyond is dropped.
const MAX_CONFIG_WRITES: usize = 64;

/// What a device's thread is asked to do.
#[derive(Debug)]
pub enum Command {
    /// The guest did something to the registers.
    Guest(Event),
    /// The guest kicked a queue of a live session, and KVM did not see it.
    Kick(u16),
    /// The guest let the device touch its memory.
    MayMaster,
    /// The guest let it no more; it is to be told when nothing is written.
    MustNotMaster(Clearing),
    /// Here is a connection to a back-end.
    Attach(SessionNumber, Session<Connected>),
    /// End.
    Stop,
}

impl Command {
    /// Posts a command; however many a guest causes, few wait. Answers whether
    /// a configuration write was dropped for it.
    #[must_use]
    pub fn post_to(self, mailbox: &Mailbox<Self>) -> bool {
        let mut dropped = false;
        let is_write = |command: &Self| matches!(command, Self::Guest(Event::ConfigWrite { .. }));
        mailbox.change(|queue| match &self {
            Self::Kick(queue_index) => {
                let same = |other: &Self| matches!(other, Self::Kick(q) if q == queue_index);
                if !queue.iter().any(same) {
                    queue.push_back(self);
                }
            }
            command if is_write(command) => {
                let waiting = queue.iter().filter(|other| is_write(other)).count();
                if waiting < MAX_CONFIG_WRITES {
                    queue.push_back(self);
                } else if let Some(last) = queue.iter_mut().rfind(|other| is_write(other)) {
                    *last = self;
                    dropped = true;
                }
            }
            _ => queue.push_back(self),
        });
        dropped
    }
}

/// What a device's thread tells the machine's main loop.
#[derive(Debug, PartialEq, Eq)]
pub enum DeviceEvent {
    /// The back-end has answered and fits; once per attach.
    Attached {
        /// The device's id.
        device: String,
        /// That of the attach.
        session: SessionNumber,
    },
    /// The session has ended, or could not begin.
    Lost {
        /// The device's id.
        device: String,
        /// That of the attach.
        session: SessionNumber,
        /// Why.
        cause: Cause,
        /// The same, to be shown to the user.
        text: String,
    },
    /// The machine itself cannot serve the device: its back-end is not to
    /// blame.
    Failed {
        /// The device's id.
        device: String,
        /// Why, and what to do.
        cause: String,
    },
}

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
