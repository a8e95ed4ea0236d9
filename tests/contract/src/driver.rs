//! The driver of a device: memory that it lends, features that it has, and rings
//! in that memory. What a request is, the tests of each kind of device know.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use crate::client::Client;
use crate::memory::Memory;
use crate::ring::Ring;

/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_EVENT_IDX.
pub const EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_INDIRECT_DESC.
pub const INDIRECT: u64 = 1 << 28;
/// Every feature of a device; the protocol features' bit is none.
pub const EVERYTHING: u64 = !(1 << 30);

/// A driver that has lent its memory.
#[derive(Debug)]
pub struct Driver {
    /// The connection to the back-end.
    pub client: Client,
    /// What it has lent.
    pub memory: Memory,
    /// What was acknowledged.
    pub features: u64,
}

impl Driver {
    /// Acknowledges VERSION_1 and `features` as far as they are offered, and
    /// lends `memory`.
    pub fn new(mut client: Client, features: u64, memory: Memory) -> Self {
        let features = client.negotiate(features | VERSION_1).unwrap();
        client.set_mem_table(&memory).unwrap();
        Self {
            client,
            memory,
            features,
        }
    }

    /// Whether this feature was acknowledged.
    pub fn has(&self, bit: u32) -> bool {
        self.features & (1 << bit) != 0
    }

    /// A ring at `at`, of which the back-end knows nothing.
    pub fn fresh_ring(&self, at: u64, size: u16) -> Ring {
        let event_idx = self.features & EVENT_IDX != 0;
        Ring::new(&self.memory, at, size, event_idx).unwrap()
    }

    /// A ring at `at` that runs.
    pub fn ring(&self, index: u8, at: u64, size: u16) -> Ring {
        let ring = self.fresh_ring(at, size);
        self.client.start_ring(index, &ring, 0).unwrap();
        ring
    }

    /// Writes to guest memory.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.put(at, bytes);
    }

    /// Reads from guest memory.
    pub fn get(&self, at: u64, length: usize) -> Vec<u8> {
        self.memory.get(at, length)
    }
}
