//! The end of a ring, until its driver has reset the device.

use outboard_protocol::inflight::Corrupt;

/// Why a ring is not followed any more: the device needs a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The available index jumped by more than the ring, or went backwards.
    AvailableIndex,
    /// A head beyond the ring, or one that the device has already.
    Head,
    /// The ring cannot be accessed where it is said to be.
    Unreachable,
    /// The inflight region does not fit the ring.
    Inflight,
    /// The kick descriptor stays readable however often it is read.
    Kick,
    /// The device's engine failed; the host's fault, not the driver's.
    Engine,
}

impl From<Corrupt> for Broken {
    fn from(_: Corrupt) -> Self {
        Self::Inflight
    }
}
