//! Why a VM is paused.

/// Why a VM is to be paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Why {
    /// An operator asks for it.
    Operator,
    /// The device at this place is without a back-end, and the VM is to wait for one.
    Device(usize),
    /// A request to the device at this place has failed, and waits until it can be
    /// executed again.
    IoError(usize),
}
