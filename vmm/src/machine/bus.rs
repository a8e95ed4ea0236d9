//! Where the vCPUs' port and memory accesses go.

/// Something that answers accesses in one address range. Called on vCPU
/// threads, from several at once: never waits for another process.
pub trait Target: Send + Sync {
    /// The guest reads `data.len()` bytes (1, 2, 4 or 8) at `offset` within
    /// the target's range; bytes that nothing answers are left as they are
    /// (the bus has set them to 0xff).
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset` within the target's range.
    fn write(&self, offset: u64, data: &[u8]);
}
