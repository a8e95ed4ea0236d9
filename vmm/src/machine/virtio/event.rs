//! What registers are made for (`Shape`), and what an access to them asks for
//! (`Event`).

use super::queue::Ring;

/// What never changes about a device's registers.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Number of queues, 1 to 64.
    pub(crate) queues: u16,
    /// Largest queue size, a power of two.
    pub(crate) queue_size: u16,
    /// Number of MSI-X vectors.
    pub(crate) vectors: u16,
    /// Length of the device configuration in bytes.
    pub(crate) config_len: usize,
    /// Device features of this kind that may pass.
    pub(crate) device_features: u64,
}

/// Who sends an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A change of the configuration.
    Config,
    /// Used buffers on a queue.
    Queue(u16),
}

/// What an access asks for, beyond the registers themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The driver assigned a vector (or [`super::NO_VECTOR`]) to a source.
    Vector {
        /// Whose.
        source: Source,
        /// Below the number of vectors, or [`super::NO_VECTOR`].
        vector: u16,
    },
    /// A reset: no source has a vector any more.
    VectorsCleared,
    /// The driver is ready: start these rings.
    DriverOk {
        /// The features agreed on.
        features: u64,
        /// The enabled queues.
        rings: Vec<Ring>,
    },
    /// The driver enabled one more queue after it was ready.
    RingEnabled(Ring),
    /// Stop every ring, then call [`super::Registers::reset_done`].
    Reset,
    /// The driver wrote to the device configuration; call
    /// [`super::Registers::config_written`] when the back-end has it.
    ConfigWrite {
        /// Offset in the device configuration.
        offset: u32,
        /// What it wrote, 1 to 8 bytes.
        data: Vec<u8>,
    },
}
