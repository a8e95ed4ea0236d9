//! What happens to a VM.

use outboard_protocol::launch::FromMachine;

use super::device;
use super::machine;

/// What happens to a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
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
