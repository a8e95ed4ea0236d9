//! What happens to a VM, and what is to be done about it.

use outboard_protocol::launch::{FromMachine, SessionNumber};

use super::device;
use super::machine;

/// What happens to a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is to be started.
    Begin,
    /// The machine has sent this.
    Said(FromMachine),
    /// Something happened to the machine process.
    Machine(machine::Event),
    /// Something happened to the device at this place.
    Device(usize, device::Event),
    /// A signal, or Ctrl-A x: somebody asks for the end.
    Asked,
    /// Time has passed.
    Tick,
}

/// A process of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The machine's.
    Machine,
    /// The back-end's of the device at this place.
    Device(usize),
}

/// What is to be done. None of it waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look for whom this device needs.
    Seek(usize),
    /// Look no more.
    StopSeeking(usize),
    /// Start the machine process and tell it what to build.
    StartMachine,
    /// Start the program of this device, if it has one, and hand its connection
    /// to the machine, as this session.
    Attach(usize, SessionNumber),
    /// Tell the machine to stop.
    StopMachine,
    /// Send SIGTERM.
    Terminate(Who),
    /// Send SIGKILL.
    Kill(Who),
    /// Leave it alone: it was killed, and hangs in the kernel.
    Abandon(Who),
    /// Give the guest the terminal, if there is one.
    GuestRuns,
    /// Take the terminal back.
    GuestIsOver,
    /// Say this to the user.
    Say(String),
}
