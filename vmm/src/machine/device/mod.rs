//! A device: its PCI function, and the thread that owns what becomes of it
//! (`owner.rs`).
//!
//! The two meet in three places: commands go to the owner through its mailbox, the
//! owner changes the registers under the function's lock, and both see to
//! doorbells and interrupts under locks of those. A vCPU thread never waits for
//! the owner, but where the guest turns bus mastering off.
//!
//! | what | lives |
//! |---|---|
//! | `seat.rs`: what the device is, its function, guest memory | as long as the device |
//! | `driver.rs`: what the driver has set up | until the driver resets the device |
//! | `vacancy.rs`: what waits until a back-end that was lost is gone | until then |
//! | `serving.rs`: a session whose back-end fits | until the back-end is lost |
//! | `standby.rs`: a back-end that waits | until it serves, or is lost |
//! | `watch.rs`: whether its rings are served | as long as the device |
//! | `introduce.rs`: a connection that may become one; `resume.rs`: whether it can go on where another was lost | for one attach |

mod backend;
mod driver;
mod errors;
mod introduce;
pub mod kinds;
mod mastering;
mod owner;
mod resume;
mod ring;
mod seat;
mod serving;
mod standby;
mod vacancy;
mod watch;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use kvm_ioctls::VmFd;
use outboard_protocol::launch::{self, FromMachine, Replaces, SessionNumber};

use self::owner::Owner;
use self::seat::Seat;
use self::standby::Standby;
use super::frontend::Interruption;
use super::gate::Gate;
use super::kvm::irq::Routes;
use super::memory::Ram;
use super::pci::Function;
use super::post::{Command, Mailbox, Newcomer};

/// What all devices of a machine share.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    /// Where queue notifications go.
    pub(crate) doorbell: launch::Doorbell,
    /// Who signals the kick eventfds.
    pub(crate) kick_path: launch::KickPath,
    /// Guest memory.
    pub(crate) ram: Arc<Ram>,
    /// The VM in KVM.
    pub(crate) vm: Arc<VmFd>,
    /// Its interrupts.
    pub(crate) routes: Arc<Routes>,
    /// Where its vCPUs wait, and why its run ends.
    pub(crate) gate: Arc<Gate>,
    /// What the devices tell the main loop.
    pub(crate) events: Arc<Mailbox<FromMachine>>,
}

/// A device: its PCI function and its owner. Dropping it ends both.
#[derive(Debug)]
pub(crate) struct Device {
    function: Arc<Function>,
    commands: Arc<Mailbox<Command>>,
    /// Of the session, and of one that waits.
    interruptions: [Arc<Interruption>; 2],
    thread: Option<JoinHandle<()>>,
}

impl Device {
    /// Makes the function and starts the owner, which waits for an attach. What it
    /// tells is posted to the events of `surroundings`.
    ///
    /// # Errors
    /// `InvalidInput` when `spec` is not possible, with the reason; else those
    /// of eventfd(2) and of starting a thread.
    pub(crate) fn new(spec: &launch::Device, surroundings: &Surroundings) -> io::Result<Self> {
        let commands = Arc::new(Mailbox::new()?);
        let Surroundings {
            ram,
            vm,
            routes,
            gate,
            ..
        } = surroundings;
        let kicks = (surroundings.doorbell, surroundings.kick_path);
        let function = Function::new(spec, kicks, vm, routes, Arc::clone(&commands), gate)?;
        let function = Arc::new(function);
        let interruptions: [Arc<Interruption>; 2] = Default::default();
        let [interruption, waiting] = interruptions.clone();
        let seat = Seat {
            spec: spec.clone(),
            function: Arc::clone(&function),
            ram: Arc::clone(ram),
        };
        let owner = Owner::new(
            seat,
            Arc::clone(&commands),
            Arc::clone(&surroundings.events),
            interruption,
            Standby::new(waiting)?,
        );
        let name: String = format!("device {}", spec.id).chars().take(15).collect();
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || owner.run())?;
        Ok(Self {
            function,
            commands,
            interruptions,
            thread: Some(thread),
        })
    }

    /// Its function, to be put on the bus.
    pub(crate) fn function(&self) -> Arc<Function> {
        Arc::clone(&self.function)
    }

    /// Hands over a connection to a back-end. [`FromMachine`] tells what became
    /// of it.
    pub(crate) fn attach(&self, newcomer: Newcomer) {
        self.commands.post(Command::Attach(newcomer));
    }

    /// Hands over a connection to a back-end that is to wait. [`FromMachine`] tells what
    /// became of it.
    pub(crate) fn prepare(&self, newcomer: Newcomer) {
        self.commands.post(Command::Prepare(newcomer));
    }

    /// The back-end that waits, of this session, is to serve. [`FromMachine`] tells what
    /// became of it.
    pub(crate) fn promote(&self, number: SessionNumber, replaces: Replaces) {
        self.commands.post(Command::Promote(number, replaces));
    }

    /// The back-end of this session is to hand back its rings. [`FromMachine`] tells what
    /// became of it.
    pub(crate) fn hand_back(&self, number: SessionNumber) {
        self.commands.post(Command::HandBack(number));
    }

    /// Whoever served this session, and any before, is gone, and its I/O is over.
    pub(crate) fn is_vacant(&self, number: SessionNumber) {
        self.commands.post(Command::Vacant(number));
    }

    /// Ends the session and the thread, and waits for it: not longer than for
    /// what it is doing in this process.
    pub(crate) fn stop(self) {
        drop(self);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.interruptions.iter().for_each(|it| it.stop());
        self.commands.post(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("a device's owner ended by a panic");
        }
    }
}

#[cfg(test)]
mod tests;
