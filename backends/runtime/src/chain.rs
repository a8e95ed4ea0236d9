//! A descriptor chain as it was read, once, from guest memory.

use vm_memory::GuestAddress;

/// One buffer of a chain (virtio 1.3, section 2.7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where it begins in guest-physical memory; not checked.
    pub address: GuestAddress,
    /// Its length in bytes; not checked.
    pub length: u32,
}

/// A chain: device-readable buffers, then device-writable ones (virtio 1.3,
/// section 2.7.4.2 has no other order). Addresses and lengths are the guest's
/// word; the device checks them against memory as it uses them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Index of the first descriptor: what names the chain until it is used.
    pub head: u16,
    /// What the driver wrote for the device.
    pub readable: Vec<Buffer>,
    /// Where the device may write.
    pub writable: Vec<Buffer>,
}
