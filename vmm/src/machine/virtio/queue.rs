//! The registers of one queue.

use super::NO_VECTOR;

/// An enabled queue: where the driver has put its ring. The addresses are the
/// guest's word; whoever uses them checks them against memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Index of the queue.
    pub index: u16,
    /// Number of descriptors: a power of two, 1 to the queue's maximum.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring (driver area).
    pub available: u64,
    /// Guest-physical address of the used ring (device area).
    pub used: u64,
}

/// What the driver has written about one queue (virtio 1.3, section 4.1.4.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QueueRegisters {
    max_size: u16,
    /// Number of descriptors, a power of two up to the maximum.
    pub(crate) size: u16,
    /// MSI-X vector, or [`NO_VECTOR`].
    pub(crate) vector: u16,
    /// Whether the driver has enabled it. Nothing but a reset disables it.
    pub(crate) enabled: bool,
    /// Descriptor table.
    pub(crate) descriptors: u64,
    /// Available ring.
    pub(crate) available: u64,
    /// Used ring.
    pub(crate) used: u64,
}

impl QueueRegisters {
    /// A queue as it is after a reset; `max_size` is a power of two.
    pub(crate) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            vector: NO_VECTOR,
            enabled: false,
            descriptors: 0,
            available: 0,
            used: 0,
        }
    }

    /// Back to the state after a reset.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    /// The driver wrote `queue_size`. Ignored once the queue is enabled and
    /// when the value is not one that a driver may write.
    pub(crate) fn set_size(&mut self, size: u16) {
        if !self.enabled && size.is_power_of_two() && size <= self.max_size {
            self.size = size;
        }
    }

    /// The ring, if the queue is enabled.
    pub(crate) fn ring(&self, index: u16) -> Option<Ring> {
        self.enabled.then_some(Ring {
            index,
            size: self.size,
            descriptors: self.descriptors,
            available: self.available,
            used: self.used,
        })
    }
}
