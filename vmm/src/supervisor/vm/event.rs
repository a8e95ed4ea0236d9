//! What happens to a VM.

use outboard_protocol::launch::FromMachine;

use super::device;
use super::machine;
use super::pause::Why;
use crate::supervisor::api::call::{Call, Ticket};

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
    /// Somebody asks this by the control API.
    Call(Ticket, Call),
    /// It is to be paused, for one more reason.
    Pause(Why),
    /// An operator lets it go on, whatever the reasons were.
    Resume,
    /// A signal, or Ctrl-A x: somebody asks for the end.
    Asked,
    /// Time has passed.
    Tick,
}
