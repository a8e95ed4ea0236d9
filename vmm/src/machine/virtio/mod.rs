//! The registers of a virtio device on PCI, as a pure state machine.
//!
//! No KVM, no threads, no I/O: an access goes in, `Event`s come out, and the
//! PCI function does what they say.

mod event;
mod queue;
mod registers;

pub(crate) use event::{Event, Shape, Source};
pub use queue::Ring;
pub(crate) use registers::{COMMON_LEN, Registers};

/// "No vector" in the MSI-X vector registers (virtio 1.3, section 4.1.5.1.2).
pub(crate) const NO_VECTOR: u16 = 0xffff;
/// The driver follows version 1 of the specification.
pub const F_VERSION_1: u64 = 1 << 32;
/// Indirect descriptors (virtio 1.3, section 2.7.5.3).
pub(crate) const F_INDIRECT_DESC: u64 = 1 << 28;
/// used_event and avail_event (virtio 1.3, section 2.7.7).
pub(crate) const F_EVENT_IDX: u64 = 1 << 29;
/// Features of rings and transport that a back-end may offer through us.
/// Everything else there (ACCESS_PLATFORM, RING_PACKED, RING_RESET, …) changes
/// what the machine itself would have to do, so it is never offered.
pub(crate) const TRANSPORT_FEATURES: u64 = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX;

/// Bits of `device_status` (virtio 1.3, section 2.1).
pub(crate) mod status {
    /// The guest has seen the device.
    pub(crate) const ACKNOWLEDGE: u8 = 1;
    /// The guest has a driver for it.
    pub(crate) const DRIVER: u8 = 2;
    /// The driver is set up; rings may run.
    pub(crate) const DRIVER_OK: u8 = 4;
    /// The features are agreed on.
    pub(crate) const FEATURES_OK: u8 = 8;
    /// The device is broken until it is reset; only the device sets it.
    pub(crate) const NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub(crate) const FAILED: u8 = 128;
}

#[cfg(test)]
mod tests;
